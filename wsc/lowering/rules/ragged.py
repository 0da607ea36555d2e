"""Products of a mixture of experts (`jax.lax.ragged_dot`): experts lie along one axis, tokens meet theirs there.

Rows come sorted by expert; how many each gets is known only when the program runs, and so are the steps: see
`wsc.lowering.rules.routing`. Where nothing ran, one expert gets all rows. The kernel lies [G@x N@x, K@y] with the
contracted dimension where the rows have it cut; rows are whole along x, so each expert picks its own; partial sums run
along y; results go from their expert to where their features lie along x.
"""

import math

from wsc.errors import UnsupportedError
from wsc.layout import Layout
from wsc.lowering.layout import all_reduce, cut, nest, whole
from wsc.lowering.rules.registry import Lowered, Op, Where, rule
from wsc.lowering.rules.routing import ByExpert, Experts
from wsc.machine.steps import AllReduce


@rule("ragged_dot_general")
def ragged_dot_rule(op: Op, where: Where) -> Lowered:
    """Rows times the kernel of their expert."""
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
    flops = 2 * math.prod(kernel.shape[d] for d in (*k_rhs, *free))
    used = min(where.grid.pes, kernel_at.parts.pes * kernel_at.copies(where.grid))
    itemsize = max(rows.itemsize, kernel.itemsize)
    size, strategy = op.out_itemsizes[0], where.strategy
    sums = all_reduce(kernel_at, k_rhs, axis, m * n, size, where.grid, where.wafer, strategy)
    at = Experts(line, kernel.shape[group], across[group], pieces)
    sized = ByExpert(
        at, m, k, n, flops, used, itemsize, size, where.wafer, strategy.compiled,
        tuple(s for s in sums if isinstance(s, AllReduce)), lines=pes,
    )  # fmt: skip
    return Lowered((rows_at, kernel_at, *(whole(o.rank) for o in op.ins[2:])), (out_at,), (), sized=sized)


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
    flops = 2 * math.prod(shape[1:])
    used = min(where.grid.pes, out_at.parts.pes * out_at.copies(where.grid))
    itemsize = max(rows.itemsize, others.itemsize)
    at = Experts(line, shape[0], across[0], 1)
    sized = ByExpert(
        at, m, k, n, flops, used, itemsize, op.out_itemsizes[0], where.wafer, where.strategy.compiled, into_kernels=True
    )
    return Lowered((rows_at, whole(others.rank), *(whole(o.rank) for o in op.ins[2:])), (out_at,), (), sized=sized)
