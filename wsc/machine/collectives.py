"""Closed forms for moving data between the PEs of a line, in cycles: one form a pattern and algorithm.

Source of the forms, unless said otherwise: "Near-Optimal Wafer-Scale Reduce" (HPDC 2024), model error below 4 % on a
CS-2. There

    T = max(C, E/N + L) + (2*T_R + 1) * D

with C the most wavelets any PE sends or receives, E the hops summed over wavelets, N the links used, L the longest
path and D the longest chain of dependent operations. A `Line` has `pes` participants P, `wavelets` B of each, and
`span` hops from the first participant to the last (P - 1 when neighbours take part). `Costs` are the wafer's: cycles a
hop, a hop that also delivers, a relay (2*T_R + 1), the width of a link, and `setup`, what a PE needs before each of its
instructions; with setup = 0 and deliver = hop = 1 the forms are the published ones to the letter.
"""

import math
from functools import lru_cache
from typing import NamedTuple

from wsc.machine import reduce_tree
from wsc.machine.numbers import Number, maximum
from wsc.machine.wafer import Wafer

REDUCES = ("chain", "tree", "two_phase", "generated", "star")


class Line(NamedTuple):
    """Who takes part, and how much data each has."""

    pes: int
    wavelets: float
    span: float


class Costs(NamedTuple):
    """What the forms need of a wafer, in cycles."""

    hop: Number = 1.0
    deliver: Number = 1.0
    relay: Number = 5.0
    setup: Number = 0.0
    width: Number = 1.0

    @classmethod
    def of(cls, wafer: Wafer, straight: bool = False) -> "Costs":
        """`straight`: instructions stand in straight-line code, not in a loop."""
        return cls(
            wafer.hop_cycles,
            wafer.deliver_cycles,
            wafer.relay_cycles,
            wafer.straight_cycles if straight else wafer.loop_cycles,
            wafer.link_wavelets_per_cycle,
        )


class Form(NamedTuple):
    """What one collective costs. `latency` whatever the amount of data, `serial` because of it, `setup` instructions
    prepared one after the other; `sent` wavelets and `hops` summed over them, all PEs of the line; `colors` taken."""

    latency: Number
    serial: Number
    setup: Number
    sent: float
    hops: float
    colors: int

    @property
    def cycles(self) -> Number:
        return self.latency + self.serial + self.setup

    def then(self, other: "Form") -> "Form":
        """One after the other, on colors of their own."""
        return Form(
            self.latency + other.latency,
            self.serial + other.serial,
            self.setup + other.setup,
            self.sent + other.sent,
            self.hops + other.hops,
            self.colors + other.colors,
        )


NOTHING = Form(0.0, 0.0, 0.0, 0.0, 0.0, 0)


def group_size(pes: int) -> int:
    """S of the two-phase reduce: the participants of one group, about sqrt(pes)."""
    return max(1, round(math.sqrt(pes)))


def multicast(line: Line, c: Costs = Costs()) -> Form:  # noqa: B008 - a tuple
    """One PE sends to all others along the line: `B + P + 2*T_R`."""
    if line.pes <= 1:
        return NOTHING
    passing = line.span - (line.pes - 1)
    latency = passing * c.hop + (line.pes - 1) * maximum(c.hop, c.deliver) + c.relay
    return Form(latency, line.wavelets / c.width, c.setup, line.wavelets, line.wavelets * line.span, 1)


def _reduce(line: Line, c: Costs, received: int, energy: float, depth: int, colors: int) -> Form:
    """The general form: the busiest PE takes in `received` messages, each wavelet makes `energy` hops on a line of
    neighbours, and `depth` operations depend on one another."""
    b = line.wavelets / c.width
    latency = line.span * c.hop + depth * c.relay
    taken = received * (b + c.setup) - c.setup
    whole = maximum(taken, b * energy / (line.pes - 1) + line.span * c.hop) + depth * c.relay
    hops = line.wavelets * energy * line.span / (line.pes - 1)
    return Form(latency, whole - latency, c.setup, line.wavelets * (line.pes - 1), hops, colors)


def reduce(algorithm: str, line: Line, c: Costs = Costs(), shape: tuple[int, ...] = ()) -> Form:  # noqa: B008
    """The sum of every participant's data, at the first PE of the line, by the named algorithm:

    chain      neighbour to neighbour, `out = in + memory`: `B + (2*T_R + 2)*(P - 1)`
    tree       binary: `max(B*lg P, B*P*lg P/(2*(P-1)) + P - 1) + (2*T_R + 1)*lg P`
    two_phase  chains within groups of S, then one over the G = ceil(P/S) groups, with E = (S-1)*G + (G-1)*S, which
               gives the published table exactly
    generated  the tree of depth `shape[0]`, or the one that `reduce_tree` finds for this amount of data
    star       all send to the first: `B*(P-1) + 2*T_R + 1`
    """
    pes = line.pes
    if pes <= 1:
        return NOTHING
    if algorithm == "chain":
        return _reduce(line, c, 1, pes - 1, pes - 1, 2)
    if algorithm == "tree":
        rounds = math.ceil(math.log2(pes))
        return _reduce(line, c, rounds, pes * rounds / 2, rounds, 3)
    if algorithm == "two_phase":
        size = group_size(pes)
        groups = math.ceil(pes / size)
        energy = (size - 1) * groups + (groups - 1) * size
        return _reduce(line, c, 2, energy, (size - 1) + (groups - 1), 3)
    if algorithm == "generated":
        depth = min(shape[0], pes - 1) if shape else generated_depth(pes, line.wavelets)
        if depth == pes - 1:
            return _reduce(line, c, 1, pes - 1, pes - 1, 3)
        energy = float(reduce_tree.least_energy(pes)[depth])
        return _reduce(line, c, reduce_tree.degree(pes, depth), energy, depth, 3)
    if algorithm == "star":
        b = line.wavelets / c.width
        serial = maximum(b * (pes - 1) - line.span * c.hop, 0.0 * b)
        hops = line.wavelets * line.span * pes / 2
        return Form(line.span * c.hop + c.relay, serial, c.setup, line.wavelets * (pes - 1), hops, 1)
    raise ValueError(f"no reduce named {algorithm!r}")


