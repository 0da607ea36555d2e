"""The fabric simulator against numpy, and against the published forms where those are exact."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsc.machine import collectives
from wsc.machine.collectives import Line, generated_depth
from wsc.machine.messages import senders
from wsc.machine.wafer import WSE2, WSE3
from wsc.runtime.fabric import lines, rectangles
from wsc.runtime.fabric.program import EAST, NORTH, RAMP, SOUTH, WEST, Fabric, Instruction, stacked
from wsc.runtime.fabric.simulate import simulate
from wsc.runtime.fabric.sizes import Timing


def words(fabric, depth, dtype=np.float32, seed=0):
    """Random memory for every PE, numbers of many sizes so that the order of a sum shows."""
    draw = np.random.default_rng(seed)
    half = (2,) if np.dtype(dtype).itemsize == 2 else ()
    values = draw.normal(size=(depth, fabric.rows, fabric.columns, *half)) * 10.0 ** draw.integers(-3, 4)
    return values.astype(dtype)


def tree_sum(parts, algorithm, shape=()):
    """The sum over PEs as messages add up, PE by PE, in numpy."""
    tree, root = senders(algorithm, len(parts), shape)

    def of(node):
        total = parts[node]
        for child in tree[node]:
            total = (of(child) + total).astype(parts.dtype)
        return total

    return of(root), root


@pytest.mark.parametrize("algorithm", ["chain", "tree", "two_phase", "generated", "star"])
def test_a_reduce_gives_the_sum_in_its_order_bit_for_bit(algorithm):
    sizes = [(2, 3), (5, 1), (16, 7), (37, 12)]
    programs = [lines.reduce(algorithm, pes, b) for pes, b in sizes]
    grid = stacked(programs)
    memory = words(grid, 12)
    after = simulate(grid, memory=memory).memory
    for row, (pes, b) in enumerate(sizes):
        shape = (generated_depth(pes, b),) if algorithm == "generated" else ()
        want, root = tree_sum(memory[:b, row, :pes].T, algorithm, shape)
        assert np.array_equal(after[:b, row, root], want)


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [("chain", jnp.bfloat16), ("centre_star", np.float32), ("centre_two_phase", np.float16), ("k_level", np.float32)],
)
def test_an_all_reduce_gives_everyone_the_same_sum(algorithm, dtype):
    pes, b = 23, 4
    shape = (5,) if algorithm == "k_level" else ()
    line = lines.all_reduce(algorithm, pes, b, shape)
    memory = words(line, b, dtype)
    after = simulate(line, memory=memory).memory
    want, _ = tree_sum(np.swapaxes(memory[:, 0], 0, 1), algorithm, shape)
    assert np.array_equal(after[:, 0].view(np.uint8), np.repeat(want[:, None], pes, 1).view(np.uint8))


def test_a_maximum_and_whole_numbers():
    line = lines.reduce("tree", 9, 3)
    memory = np.random.default_rng(1).integers(-50, 50, (3, 1, 9)).astype(np.int32)
    assert np.array_equal(simulate(line, memory=memory, combine="max").memory[:, 0, 0], memory.max(axis=2)[:, 0])


def test_published_forms_that_are_exact():
    sizes = [(2, 1), (8, 30), (64, 5), (200, 77)]
    chains = simulate(stacked([lines.reduce("chain", *size) for size in sizes])).finished.max(axis=1)
    multicasts = simulate(stacked([lines.multicast(*size) for size in sizes])).finished.max(axis=1)
    for chain, multicast, (pes, b) in zip(chains, multicasts, sizes, strict=True):
        assert chain == collectives.reduce("chain", Line(pes, b, pes - 1)).cycles == b + 6 * (pes - 1)
        assert multicast == collectives.multicast(Line(pes, b, pes - 1)).cycles == b + pes + 4


def test_a_hop_that_delivers_takes_longer():
    line = lines.multicast(10, 50)
    timing = Timing.of(WSE3, setup=0)
    got = simulate(line, timing)
    arrivals = got.finished[0, 1:]
    assert np.all(np.diff(arrivals[:-1]) == 2) and arrivals[-1] - arrivals[-2] == 1  # the last one only delivers
    assert simulate(line, Timing.of(WSE3)).cycles == got.cycles + 21  # one instruction is prepared first


@pytest.mark.parametrize(("pes", "distance", "colors"), [(5, 1, 18), (16, 3, 18), (40, 7, 2), (12, 11, 2)])
def test_a_shift(pes, distance, colors):
    b = 6
    line = lines.shift(pes, distance, b, colors)
    memory = words(line, 2 * b)
    got = simulate(line, memory=memory)
    assert np.array_equal(got.memory[b:, :, distance:], memory[:b, :, :-distance])
    assert np.array_equal(got.memory[:b], memory[:b])
    assert got.cycles >= min(distance, pes - distance) * b  # the fullest link has as many wavelets
    if distance == 1:
        assert got.cycles == b + 6


@pytest.mark.parametrize("pes", [2, 3, 21])
def test_an_exchange_goes_round_the_folded_ring(pes):
    b = 5
    line = lines.exchange(pes, b)
    memory = words(line, 2 * b)
    got = simulate(line, memory=memory)
    ring = [*range(0, pes, 2), *reversed(range(1, pes, 2))]
    for source, target in zip(ring, [*ring[1:], ring[0]], strict=True):
        assert np.array_equal(got.memory[b:, 0, target], memory[:b, 0, source])
    assert got.cycles == b + 5 + min(2, pes - 1)


@pytest.mark.parametrize("rows", [3, 33])
def test_rectangles(rows):
    columns, b = 7, 3
    grid = rectangles.reduce("two_phase", rows, columns, b)
    memory = words(grid, b)
    after = simulate(grid, memory=memory).memory
    across = np.stack([tree_sum(memory[:, y].T, "two_phase")[0] for y in range(rows)])
    assert np.array_equal(after[:, 0, 0], tree_sum(across, "two_phase")[0])
    everywhere = simulate(rectangles.all_reduce("chain", rows, columns, b), memory=memory).memory
    assert np.all(everywhere == everywhere[:, :1, :1])
    cast = simulate(rectangles.multicast(rows, columns, b), memory=memory)
    assert np.all(cast.memory == memory[:, :1, :1])
    assert cast.cycles == b + rows + columns - 2 + 5


def test_a_line_along_columns_is_the_line_turned():
    line = lines.all_reduce("centre_tree", 11, 4)
    memory = words(line, 4)
    across = simulate(line.across(2), memory=np.repeat(memory, 2, axis=1))
    down = simulate(line.across(2, "y"), memory=np.swapaxes(np.repeat(memory, 2, axis=1), 1, 2))
    assert np.array_equal(across.memory, np.swapaxes(down.memory, 1, 2))
    assert across.cycles == down.cycles
    assert np.array_equal(across.counts["west"], down.counts["north"].T)


def test_wavelets_are_counted_on_every_link():
    run = simulate(lines.reduce("chain", 6, 10))
    assert run.counts["west"].tolist() == [[0, 10, 10, 10, 10, 10]]
    assert run.counts["up"].sum() == run.counts["down"].sum() == 50
    assert run.counts["busy"].tolist() == [[10] * 6]
    assert np.array_equal(run.finished, run.counts["busy"] + run.counts["starved"] + run.counts["blocked"])
    assert run.peak.max() <= run.timing.router and run.occupancy.shape == (2, 1, 6)
    assert set(run.stalls()) == {"starved", "blocked", "preparing", "full", "lost"}


def test_two_colors_share_a_link_by_turns():
    line = Fabric(1, 3)
    red, blue = line.color(), line.color()
    for color, source in ((red, 0), (blue, 1)):
        line.route(color, (0, source), RAMP, [EAST])
        line.instruct((0, source), Instruction(40, sends=color, load=True))
    line.route(red, (0, 1), WEST, [EAST])
    for color in (red, blue):
        line.route(color, (0, 2), WEST, [RAMP])
    line.instruct((0, 2), Instruction(40, reads=(red,), store=True))
    line.instruct((0, 2), Instruction(40, reads=(blue,), store=True, address=40, thread=1))
    memory = words(line, 80)
    run = simulate(line, memory=memory)
    assert 80 <= run.cycles <= 90
    assert run.counts["lost"][0, 1] > 30
    assert np.array_equal(run.memory[:, 0, 2], np.concatenate([memory[:40, 0, 0], memory[:40, 0, 1]]))


def test_one_instruction_may_read_two_colors():
    cross = Fabric(3, 1)
    up, down = cross.color(), cross.color()
    for color, source, way, back in ((up, 2, NORTH, SOUTH), (down, 0, SOUTH, NORTH)):
        cross.route(color, (source, 0), RAMP, [way])
        cross.route(color, (1, 0), back, [RAMP])
        cross.instruct((source, 0), Instruction(5, sends=color, load=True))
    cross.instruct((1, 0), Instruction(5, reads=(up, down), load=True, store=True))
    memory = words(cross, 5)
    got = simulate(cross, memory=memory).memory[:, 1, 0]
    assert np.array_equal(got, (memory[:, 2, 0] + memory[:, 0, 0]) + memory[:, 1, 0])


def test_slow_transfers_take_two_cycles_a_word():
    line = Fabric(1, 2)
    red = line.color()
    line.route(red, (0, 0), RAMP, [EAST])
    line.route(red, (0, 1), WEST, [RAMP])
    line.instruct((0, 0), Instruction(100, sends=red, load=True))
    line.instruct((0, 1), Instruction(100, reads=(red,), store=True, slow=True))
    assert 200 <= simulate(line).cycles <= 210


def test_work_without_operands_takes_its_time():
    busy = Fabric(2, 2)
    busy.instruct((0, 1), Instruction(300))
    run = simulate(busy, Timing(setup=7))
    assert run.cycles == 307 and run.finished.tolist() == [[0, 307], [0, 0]]


def test_a_pe_prepares_one_instruction_after_the_other():
    both = Fabric(1, 1)
    for thread in (0, 1):
        both.instruct((0, 0), Instruction(5, thread=thread))
    assert simulate(both, Timing(setup=20)).cycles == 45
    shifted = simulate(lines.shift(9, 1, 30), Timing(setup=20)).cycles
    assert shifted == 2 * 20 + 30 + max(0, 6 - 20)  # what comes first waits for the second


@pytest.mark.parametrize(("colors", "pair"), [(2, (0, 1)), (4, (0, 2)), (6, (1, 4))])
def test_colors_of_evenly_spread_numbers_get_the_same_share_of_a_link(colors, pair):
    row = Fabric(1, 4)
    for _ in range(colors):
        row.color()
    for first, color in enumerate(pair):  # from PEs 0 and 1 over the link to PE 3
        row.route(color, (0, first), RAMP, [EAST])
        for x in range(first + 1, 3):
            row.route(color, (0, x), WEST, [EAST])
        row.route(color, (0, 3), WEST, [RAMP])
        row.instruct((0, first), Instruction(60, sends=color, load=True))
        row.instruct((0, 3), Instruction(60, reads=(color,), store=True, thread=first))
    ends = simulate(row).ended[:2, 0, 0, 3]
    assert 120 <= ends.max() <= 130 and np.ptp(ends) <= 8, ends


def test_programs_one_after_the_other_have_their_colors_in_turn():
    row, column = lines.reduce("tree", 5, 2).across(3), lines.reduce("chain", 3, 2).across(5, "y")
    both = row.then(column)
    along = [{int(p) for p in np.unique(tx) if p & 15} for tx in both.tx]
    assert [bool(ports & {1 << WEST, 1 << EAST}) for ports in along] == [True, False, True, False]


def test_values_do_not_change_time_and_runs_are_equal():
    grid = rectangles.all_reduce("centre_generated", 6, 9, 5)
    memory = words(grid, 5)
    first, second = simulate(grid, memory=memory), simulate(grid, memory=memory)
    assert first.cycles == second.cycles == simulate(grid).cycles == simulate(grid, watch=False).cycles
    assert np.array_equal(first.memory, second.memory)
    assert all(np.array_equal(first.counts[k], second.counts[k]) for k in first.counts)


def test_longer_ramps_and_hops():
    slow = Timing(hop=2, deliver=2, ramp=5, router=3, inward=5, outward=5)
    assert simulate(lines.reduce("chain", 9, 40), slow).cycles == 40 + (2 * 5 + 1 + 2) * 8
    assert Timing.of(WSE2).setup == 21


def test_long_messages_through_the_shortest_queues():
    tight = Timing(router=1, inward=1, outward=1)
    line = lines.reduce("two_phase", 20, 30)
    memory = words(line, 30)
    got = simulate(line, tight, memory=memory)
    assert got.cycles > simulate(line).cycles
    assert np.array_equal(got.memory[:, 0, 0], tree_sum(memory[:, 0].T, "two_phase")[0])
