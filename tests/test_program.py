"""Regions and programs as values: geometry by hand, text that says what was decided."""

import dataclasses

import pytest
from helpers import CODE, normal, small
from hypothesis import given, settings
from hypothesis import strategies as st

import wsc
from wsc.program import Allocation, Region

REGIONS = st.builds(
    Region, st.integers(0, 1), st.integers(0, 5), st.integers(0, 5), st.integers(1, 4), st.integers(1, 4)
)


def cells(r):
    return {(r.wafer, y, x) for y in range(r.y, r.y + r.height) for x in range(r.x, r.x + r.width)}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(REGIONS, REGIONS)
def test_overlap_and_touch(a, b):
    """Against the sets of their PEs."""
    assert a.overlaps(b) == b.overlaps(a) == bool(cells(a) & cells(b))
    around = {(w, y + dy, x + dx) for w, y, x in cells(a) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))}
    if a.wafer == b.wafer and not a.overlaps(b):
        assert a.touches(b) == b.touches(a) == bool(around & cells(b))


def test_neighbouring_wafers_touch():
    assert Region(0, 0, 0, 1, 1).touches(Region(1, 5, 5, 1, 1))
    assert not Region(0, 0, 0, 1, 1).touches(Region(2, 0, 0, 1, 1))


def test_region_by_hand():
    region = Region(1, 2, 3, 4, 5)
    assert (region.pes, region.grid) == (20, (4, 5))
    assert str(region) == "wafer 1 [2:6, 3:8]"
    assert Allocation("weight", "w", 8, 16).end == 24


@pytest.fixture(scope="module")
def program():
    def fn(p, x):
        for layer in p["blocks"]:
            x = x + (x @ layer["a"]) @ layer["b"]
        return x @ p["head"]["w"]

    layers = [{"a": normal(24, 32, seed=i), "b": normal(32, 24, seed=i)} for i in range(4)]
    return wsc.compile(
        fn, {"blocks": layers, "head": {"w": normal(24, 40)}}, normal(1, 24), wafer=small(24, 24, 2048)
    ).program


def test_a_program_is_frozen(program):
    with pytest.raises(dataclasses.FrozenInstanceError):
        program.wafers = 2


def test_ops_in_order(program):
    ops = list(program.ops())
    assert [op for _, op in ops] == [op for s in program.stages for op in s.ops]
    assert [op.name for _, op in ops].count("dot_general") == 9


def test_the_repeated_stage(program):
    assert program.layer.name.startswith("blocks[")


def test_text(program):
    text = program.as_text()
    assert text.splitlines()[0] == "program on 1 x small, one call, float32"
    for stage in program.stages:
        assert f"{stage.name} on {stage.region}" in text
    assert "as the first of its kind above" in text
    assert f"0..{CODE}" in text and "weight p.blocks[0].a" in text
    assert "AllReduce" in text and "<p.head.w>" in text
    assert "5 stages" in repr(program)


def test_loaded_memory_names_every_weight(program):
    names = [a.name for s in program.stages for a in s.memory if a.kind == "weight"]
    assert names == [w.name for s in program.stages for w in s.weights]
    assert sorted(set(names)) == sorted([f"p.blocks[{i}].{n}" for i in range(4) for n in "ab"] + ["p.head.w"])
