"""Rectangles on the wafer: inside it, apart, in a row; and what is said when nothing fits."""

import itertools

import pytest
from helpers import normal, small
from hypothesis import given, settings
from hypothesis import strategies as st

import wsc
from wsc.errors import FitError
from wsc.lowering.pack import Shelf, pack
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
    st.lists(st.integers(0, 3), min_size=1, max_size=14),
    st.lists(st.tuples(st.integers(1, 6), st.tuples(*[st.integers(1, 14)] * 4)), min_size=1, max_size=3),
    st.integers(1, 12), st.integers(1, 14), st.integers(1, 3),
)  # fmt: skip
def test_pack(kinds, shelves, rows, columns, wafers):
    """Inside the wafer and apart; every region as one of the shelves has it, and no packing that is sought by trying
    every way of cutting the stages into shelves ends earlier."""
    shelves = [Shelf(h, dict(enumerate(w))) for h, w in shelves]
    found = pack(kinds, shelves, small(rows, columns), wafers)
    best = brute_force(tuple(kinds), shelves, rows, columns)
    if found is None:
        assert best is None or best[0] >= wafers
        return
    assert (max(r.wafer for r in found), max(r.y + r.height for r in found if r.wafer == found[-1].wafer)) == best
    taken = set()
    for kind, region in zip(kinds, found, strict=True):
        assert any(s.height == region.height and s.widths[kind] == region.width for s in shelves)
        assert 0 <= region.wafer < wafers and region.y >= 0 and region.x >= 0
        assert region.y + region.height <= rows and region.x + region.width <= columns
        assert not cells(region) & taken
        taken |= cells(region)


def brute_force(kinds, shelves, rows, columns, at=(0, 0)):
    """(last wafer, rows used on it) of the best packing, by trying all."""
    if not kinds:
        return at
    ends = []
    for shelf in shelves:
        if shelf.height > rows:
            continue
        chip, used = at
        end = (chip, used + shelf.height) if used + shelf.height <= rows else (chip + 1, shelf.height)
        held = sum(1 for n in itertools.accumulate(shelf.widths[k] for k in kinds) if n <= columns)
        ends += [brute_force(kinds[n:], shelves, rows, columns, end) for n in range(max(1, held - 2), held + 1) if held]
    return min((e for e in ends if e is not None), default=None)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 6), st.integers(1, 12), st.integers(1, 14))
def test_equal_stages_in_a_row_touch(count, width, height, rows, columns):
    found = pack([0] * count, [Shelf(height, {0: width})], small(rows, columns), 14)
    if found is None:
        assert width > columns or height > rows
        return
    assert all(adjacent(a, b) for a, b in itertools.pairwise(found))
    assert all(a.touches(b) for a, b in itertools.pairwise(found))


def test_shelves_turn_at_the_edge():
    found = pack([0] * 4, [Shelf(2, {0: 4})], small(4, 8), 1)
    assert [(r.y, r.x) for r in found] == [(0, 0), (0, 4), (2, 4), (2, 0)]


def test_shelves_go_on_to_the_next_wafer():
    found = pack([0] * 3, [Shelf(2, {0: 8})], small(4, 8), 2)
    assert [(r.wafer, r.y) for r in found] == [(0, 0), (0, 2), (1, 0)]
    assert pack([0] * 3, [Shelf(2, {0: 8})], small(4, 8), 1) is None


def test_packing_begins_where_there_is_room():
    found = pack([0] * 3, [Shelf(2, {0: 8})], small(4, 8), 3, start=(1, 2))
    assert [(r.wafer, r.y) for r in found] == [(1, 2), (2, 0), (2, 2)]


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


@pytest.mark.slow
def test_llama_70b_takes_four_wafers():
    """141 GB in bfloat16 against 40 GB beside the code of one: refused on three, placed on four, as it is served."""
    model = Llama.abstract("llama-3.1-70b")
    with pytest.raises(FitError, match=r"143\.\d GB of weights and state need at least .* give it wafers=4\."):
        wsc.compile(model, wafers=3, context=8192)
    exe = wsc.compile(model, wafers=4, context=8192)
    assert exe.program.wafers == 4
    assert 1 / exe.telemetry.seconds >= 450


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


def test_a_speed_that_no_placement_gives():
    weights, x = normal(64, 32), normal(1, 64)
    fn, options = lambda w, x: x @ w, {"wafer": small(24, 24, 2048), "weight_argnums": 0, "objective": "users"}
    with pytest.raises(FitError, match=r"tokens come at 1e\+12 a second .* the fastest gives"):
        wsc.compile(fn, weights, x, speed=1e12, **options)
    assert wsc.compile(fn, weights, x, speed=1000.0, **options).telemetry.seconds < 1e-3
