"""Grids that are simulated in pieces give what they give in one: values, cycles, counts and reports."""

import numpy as np
import pytest

from wsc.errors import CycleLimitError, DeadlockError
from wsc.runtime.fabric import lines, rectangles, split
from wsc.runtime.fabric.program import EAST, RAMP, WEST, Fabric, Instruction
from wsc.runtime.fabric.simulate import simulate
from wsc.runtime.fabric.sizes import Timing

GRID = 14, 40


@pytest.fixture
def small(monkeypatch):
    """Pieces of few PEs, which look at their neighbours after every third cycle."""

    def cut():
        monkeypatch.setattr(split, "PIECE", 9 * 32)
        monkeypatch.setattr(split, "STRIP", 7 * GRID[0])
        monkeypatch.setattr(split, "BLOCK", 3)

    return cut


def memory_of(grid: Fabric, words: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(words, grid.rows, grid.columns)).astype(np.float32)


def assert_same(apart, whole):
    assert apart.cycles == whole.cycles
    for name in ("memory", "peak", "ended"):
        assert np.array_equal(getattr(apart, name), getattr(whole, name)), name
    assert np.allclose(apart.occupancy, whole.occupancy)
    assert all(np.array_equal(apart.counts[name], whole.counts[name]) for name in whole.counts)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_lines_that_never_meet(axis, small):
    grid = lines.all_reduce("two_phase", 9, 3).across(70, axis)
    memory = memory_of(grid, 3)
    whole = simulate(grid, Timing(setup=3), memory=memory)
    small()
    assert len(split.pieces(grid)) > 2 and not split.pieces(grid)[0].halo
    assert_same(simulate(grid, Timing(setup=3), memory=memory), whole)


@pytest.mark.parametrize(
    ("grid", "reach"),
    [
        (rectangles.all_reduce("centre_two_phase", *GRID, 4), 4),  # both ways from the centre
        pytest.param(rectangles.shift(3, *GRID, 5), 3, marks=pytest.mark.slow),
        pytest.param(rectangles.exchange(*GRID, 2), 3, marks=pytest.mark.slow),
        pytest.param(rectangles.multicast(*GRID, 6), 3, marks=pytest.mark.slow),
    ],
    ids=["all_reduce", "shift", "exchange", "multicast"],
)
def test_strips_with_some_of_their_neighbours(grid, reach, small):
    timing, memory = Timing(deliver=2, setup=3), memory_of(grid, 10)
    whole = simulate(grid, timing, memory=memory)
    small()
    strips = split.pieces(grid)
    assert len(strips) > 3 and strips[0].halo == reach
    assert_same(simulate(grid, timing, memory=memory), whole)
    uncounted = simulate(grid, timing, memory=memory, watch=False)
    assert uncounted.cycles == whole.cycles and np.array_equal(uncounted.memory, whole.memory)


def test_what_goes_both_ways_is_held_up_on_one(small):
    """Routers that send both ways as soon as both sides have room: in a cycle, one side hangs on the other."""
    row = Fabric(1, 36)
    color = row.color()
    both = range(2, 34, 3)
    for x in both:  # each to the PEs beside it, of which one is slow to take it
        row.route(color, (0, x), RAMP, [WEST, EAST])
        row.instruct((0, x), Instruction(20, sends=color, load=True))
        for side, port, slow in ((x - 1, EAST, x % 2), (x + 1, WEST, not x % 2)):
            row.route(color, (0, side), port, [RAMP])
            row.instruct((0, side), Instruction(20, reads=(color,), store=True, slow=bool(slow)))
    grid = row.across(9)
    memory = memory_of(grid, 20)
    whole = simulate(grid, memory=memory)
    small()
    assert len(split.pieces(grid)) > 1
    assert_same(simulate(grid, memory=memory), whole)


def test_no_end_is_reported_alike(small):
    grid = rectangles.all_reduce("chain", *GRID, 2)
    grid.instructions[0, 5, 20] = 0  # one that never passes the sum on
    reports = []
    for _ in range(2):
        for kind, limit in ((DeadlockError, 1_000), (CycleLimitError, 40)):
            with pytest.raises(kind) as error:
                simulate(grid, limit=limit)
            reports.append(str(error.value))
        small()
    assert reports[:2] == reports[2:]