def generated_depth(pes: int, wavelets: float) -> int:
    """The depth of the tree that is generated for this much data. The tree belongs to the program, not to the wafer, so
    it is the one for neighbours with the published costs."""
    return reduce_tree.best_depth(pes, wavelets, pes - 1, 5.0, 21.0)


def _side(line: Line) -> Line:
    """The longer half of a line whose middle PE is the root, the root included."""
    half = line.pes // 2 + 1
    return Line(half, line.wavelets, line.span * (half - 1) / (line.pes - 1))


def all_reduce(algorithm: str, line: Line, c: Costs = Costs(), shape: tuple[int, ...] = ()) -> Form:  # noqa: B008
    """The sum at every participant:

    `name`         that reduce, then a multicast back along the line
    `centre_name`  that reduce from both ends to the middle PE, which takes in the two sums one after the other and then
                   sends both ways
    k_level        chains from both ends to the middle of groups of `shape[0]`, then of `shape[1]` of their roots, and
                   so on; the last root sends both ways (WaferLLM, OSDI 2025, with two levels)
    ring           `2(P-1)*B/P + 4P - 6 + 2(P-1)*(2*T_R+1)`
    """
    pes = line.pes
    if pes <= 1:
        return NOTHING
    b = line.wavelets / c.width
    if algorithm == "ring":
        spacing = line.span / (pes - 1)
        latency = (4 * pes - 6) * spacing * c.hop + 2 * (pes - 1) * c.relay
        sent = 2 * (pes - 1) * line.wavelets
        return Form(latency, 2 * (pes - 1) * b / pes, 2 * (pes - 1) * c.setup, sent, 2 * sent * spacing, 4)
    if algorithm == "k_level":
        return _k_level(line, c, shape)
    if not algorithm.startswith("centre_"):
        return reduce(algorithm, line, c, shape).then(multicast(line, c))
    if pes == 2:
        return reduce(algorithm.removeprefix("centre_"), line, c, shape).then(multicast(line, c))
    side = _side(line)
    return _both_sides(reduce(algorithm.removeprefix("centre_"), side, c, shape), b, c).then(
        _both_sides(multicast(side, c), b, c)
    )


def _both_sides(side: Form, b: Number, c: Costs) -> Form:
    """Two halves at once; the middle PE deals with their messages one after the other."""
    return Form(side.latency, side.serial + b, side.setup + c.setup, 2 * side.sent, 2 * side.hops, 2 * side.colors)


def _k_level(line: Line, c: Costs, shape: tuple[int, ...]) -> Form:
    levels = k_levels(line.pes, shape)
    b = line.wavelets / c.width
    spacing = line.span / (line.pes - 1)
    found, lines = NOTHING, line.pes
    for size in levels:
        lines = math.ceil(lines / size)
        half = size // 2
        hops = half * spacing
        latency = hops * c.hop + half * c.relay
        sent = lines * (size - 1) * line.wavelets
        found = found.then(Form(latency, 2 * b, 2 * c.setup, sent, sent * spacing, 4))
        spacing *= size
    back = _side(line) if line.pes > 2 else line
    return found.then(_both_sides(multicast(back, c), b, c))


def k_levels(pes: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The level sizes of a k_level all-reduce: `sizes`, and a last level of as many roots as then are left.

    >>> k_levels(420, (21,))
    (21, 20)
    """
    left = pes
    for size in sizes:
        left = math.ceil(left / size)
    return (*sizes, left) if left > 1 else sizes


def ways(pes: int, wavelets: float) -> list[tuple[str, tuple[int, ...]]]:
    """(algorithm, shape) of every all-reduce that a program may choose. The ring is not among them: it adds
    every part of the data in another order, and is the cheapest only from some 4 P^2 wavelets."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for prefix, line in (("centre_", pes // 2 + 1), ("", pes)):
        found += [(prefix + name, ()) for name in REDUCES if name != "generated"]
        found.append((prefix + "generated", (generated_depth(line, wavelets),)))
    two = sorted({max(2, round(math.sqrt(pes) * f)) for f in (0.5, 0.7, 1.0, 1.4, 2.0)})
    three = max(2, round(pes ** (1 / 3)))
    levels = [(size,) for size in two] + [(three, three)]
    return found + [("k_level", sizes) for sizes in levels if pes > 8]


@lru_cache(maxsize=65536)
def cheapest_all_reduce(
    pes: int, wavelets: float, span: float, c: Costs = Costs(), colors: int = 18  # noqa: B008
) -> tuple[str, tuple[int, ...]]:  # fmt: skip
    """(algorithm, shape) of the all-reduce with the fewest cycles among those that `colors` allow.

    >>> cheapest_all_reduce(512, 1, 511), cheapest_all_reduce(512, 4096, 511, colors=3)
    (('centre_star', ()), ('chain', ()))
    """
    line = Line(pes, wavelets, span)
    found = [(all_reduce(name, line, c, groups), name, groups) for name, groups in ways(pes, wavelets)]
    allowed = [f for f in found if f[0].colors <= colors]
    best = min(allowed or [min(found, key=lambda f: f[0].colors)], key=lambda f: f[0].cycles)
    return best[1], best[2]
