"""How long reduces along a line take: the longest of the ways that data and PEs wait for one another.

A PE that takes in messages adds all but the last to what it has, with one instruction, and streams the last on with its
own data added, with another; its k-th message waits until the one before is in, and the stream until its instruction
is prepared. So a time is a largest of sums, and each sum is so many hops, relays (2*T_R + 1), whole messages and
prepared instructions, whatever those cost: a `Path`. A tree's paths are found once; those that are never the longest
are dropped. The fabric simulator is what these times are held against (`wsc validate --fabric`).
"""

import math
import operator
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from wsc.machine import reduce_tree
from wsc.machine.numbers import Number, where


class Path(NamedTuple):
    """Hops between neighbours, relays, messages and set-ups that wait for one another."""

    hops: int
    relays: int
    messages: int
    setups: int


Paths = tuple[Path, ...]
Senders = tuple[tuple[int, Paths], ...]  # from whom a PE takes in, in order: PEs away, and when they have first data
READY: Paths = (Path(0, 0, 0, 1),)  # an instruction is prepared


def group_size(pes: int) -> int:
    """S of the two-phase reduce: the participants of one group, about sqrt(pes)."""
    return max(1, round(math.sqrt(pes)))


def longest(paths: Paths) -> Paths:
    """Without those that are never longer than another, or than the longer of two others.

    >>> longest((Path(1, 1, 9, 0), Path(5, 1, 5, 0), Path(9, 1, 1, 0), Path(4, 1, 4, 0), Path(1, 0, 9, 0)))
    (Path(hops=9, relays=1, messages=1, setups=0), Path(hops=1, relays=1, messages=9, setups=0))
    """
    corners: dict[tuple[int, int], list[Path]] = {}
    for p in sorted(set(paths), reverse=True):
        found = corners.setdefault((p.relays, p.setups), [])
        if found and p.messages <= found[-1].messages:
            continue
        while len(found) > 1 and _bends_in(found[-2], found[-1], p):
            found.pop()
        found.append(p)
    left = [p for found in corners.values() for p in found]
    if len(corners) == 1:
        return tuple(left)
    return tuple(p for p in left if not any(p != o and all(map(operator.ge, o, p)) for o in left))


def _bends_in(a: Path, b: Path, c: Path) -> bool:
    """Of three with ever fewer hops and more messages, the second is never the longest."""
    return (a.hops - b.hops) * (c.messages - b.messages) >= (b.hops - c.hops) * (b.messages - a.messages)


def _then(paths: Paths, hops: int = 0, relays: int = 0, messages: int = 0, setups: int = 0) -> Paths:
    return tuple(Path(p[0] + hops, p[1] + relays, p[2] + messages, p[3] + setups) for p in paths)


def taken_in(senders: Senders, ready: Paths = READY) -> Paths:
    """When a PE has added up what all of them send."""
    for away, sent in senders:
        ready = _then(longest(ready + _then(sent, away, 1)), messages=1)
    return ready


def sent_on(senders: Senders, ready: Paths = READY) -> Paths:
    """When a PE has the first of the sum of its own data and what they send."""
    if not senders:
        return ready
    *kept, (away, sent) = senders
    ready = _then(taken_in(tuple(kept), ready), setups=1) if kept else ready
    return longest(ready + _then(sent, away, 1))


@lru_cache(maxsize=4096)
def of_reduce(algorithm: str, pes: int, shape: tuple[int, ...] = ()) -> Paths:
    """When the root of the named reduce has the sum; of an all-reduce by a "centre_..." or "k_level", its root.

    >>> of_reduce("chain", 512)
    (Path(hops=511, relays=511, messages=1, setups=1),)
    >>> of_reduce("centre_star", 5)           # two come from one side, then two from the other
    (Path(hops=2, relays=1, messages=3, setups=1), Path(hops=1, relays=1, messages=4, setups=1))
    """
    if algorithm == "k_level":
        return _k_level(pes, shape)
    return taken_in(_senders(algorithm, pes, shape))


def _senders(algorithm: str, pes: int, shape: tuple[int, ...]) -> Senders:
    """Of the root of a reduce."""
    if algorithm.startswith("centre_"):
        middle, name = pes // 2, algorithm.removeprefix("centre_")
        return _senders(name, pes - middle, shape) + _senders(name, middle + 1, shape)
    if pes == 1:
        return ()
    if algorithm == "chain":
        return ((1, (Path(pes - 2, pes - 2, 0, 1),)),)
    if algorithm == "star":
        return tuple((away, READY) for away in range(1, pes))
    if algorithm == "tree":
        return _tree(pes)
    if algorithm == "two_phase":
        return _two_phase(pes)
    if algorithm == "generated":
        if shape[0] >= pes - 1:
            return _senders("chain", pes, ())
        return _generated(pes, shape[0], reduce_tree.table_size(pes))
    raise ValueError(f"no reduce named {algorithm!r}")


