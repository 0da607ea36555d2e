"""Layouts and what moves between them, against a brute-force account of which PE holds which element."""

import itertools
import math

import numpy as np
import pytest
from helpers import small
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from wsc.lowering.layout import (
    Grid,
    Layout,
    all_reduce,
    cut,
    default_extent,
    lay,
    nest,
    regroup,
    relayout,
    shared_out,
    strides,
    wavelets,
    whole,
)
from wsc.lowering.strategy import WSC
from wsc.machine.steps import AllReduce, Multicast, Shift
from wsc.machine.wafer import WSE3

SIZE = st.integers(1, 200)
RANDOM = settings(max_examples=200, deadline=None, derandomize=True)


@RANDOM
@given(SIZE, SIZE)
def test_cut_leaves_no_part_empty(n, pes):
    parts = cut(n, pes)
    tile = math.ceil(n / parts)
    assert 1 <= parts <= min(n, pes)
    assert parts * tile >= n > (parts - 1) * tile
    assert tile == math.ceil(n / min(n, pes))  # no coarser than so many PEs allow


@RANDOM
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), SIZE)
def test_nest_fits_its_pes(shape, pes):
    parts = nest(tuple(shape), pes)
    assert math.prod(parts) <= pes
    for d, p in enumerate(parts):
        if p > 1 and d > 0:
            assert all(parts[i] == shape[i] for i in range(d)), "an outer dimension is whole before an inner one is cut"


@RANDOM
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 4))
def test_strides_put_every_part_on_its_own_segment(parts, spare):
    pes = math.prod(parts) * spare + spare - 1
    found = strides(tuple(parts), pes)
    segment = found[-1]
    firsts = [sum(i * s for i, s in zip(index, found)) for index in itertools.product(*map(range, parts))]
    assert all(b - a >= segment for a, b in itertools.pairwise(sorted(firsts)))
    assert max(firsts) + segment <= pes


