"""The closed forms against the numbers published for them, and against a fabric written out hop by hop."""

import math
from dataclasses import replace

import pytest

from wsc.machine import paths, reduce_tree
from wsc.machine.collectives import (
    REDUCES,
    Costs,
    Form,
    Line,
    all_reduce,
    cheapest_all_reduce,
    group_size,
    k_levels,
    multicast,
    reduce,
    ways,
)
from wsc.machine.wafer import WSE3

PUBLISHED = Costs()  # a hop 1, 2 T_R + 1 = 5, no setup
TABLE = {1: (3067, 560, 733, 517), 256: (3322, 2349, 1238, 772), 4096: (7162, 36909, 8843, 4612)}
IN_TABLE = ("chain", "tree", "two_phase")
SIZES = [(2, 1), (3, 10), (7, 1), (64, 3000), (512, 256), (1170, 1)]


def neighbours(pes: int, wavelets: float = 1, spacing: float = 1) -> Line:
    return Line(pes, wavelets, spacing * (pes - 1))


@pytest.mark.parametrize("wavelets", TABLE)
@pytest.mark.parametrize(("column", "name"), list(enumerate(IN_TABLE)))
def test_published_reduces_on_512_pes(wavelets, column, name):
    found = reduce(name, neighbours(512, wavelets), PUBLISHED)
    assert found.cycles == pytest.approx(TABLE[wavelets][column], rel=0.01)
    assert found.setup == 0


@pytest.mark.parametrize("wavelets", TABLE)
def test_published_broadcast_on_512_pes(wavelets):
    assert multicast(neighbours(512, wavelets), PUBLISHED).cycles == pytest.approx(TABLE[wavelets][3], rel=0.01)


@pytest.mark.parametrize("wavelets", TABLE)
@pytest.mark.parametrize(("column", "name"), list(enumerate(IN_TABLE)))
def test_published_all_reduce_is_reduce_and_broadcast(wavelets, column, name):
    found = all_reduce(name, neighbours(512, wavelets), PUBLISHED)
    assert found.cycles == pytest.approx(TABLE[wavelets][column] + TABLE[wavelets][3], rel=0.01)


@pytest.mark.parametrize(("pes", "wavelets"), SIZES)
def test_formulas_of_the_paper(pes, wavelets):
    line, rounds = neighbours(pes, wavelets), math.ceil(math.log2(pes))
    tree = max(wavelets * rounds, wavelets * pes * rounds / (2 * (pes - 1)) + pes - 1) + 5 * rounds
    ring = 2 * (pes - 1) * wavelets / pes + 4 * pes - 6 + 2 * (pes - 1) * 5
    assert reduce("chain", line).cycles == pytest.approx(wavelets + 6 * (pes - 1))
    assert reduce("star", line).cycles == pytest.approx(wavelets * (pes - 1) + 5 + 1)  # the first hop is not in it
    exact = tree_by_hand(pes, wavelets)
    assert reduce("tree", line).cycles == pytest.approx(max(exact, min(tree, 1.02 * exact)))
    assert multicast(line).cycles == pytest.approx(wavelets + pes + 4)
    assert all_reduce("ring", line).cycles == pytest.approx(ring)


def tree_by_hand(pes: int, wavelets: float, setup: float = 0.0) -> float:
    """When PE 0 of a binary tree has the sum: a PE takes in its messages one after the other, and streams the last."""

    def first(pe: int) -> float:
        """When a PE has the first of what it sends."""
        children = [pe + (1 << r) for r in range(12) if pe % (2 << r) == 0 and pe + (1 << r) < pes]
        now = setup
        for child in children[:-1]:
            now = max(now, first(child) + child - pe + 5) + wavelets
        if not children:
            return now
        now += setup if len(children) > 1 and pe else 0.0
        last = max(now, first(children[-1]) + children[-1] - pe + 5)
        return last if pe else last + wavelets

    return first(0)


@pytest.mark.parametrize("setup", [0.0, 5.0, 21.0])
@pytest.mark.parametrize(("pes", "wavelets"), [*SIZES, (147, 162), (84, 5), (33, 40)])
def test_a_tree_takes_its_longest_path(pes, wavelets, setup):
    found = sum(paths.cycles(paths.of_reduce("tree", pes), 1.0, 5.0, wavelets, setup))
    assert found == pytest.approx(tree_by_hand(pes, wavelets, setup))


