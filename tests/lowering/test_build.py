"""Arrivals and departures of stages, hop by hop, and the weights every op reads."""

import jax.numpy as jnp
import pytest
from helpers import normal, small

import wsc
from wsc.machine.steps import HostLink, Move, WaferLink


def residual(p, x):
    for layer in p["blocks"]:
        x = x + (x @ layer["a"]) @ layer["b"]
    return x


def blocks(count, d=24, f=32):
    return {"blocks": [{"a": normal(d, f, seed=i), "b": normal(f, d, seed=i)} for i in range(count)]}


def arrivals(program, i):
    return [s for value, _, steps in program.stages[i].arrivals if value is not None for s in steps]


def test_from_the_host_and_back():
    stages = wsc.compile(residual, blocks(3), normal(2, 24), wafer=small(24, 24, 2048)).program
    assert arrivals(stages, 0) == [HostLink(2 * 24 * 4)]
    assert stages.stages[-1].departures == (HostLink(2 * 24 * 4),)


def test_control_is_sent_to_the_first_stage():
    def fn(p, x, position, mask):
        return residual(p, x) * position.astype("float32") + mask

    program = wsc.compile(
        fn, blocks(1), normal(2, 24), jnp.int32(3), normal(2, 24) > 0, wafer=small(24, 24, 2048)
    ).program
    control = [s for value, _, steps in program.stages[0].arrivals if value is None for s in steps]
    assert control == [HostLink(4 + 2 * 24)]


def test_neighbours_move_as_far_as_the_new_region_is_wide():
    program = wsc.compile(residual, blocks(3), normal(1, 24), wafer=small(24, 24, 2048)).program
    for i in (1, 2):
        a, b = program.stages[i - 1].region, program.stages[i].region
        (move,) = [s for s in arrivals(program, i) if isinstance(s, Move)]
        least = 1 if a.y == b.y else a.height
        assert least <= move.distance <= abs(a.y - b.y) + max(a.width, b.width) + b.width
        assert move.wavelets == 24
        assert 1 <= move.links <= max(b.height, b.width)


def test_half_precision_packs_two_to_a_wavelet():
    p = {"blocks": [{k: v.astype("float16") for k, v in b.items()} for b in blocks(2)["blocks"]]}
    program = wsc.compile(residual, p, normal(1, 24, dtype="float16"), wafer=small(24, 24, 2048)).program
    assert [s.wavelets for s in arrivals(program, 1) if isinstance(s, Move)] == [12]
    assert arrivals(program, 0) == [HostLink(48)]


def test_between_wafers_over_the_link():
    program = wsc.compile(residual, blocks(6), normal(1, 24), wafer=small(4, 6, 1024)).program
    assert program.wafers > 1
    for i, (a, b) in enumerate(zip(program.stages, program.stages[1:], strict=False), start=1):
        links = [s for s in arrivals(program, i) if isinstance(s, WaferLink)]
        assert len(links) == (a.region.wafer != b.region.wafer)
        assert all(s.nbytes == 96 for s in links)


def test_ops_name_their_weights():
    program = wsc.compile(residual, blocks(2), normal(1, 24), wafer=small(24, 24, 2048)).program
    named = [op.weights for _, op in program.ops() if op.name == "dot_general"]
    assert named == [("p.blocks[0].a",), ("p.blocks[0].b",), ("p.blocks[1].a",), ("p.blocks[1].b",)]


def test_a_weight_used_twice_is_stored_once_a_layout():
    program = wsc.compile(
        lambda p, x: (x @ p["w"]) @ p["w"].T,
        {"w": normal(24, 24)},
        normal(1, 24),
        wafer=small(12, 12, 2048),
        weight_argnums=0,
    ).program
    stored = [(w.name, w.layout) for s in program.stages for w in s.weights]
    assert {name for name, _ in stored} == {"p.w"}
    assert len(stored) == len(set(stored)) <= 2


@pytest.mark.parametrize("batch", [1, 5])
def test_more_rows_more_bytes(batch):
    program = wsc.compile(residual, blocks(2), normal(batch, 24), wafer=small(24, 24, 4096)).program
    assert [s.wavelets for s in arrivals(program, 1) if isinstance(s, Move)] == [24 * batch]
