"""The closed forms against the numbers published for them, and against a fabric written out hop by hop."""

import pytest

from wsc.machine import collectives

RELAY = 5  # 2 * T_R + 1
TABLE = {1: (3067, 560, 733, 517), 256: (3322, 2349, 1238, 772), 4096: (7162, 36909, 8843, 4612)}


@pytest.mark.parametrize("wavelets", TABLE)
@pytest.mark.parametrize(("column", "name"), list(enumerate(collectives.REDUCES)))
def test_published_reduces_on_512_pes(wavelets, column, name):
    assert abs(sum(collectives.reduce(name, 512, wavelets, 511, RELAY)) - TABLE[wavelets][column]) < 1


@pytest.mark.parametrize("wavelets", TABLE)
def test_published_broadcast_on_512_pes(wavelets):
    """B + P + 2 T_R; our latency counts P - 1 hops and 2 T_R + 1 for ramps."""
    assert sum(collectives.multicast(512, wavelets, 511, RELAY)) == wavelets + 512 + 4
    assert wavelets + 512 + 4 == TABLE[wavelets][3]


def test_group_size_of_512_is_23():
    assert collectives.group_size(512) == 23


@pytest.mark.parametrize("pes", [2, 3, 7, 64, 1170])
@pytest.mark.parametrize("wavelets", [1, 10, 3000])
def test_formulas_of_the_paper(pes, wavelets):
    """T = B + (2 T_R + 2)(P - 1) for a chain."""
    assert sum(collectives.chain(pes, wavelets, pes - 1, RELAY)) == wavelets + 6 * (pes - 1)


@pytest.mark.parametrize("name", collectives.REDUCES)
def test_one_pe_moves_nothing(name):
    assert collectives.reduce(name, 1, 100, 0, RELAY) == (0, 0)
    assert collectives.multicast(1, 100, 0, RELAY) == (0, 0)
    assert collectives.reduce_wavelet_hops(name, 1, 100, 0) == 0


def lower_bound(pes: int, wavelets: int) -> float:
    """The published recurrence: least energy of a reduce of a given depth, then the best depth."""
    infinite = float("inf")
    depths = range(pes)
    energy = {(1, d): 0.0 for d in depths}
    for p in range(2, pes + 1):
        energy[p, 0] = infinite
    for d in depths[1:]:
        for p in range(2, pes + 1):
            split = min(energy[s, d - 1] + energy[p - s, d] + (p - s) for s in range(1, p))
            energy[p, d] = min(energy[p, d - 1], split)
    return min(wavelets * energy[pes, d] / (pes - 1) + pes - 1 + d * RELAY for d in depths[1:])


@pytest.mark.parametrize("pes", [2, 5, 16, 33])
@pytest.mark.parametrize("wavelets", [1, 16, 1024])
def test_no_reduce_beats_the_published_lower_bound(pes, wavelets):
    bound = lower_bound(pes, wavelets)
    for name in collectives.REDUCES:
        found = sum(collectives.reduce(name, pes, wavelets, pes - 1, RELAY))
        assert found >= bound - 1e-9, name


@pytest.mark.parametrize(("wavelets", "name"), [(1, "tree"), (256, "two_phase"), (4096, "chain")])
def test_cheapest_reduce_by_size(wavelets, name):
    costs = dict(zip(collectives.REDUCES, TABLE[wavelets], strict=False))
    assert min(costs, key=lambda n: costs[n]) == name
    assert collectives.cheapest_reduce(512, wavelets, 511, RELAY) == name


def sent(name: str, pes: int) -> list[tuple[int, int]]:
    """(from, to) of every message of a reduce, hop by hop."""
    if name == "chain":
        return [(i, i - 1) for i in range(pes - 1, 0, -1)]
    if name == "tree":
        found, distance = [], 1
        while distance < pes:
            found += [(i + distance, i) for i in range(0, pes - distance, 2 * distance)]
            distance *= 2
        return found
    size = collectives.group_size(pes)
    within = [(i, i - 1) for i in range(pes - 1, 0, -1) if i % size]
    return within + [(i, i - size) for i in range(size, pes, size)]


@pytest.mark.parametrize("pes", [2, 4, 16, 64, 256])
@pytest.mark.parametrize("name", collectives.REDUCES)
def test_hops_of_even_lines(name, pes):
    """Where groups and pairs come out even, the closed form counts every hop of every message."""
    expected = sum(a - b for a, b in sent(name, pes))
    assert collectives.reduce_wavelet_hops(name, pes, 3, pes - 1) == pytest.approx(3 * expected)


@pytest.mark.parametrize("pes", range(2, 40))
@pytest.mark.parametrize("name", collectives.REDUCES)
def test_hops_of_any_line(name, pes):
    """Within a half of what every message needs, and never below a hop for each PE but the first."""
    expected = sum(a - b for a, b in sent(name, pes))
    found = collectives.reduce_wavelet_hops(name, pes, 1, pes - 1)
    assert pes - 1 <= found
    assert expected / 1.5 <= found <= expected * 2


def test_spacing_adds_hops_and_no_relays():
    """512 participants three hops apart: 511 * 3 hops, still 511 relays of 5."""
    assert sum(collectives.chain(512, 1, 3 * 511, RELAY)) == 1 + 3 * 511 + 5 * 511
    assert collectives.reduce_wavelet_hops("chain", 512, 1, 3 * 511) == 3 * 511