def test_a_generated_tree_of_a_chosen_depth():
    """4 PEs, 2 rounds: 3 sends to 2, then 1 and 2 to 0. One wavelet: a hop and a relay, two hops and a relay, and the
    wavelet. 100: PE 1's come in after a hop and a relay, those of 2 behind them."""
    assert reduce("generated", neighbours(4, 1), shape=(2,)).cycles == (1 + 5) + (2 + 5) + 1
    assert reduce("generated", neighbours(4, 100), shape=(2,)).cycles == (1 + 5) + 2 * 100
    deepest = reduce("generated", neighbours(4, 100), shape=(3,))
    assert deepest.cycles == reduce("chain", neighbours(4, 100)).cycles


def test_two_levels_by_hand():
    """420 PEs in groups of 21: chains of 10 relays over 10 hops come in from both sides, 5 wavelets each, one after the
    other; then over 20 groups 10 relays and 210 hops on the longer side, 5 wavelets, the other side's having come in
    before; 220 hops and a relay back, both ways at once. Instructions are prepared for both sides of the first level,
    for the longer side of the second, its other one meanwhile, and for the way back."""
    found = all_reduce("k_level", neighbours(420, 5), PUBLISHED, (21,))
    assert found.latency == 10 + 10 * 5 + 10 * 21 + 10 * 5 + 220 + 5
    assert found.serial == 2 * 5 + 5 + 5
    setup = all_reduce("k_level", neighbours(420, 5), PUBLISHED._replace(setup=21.0), (21,))
    assert setup.setup == 21 * (2 + 1 + 1)


def test_from_both_ends_to_the_middle():
    """9 PEs, root 4: chains of 4 relays on both sides, the second one's 7 wavelets wait; 4 hops back, both ways at
    once."""
    found = all_reduce("centre_chain", neighbours(9, 7), PUBLISHED)
    assert found.latency == (4 + 4 * 5) + (4 + 5)
    assert found.serial == 7 + 7 + 7
    assert all_reduce("centre_chain", neighbours(2, 7)) == all_reduce("chain", neighbours(2, 7))


def test_a_wafers_own_costs():
    """Hops of 3 cycles, deliveries of 4, ramps of 6 and half the width: a chain and a multicast by hand."""
    wafer = replace(WSE3, hop_cycles=3.0, deliver_cycles=4.0, ramp_cycles=6.0, link_wavelets_per_cycle=0.5)
    c = Costs.of(wafer)
    assert c == Costs(hop=3.0, deliver=4.0, relay=13.0, setup=WSE3.loop_cycles, width=0.5)
    chain, back = reduce("chain", Line(5, 8, 8), c), multicast(Line(5, 8, 8), c)
    assert (chain.latency, chain.serial, chain.setup) == (8 * 3 + 4 * 13, 16, 21)
    assert (back.latency, back.serial, back.setup) == (4 * 3 + 4 * 4 + 13, 16, 21)


def test_a_pe_prepares_two_instructions_at_most():
    """However many messages come: one that adds all but the last to memory, one that streams the last on."""
    line, c = neighbours(512, 400), PUBLISHED._replace(setup=21.0)
    assert reduce("star", line, c).setup == reduce("tree", line, c).setup == 21  # of the root
    assert reduce("two_phase", line, c).setup == 21 + 21  # of a PE in the middle of the second phase


def test_group_size_of_512_is_23():
    assert group_size(512) == 23


@pytest.mark.parametrize(
    ("pes", "sizes", "levels"), [(420, (21,), (21, 20)), (8, (2, 2), (2, 2, 2)), (9, (3, 3), (3, 3)), (5, (4,), (4, 2))]
)
def test_levels_end_with_one_root(pes, sizes, levels):
    assert k_levels(pes, sizes) == levels


@pytest.mark.parametrize("name", REDUCES)
def test_one_pe_moves_nothing(name):
    alone = Line(1, 100, 0)
    nothing = Form(0, 0, 0, 0, 0, 0)
    assert reduce(name, alone) == multicast(alone) == nothing
    assert all_reduce(name, alone) == all_reduce(f"centre_{name}", alone) == nothing


@pytest.mark.parametrize("name", [name for name, _ in ways(420, 5)] + ["ring"])
def test_no_all_reduce_beats_the_way_there_and_back(name):
    """Data of both ends must meet and return: no less than the diameter, and the data once."""
    shape = dict(ways(420, 5)).get(name, ())
    assert all_reduce(name, neighbours(420, 5), PUBLISHED, shape).cycles >= 419 + 5


