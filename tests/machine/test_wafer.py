"""The numbers of the wafers against the datasheets, each with a source."""

import dataclasses

import jax
import numpy as np
import pytest

from wsc.errors import ArgumentError
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
    assert {r["name"] for r in rows} == {f.name for f in dataclasses.fields(Wafer)} - {"name", "defects"}
    for row in rows:
        assert row["kind"] in KINDS
        assert row["unit"] and len(row["source"]) > 10
        assert row["value"] == getattr(wafer, row["name"]) >= 0


def test_a_kind_that_does_not_exist():
    with pytest.raises(ValueError, match="guessed"):
        number(1, "B", "guessed", "nowhere")


def test_a_number_that_differs_has_a_source_of_its_own():
    """Else the table would give WSE-3's source for a number of WSE-2."""
    two, three = ({r["name"]: r for r in w.sources()} for w in (WSE2, WSE3))
    for name in two:
        if two[name]["value"] != three[name]["value"]:
            told = two[name]["source"]
            assert told != three[name]["source"] or "WSE-2" in told or name == "fabric_inputs", name


@pytest.mark.parametrize(
    ("kind", "itemsize", "two", "three"),
    [
        ("fmac", 2, 4, 8),
        ("fmac", 4, 1, 1),
        ("vector", 1, 4, 8),
        ("vector", 2, 4, 8),
        ("vector", 4, 2, 2),
        ("sum", 2, 1, 1),
    ],
)
def test_lanes_by_kind_and_element_size(kind, itemsize, two, three):
    """Published: 4 and 8 lanes of 16 bits, 2 of 32, one 32-bit multiply-accumulate; one accumulator takes 1."""
    assert (WSE2.lanes(kind, itemsize), WSE3.lanes(kind, itemsize)) == (two, three)


def test_bank_conflicts_by_generation():
    """5,124 products in 32 bits took 10,254 cycles on a WSE-2; WSE-3 shows none in 32 bits."""
    assert (WSE2.conflict(4), WSE3.conflict(4), WSE3.conflict(2)) == (1, 0, 1)


def test_a_relay_is_two_ramps_and_an_instruction():
    assert WSE3.relay_cycles == WSE2.relay_cycles == 2 * 2 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes16": 0}, "lanes16 of a wafer is 0"),
        ({"clock_hz": -1.0}, "clock_hz of a wafer is -1.0 Hz: it must be a finite number above 0"),
        ({"link_wavelets_per_cycle": 0.0}, "link_wavelets_per_cycle"),
        ({"hop_cycles": -0.5}, "hop_cycles"),
        ({"loop_cycles": float("nan")}, "loop_cycles"),
        ({"host_bytes_per_second": float("inf")}, "host_bytes_per_second"),
        ({"rows": 2.5}, "rows of a wafer is 2.5 PEs: it must be a whole number"),
        ({"colors": 0}, "colors"),
        ({"sram_bytes": 4000}, "4000 B of SRAM do not hold its 4096 B of code"),
    ],
)
def test_numbers_that_no_wafer_has(changes, message):
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(WSE3, **changes)


def test_what_costs_nothing_may_be_nothing():
    free = {"hop_cycles": 0.0, "map_cycles": 0.0, "conflict16": 0.0, "link_seconds": 0.0, "dollars_per_hour": 0.0}
    assert dataclasses.replace(WSE3, **free).hop_cycles == 0


def test_a_wafer_is_a_value_and_a_pytree():
    assert dataclasses.replace(WSE3) == WSE3
    assert hash(dataclasses.replace(WSE3)) == hash(WSE3)
    assert jax.tree.map(lambda v: v, WSE3) == WSE3
    assert len(jax.tree.leaves(WSE3)) == len(dataclasses.fields(Wafer)) - 2  # its name and dead PEs are no numbers
    with pytest.raises(dataclasses.FrozenInstanceError):
        WSE3.rows = 3


def test_vmap_over_a_hardwarenumber():
    clocks = jax.numpy.array([1.0e9, 2.0e9])
    peaks = jax.vmap(lambda hz: dataclasses.replace(WSE3, clock_hz=hz).peak_sram_bytes_per_second)(clocks)
    assert peaks[1] == pytest.approx(2 * peaks[0])


@pytest.mark.parametrize(
    "change",
    [
        {"fmac32_lanes": np.int64(-1)},
        {"lanes16": np.float32(0)},
        {"lanes32": [1]},
        {"clock_hz": "1"},
        {"rows": True},
        {"rows": 1e300},
        {"columns": 2.5},
        {"hop_cycles": float("nan")},
    ],
    ids=str,
)
def test_numbers_of_odd_kinds(change):
    (name,) = change
    with pytest.raises(ArgumentError, match=f"{name} of a wafer is"):
        dataclasses.replace(WSE3, **change)
