"""Closed forms for moving data between the PEs of a line, in cycles: one form a pattern and algorithm.

Sources: the longest paths through the tree of messages (`wsc.machine.paths`), which the fabric simulator agrees with;
and "Near-Optimal Wafer-Scale Reduce" (HPDC 2024), model error below 4 % on a CS-2. There

    T = max(C, E/N + L) + (2*T_R + 1) * D

with C the most wavelets any PE sends or receives, E the hops summed over wavelets, N the links used, L the longest
path and D the longest chain of dependent operations. Where that is more, as it adds what may pass at the same time, a
tree and a two-phase reduce take up to 2 % more than their paths. A `Line` has `pes` participants P, `wavelets` B of
each, and `span` hops from the first participant to the last (P - 1 when neighbours take part). `Costs` are the wafer's:
cycles a hop, a hop that also delivers, a relay (2*T_R + 1), the width of a link, and `setup`, what a PE needs before
each of its instructions.
"""

import math
from functools import lru_cache
from typing import NamedTuple

from wsc.machine import paths, reduce_tree
from wsc.machine.numbers import Number, maximum
from wsc.machine.paths import group_size
from wsc.machine.wafer import Wafer

NEAR = 0.02  # of the time by paths: so much more may a published time be
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


def multicast(line: Line, c: Costs = Costs()) -> Form:  # noqa: B008 - a tuple
    """One PE sends to all others along the line: `B + P + 2*T_R`."""
    if line.pes <= 1:
        return NOTHING
    passing = line.span - (line.pes - 1)
    latency = passing * c.hop + (line.pes - 1) * maximum(c.hop, c.deliver) + c.relay
    return Form(latency, line.wavelets / c.width, c.setup, line.wavelets, line.wavelets * line.span, 1)


def reduce(algorithm: str, line: Line, c: Costs = Costs(), shape: tuple[int, ...] = ()) -> Form:  # noqa: B008
    """The sum of every participant's data, at the first PE of the line, by the named algorithm:

    chain      neighbour to neighbour, `out = in + memory`: `B + (2*T_R + 2)*(P - 1)`
    tree       binary: as published `max(B*lg P, B*P*lg P/(2*(P-1)) + P - 1) + (2*T_R + 1)*lg P`
    two_phase  chains within groups of S, then one over the G = ceil(P/S) groups, with E = (S-1)*G + (G-1)*S, which
               gives the published table exactly
    generated  the tree of depth `shape[0]`, or the best one for this amount of data
    star       all send to the first: `B*(P-1) + 2*T_R + 2`
    """
    if line.pes <= 1:
        return NOTHING
    if algorithm == "generated":
        shape = (min(shape[0], line.pes - 1) if shape else generated_depth(line.pes, line.wavelets),)
    form = _longest(algorithm, line, c, shape)
    energy, received, depth = _tree_of(algorithm, line.pes, shape)
    form = form._replace(hops=line.wavelets * energy * line.span / (line.pes - 1))
    if algorithm not in ("tree", "two_phase"):
        return form
    b = line.wavelets / c.width
    published = maximum(b * received, b * energy / (line.pes - 1) + line.span * c.hop) + depth * c.relay
    mine = _longest(algorithm, line, c._replace(setup=0.0), shape)
    exact = mine.latency + mine.serial
    return form._replace(latency=form.latency + maximum(0.0 * exact, -maximum(-NEAR * exact, exact - published)))


def _longest(algorithm: str, line: Line, c: Costs, shape: tuple[int, ...]) -> Form:
    """The time of the longest path of a reduce, or of an all-reduce as far as its root."""
    spacing = line.span / (line.pes - 1)
    found = paths.of_reduce(algorithm, line.pes, shape)
    times = paths.cycles(found, spacing * c.hop, c.relay, line.wavelets / c.width, c.setup)
    colors = 2 * len(k_levels(line.pes, shape)) if algorithm == "k_level" else 1 if algorithm == "star" else 2
    return Form(*times, line.wavelets * (line.pes - 1), 0.0, colors)


