"""The generated reduce: the best tree of neighbours' sums for a line of PEs and an amount of data.

Source: "Near-Optimal Wafer-Scale Reduce" (HPDC 2024). E*(p, d), the fewest hops a wavelet that p PEs in a row need to
sum within d dependent receives, comes from

    E*(1, d) = 0,    E*(p, d) = min(E*(p, d-1), min over s of E*(s, d-1) + E*(p-s, d) + (p-s))

where the last s PEs send their sum to the first of the p. (Their bound of such trees, `B*E*(P, d)/(P-1) + P - 1 +
d*(2*T_R + 1)`, adds what may pass at the same time; the one below does not.)
"""

import math
from functools import lru_cache

import numpy as np


def _depths(pes: int) -> int:
    """Depths worth a table: beyond those of the two-phase reduce only the chain is left."""
    return min(pes - 1, 2 * math.isqrt(pes) + 4)


@lru_cache(maxsize=16)
def _table(pes: int) -> tuple[np.ndarray, np.ndarray]:
    """E*(p, d) and the size s of the part that sends last, arrays [d, p]; every p at once for all depths."""
    depths = _depths(pes)
    energy = np.full((depths + 1, pes + 1), np.inf)
    split = np.zeros((depths + 1, pes + 1), np.int32)
    energy[:, 1] = 0
    hops = np.arange(pes, 0, -1, dtype=float)
    for p in range(2, pes + 1):
        found = energy[:-1, 1:p] + energy[1:, p - 1 : 0 : -1] + hops[pes - p + 1 :]
        size = found.argmin(axis=1)
        energy[1:, p] = np.minimum.accumulate(found[np.arange(depths), size])
        split[1:, p] = size + 1
    return energy, split


def _grown(pes: int) -> tuple[np.ndarray, np.ndarray]:
    """The table for at least `pes`."""
    return _table(table_size(pes))


def table_size(pes: int) -> int:
    """PEs of the table that trees of `pes` are cut out of: few sizes, so that it is made seldom."""
    return max(64, 1 << (pes - 1).bit_length())


def least_energy(pes: int) -> np.ndarray:
    """E*(pes, d) in hops a wavelet, for d = 0, 1, ...; infinite for d = 0; beyond the last only the chain is left."""
    return _grown(pes)[0][: _depths(pes) + 1, pes]


@lru_cache(maxsize=4096)
def children(pes: int, depth: int) -> tuple[tuple[int, ...], ...]:
    """The tree that reaches E*(pes, depth): from whom each PE takes in, in order; PE 0 is the root.

    >>> children(4, 2)          # 1 and 2 send to 0, 3 to 2
    ((1, 2), (), (3,), ())
    """
    if pes < 1 or depth < min(1, pes - 1):
        raise ValueError(f"no tree of depth {depth} for {pes} PEs")
    if depth >= pes - 1:
        return (*(((i + 1,)) for i in range(pes - 1)), ())
    found: list[tuple[int, ...]] = [()] * pes
    todo = [(0, pes, depth)]
    while todo:
        first, p, d = todo.pop()
        below = parts(p, d, pes)
        found[first] = tuple(first + away for away, _, _ in below)
        todo += [(first + away, size, rest) for away, size, rest in below]
    return tuple(found)


def parts(pes: int, depth: int, whole: int) -> list[tuple[int, int, int]]:
    """The parts that send to the first PE of the best tree of `depth`, in order: where they begin, PEs, their depth.
    The tree is part of one of `whole` PEs."""
    energy, split = _grown(whole)
    depth = min(depth, len(energy) - 1)
    found = []
    while pes > 1:
        while energy[depth - 1, pes] == energy[depth, pes]:
            depth -= 1
        size = int(split[depth, pes])
        pes -= size
        found.append((pes, size, depth - 1))
    return found[::-1]


@lru_cache(maxsize=4096)
def degree(pes: int, depth: int) -> int:
    """The most messages one PE of the tree takes in."""
    return max(map(len, children(pes, depth)))


def bounds(pes: int, wavelets: float, span: float, relay: float) -> np.ndarray:
    """Cycles that no tree of depth d = 1, 2, ... of the table goes below: the mean load of a link and a hop and a relay
    to its end; all the relays one after the other, each after a hop; and the way of the farthest."""
    energy = least_energy(pes)[1:]
    hop, depths = span / (pes - 1), np.arange(1, len(energy) + 1)
    load = wavelets * energy / (pes - 1) + hop + relay
    return np.maximum(np.maximum(load, depths * (hop + relay) + wavelets), span + relay + wavelets)


def lower_bound(pes: int, wavelets: float, span: float, relay: float) -> float:
    """Cycles that no reduce of `wavelets` from each of `pes` participants goes below: no tree of the table's depths,
    and not the chain, which is all that is worth while beyond them.

    >>> lower_bound(512, 1, 511, 5), lower_bound(512, 4096, 511, 5)
    (517.0, 7162.0)
    """
    if pes <= 1:
        return 0.0
    chain = wavelets + span + relay * (pes - 1)
    return float(min(bounds(pes, wavelets, span, relay).min(initial=np.inf), chain))
