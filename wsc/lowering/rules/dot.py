"""Matrix products: one operand stays where it is, the other comes to it, partial sums are all-reduced.

With the moving operand's contracted dimension cut along axis a and whole along the other axis b, the stationary one
lies `[K@a, M@b]`: every PE multiplies its pieces, the sums run along a, and the result lies along b. The next weight
is then stored the other way round, so no transpose ever moves.
"""

import math

from wsc.lowering.layout import Layout, all_reduce, fill, lay, nest, shared_out, whole
from wsc.lowering.rules.registry import Lowered, Op, Operand, Where, rule
from wsc.lowering.rules.streamed import streamed
from wsc.machine import kernels
from wsc.machine.cost import cost
from wsc.machine.steps import Compute, Step

_STAYS = {"weight": 3, "state": 2, "constant": 1, "activation": 0, "control": 0}


def stationary(lhs: Operand, rhs: Operand) -> int:
    """0 or 1, the operand that stays: a weight before state before an activation, then the larger one."""
    return 0 if (_STAYS[lhs.kind], lhs.size) > (_STAYS[rhs.kind], rhs.size) else 1


@rule("dot_general")
def dot_rule(op: Op, where: Where) -> Lowered:
    stays = stationary(*op.ins)
    still, moving = op.ins[stays], op.ins[1 - stays]
    contract, batch = op.params["dimension_numbers"]
    k_still, k_moving = tuple(contract[stays]), tuple(contract[1 - stays])
    b_still, b_moving = tuple(batch[stays]), tuple(batch[1 - stays])
    free_still = [d for d in range(still.rank) if d not in k_still + b_still]
    free_moving = [d for d in range(moving.rank) if d not in k_moving + b_moving]

    if where.strategy.streams and (found := streamed(op, where)) is not None:
        return found
    if where.strategy.gemm_along and min(moving.laid().parts) > 1 and not b_still:
        return _exchanged(op, stays, k_still, k_moving, free_still, free_moving, where)
    if op.hint is not None and not b_still and still.kind == moving.kind == "activation" and min(op.hint.parts) > 1:
        first = len(free_moving) if stays == 1 else 0  # each PE gets what its part of the result is made of
        still_at = op.hint.take(first + free_still.index(d) if d in free_still else None for d in range(still.rank))
        first = 0 if stays == 1 else len(free_still)
        moving_at = op.hint.take(first + free_moving.index(d) if d in free_moving else None for d in range(moving.rank))
    elif still.layout is None:
        wanted = _wanted(op.hint, stays, b_still, free_still, free_moving)
        still_at, moving_at = _lay_weight(
            still, moving, k_still, k_moving, b_still, b_moving, free_still, wanted, where
        )
    else:
        still_at = still.layout
        moving_at = _come_to(still_at, moving, k_still, k_moving, b_still, b_moving, free_moving)

    # Results: batch dimensions, then the free ones of lhs, then of rhs; each is cut as in the operand it comes from.
    frees = [(still_at, free_still), (moving_at, free_moving)]
    if stays == 1:
        frees.reverse()
    columns = [(still_at, d) for d in b_still] + [(at, d) for at, dims in frees for d in dims]
    laid = [tuple(c) for c in zip(*((at.y[d], at.x[d], at.fold(d)) for at, d in columns), strict=True)]
    out_at = Layout(*laid) if laid else whole(0)

    out_shape = op.out_shapes[0]
    local_still, local_moving = still_at.local(still.shape), moving_at.local(moving.shape)
    batched, k, n = (math.prod(local_still[d] for d in dims) for dims in (b_still, k_still, free_still))
    m = math.prod(local_moving[d] for d in free_moving)
    flops = 2 * math.prod(out_shape) * math.prod(still.shape[d] for d in k_still)
    pes = min(where.grid.pes, still_at.parts.pes * still_at.copies(where.grid))
    itemsize = max(still.itemsize, moving.itemsize)
    products = [
        kernels.tile_product(m, k, n, itemsize, where.wafer, pes, flops, batched, apart=apart)
        for apart in (False, True)[: 1 + (where.strategy.compiled and where.apart)]
    ]
    steps: list[Step] = [products[0]]
    if len(products) > 1:
        steps = _apart(products[0], products[1], batched * m * n, op.out_itemsizes[0], where)
    for axis in "xy":
        size = out_at.size(out_shape)
        added = all_reduce(still_at, k_still, axis, size, op.out_itemsizes[0], where.grid, where.wafer, where.strategy)
        steps += added
        if added and any(still_at.along(axis)[d] > 1 for d in b_still):
            out_at = shared_out(out_at, out_shape, axis, getattr(where.grid, axis))
    ins = (still_at, moving_at) if stays == 0 else (moving_at, still_at)
    return Lowered(ins, (out_at,), tuple(steps))


