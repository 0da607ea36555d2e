"""Lower bounds: cycles that no mapping of a program goes below, printed beside what its placed ops are charged.

What is bounded: any mapping of the same equations (those of `exe.program.jaxpr`, after the compiler's rewrites) that
keeps weights in SRAM, on regions of as many PEs as the program's stages have and of any shape, with the numbers of this
wafer and the steps that the machine model knows. Tiles are real numbers, operands are always where they are needed, no
instruction stands in a loop, and ops that do not wait for one another overlap. `docs/lower-bound.md` derives each term.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from wsc.errors import ArgumentError
from wsc.lowering import jaxapi
from wsc.lowering.fuse import together
from wsc.lowering.jaxapi import Literal
from wsc.lowering.roles import UPDATES
from wsc.lowering.rules.elementwise import DIVIDE, TRANSCENDENTAL, VECTOR
from wsc.machine import reduce_tree
from wsc.machine.collectives import Costs
from wsc.machine.cost import cost
from wsc.machine.steps import AllReduce, Compute, HostLink, Move, Reduce, Step, WaferLink
from wsc.machine.wafer import Wafer
from wsc.program import PlacedOp, PlacedStage, Program
from wsc.runtime.executable import Executable
from wsc.runtime.telemetry import Telemetry
from wsc.tables import Printed

REDUCTIONS = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin".split()
PASSES = "cumsum cumprod cummax cummin cumlogsumexp sort top_k".split()  # read every element once at least
NEAR = 64  # line lengths up to which each is tried; beyond, intervals of 2 %


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
    """Hops a wavelet over links, and depth, of the best trees on `half` PEs in a row, and of the chain."""
    energy = reduce_tree.least_energy(half)[1:] / (half - 1)
    return np.append(energy, 1.0), np.append(np.arange(1, len(energy) + 1), half - 1.0)


def all_reduce(pes: int, wavelets: Any, wafer: Wafer) -> np.ndarray:
    """Cycles that no all-reduce of `wavelets` (an array) from each of `pes` PEs in a row goes below.

    The sum is made somewhere: half the line sums to it by the published bound ("Near-Optimal Wafer-Scale Reduce", HPDC
    2024), or by a star, whose messages follow one another without a gap; then it goes back to the farther end. A ring
    has no such place and is bound by its own form. No setup of instructions, and no cycles for delivering on the way.

    >>> from wsc.machine.wafer import WSE3
    >>> all_reduce(128, [1.0, 64.0], WSE3)
    array([139. , 391.5])
    """
    w = np.asarray(wavelets, float) / wafer.link_wavelets_per_cycle
    if pes <= 1:
        return 0.0 * w
    half, relay, hop = pes // 2 + 1, wafer.relay_cycles, wafer.hop_cycles
    span = (half - 1) * hop
    energy, depth = _trees(half)
    trees = (w[..., None] * energy + depth * relay).min(axis=-1) + span
    star = np.maximum(w * (half - 1), span) + relay
    ring = 2 * (pes - 1) * (w / pes + relay) + (4 * pes - 6) * hop
    return np.minimum(np.minimum(trees, star) + span + relay + w, ring)


@lru_cache(maxsize=256)
def _cuts(most: int, outputs: float, words: float, pes: int, wafer: Wafer) -> tuple[np.ndarray, ...]:
    """Ways to cut a sum over a = y * x PEs and its `outputs`, of `words` each, over the others: the least a and the
    most of each interval, the parts of the outputs, and the all-reduce along one axis, then of what is left, shared
    out, along the other."""
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
    return a[good], upper[good], b[good], (first + rest)[good]


def product(
    k: int, outputs: int, longest: int, itemsize: int, out_itemsize: int, pes: int, wafer: Wafer
) -> Parts:
    """Least cycles of sums of `k` products for each of `outputs` results, on `pes` PEs.

    An instruction multiplies and adds along a free dimension, so that it makes `longest` results at most; its lanes
    take elements of `itemsize` bytes. The sums are cut over a PEs, the outputs over b, a * b <= pes; partial sums of
    `out_itemsize` bytes are all-reduced.

    >>> from wsc.machine.wafer import WSE3
    >>> product(64, 1, 1, 2, 2, 1, WSE3).arithmetic          # 64 products in 8 lanes, on one PE
    8.0
    """
    a, upper, b, fabric = _cuts(k, float(outputs), out_itemsize / wafer.wavelet_bytes, pes, wafer)
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
    a, upper, b, fabric = _cuts(each, float(results), words * itemsize / wafer.wavelet_bytes, pes, wafer)
    lanes = max(wafer.lanes("vector", itemsize), wafer.lanes("sum", itemsize))
    arithmetic = np.maximum(1.0, elements / np.minimum(pes, upper * b) / lanes)
    best = int(np.argmin(arithmetic + fabric))
    return Parts(wafer.issue_cycles, float(arithmetic[best]), float(fabric[best]))


def elementwise(name: str, elements: int, itemsize: int, pes: int, wafer: Wafer, flexible: bool = False) -> Parts:
    """Least cycles of an op on each of `elements`: the busiest PE has as many as all have on average, and one at
    least. `flexible`: of weights or control, whose logistic is charged as an exponential alone."""
    most = max(1.0, elements / pes)
    if name in TRANSCENDENTAL:
        more = wafer.division_cycles if name == "logistic" and not flexible else 0.0
        return Parts(arithmetic=most * (wafer.transcendental_cycles + more))
    if name in DIVIDE:
        return Parts(arithmetic=most * wafer.division_cycles)
    return Parts(wafer.issue_cycles, max(1.0, most / wafer.lanes("vector", itemsize)))


def _itemsize(aval: Any) -> int:
    return 8 if jaxapi.is_extended(aval.dtype) else np.dtype(aval.dtype).itemsize


def _is_flexible(op: PlacedOp) -> bool:
    """A view of a weight, or control: its operands lie as it wants them."""
    return bool(op.ins) and all(at is None for at in op.ins)


def _bound_of(op: PlacedOp, pes: int, wafer: Wafer) -> Parts:
    """The bound of one op other than a product."""
    name, outs = op.name, [v.aval for v in op.eqn.outvars]
    ins, flexible = [a.aval for a in op.eqn.invars], _is_flexible(op)
    elements = math.prod(outs[0].shape)
    if not elements:
        return NOTHING
    if name in REDUCTIONS and not flexible:
        words = 2 if name.startswith("arg") else 1
        return reduction(math.prod(ins[0].shape), elements, _itemsize(ins[0]), words, pes, wafer)
    if name == "gather" and not flexible:
        column = math.prod(ins[0].shape) // elements * _itemsize(ins[0])
        far = column > wafer.sram_bytes - wafer.code_bytes  # what one result may come from lies on several PEs
        return Parts(movement=far * (wafer.hop_cycles + wafer.relay_cycles))
    if name == "div" and isinstance(op.eqn.invars[1], Literal) or name == "integer_pow":
        name = "mul"
    if name in VECTOR or name in DIVIDE or name in TRANSCENDENTAL or name in PASSES:
        sizes = [_itemsize(a) for a in ins if tuple(a.shape) == tuple(outs[0].shape) and not flexible]
        return elementwise(name, elements, max([*sizes, _itemsize(outs[0])]), pes, wafer, flexible)
    return NOTHING


@dataclass(frozen=True)
class _Group:
    """Products of one moving operand with several weights: one product, whose instructions run along all of them."""

    members: tuple[int, ...]  # positions of ops
    bound: Parts
    local: float  # cycles that its arithmetic takes at least, fabric apart


def _products(stage: PlacedStage, program: Program) -> list[_Group]:
    """The products of a stage, those that share their moving operand together."""
    stored, found = set(program.weight_vars), {}
    for n, op in enumerate(stage.ops):
        atoms = [a for a in op.eqn.invars if not isinstance(a, Literal)]
        if op.weights and not op.control and _is_flexible(op):
            stored.update(op.eqn.outvars)
        if op.name == "dot_general" and not _is_flexible(op) and op.eqn.outvars[0].aval.size:
            contract, batch = op.eqn.params["dimension_numbers"]
            weights = [i for i in (0, 1) if op.eqn.invars[i] in stored]
            key: Any = n
            if len(weights) == 1 and not batch[0]:
                moving = 1 - weights[0]
                key = op.eqn.invars[moving], tuple(contract[moving])
            found.setdefault(key, []).append(n)
        del atoms
    return [_group(members, stage, program.wafer) for members in found.values()]


def _group(members: list[int], stage: PlacedStage, wafer: Wafer) -> _Group:
    outputs = k = 0
    lengths = [0, 0]  # along the free dimensions of either operand
    lanes_of, out_bytes = [], 0.0
    for n in members:
        eqn = stage.ops[n].eqn
        (contract, batch), shapes = eqn.params["dimension_numbers"], [tuple(a.aval.shape) for a in eqn.invars]
        frees = [math.prod(s) // math.prod(s[d] for d in (*contract[i], *batch[i])) for i, s in enumerate(shapes)]
        k = math.prod(shapes[0][d] for d in contract[0])
        lengths = [a + b for a, b in zip(lengths, frees, strict=True)]
        outputs += eqn.outvars[0].aval.size
        out_bytes += eqn.outvars[0].aval.size * _itemsize(eqn.outvars[0].aval)
        lanes_of.append(max(_itemsize(a.aval) for a in eqn.invars))
    pes = stage.region.pes
    bound = product(max(1, k), outputs, max(lengths), min(lanes_of), out_bytes / outputs, pes, wafer)
    return _Group(tuple(members), bound, k * outputs / pes / wafer.lanes("fmac", min(lanes_of)))
