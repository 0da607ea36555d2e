"""Asking for a pattern: the cheapest of what there is, within the colors, above its bound."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsc.errors import ArgumentError
from wsc.machine import paths
from wsc.machine.collectives import REDUCES, Costs, Line, all_reduce, multicast, reduce, ways
from wsc.machine.patterns import PATTERNS, choose
from wsc.machine.wafer import WSE2, WSE3

PLAIN = replace(WSE3, deliver_cycles=1.0)  # a hop as in the HPDC 2024 model
ON_A_RECTANGLE = ("multicast", "reduce", "all_reduce", "all_to_all")
WAVELETS = st.integers(1, 20_000)
PES = st.integers(2, 200)
ALL = 100  # colors, so that nothing is refused


@pytest.mark.parametrize("wafer", [WSE2, WSE3, PLAIN], ids=["WSE-2", "WSE-3", "plain"])
@settings(deadline=None)
@given(PES, WAVELETS, st.booleans())
def test_cheapest_reduce_and_all_reduce(wafer, pes, wavelets, setup):
    c = Costs.of(wafer) if setup else Costs.of(wafer)._replace(setup=0.0)
    line = Line(pes, wavelets, pes - 1)
    found = choose("reduce", pes, wavelets, wafer, setup=setup)
    assert found.algorithm in REDUCES
    assert found.cycles == min(reduce(name, line, c).cycles for name in REDUCES)
    found = choose("all_reduce", pes, wavelets, wafer, setup=setup)
    options = [*ways(pes, wavelets), ("ring", ())]
    assert (found.algorithm, found.groups) in options
    assert found.cycles == min(all_reduce(name, line, c, shape).cycles for name, shape in options)
    assert choose("multicast", pes, wavelets, wafer, setup=setup).form == multicast(line, c)


@settings(deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(2, 200), WAVELETS, st.integers(1, 30))
def test_colors_are_respected_or_refused(pattern, pes, wavelets, colors):
    try:
        found = choose(pattern, pes, wavelets, colors=colors)
    except ArgumentError as error:
        assert f"and {colors} are free" in str(error)
        assert choose(pattern, pes, wavelets, colors=ALL).form.colors > colors
    else:
        assert found.form.colors <= colors
        assert found.cycles >= choose(pattern, pes, wavelets, colors=ALL).cycles


def test_no_color_at_all():
    with pytest.raises(
        ArgumentError, match=r"no algorithm for all_reduce on 512 PEs: it needs \d colors and 1 are free"
    ):
        choose("all_reduce", 512, 1, colors=1)
    with pytest.raises(ArgumentError, match="and 0 are free"):
        choose("multicast", 8, 1, colors=0)


def test_the_wafers_own_colors_by_default():
    few = replace(WSE3, colors=3)
    assert choose("all_reduce", 512, 1, few) == choose("all_reduce", 512, 1, WSE3, colors=3)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(deadline=None)
@given(PES, WAVELETS, st.integers(1, 8), st.booleans())
def test_bound_on_a_line(pattern, pes, wavelets, distance, setup):
    found = choose(pattern, pes, wavelets, colors=ALL, distance=distance, setup=setup)
    assert 0 <= found.lower_bound <= found.cycles + 1e-6


@pytest.mark.parametrize("pattern", ON_A_RECTANGLE)
@settings(deadline=None)
@given(st.tuples(st.integers(2, 40), st.integers(2, 40)), WAVELETS, st.booleans())
def test_bound_on_a_rectangle(pattern, sizes, wavelets, setup):
    found = choose(pattern, sizes, wavelets, colors=ALL, setup=setup)
    assert 0 <= found.lower_bound <= found.cycles + 1e-6


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "wafer", [WSE2, WSE3, replace(WSE3, link_wavelets_per_cycle=0.25), replace(WSE3, hop_cycles=4, deliver_cycles=5)]
)
def test_bound_on_other_wafers(pattern, wafer):
    for pes in (2, 9, 420):
        for wavelets in (1, 100, 10_000):
            found = choose(pattern, pes, wavelets, wafer, colors=ALL, setup=False)
            assert found.lower_bound <= found.cycles + 1e-6, (pes, wavelets)


def test_published_two_dimensional_broadcast():
    """B + M + N - 2 + 2 T_R + 1."""
    for rows, columns, wavelets in [(4, 4, 1), (8, 3, 100), (1, 512, 256), (512, 512, 4096)]:
        found = choose("multicast", (rows, columns), wavelets, PLAIN, setup=False)
        assert found.cycles == wavelets + rows + columns - 2 + 5, (rows, columns, wavelets)


@pytest.mark.parametrize("wavelets", [1, 256, 4096])
def test_published_two_dimensional_reduce(wavelets):
    """X then Y is the sum of the two lines; the snake a chain over all: whichever is less."""
    c = Costs.of(PLAIN)._replace(setup=0.0)
    across, down = (min(reduce(n, Line(p, wavelets, p - 1), c).cycles for n in REDUCES) for p in (20, 12))
    snake = wavelets + 6 * (12 * 20 - 1)
    assert choose("reduce", (12, 20), wavelets, PLAIN, setup=False).cycles == pytest.approx(min(across + down, snake))


def test_a_snake_wins_with_much_data():
    assert choose("reduce", (4, 4), 10**6).algorithm == "snake chain"
    assert " then " in choose("reduce", (100, 100), 1).algorithm


def loads(pes: int, sent: list[tuple[int, int]]) -> int:
    """Messages through the fullest link of the line, each direction its own link."""
    links: dict[tuple[int, int], int] = {}
    for a, b in sent:
        step = 1 if b > a else -1
        for i in range(a, b, step):
            links[i, i + step] = links.get((i, i + step), 0) + 1
    return max(links.values(), default=0)


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("pes", [2, 5, 8, 30])
def test_a_shift_hop_by_hop(pes, distance):
    """Everyone to the PE `distance` further on: hops, both ramps, and the messages that share the fullest link."""
    sent = [(i, i + distance) for i in range(pes - distance)]
    if not sent:
        return
    found = choose("shift", pes, 10, PLAIN, distance=distance, setup=False)
    sharing = loads(pes, sent)  # less a wavelet each that passes while the farther ones are on their way
    assert found.cycles == pytest.approx(distance + 5 + 10 * sharing - (sharing - 1) / 10)
    assert found.form.sent == 10 * len(sent) and found.form.hops == 10 * distance * len(sent)


def ring_neighbours(pes: int) -> list[tuple[int, int]]:
    """0, 2, 4, ... then back over the odd ones: each to the next."""
    ring = [*range(0, pes, 2), *reversed(range(1, pes, 2))]
    return [(a, ring[(i + 1) % pes]) for i, a in enumerate(ring)]


@pytest.mark.parametrize("pes", [3, 4, 9, 30])
def test_an_exchange_hop_by_hop(pes):
    sent = ring_neighbours(pes)
    assert max(abs(a - b) for a, b in sent) == 2 and loads(pes, sent) == 1
    found = choose("exchange", pes, 10, PLAIN, setup=False)
    assert found.cycles == 2 + 5 + 10
    assert found.form.sent == 10 * len(sent)
    assert found.form.hops == 10 * sum(abs(a - b) for a, b in sent)


@pytest.mark.parametrize("pes", [2, 5, 8, 31])
def test_all_to_all_hop_by_hop(pes):
    sent = [(a, b) for a in range(pes) for b in range(pes) if a != b]
    found = choose("all_to_all", pes, 10, PLAIN, colors=24, setup=False)
    assert found.algorithm == "direct"
    assert found.cycles == pes - 1 + 5 + 10 * loads(pes, sent)
    assert found.form.sent == 10 * len(sent)
    assert found.form.hops == pytest.approx(10 * sum(abs(a - b) for a, b in sent))


@pytest.mark.parametrize("pattern", ["gather", "scatter"])
@pytest.mark.parametrize("pes", [2, 5, 30])
def test_gather_and_scatter_fill_the_one_ramp(pattern, pes):
    found = choose(pattern, pes, 10, PLAIN, setup=False)
    assert found.cycles == 10 * (pes - 1) + 5 + 1
    assert found.form.hops == 10 * sum(range(pes))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_pe_needs_nothing(pattern):
    found = choose(pattern, 1, 100, setup=False)
    assert found.cycles == found.lower_bound == found.form.sent == found.form.hops == 0


@pytest.mark.parametrize("pattern", ON_A_RECTANGLE)
def test_a_rectangle_of_one_pe_needs_nothing(pattern):
    found = choose(pattern, (1, 1), 100, setup=False)
    assert found.cycles == found.lower_bound == 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_data_takes_no_time_on_the_links(pattern):
    found = choose(pattern, 9, 0, setup=False)
    assert found.form.serial == found.form.sent == found.form.hops == 0
    assert found.lower_bound <= found.cycles


@pytest.mark.parametrize("pattern", ON_A_RECTANGLE)
def test_a_large_rectangle_has_some_algorithm(pattern):
    assert choose(pattern, (100, 80), 4).form.colors <= WSE3.colors


@pytest.mark.parametrize("pattern", ON_A_RECTANGLE)
def test_a_single_row_costs_what_the_line_does(pattern):
    for wavelets in (1, 300):
        flat, row = (choose(pattern, pes, wavelets, colors=ALL, setup=False) for pes in (24, (1, 24)))
        assert row.cycles == pytest.approx(flat.cycles)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fly", 4, 1), "no pattern named 'fly': there are multicast, reduce"),
        (("reduce", 0, 1), "reduce of 1 wavelets among 0 PEs, 1 apart"),
        (("reduce", -3, 1), "among -3 PEs"),
        (("reduce", (4, 0), 1), r"among \(4, 0\) PEs"),
        (("reduce", (4, 4, 4), 1), r"among \(4, 4, 4\) PEs"),
        (("reduce", (2.5, 4), 1), r"among \(2.5, 4\) PEs"),
        (("reduce", 4, -1), "reduce of -1 wavelets"),
        (
            ("shift", (4, 4), 1),
            r"no algorithm for shift on \(4, 4\) PEs: only multicast, reduce, all_reduce, all_to_all",
        ),
        (("gather", (4, 4), 1), "no algorithm for gather"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        choose(*arguments)


@pytest.mark.parametrize("pes", [2.5, "many", None, ()])
def test_a_number_of_pes_that_is_none(pes):
    with pytest.raises(ArgumentError, match="sizes and distance must be whole numbers"):
        choose("reduce", pes, 1)


@pytest.mark.parametrize("wavelets", [float("nan"), float("inf"), "many", None])
def test_an_amount_that_is_none(wavelets, monkeypatch):
    """Refused before any search: with nan that of the best tree would not end."""
    monkeypatch.setattr(paths, "best_depth", lambda *args: pytest.fail("searched"))
    with pytest.raises(ArgumentError, match="wavelets"):
        choose("reduce", 4, wavelets)


def test_a_distance_that_is_none():
    with pytest.raises(ArgumentError, match="0 apart"):
        choose("shift", 4, 1, distance=0)


@pytest.mark.parametrize(("pattern", "pes"), [("reduce", 5000), ("all_reduce", 10**7), ("multicast", (3, 100_000))])
def test_more_pes_than_the_wafer_has(pattern, pes):
    with pytest.raises(ArgumentError, match="a WSE-3 has 1170 x 755"):
        choose(pattern, pes, 4)


@pytest.mark.parametrize("sizes", [(2, 2), (2, 3), (4, 8)])
@pytest.mark.parametrize("pattern", ["reduce", "all_reduce"])
def test_a_rectangle_is_no_dearer_than_the_line_through_it(pattern, sizes):
    for wavelets in (1, 100, 10_000):
        line = choose(pattern, sizes[0] * sizes[1], wavelets)
        assert choose(pattern, sizes, wavelets).cycles <= line.cycles
