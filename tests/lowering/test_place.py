"""Rectangles on the wafer: inside it, apart, in a row; and what is said when nothing fits."""

import itertools

import pytest
from helpers import normal, small
from hypothesis import given, settings
from hypothesis import strategies as st

import wsc
from wsc.errors import FitError
from wsc.lowering.place import snake
from wsc.models import Llama


def cells(region):
    ys, xs = range(region.y, region.y + region.height), range(region.x, region.x + region.width)
    return {(region.wafer, y, x) for y, x in itertools.product(ys, xs)}


def adjacent(a, b) -> bool:
    """Some PE of `a` has a neighbour in `b`, or they are on neighbouring wafers."""
    if a.wafer != b.wafer:
        return b.wafer == a.wafer + 1
    around = {(w, y + dy, x + dx) for w, y, x in cells(a) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))}
    return bool(around & cells(b))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 14), min_size=1, max_size=14), st.integers(1, 6), st.integers(1, 12), st.integers(1, 14),
    st.integers(1, 3),
)  # fmt: skip
def test_snake(widths, height, rows, columns, wafers):
    found = snake(widths, height, small(rows, columns), wafers)
    if found is None:
        assert max(widths) > columns or height > rows or sum(widths) > 0.2 * (rows // height) * columns * wafers
        return
    assert [r.width for r in found] == widths
    taken = set()
    for region in found:
        assert region.height == height and 0 <= region.wafer < wafers
        assert region.y >= 0 and region.x >= 0
        assert region.y + height <= rows and region.x + region.width <= columns
        assert not cells(region) & taken
        taken |= cells(region)
    assert all(adjacent(a, b) for a, b in itertools.pairwise(found))
    assert all(a.touches(b) for a, b in itertools.pairwise(found))


def test_snake_turns_at_the_edge():
    found = snake([4, 4, 4, 4], 2, small(4, 8), 1)
    assert [(r.y, r.x) for r in found] == [(0, 0), (0, 4), (2, 4), (2, 0)]


def test_snake_goes_on_to_the_next_wafer():
    found = snake([8, 8, 8], 2, small(4, 8), 2)
    assert [(r.wafer, r.y) for r in found] == [(0, 0), (0, 2), (1, 0)]
    assert snake([8, 8, 8], 2, small(4, 8), 1) is None


def test_one_stage_larger_than_a_wafer():
    """900 x 1000 floats over PEs of 2 KB beside the code: 1,758 PEs, and a wafer has 120; more wafers cannot help."""
    for wafers in (1, None):
        with pytest.raises(FitError, match="more wafers do not help") as caught:
            wsc.compile(
                lambda w, x: x @ w,
                normal(1000, 900),
                normal(1, 1000),
                wafer=small(usable=2048),
                wafers=wafers,
                weight_argnums=0,
            )
        assert f"at least {-(-1000 * 900 * 4 // 2048):,} PEs" in str(caught.value)
        assert "small has 120" in str(caught.value)


def test_llama_70b_needs_more_than_one_wafer():
    """141 GB in bfloat16 against 30 GB beside the code of one."""
    with pytest.raises(FitError, match=r"141\.\d GB of weights and state need at least .* give it wafers=6\."):
        wsc.compile(Llama.abstract("llama-3.1-70b"), wafers=1)


def test_stages_do_not_overlap_and_touch():
    def fn(p, x):
        for w in p["layers"]:
            x = x + (x @ w["w"]) / 8
        return x

    p = {"layers": [{"w": normal(24, 24, seed=i)} for i in range(7)]}
    program = wsc.compile(fn, p, normal(1, 24), wafer=small(24, 24, 2048)).program
    regions = [s.region for s in program.stages]
    assert len(regions) == 7
    assert sum(map(len, map(cells, regions))) == len(set.union(*map(cells, regions)))
    assert all(adjacent(a, b) for a, b in itertools.pairwise(regions))
    assert all(r.y + r.height <= 24 and r.x + r.width <= 24 for r in regions)
