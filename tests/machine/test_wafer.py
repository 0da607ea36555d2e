"""The numbers of the wafers against the datasheets, each with a source."""

import dataclasses

import jax
import pytest

from wsc.machine.wafer import KINDS, WAFERS, WSE2, WSE3, Wafer, number


def test_published_totals():
    """44 GB in 900,000 cores of 48 KB; what a program may use is 98 % of it."""
    assert 0.97 * 900_000 < WSE3.pes < 900_000
    assert 41e9 < WSE3.pes * WSE3.sram_bytes < 44e9 * 1.024
    assert 0.86 * 850_000 < WSE2.pes < 850_000


def test_sram_bandwidth_is_21_petabytes_at_the_datasheets_clock():
    fast = dataclasses.replace(WSE3, clock_hz=1.1e9)
    assert 20e15 < fast.peak_sram_bytes_per_second < 24e15


@pytest.mark.parametrize("wafer", WAFERS.values(), ids=str)
def test_every_number_has_unit_kind_and_source(wafer):
    rows = wafer.sources()
    assert {r["name"] for r in rows} == {f.name for f in dataclasses.fields(Wafer)} - {"name"}
    for row in rows:
        assert row["kind"] in KINDS
        assert row["unit"] and len(row["source"]) > 10
        assert row["value"] == getattr(wafer, row["name"]) > 0


def test_a_kind_that_does_not_exist():
    with pytest.raises(ValueError, match="guessed"):
        number(1, "B", "guessed", "nowhere")


def test_lanes_by_element_size():
    assert [WSE3.fmac_per_cycle(n) for n in (1, 2, 4)] == [4, 4, 1]
    assert [WSE3.vector_per_cycle(n) for n in (1, 2, 4)] == [8, 8, 2]


def test_a_wafer_is_a_value_and_a_pytree():
    assert dataclasses.replace(WSE3) == WSE3
    assert hash(dataclasses.replace(WSE3)) == hash(WSE3)
    assert jax.tree.map(lambda v: v, WSE3) == WSE3
    assert len(jax.tree.leaves(WSE3)) == len(dataclasses.fields(Wafer)) - 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        WSE3.rows = 3


def test_vmap_over_a_hardwarenumber():
    clocks = jax.numpy.array([1.0e9, 2.0e9])
    peaks = jax.vmap(lambda hz: dataclasses.replace(WSE3, clock_hz=hz).peak_sram_bytes_per_second)(clocks)
    assert peaks[1] == pytest.approx(2 * peaks[0])