def _tree_of(algorithm: str, pes: int, shape: tuple[int, ...]) -> tuple[float, int, int]:
    """Of a reduce by trees of neighbours as published: hops summed over the messages, the most that a PE takes in, and
    the operations that depend on one another."""
    if algorithm == "star":
        return pes * (pes - 1) / 2, pes - 1, 1
    if algorithm == "tree":
        rounds = math.ceil(math.log2(pes))
        return pes * rounds / 2, rounds, rounds
    if algorithm == "two_phase":
        size = group_size(pes)
        groups = math.ceil(pes / size)
        return (size - 1) * groups + (groups - 1) * size, 2, (size - 1) + (groups - 1)
    if algorithm == "generated" and shape[0] < pes - 1:
        energy = reduce_tree.least_energy(pes)
        return float(energy[min(shape[0], len(energy) - 1)]), reduce_tree.degree(pes, shape[0]), shape[0]
    return pes - 1, 1, pes - 1


def queued(messages: float, wavelets: float, c: Costs) -> Number:
    """Cycles in which as many messages of so many wavelets pass one link, less those that pass while the farther ones
    are still on their way to it: one wavelet's of each."""
    return (messages * wavelets - (messages - 1) / maximum(wavelets, 1)) / c.width


def both_ways(passing: Number, wavelets: float, c: Costs) -> Number:
    """Set-up of PEs that send and take in at the same time: they prepare the one, then the other; what comes meanwhile,
    as `passing` says, has waited by then."""
    return c.setup + maximum(0.0 * c.setup, c.setup + wavelets / c.width - passing)


def generated_depth(pes: int, wavelets: float) -> int:
    """The depth of the tree that is generated for this much data. The tree belongs to the program, not to the wafer, so
    it is the one for neighbours with the published costs, prepared in straight-line code."""
    return paths.best_depth(pes, wavelets, pes - 1, 5.0, 5.0)


def all_reduce(algorithm: str, line: Line, c: Costs = Costs(), shape: tuple[int, ...] = ()) -> Form:  # noqa: B008
    """The sum at every participant:

    `name`         that reduce, then a multicast back along the line
    `centre_name`  that reduce from both ends to the middle PE, which takes in one message after the other, those of
                   one end first, and then sends both ways at once
    k_level        chains from both ends to the middle of groups of `shape[0]`, then of `shape[1]` of their roots, and
                   so on; the last root sends both ways (WaferLLM, OSDI 2025, with two levels)
    ring           `2(P-1)*B/P + 4P - 6 + 2(P-1)*(2*T_R+1)`
    """
    pes = line.pes
    if pes <= 1:
        return NOTHING
    if algorithm == "ring":
        spacing = line.span / (pes - 1)
        latency = (4 * pes - 6) * spacing * c.hop + 2 * (pes - 1) * c.relay
        sent = 2 * (pes - 1) * line.wavelets
        serial = 2 * (pes - 1) * (line.wavelets / c.width) / pes
        return Form(latency, serial, 2 * (pes - 1) * c.setup, sent, 2 * sent * spacing, 4)
    name = algorithm.removeprefix("centre_")
    if algorithm != "k_level" and (name == algorithm or pes == 2):
        return reduce(name, line, c, shape).then(multicast(line, c))
    middle = paths.root(pes, shape) if algorithm == "k_level" else pes // 2
    far = max(middle, pes - 1 - middle)  # places from the root to the farther end
    back = multicast(Line(far + 1, line.wavelets, line.span * far / (pes - 1)), c)
    back = back._replace(sent=line.wavelets, hops=line.wavelets * line.span)
    if name == "generated" and not shape:
        shape = (generated_depth(pes // 2 + 1, line.wavelets),)
    found = _longest(algorithm, line, c, shape)
    return found._replace(hops=line.wavelets * _hops(algorithm, line, shape)).then(back)


def _hops(algorithm: str, line: Line, shape: tuple[int, ...]) -> float:
    """Hops summed over the messages that go to a root in the middle."""
    spacing = line.span / (line.pes - 1)
    if algorithm != "k_level":
        sides = line.pes - line.pes // 2, line.pes // 2 + 1
        name = algorithm.removeprefix("centre_")
        return spacing * sum(_tree_of(name, n, tuple(min(d, n - 1) for d in shape))[0] for n in sides if n > 1)
    total, lines = 0.0, line.pes
    for size in k_levels(line.pes, shape):
        lines = math.ceil(lines / size)
        total += lines * (size - 1) * spacing
        spacing *= size
    return total


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
    (('centre_tree', ()), ('chain', ()))
    """
    line = Line(pes, wavelets, span)
    found = [(all_reduce(name, line, c, groups), name, groups) for name, groups in ways(pes, wavelets)]
    allowed = [f for f in found if f[0].colors <= colors]
    best = min(allowed or [min(found, key=lambda f: f[0].colors)], key=lambda f: f[0].cycles)
    return best[1], best[2]
