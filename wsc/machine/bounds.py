"""Least cycles of sums, products and element-wise ops on so many PEs, whatever way they are cut.

Each is a lower bound on what the cost model charges for that op in any layout: tiles are real numbers, operands lie
where they are needed, accumulators meet no bank conflict, and no instruction stands in a loop. `docs/lower-bound.md`
derives every term. Sizes are those of the whole problem; `pes` PEs share it.
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from wsc.machine import reduce_tree
from wsc.machine.wafer import Wafer

NEAR = 64  # line lengths up to which each is tried; beyond, intervals of 2 %, each by the best of its two ends


@dataclass(frozen=True)
class Parts:
    """Cycles by cause."""

    instructions: float = 0.0  # issued and prepared, loops, nests
    arithmetic: float = 0.0  # lanes at work
    collectives: float = 0.0  # sums among PEs
    movement: float = 0.0  # operands brought where they are needed
    stages: float = 0.0  # between stages, wafers and the host

    @property
    def cycles(self) -> float:
        return sum(self._values())

    def _values(self) -> list[float]:
        return [getattr(self, f.name) for f in fields(self)]

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def __sub__(self, other: "Parts") -> "Parts":
        return Parts(*(a - b for a, b in zip(self._values(), other._values(), strict=True)))


NOTHING = Parts()


@lru_cache(maxsize=4096)
def _trees(half: int) -> tuple[np.ndarray, np.ndarray]:
    """Hops a wavelet over links, and depth, of the best trees on `half` PEs in a row, and of all that are deeper."""
    energy = reduce_tree.least_energy(half)[1:] / (half - 1)
    return np.append(energy, 1.0), np.arange(1, len(energy) + 2)


def all_reduce(pes: int, wavelets: Any, wafer: Wafer) -> np.ndarray:
    """Cycles that no all-reduce of `wavelets` (an array) from each of `pes` PEs in a row goes below.

    The sum is made somewhere: half the line sums to it by a tree whose links carry at least the energy of "Near-Optimal
    Wafer-Scale Reduce" (HPDC 2024), whose dependent receives wait for one another, and to whose root the farthest data
    come; then it goes back to the farther end. A ring has no such place and is bound by its own form. No setup of
    instructions, and no cycles for delivering on the way.

    >>> from wsc.machine.wafer import WSE3
    >>> all_reduce(128, [1.0, 64.0], WSE3)
    array([140., 266.])
    """
    w = np.asarray(wavelets, float) / wafer.link_wavelets_per_cycle
    if pes <= 1:
        return 0.0 * w
    half, relay, hop = pes // 2 + 1, wafer.relay_cycles, wafer.hop_cycles
    span = (half - 1) * hop
    energy, depth = _trees(half)
    load, waits = w[..., None] * energy + hop + relay, w[..., None] + depth * (hop + relay)
    load[..., 0] = w * (half - 1) + hop + relay  # of the root, which takes in all
    tree = np.maximum(np.maximum(load, waits).min(axis=-1), span + relay + w)
    ring = 2 * (pes - 1) * (w / pes + relay) + (4 * pes - 6) * hop
    return np.minimum(tree + span + relay + w, ring)


@lru_cache(maxsize=256)
def _cuts(most: int, outputs: float, words: float, pes: int, wafer: Wafer) -> tuple[np.ndarray, ...]:
    """Ways to cut a sum over a = y * x PEs and its `outputs`, of `words` wavelets each, over the others: the most a of
    each interval of sizes, and for the least the parts of the outputs, and the all-reduce along one axis, then along
    the other of what is left, shared out among those that now have the same."""
    longest = min(pes, most, max(wafer.rows, wafer.columns))
    sizes = [*range(1, min(longest, NEAR) + 1)]
    while sizes[-1] < longest:
        sizes.append(min(longest, sizes[-1] + max(1, sizes[-1] // 50)))
    low = np.array(sizes, float)
    high = np.append(low[1:] - 1, low[-1])
    a = low[:, None] * low
    b = np.clip(pes / a, 1.0, outputs)
    w = np.maximum(outputs / b * words, 1.0)
    first = np.stack([all_reduce(n, w[i], wafer) for i, n in enumerate(sizes)])
    rest = np.stack([all_reduce(n, np.maximum(w[:, j] / low, 1.0), wafer) for j, n in enumerate(sizes)], axis=1)
    good = a <= min(pes, most)
    upper = np.minimum(high[:, None] * high, min(pes, most))
    return upper[good], b[good], (first + rest)[good]


def product(k: int, outputs: int, longest: int, itemsize: int, out_bytes: float, pes: int, wafer: Wafer) -> Parts:
    """Least cycles of sums of `k` products for each of `outputs` results, on `pes` PEs.

    An instruction multiplies and adds along a free dimension, so that it makes `longest` results at most; its lanes
    take elements of `itemsize` bytes. The sums are cut over a PEs, the outputs over b, a * b <= pes; partial sums of
    `out_bytes` each are all-reduced.

    >>> from wsc.machine.wafer import WSE3
    >>> product(64, 1, 1, 2, 2, 1, WSE3).arithmetic          # 64 products in 8 lanes, on one PE
    8.0
    """
    upper, b, fabric = _cuts(k, float(outputs), out_bytes / wafer.wavelet_bytes, pes, wafer)
    around = min(wafer.map_cycles, wafer.straight_cycles, wafer.loop_cycles)
    calls = np.maximum(1.0, k / upper) * np.maximum(1.0, outputs / b / longest)
    instructions = calls * (wafer.issue_cycles + around)
    arithmetic = np.maximum(1.0, k * outputs / np.minimum(pes, upper * b) / wafer.lanes("fmac", itemsize))
    best = int(np.argmin(instructions + arithmetic + fabric))
    return Parts(float(instructions[best]), float(arithmetic[best]), float(fabric[best]))


def reduction(elements: int, results: int, itemsize: int, words: int, pes: int, wafer: Wafer) -> Parts:
    """Least cycles of reducing `elements` to `results`, each of `words` values, on `pes` PEs: adding what each has,
    then an all-reduce among those that share a result."""
    each = max(1, elements // results)
    upper, b, fabric = _cuts(each, float(results), words * itemsize / wafer.wavelet_bytes, pes, wafer)
    lanes = max(wafer.lanes("vector", itemsize), wafer.lanes("sum", itemsize))
    arithmetic = np.maximum(1.0, elements / np.minimum(pes, upper * b) / lanes)
    best = int(np.argmin(arithmetic + fabric))
    return Parts(wafer.issue_cycles, float(arithmetic[best]), float(fabric[best]))


def elementwise(kind: str, elements: float, itemsize: int, pes: int, wafer: Wafer) -> Parts:
    """Least cycles of one op on each of `elements`, "vector", "divide" or "transcendental": the busiest PE has as many
    as all have on average, and one at least.

    >>> from wsc.machine.wafer import WSE3
    >>> elementwise("vector", 4096, 2, 64, WSE3)            # one instruction, 64 elements in 8 lanes
    Parts(instructions=1.0, arithmetic=8.0, collectives=0.0, movement=0.0, stages=0.0)
    """
    most = max(1.0, elements / pes)
    if kind == "transcendental":
        return Parts(arithmetic=most * wafer.transcendental_cycles)
    if kind == "divide":
        return Parts(arithmetic=most * wafer.division_cycles)
    return Parts(wafer.issue_cycles, max(1.0, most / wafer.lanes("vector", itemsize)))