def test_local_and_copies_by_hand():
    at = Layout(y=(1, 3), x=(2, 1))
    assert at.local((5, 10)) == (3, 4)
    assert at.size((5, 10)) == 12
    assert at.parts == Grid(3, 2)
    assert at.copies(Grid(7, 9)) == (7 // 3) * (9 // 2)
    assert at.fits(Grid(3, 2)) and not at.fits(Grid(2, 2)) and not at.fits(Grid(3, 1))
    assert str(at) == "[x2 y3]"
    assert at.spec == PartitionSpec("x", "y")
    assert whole(0).copies(Grid(4, 5)) == 20


def test_take_and_uncut():
    at = Layout(y=(1, 3, 1), x=(2, 1, 4))
    assert at.take([2, None, 1]) == Layout((1, 1, 3), (4, 1, 1))
    assert at.uncut([0, 1]) == Layout((1, 1, 1), (1, 1, 4))
    assert at.with_axis("x", [1, 1, 1]).x == (1, 1, 1)
    assert lay((6, 8), "x", [1], 5) == Layout((1, 1), (1, 4))


def test_wavelets_carry_two_halves():
    assert [wavelets(n, 2, WSE3) for n in (1, 2, 3)] == [1, 1, 2]
    assert [wavelets(n, 4, WSE3) for n in (1, 2, 3)] == [1, 2, 3]


def test_shared_out_divides_copies():
    at = shared_out(Layout((1, 1), (1, 4)), (3, 8), "y", 6)
    assert at.x == (1, 4) and math.prod(at.y) <= 6
    assert at.size((3, 8)) < Layout((1, 1), (1, 4)).size((3, 8))


def test_all_reduce_of_one_is_nothing():
    assert all_reduce(whole(2), [0], "x", 10, 4, Grid(4, 4), WSE3, WSC) == []
    assert all_reduce(Layout((1, 1), (1, 4)), [0], "x", 10, 4, Grid(4, 4), WSE3, WSC) == []


def test_all_reduce_on_every_line():
    """14 of the 17 PEs of each of 19 rows; then 4 parts three PEs apart, each of the three copies for itself."""
    (step,) = all_reduce(Layout((19, 1), (1, 14)), [1], "x", 10, 4, Grid(19, 17), WSE3, WSC)
    assert isinstance(step, AllReduce)
    assert (step.pes, step.span, step.wavelets, step.instances) == (14, 13, 10, 19)
    (step,) = all_reduce(Layout((1,), (4,)), [0], "x", 10, 4, Grid(5, 12), WSE3, WSC)
    assert (step.pes, step.span, step.wavelets, step.instances) == (4, 9, 10, 15)


@pytest.mark.parametrize("limit", [1, 2, 7, 10, 23, 24, 100, 755, 1170])
def test_extents_to_try(limit):
    found = default_extent(limit)
    assert found == sorted(set(found))
    assert found[0] == 1 and found[-1] == limit
    assert all(b <= max(a + 2, 1.3 * a) for a, b in itertools.pairwise(found))


def held(shape, at: Layout, grid: Grid) -> dict[tuple[int, int], set]:
    """Elements of every PE, found by walking over PEs: digits of its position are part numbers."""

    def digits(position: int, parts, pes: int):
        found = []
        for p in parts:
            pes //= p
            found.append(position // pes if pes else 0)
            position -= found[-1] * pes
        return None if any(i >= p for i, p in zip(found, parts)) else found

    result = {}
    for y, x in itertools.product(range(grid.y), range(grid.x)):
        ys, xs = digits(y, at.y, grid.y), digits(x, at.x, grid.x)
        if ys is None or xs is None:
            result[y, x] = set()
            continue
        ranges = []
        for n, py, px, iy, ix in zip(shape, at.y, at.x, ys, xs):
            tile, i = math.ceil(n / (py * px)), iy * px + ix
            ranges.append(range(i * tile, min(n, (i + 1) * tile)))
        result[y, x] = set(itertools.product(*ranges))
    return result


@st.composite
def moves(draw):
    """(shape, source, target, grid); a dimension is cut along one axis at most."""
    grid = Grid(draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))

    def layout():
        axes = draw(st.lists(st.sampled_from("yx-"), min_size=len(shape), max_size=len(shape)))
        at = whole(len(shape))
        for axis in "yx":
            dims = [d for d, a in enumerate(axes) if a == axis]
            if draw(st.booleans()):
                at = at.with_axis(axis, lay(shape, axis, dims, getattr(grid, axis)).along(axis))
                continue
            parts, free = [1] * len(shape), getattr(grid, axis)
            for d in dims:
                parts[d] = cut(shape[d], draw(st.integers(1, free)))
                free //= parts[d]
            at = at.with_axis(axis, parts)
        return at

    return shape, layout(), layout(), grid


@settings(max_examples=600, deadline=None, derandomize=True)
@given(moves())
def test_nothing_moves_only_where_every_pe_has_what_it_needs(move):
    shape, source, target, grid = move
    have, need = held(shape, source, grid), held(shape, target, grid)
    steps = relayout(shape, 4, source, target, grid, small(grid.y, grid.x))
    enough = all(need[pe] <= have[pe] for pe in need)
    if not steps:
        assert enough, "claimed free, and some PE lacks an element"
    if enough and not (source.parts.y > 1 and source.parts.x > 1):
        assert not steps, "claimed to move, and every PE has what it needs"


def farthest(move) -> int:
    """Hops that some element travels at least, whatever the route: from its nearest holder."""
    shape, source, target, grid = move
    have, need = held(shape, source, grid), held(shape, target, grid)
    found = 0
    for (y, x), elements in need.items():
        for e in elements - have[y, x]:
            found = max(found, min(abs(y - a) + abs(x - b) for (a, b), own in have.items() if e in own))
    return found


def reach(move) -> int:
    shape, source, target, grid = move
    steps = relayout(shape, 4, source, target, grid, small(grid.y, grid.x))
    return sum(s.distance if isinstance(s, Shift) else s.span for s in steps)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(moves())
def test_steps_reach_as_far_as_the_farthest_element(move):
    shape, source, target, _ = move
    for d in range(len(shape)):
        assume(not (source.y[d] > 1 and target.x[d] > 1) and not (source.x[d] > 1 and target.y[d] > 1))
    assert reach(move) >= farthest(move)


def test_steps_reach_far_enough_when_a_dimension_changes_axes():
    """PE (1, 0) needs the last of 3 elements, which PEs two columns away hold."""
    move = (1, 3, 2), Layout((1, 1, 1), (1, 3, 1)), Layout((1, 2, 1), (1, 1, 2)), Grid(2, 3)
    assert farthest(move) == 2
    assert reach(move) >= farthest(move)


def test_gathering_within_segments_is_a_multicast():
    (step,) = relayout((16,), 4, Layout((8,), (1,)), Layout((2,), (1,)), Grid(8, 3), WSE3)
    assert isinstance(step, Multicast)
    assert (step.pes, step.span, step.wavelets) == (4, 3, 8)


def test_dropping_copies_is_free():
    assert relayout((16,), 4, Layout((2,), (1,)), Layout((8,), (1,)), Grid(8, 3), WSE3) == ()
    assert relayout((16, 4), 2, whole(2), Layout((8, 1), (1, 2)), Grid(8, 3), WSE3) == ()


def test_regroup_of_a_reshape_that_keeps_its_cuts_is_free():
    assert regroup((64,), (8,), (8, 8), (8, 1), 1, "y", Grid(8, 2), 4, WSE3) == ()
    assert regroup((8, 8), (8, 1), (64,), (8,), 3, "y", Grid(8, 2), 4, WSE3) == ()


def test_regroup_counts_the_hops_of_every_element():
    """60 elements from 4 PEs of 15 to 3 PEs of 20, counted one by one."""
    first, last = np.arange(60) // 15, np.arange(60) // 20
    (step,) = [s for s in regroup((60,), (4,), (3, 20), (3, 1), 1, "y", Grid(4, 1), 4, WSE3) if isinstance(s, Shift)]
    assert step.distance == abs(first - last).max()
    assert step.total_wavelet_hops == abs(first - last).sum()
    assert step.wavelets == max(np.sum((last <= link) & (link < first)) for link in range(3))
