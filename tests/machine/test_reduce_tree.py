"""The generated reduce tree against a naive recurrence, and against the sums that its trees really make."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsc.machine import paths, reduce_tree
from wsc.machine.collectives import REDUCES, Costs, Line, reduce

RELAY = 5  # 2 * T_R + 1
INFINITE = float("inf")
SIZES = st.integers(2, 130)


@cache
def naive(p: int, d: int) -> float:
    """E*(p, d) as published, no table."""
    if p == 1:
        return 0.0
    if d == 0:
        return INFINITE
    split = min(naive(s, d - 1) + naive(p - s, d) + (p - s) for s in range(1, p))
    return min(naive(p, d - 1), split)


@pytest.mark.parametrize("pes", range(2, 41))
def test_table_is_the_recurrence(pes):
    """All depths up to that of the chain, for lines short enough that the table keeps them."""
    found = reduce_tree.least_energy(pes)
    assert found.tolist() == [naive(pes, d) for d in range(len(found))]
    assert len(found) == min(pes - 1, 2 * int(pes**0.5) + 4) + 1


@pytest.mark.parametrize("pes", [2, 5, 12, 40, 512])
def test_more_depth_never_needs_more_hops(pes):
    energy = reduce_tree.least_energy(pes).tolist()
    assert energy[0] == INFINITE and energy[1] == pes * (pes - 1) / 2  # all send to the first
    assert energy == sorted(energy, reverse=True)
    assert energy[-1] >= pes - 1  # the chain's


@settings(deadline=None)
@given(SIZES, st.data())
def test_children_make_one_tree(pes, data):
    depth = data.draw(st.integers(1, len(reduce_tree.least_energy(pes)) - 1))
    tree = reduce_tree.children(pes, depth)
    assert sorted(child for found in tree for child in found) == list(range(1, pes))
    assert all(child > pe for pe, found in enumerate(tree) for child in found)  # all data goes to the root
    hops = sum(child - pe for pe, found in enumerate(tree) for child in found)
    assert hops == reduce_tree.least_energy(pes)[depth]
    assert reduce_tree.degree(pes, depth) == max(map(len, tree))


@settings(deadline=None)
@given(SIZES, st.data())
def test_no_chain_of_dependent_receives_is_longer_than_the_depth(pes, data):
    """A PE sends after all that it takes in, one after the other; two that arrive in a row need no relay between."""
    depth = data.draw(st.integers(1, len(reduce_tree.least_energy(pes)) - 1))
    below = [0] * pes
    for pe, found in reversed(list(enumerate(reduce_tree.children(pes, depth)))):
        below[pe] = max((below[child] + 1 for child in found), default=0)
    assert below[0] <= depth


@settings(deadline=None)
@given(SIZES, st.data())
def test_messages_to_one_pe_do_not_cross(pes, data):
    """Parts are neighbours: what a PE sums is an unbroken stretch that starts at itself."""
    depth = data.draw(st.integers(1, len(reduce_tree.least_energy(pes)) - 1))
    held = [[pe] for pe in range(pes)]
    for pe, found in reversed(list(enumerate(reduce_tree.children(pes, depth)))):
        for child in found:
            held[pe] += held[child]
        assert held[pe] == list(range(pe, pe + len(held[pe])))


@settings(deadline=None)
@given(SIZES, st.integers(1, 10_000))
def test_generated_is_no_slower_than_the_published_reduces(pes, wavelets):
    """By the published times the best tree of all; by its longest path another tree may be a little shorter, whose
    messages come in while others are still added up."""
    depth = paths.best_depth(pes, wavelets, pes - 1, RELAY)
    line = Line(pes, wavelets, pes - 1)
    found = reduce("generated", line, Costs(), (depth,)).cycles
    for name in ("chain", "tree", "two_phase"):
        slack = 1.0 if name == "chain" else 1.1
        assert found <= slack * reduce(name, line).cycles + 1e-6, name


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(1, 10_000), st.sampled_from([0.0, 21.0]))
def test_the_best_depth_is_the_best_of_all_depths(pes, wavelets, setup):
    line, costs = Line(pes, wavelets, pes - 1), Costs(setup=setup)
    depths = [*range(1, len(reduce_tree.least_energy(pes))), pes - 1]
    best = min(reduce("generated", line, costs, (d,)).cycles for d in depths)
    chosen = paths.best_depth(pes, wavelets, pes - 1, RELAY, setup)
    assert reduce("generated", line, costs, (chosen,)).cycles == pytest.approx(best)


@pytest.mark.parametrize("name", REDUCES)
@settings(deadline=None)
@given(SIZES, st.integers(1, 10_000))
def test_lower_bound_is_below_every_algorithm(name, pes, wavelets):
    bound = reduce_tree.lower_bound(pes, wavelets, pes - 1, RELAY)
    assert bound <= reduce(name, Line(pes, wavelets, pes - 1)).cycles + 1e-6


@settings(deadline=None)
@given(st.integers(2, 24), st.integers(1, 2000))
def test_lower_bound_is_at_most_the_published_one(pes, wavelets):
    published = min(wavelets * naive(pes, d) / (pes - 1) + pes - 1 + d * RELAY for d in range(1, pes))
    assert reduce_tree.lower_bound(pes, wavelets, pes - 1, RELAY) <= published + 1e-6


def test_generated_on_512_pes_is_near_the_bound():
    """Published: chain, star and tree are up to 5.9 times the bound, generated trees near it."""
    for wavelets in (1, 16, 256, 4096):
        line, bound = Line(512, wavelets, 511), reduce_tree.lower_bound(512, wavelets, 511, RELAY)
        depth = paths.best_depth(512, wavelets, 511, RELAY)
        assert reduce("generated", line, shape=(depth,)).cycles <= 1.5 * bound
    chain, bound = reduce("chain", Line(512, 1, 511)).cycles, reduce_tree.lower_bound(512, 1, 511, RELAY)
    assert 4 < chain / bound < 6


def test_one_pe_needs_nothing():
    assert reduce_tree.lower_bound(1, 100, 0, RELAY) == 0
