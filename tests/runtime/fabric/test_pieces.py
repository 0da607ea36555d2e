"""Grids that are simulated in pieces, or several at once, give what they give in one: values, cycles, counts and
reports."""

import numpy as np
import pytest

from wsc.errors import ArgumentError, CycleLimitError, DeadlockError
from wsc.runtime.fabric import lines, rectangles, split
from wsc.runtime.fabric.program import EAST, RAMP, WEST, Fabric, Instruction
from wsc.runtime.fabric.simulate import simulate, simulate_many
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


@pytest.mark.parametrize("axis", ["x", pytest.param("y", marks=pytest.mark.slow)])
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


def test_several_grids_at_once():
    grids = [rectangles.all_reduce("chain", 3, 5, 2), lines.reduce("two_phase", 35, 4).across(2), Fabric(2, 2)]
    memories = [memory_of(grid, words) for grid, words in zip(grids, (2, 4, 1), strict=True)]
    alone = [simulate(grid, memory=memory) for grid, memory in zip(grids, memories, strict=True)]
    for run, single in zip(simulate_many(grids, memories=memories), alone, strict=True):
        assert run.fabric.rows == single.fabric.rows
        run_ended, single_ended = run.ended[: len(single.ended)], single.ended
        assert np.array_equal(run_ended, single_ended) and not run.ended[len(single.ended) :].any()
        assert np.array_equal(run.memory, single.memory)
        assert run.cycles == single.cycles
        assert all(np.array_equal(run.counts[name], single.counts[name]) for name in single.counts)
        assert np.array_equal(run.peak, single.peak) and np.allclose(run.occupancy, single.occupancy)


def test_one_of_several_that_does_not_end_is_reported():
    good, bad = (rectangles.all_reduce("chain", 2, 4, 2) for _ in range(2))
    bad.instructions[0, 1, 1] = 0
    with pytest.raises(DeadlockError) as alone:
        simulate(bad)
    with pytest.raises(DeadlockError) as together:
        simulate_many([good, bad])
    assert str(together.value) == str(alone.value)
    with pytest.raises(ArgumentError, match="1 programs and 2 memories"):
        simulate_many([good], memories=[memory_of(good, 2)] * 2)
    with pytest.raises(ArgumentError, match="one dtype"):
        simulate_many([good, good], memories=[memory_of(good, 2), memory_of(good, 2).astype(np.int32)])