def _apart(plain: Compute, apart: Compute, results: int, itemsize: int, where: Where) -> list[Step]:
    """With accumulators in two banks the sums of both are added when they are done, where that is cheaper."""
    add = Compute("vector", results // apart.length, apart.length, itemsize, 0, apart.instances, straight=True)
    both = cost(apart, where.wafer).cycles + cost(add, where.wafer).cycles
    return [apart, add] if both < cost(plain, where.wafer).cycles else [plain]


def _exchanged(op: Op, stays: int, k_still, k_moving, free_still, free_moving, where: Where) -> Lowered:
    """Both operands are cut along both axes, [M@y, K@x] and [K@y, N@x] (or [N@y, K@x], a transposed product), and go
    round in rounds of neighbour exchange; the result lies [M@y, N@x]."""
    still, moving = op.ins[stays], op.ins[1 - stays]
    across = "x" if still.layout is not None and any(still.layout.x[d] > 1 for d in k_still) else "y"
    moving_at = moving.laid()
    still_at = lay(still.shape, across, k_still, getattr(where.grid, across))
    free_axis = "y" if across == "x" else "x"
    still_at = still_at.with_axis(
        free_axis, lay(still.shape, free_axis, free_still, getattr(where.grid, free_axis)).along(free_axis)
    )
    rows = [(moving_at.y[d], 1) for d in free_moving]
    columns = [(1, still_at.along(free_axis)[d]) for d in free_still]
    out = [*columns, *rows] if stays == 0 else [*rows, *columns]
    m, k, n = (
        math.prod(o.shape[d] for d in dims)
        for o, dims in ((moving, free_moving), (still, k_still), (still, free_still))
    )
    kernel = kernels.gemm_transposed if across == "x" else kernels.gemm_interleaved
    itemsize = max(still.itemsize, moving.itemsize)
    steps = kernel(m, k, n, where.grid, itemsize, where.wafer, along=where.strategy.gemm_along)
    ins = (still_at, moving_at) if stays == 0 else (moving_at, still_at)
    return Lowered(ins, (Layout(tuple(y for y, _ in out), tuple(x for _, x in out)),), steps)


def _wanted(hint: Layout | None, stays: int, b_still, free_still, free_moving) -> Layout | None:
    """How the stationary operand's own dimensions, batch dimensions first, are wanted in the result."""
    if hint is None:
        return None
    first = len(b_still) + (len(free_moving) if stays == 1 else 0)
    return hint.take([*range(len(b_still)), *range(first, first + len(free_still))])


def _lay_weight(
    still, moving, k_still, k_moving, b_still, b_moving, free_still, wanted: Layout | None, where: Where
) -> tuple[Layout, Layout]:
    """A weight is laid where the moving operand already is: contracted dimensions along its axis, the rest across, as
    the result is `wanted` if that is known."""
    now = moving.laid()
    axis = max("yx", key=lambda a: math.prod(now.along(a)[d] for d in k_moving))
    other = "x" if axis == "y" else "y"
    sizes = tuple(moving.shape[d] for d in k_moving)
    parts = tuple(now.along(axis)[d] for d in k_moving)
    if 2 * math.prod(parts) < min(getattr(where.grid, axis), math.prod(sizes)):
        spare = getattr(where.grid, axis)
        parts = fill(parts, sizes, spare) if where.strategy.compiled else nest(sizes, spare)
    across = [*b_still, *free_still]
    own = tuple(still.shape[d] for d in across)
    if wanted is not None and 1 < math.prod(wanted.along(other)) <= getattr(where.grid, other):
        folds = [wanted.fold(i) for i in range(len(own))]
        pieces = tuple(n // f for n, f in zip(own, folds, strict=True))
        across_parts = fill(wanted.along(other), pieces, getattr(where.grid, other))
    else:
        folds, across_parts = [1] * len(own), nest(own, getattr(where.grid, other))

    along_k, along_other = [1] * still.rank, [1] * still.rank
    for d, p in zip(k_still, parts, strict=True):
        along_k[d] = p
    for d, p in zip(across, across_parts, strict=True):
        along_other[d] = p
    still_at = whole(still.rank).with_axis(axis, along_k).with_axis(other, along_other)
    for d, f in zip(across, folds, strict=True):
        still_at = still_at.folded(d, f)
    for s, d in zip(k_still, k_moving, strict=True):
        still_at = still_at.folded(s, now.fold(d))

    moving_k, moving_other = [1] * moving.rank, [1] * moving.rank
    for d, p in zip(k_moving, parts, strict=True):
        moving_k[d] = p
    for d, s in zip(b_moving, b_still, strict=True):
        moving_other[d] = along_other[s]
    moving_at = whole(moving.rank).with_axis(axis, moving_k).with_axis(other, moving_other)
    for d in k_moving:
        moving_at = moving_at.folded(d, now.fold(d))
    return still_at, moving_at


def _come_to(still_at: Layout, moving: Operand, k_still, k_moving, b_still, b_moving, free_moving) -> Layout:
    """The layout in which a moving operand meets one that already lies somewhere. Its free dimensions keep their
    cuts along an axis that the stationary operand does not use."""
    wanted = whole(moving.rank)
    pairs = [*zip(k_still, k_moving, strict=True), *zip(b_still, b_moving, strict=True)]
    for axis in "yx":
        parts = [1] * moving.rank
        for s, m in pairs:
            parts[m] = still_at.along(axis)[s]
        if math.prod(still_at.along(axis)) == 1:
            for d in free_moving:
                parts[d] = moving.laid().along(axis)[d]
        wanted = wanted.with_axis(axis, parts)
    for s, m in pairs:
        wanted = wanted.folded(m, still_at.fold(s))
    return wanted