@cache
def _tree(pes: int) -> Senders:
    distances = [1 << r for r in range(pes.bit_length()) if 1 << r < pes]
    return tuple((d, sent_on(_tree(min(d, pes - d)))) for d in distances)


def _two_phase(pes: int) -> Senders:
    size = group_size(pes)
    groups, senders = math.ceil(pes / size), ()
    for group in reversed(range(groups)):
        further = ((size, sent_on(senders)),) if group < groups - 1 else ()
        senders = _senders("chain", min(size, pes - group * size), ()) + further
    return senders


@cache
def _generated(pes: int, depth: int, whole: int) -> Senders:
    """Trees are cut out of the table for `whole` PEs, which many reduces share."""
    found = reduce_tree.parts(pes, depth, whole)
    return tuple((first, sent_on(_generated(size, below, whole))) for first, size, below in found)


def _k_level(pes: int, sizes: tuple[int, ...]) -> Paths:
    """Groups of equal PEs are alike: each level has at most two kinds of them, the last and all others. A PE has
    instructions of its own for each level, a middle one for each side, as in the published kernels."""
    nodes: list[tuple[int, Paths]] = [(i, READY) for i in range(pes)]
    for size in (*sizes, pes):
        groups = [nodes[i : i + size] for i in range(0, len(nodes), size)]
        apart = groups[1][0][0] - groups[0][0][0] if len(groups) > 1 else 0
        (first, ready), last = (_middle(group) for group in (groups[0], groups[-1]))
        nodes = [(first + apart * g, ready) for g in range(len(groups) - 1)] + [last]
        if len(nodes) == 1:
            return nodes[0][1]
        nodes = [(place, _then(ready, setups=1)) for place, ready in nodes]
    raise AssertionError("the last level has one group")


@lru_cache(maxsize=4096)
def root(pes: int, sizes: tuple[int, ...]) -> int:
    """The PE of a line that has the sum of a k_level all-reduce first.

    >>> root(9, (3,)), root(247, (16,))
    (4, 136)
    """
    nodes = list(range(pes))
    for size in (*sizes, pes):
        nodes = [nodes[i + min(size, len(nodes) - i) // 2] for i in range(0, len(nodes), size)]
    return nodes[0]


def _middle(nodes: list[tuple[int, Paths]]) -> tuple[int, Paths]:
    """Chains from both ends to the middle one of nodes, each a place and when it is ready."""
    middle = len(nodes) // 2
    place, ready = nodes[middle]
    for later, side in enumerate((nodes[middle + 1 :], nodes[:middle][::-1])):
        along: Senders = ()
        for i in reversed(range(len(side))):
            before = side[i - 1][0] if i else place
            along = ((abs(side[i][0] - before), sent_on(along, side[i][1])),)
        if along:
            ready = taken_in(along, _then(ready, setups=1) if later and middle + 1 < len(nodes) else ready)
    return place, ready


def cycles(paths: Paths, hop: Number, relay: Number, message: Number, setup: Number) -> tuple[Number, Number, Number]:
    """Of the longest path: cycles of its hops and relays, of its messages, and of its set-ups."""
    best = total = None
    for p in paths:
        parts = (p.hops * hop + p.relays * relay, p.messages * message, p.setups * setup)
        now = parts[0] + parts[1] + parts[2]
        if best is None:
            best, total = parts, now
            continue
        longer = now > total
        longer = bool(longer) if isinstance(now, float | int) and isinstance(total, float | int) else longer
        best = tuple(where(longer, a, b) for a, b in zip(parts, best, strict=True))
        total = where(longer, now, total)
    assert best is not None
    return best


@lru_cache(maxsize=65536)
def best_depth(pes: int, wavelets: float, span: float, relay: float, setup: float = 0.0) -> int:
    """The depth of the generated tree with the fewest cycles for this much data; pes - 1 means the chain.

    >>> best_depth(512, 1, 511, 5), best_depth(512, 20, 511, 5), best_depth(512, 4096, 511, 5)
    (1, 9, 511)
    """
    if pes <= 2:
        return pes - 1
    best, depth = wavelets + span + relay * (pes - 1) + setup, pes - 1
    bounds = reduce_tree.bounds(pes, wavelets, span, relay) + setup
    for i in np.argsort(bounds, kind="stable"):
        if bounds[i] >= best:
            break
        found = of_reduce("generated", pes, (int(i) + 1,))
        now = sum(cycles(found, span / (pes - 1), relay, wavelets, setup))
        if now < best:
            best, depth = now, int(i) + 1
    return depth
