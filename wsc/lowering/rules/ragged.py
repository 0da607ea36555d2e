"""Products of a mixture of experts (`jax.lax.ragged_dot`): experts lie along one axis, tokens meet theirs there.

Rows come sorted by expert; how many each gets is known only when the program runs. Costs here are those of the worst
case, all rows on the PEs of one expert; `routing` says from real counts what of it was needed. The kernel lies
[G@x N@x, K@y] with the contracted dimension where the rows have it cut; rows are whole along x, so each expert picks
its own; partial sums run along y; results go from their expert to where their features lie along x.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from wsc.errors import UnsupportedError
from wsc.layout import Layout
from wsc.lowering.layout import all_reduce, cut, nest, strides, traffic, wavelets, whole
from wsc.lowering.rules.registry import Lowered, Op, Where, rule
from wsc.machine import kernels
from wsc.machine.steps import Multicast, Shift, Step


@dataclass(frozen=True)
class Experts:
    """Where experts stand on a line of `pes` PEs: in `segments` segments of equal length, each of which holds `held`
    experts whose features are cut into `pieces` parts; result features are cut into as many over the whole line."""

    pes: int
    experts: int
    segments: int
    pieces: int

    @property
    def held(self) -> int:
        return -(-self.experts // self.segments)

    def ways(self, segment: int) -> tuple[np.ndarray, np.ndarray]:
        """PEs that make the pieces of a result in a segment, and those they go to first."""
        length = self.pes // self.segments
        source = segment * length + np.arange(self.pieces) * (length // self.pieces)
        return source, np.arange(self.pieces) * (self.pes // self.pieces)


class Routing(NamedTuple):
    """What real counts need: rows on the busiest segment of PEs, and hops of all pieces of all rows along the line."""

    busiest: Any
    piece_hops: Any


def routing(group_sizes, at: Experts) -> Routing:
    """Rows of the busiest segment, and the hops that result pieces travel, for `group_sizes`: int [experts], rows of
    each. Works on numpy arrays, JAX's and tracers; wavelets times hops are `piece_hops` times the wavelets of a piece.

    >>> two = Experts(pes=8, experts=4, segments=2, pieces=2)      # experts 0, 1 on PEs 0..3, experts 2, 3 on 4..7
    >>> found = routing(np.array([3, 0, 1, 1]), two)
    >>> int(found.busiest), int(found.piece_hops)                  # 3 x (0 + 2) and 2 x (4 + 2)
    (3, 18)
    """
    hops = [int(np.abs(np.subtract(*at.ways(s))).sum()) for s in range(at.segments)]
    rows = [group_sizes[s * at.held : (s + 1) * at.held].sum() for s in range(at.segments)]
    busiest = rows[0]
    for n in rows[1:]:
        busiest = busiest + (n - busiest) * (n > busiest)
    return Routing(busiest, sum(n * h for n, h in zip(rows, hops, strict=True)))


@rule("ragged_dot_general")
def ragged_dot_rule(op: Op, where: Where) -> Lowered:
    """Rows times the kernel of their expert; counted as if one expert got all rows."""
    numbers = op.params["ragged_dot_dimension_numbers"]
    (k_lhs, k_rhs), (b_lhs, b_rhs) = numbers.dot_dimension_numbers
    (ragged,) = numbers.lhs_ragged_dimensions
    if ragged in b_lhs or b_lhs or b_rhs:
        raise UnsupportedError(
            f"'ragged_dot_general' of {op.ins[0].shape} and {op.ins[1].shape} with batch dimensions: use vmap over "
            f"plain products with a mask, or one call a batch"
        )
    if ragged in k_lhs:
        return _gradient(op, ragged, k_rhs[k_lhs.index(ragged)], where)
    (group,) = numbers.rhs_group_dimensions
    return _by_expert(op, tuple(k_lhs), tuple(k_rhs), group, where)


def _axes(layout: Layout, dims) -> tuple[str, str]:
    """The axis along which `dims` are cut most, and the other one."""
    first = max("yx", key=lambda a: math.prod(layout.along(a)[d] for d in dims))
    return first, "x" if first == "y" else "y"


def _by_expert(op: Op, k_lhs, k_rhs, group: int, where: Where) -> Lowered:
    rows, kernel, shape = op.ins[0], op.ins[1], op.out_shapes[0]
    axis, other = _axes(rows.laid(), k_lhs)
    pes, line = getattr(where.grid, axis), getattr(where.grid, other)
    free = [d for d in range(kernel.rank) if d not in k_rhs and d != group]
    parts = nest(tuple(rows.shape[d] for d in k_lhs), pes)
    along, across = [1] * kernel.rank, [1] * kernel.rank
    for d, p in zip(k_rhs, parts, strict=True):
        along[d] = p
    across[group] = cut(kernel.shape[group], line)
    left = line // across[group] if across[group] > 1 else line
    feature = max(free, key=lambda d: kernel.shape[d], default=None)
    if feature is not None and feature > group:  # nested inside the experts: its PEs stand together
        across[feature] = cut(kernel.shape[feature], left)
    kernel_at = whole(kernel.rank).with_axis(axis, along).with_axis(other, across)
    rows_at = whole(rows.rank).with_axis(axis, [parts[k_lhs.index(d)] if d in k_lhs else 1 for d in range(rows.rank)])

    pieces = across[feature] if feature is not None else 1
    out_dim = rows.rank - len(k_lhs) + free.index(feature) if feature is not None else 0
    out_at = whole(len(shape)).with_axis(other, [pieces if d == out_dim else 1 for d in range(len(shape))])
    m = math.prod(n for d, n in enumerate(rows.shape) if d not in k_lhs)
    local = kernel_at.local(kernel.shape)
    k, n = (math.prod(local[d] for d in dims) for dims in (k_rhs, free))
    flops = 2 * m * math.prod(kernel.shape[d] for d in (*k_rhs, *free))
    used = min(where.grid.pes, kernel_at.parts.pes * kernel_at.copies(where.grid))
    itemsize = max(rows.itemsize, kernel.itemsize)
    steps: list[Step] = [kernels.tile_product(m, k, n, itemsize, where.wafer, used, flops)]
    steps += all_reduce(kernel_at, k_rhs, axis, m * n, op.out_itemsizes[0], where.grid, where.wafer, where.strategy)
    steps += _home(Experts(line, kernel.shape[group], across[group], pieces), m * n, pes, op.out_itemsizes[0], where)
    return Lowered((rows_at, kernel_at, *(whole(o.rank) for o in op.ins[2:])), (out_at,), tuple(steps))


def _home(at: Experts, elements: int, lines: int, itemsize: int, where: Where) -> list[Step]:
    """Pieces of `elements` go from the expert farthest away to the PEs of their features, and to all copies."""
    if at.segments == 1:
        return []
    words = wavelets(elements, itemsize, where.wafer)
    worst = max((traffic(*at.ways(s), at.pes) for s in range(at.segments)), key=lambda t: (t[1], t[0]))
    distance, load, total, _ = worst
    copies = strides((at.pieces,), at.pes)[-1]
    steps: list[Step] = [Shift(distance, load * words, total * words, lines, words)] if distance else []
    if copies > 1:
        steps.append(Multicast(copies, copies - 1, words, lines * at.pieces))
    return steps


def _gradient(op: Op, ragged: int, ragged_rhs: int, where: Where) -> Lowered:
    """Of the kernels: rows of an expert are contracted where it lies, so nothing is summed over PEs."""
    rows, others, shape = op.ins[0], op.ins[1], op.out_shapes[0]
    kept = [d for d in range(rows.rank) if d != ragged]
    free = [d for d in range(others.rank) if d != ragged_rhs]
    axis, other = _axes(rows.laid(), kept)
    parts = nest(tuple(rows.shape[d] for d in kept), getattr(where.grid, axis))
    rows_at = whole(rows.rank).with_axis(axis, [1 if d == ragged else parts[kept.index(d)] for d in range(rows.rank)])
    line = getattr(where.grid, other)
    sizes = (shape[0], *(others.shape[d] for d in free))
    across = nest(sizes, line)
    out_at = whole(len(shape)).with_axis(axis, [1, *parts, *[1] * len(free)])
    out_at = out_at.with_axis(other, [across[0], *[1] * len(kept), *across[1:]])
    local = out_at.local(shape)
    k, n = math.prod(local[1 : 1 + len(kept)]), math.prod(local[1 + len(kept) :])
    m = rows.shape[ragged]
    flops = 2 * m * math.prod(shape[1:])
    used = min(where.grid.pes, out_at.parts.pes * out_at.copies(where.grid))
    itemsize = max(rows.itemsize, others.itemsize)
    step = kernels.tile_product(k, m, n, itemsize, where.wafer, used, flops)
    return Lowered((rows_at, whole(others.rank), *(whole(o.rank) for o in op.ins[2:])), (out_at,), (step,))