@pytest.mark.parametrize(("wavelets", "name"), [(1, "tree"), (256, "two_phase"), (4096, "chain")])
def test_the_tables_best_is_the_cheapest_of_its_three(wavelets, name):
    costs = {n: reduce(n, neighbours(512, wavelets)).cycles for n in IN_TABLE}
    assert min(costs, key=lambda n: costs[n]) == name


@pytest.mark.parametrize("wavelets", [1, 5, 256, 4096])
@pytest.mark.parametrize("pes", [2, 9, 420, 755])
def test_cheapest_of_all_that_a_program_may_choose(pes, wavelets):
    c = Costs.of(WSE3)
    name, shape = cheapest_all_reduce(pes, wavelets, pes - 1, c)
    found = all_reduce(name, neighbours(pes, wavelets), c, shape).cycles
    for other, its_shape in ways(pes, wavelets):
        assert found <= all_reduce(other, neighbours(pes, wavelets), c, its_shape).cycles, (other, its_shape)


@pytest.mark.parametrize("colors", [3, 4, 6, 18])
@pytest.mark.parametrize("wavelets", [1, 256, 4096])
def test_cheapest_within_its_colors(wavelets, colors):
    name, shape = cheapest_all_reduce(512, wavelets, 511, PUBLISHED, colors)
    assert all_reduce(name, neighbours(512, wavelets), PUBLISHED, shape).colors <= colors


def test_an_algorithm_that_does_not_exist():
    with pytest.raises(ValueError, match="no reduce named 'bush'"):
        reduce("bush", neighbours(4))
    with pytest.raises(ValueError, match="no reduce named 'bush'"):
        all_reduce("centre_bush", neighbours(8))


def messages(name: str, pes: int) -> list[tuple[int, int]]:
    """(from, to) of every message of a reduce, hop by hop."""
    if name == "chain":
        return [(i, i - 1) for i in range(pes - 1, 0, -1)]
    if name == "star":
        return [(i, 0) for i in range(1, pes)]
    if name == "generated":
        tree = reduce_tree.children(pes, min(3, pes - 1))
        return [(child, pe) for pe, found in enumerate(tree) for child in found]
    if name == "tree":
        found, distance = [], 1
        while distance < pes:
            found += [(i + distance, i) for i in range(0, pes - distance, 2 * distance)]
            distance *= 2
        return found
    size = group_size(pes)
    within = [(i, i - 1) for i in range(pes - 1, 0, -1) if i % size]
    return within + [(i, i - size) for i in range(size, pes, size)]


@pytest.mark.parametrize("pes", [2, 4, 16, 64, 256])
@pytest.mark.parametrize("name", REDUCES)
def test_traffic_of_even_lines(name, pes):
    """Where groups and pairs come out even, the closed form counts every hop of every message."""
    sent = messages(name, pes)
    found = reduce(name, neighbours(pes, 3), shape=(3,))
    assert found.hops == pytest.approx(3 * sum(a - b for a, b in sent))
    assert found.sent == 3 * len(sent) == 3 * (pes - 1)


@pytest.mark.parametrize("pes", range(2, 40))
@pytest.mark.parametrize("name", REDUCES)
def test_hops_of_any_line(name, pes):
    """Within a half of what every message needs, and never below a hop for each PE but the first."""
    expected = sum(a - b for a, b in messages(name, pes))
    found = reduce(name, neighbours(pes), shape=(3,)).hops
    assert pes - 1 <= found + 1e-9
    assert expected / 1.5 <= found <= expected * 2


@pytest.mark.parametrize("pes", [2, 3, 16, 41, 420])
def test_every_participant_sends_and_hears_once(pes):
    """An all-reduce sends P - 1 messages to the root; the multicast back crosses every link of the line once."""
    for name, shape in ways(pes, 4):
        form = all_reduce(name, neighbours(pes, 4), PUBLISHED, shape)
        assert form.sent >= 4 * (pes - 1) and form.hops >= 2 * 4 * (pes - 1) - 1e-9, (name, shape)


def test_spacing_adds_hops_and_no_relays():
    """512 participants three hops apart: 511 * 3 hops, still 511 relays of 5."""
    found = reduce("chain", neighbours(512, 1, spacing=3))
    assert found.cycles == 1 + 3 * 511 + 5 * 511
    assert found.hops == 3 * 511
