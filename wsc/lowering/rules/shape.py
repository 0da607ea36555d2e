"""Primitives that rename or rearrange: free where every element stays on its PE, costed by the hops where not."""

import math

from wsc.lowering.frames import cut_out, without_margins
from wsc.lowering.layout import Layout, cut, exchange, nest, regroup, whole
from wsc.lowering.rules.elementwise import main_layout
from wsc.lowering.rules.inset import joined
from wsc.lowering.rules.inset import padded as padded_frame
from wsc.lowering.rules.registry import Lowered, Op, Where, rule, vector
from wsc.machine.steps import Step

# Names of a value that lie where it lies; `wsc.lowering.normalize` drops most of them before.
IDENTITIES = (
    "copy copy_p layout_constraint multiple_of name preduced pvary reduced_vary_cast_p reshard sharding_constraint "
    "stop_gradient vary_unreduced_cast_p with_memory_space_constraint"
).split()


@rule(*IDENTITIES, "device_put", "optimization_barrier", "pin", "unpin")
def identity_rule(op: Op, where: Where) -> Lowered:
    at = tuple(o.laid() for o in op.ins)
    return Lowered(at, at[: len(op.out_shapes)], ())


def groups(shape: tuple[int, ...], new_shape: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Dimensions of a reshape that hold the same elements: smallest runs of equal product, or all of an empty array.

    >>> groups((1, 4096), (1, 32, 128))
    [([0], [0]), ([1], [1, 2])]
    """
    if 0 in shape:
        return [(list(range(len(shape))), list(range(len(new_shape))))]
    found, i, j = [], 0, 0
    while i < len(shape) or j < len(new_shape):
        old, new = [], []
        a = b = 1
        while (not old and not new) or a != b or (i < len(shape) and not old) or (j < len(new_shape) and not new):
            if i < len(shape) and (a < b or not old):
                a, i = a * shape[i], i + 1
                old.append(i - 1)
            else:
                b, j = b * new_shape[j], j + 1
                new.append(j - 1)
        found.append((old, new))
    return found


@rule("reshape")
def reshape_rule(op: Op, where: Where) -> Lowered:
    operand, new_shape = op.ins[0], op.out_shapes[0]
    if math.prod(new_shape) == 0:
        return Lowered((whole(operand.rank),), (whole(len(new_shape)),), ())
    kept = {old[0]: new[0] for old, new in groups(operand.shape, new_shape) if len(old) == len(new) == 1}
    at = operand.laid().unfolded(set(range(operand.rank)) - set(kept))
    new_parts = {"y": [1] * len(new_shape), "x": [1] * len(new_shape)}
    steps: list[Step] = []
    for old, new in groups(operand.shape, new_shape):
        for axis in "yx":
            parts = tuple(at.along(axis)[d] for d in old)
            if math.prod(parts) == 1:
                continue
            old_sizes, new_sizes = tuple(operand.shape[d] for d in old), tuple(new_shape[d] for d in new)
            pes = getattr(where.grid, axis) * math.prod(parts) // math.prod(at.along(axis))  # others nest beside it
            left = tuple(-(-new_shape[d] // new_parts["y"][d]) for d in new)  # what the other axis has not cut
            chosen = parts if old_sizes == new_sizes else nest(left, pes)
            beside = math.prod(n for d, n in enumerate(at.local(operand.shape)) if d not in old)
            steps += regroup(
                old_sizes, parts, new_sizes, chosen, beside, axis, where.grid, operand.itemsize, where.wafer
            )  # fmt: skip
            for d, p in zip(new, chosen, strict=True):
                new_parts[axis][d] = p
    out_at = Layout(tuple(new_parts["y"]), tuple(new_parts["x"]))
    for old, new in kept.items():
        out_at = out_at.folded(new, at.fold(old))
    return Lowered((at,), (out_at,), tuple(steps))


@rule("squeeze")
def squeeze_rule(op: Op, where: Where) -> Lowered:
    gone = op.params["dimensions"]
    at = op.ins[0].laid().uncut(gone)
    return Lowered((at,), (at.take(d for d in range(op.ins[0].rank) if d not in gone),), ())


@rule("expand_dims")
def expand_dims_rule(op: Op, where: Where) -> Lowered:
    at, old = op.ins[0].laid(), iter(range(op.ins[0].rank))
    new = op.params["dimensions"]
    return Lowered((at,), (at.take(None if d in new else next(old) for d in range(len(op.out_shapes[0]))),), ())


@rule("transpose")
def transpose_rule(op: Op, where: Where) -> Lowered:
    """Free while the dimensions cut along an axis keep their order; else all but the outermost are put together."""
    at, order = op.ins[0].laid(), op.params["permutation"]
    for axis in "yx":
        cut_dims = [d for d in order if at.along(axis)[d] > 1]
        if cut_dims != sorted(cut_dims):
            at = at.with_axis(axis, [p if d == min(cut_dims) else 1 for d, p in enumerate(at.along(axis))])
    return Lowered((at,), (at.take(order),), ())


@rule("bitcast_convert_type")
def bitcast_rule(op: Op, where: Where) -> Lowered:
    """The same bytes by another name. The words of a wide element are a last dimension, which stays on one PE."""
    at, rank = op.ins[0].laid(), len(op.out_shapes[0])
    if rank < op.ins[0].rank:
        at = at.uncut([rank])
    return Lowered((at,), (at.take(d if d < op.ins[0].rank else None for d in range(rank)),), ())


@rule("unstack")
def unstack_rule(op: Op, where: Where) -> Lowered:
    """The stacked dimension is put together; each row of it is then a part of every tile."""
    dim, rank = op.params["axis"], op.ins[0].rank
    at = op.ins[0].laid().uncut([dim])
    return Lowered((at,), (at.take(d for d in range(rank) if d != dim),) * len(op.out_shapes), ())


@rule("broadcast_in_dim", "broadcast_to")
def broadcast_rule(op: Op, where: Where) -> Lowered:
    """New dimensions are whole on every PE: a copy is made only where a later op writes it."""
    operand, at = op.ins[0], op.ins[0].laid()
    source: list[int | None] = [None] * len(op.out_shapes[0])
    for d, new in enumerate(op.params["broadcast_dimensions"]):
        if operand.shape[d] == op.out_shapes[0][new]:
            source[new] = d
    at = at.uncut(d for d in range(operand.rank) if d not in source)
    return Lowered((at, *(whole(o.rank) for o in op.ins[1:])), (at.take(source),), ())


def _slices(op: Op, where: Where, starts: list[tuple[int, ...]], stride: tuple[int, ...]) -> Lowered:
    """Pieces of the operand, one a result; along a cut dimension the elements of a piece are spread anew."""
    operand = op.ins[0]
    at = operand.laid()
    if where.frames is not None and set(stride) <= {1}:
        return Lowered((at,), tuple(cut_out(at, operand.shape, b, s) for b, s in zip(starts, op.out_shapes)), ())
    at = without_margins(at, operand.shape)
    if (piece := _folded_piece(op, at, starts, stride)) is not None:
        return Lowered((at,), (at.unfolded([piece]),) * len(starts), ())
    at = at.unfolded(d for d in range(operand.rank) if any(s[d] != operand.shape[d] for s in op.out_shapes))
    for shape in op.out_shapes:
        at = at.uncut(d for d in range(operand.rank) if shape[d] != operand.shape[d] and at.y[d] > 1 and at.x[d] > 1)
    outs, steps = [], []
    for start, shape in zip(starts, op.out_shapes, strict=True):
        shorter = [d for d in range(operand.rank) if shape[d] != operand.shape[d]]
        out_at = at
        for axis in "yx":
            before = at.along(axis)
            if all(before[d] == 1 for d in shorter):
                continue
            parts = tuple(cut(shape[d], p) if d in shorter else p for d, p in enumerate(before))
            out_at = out_at.with_axis(axis, parts)
            beside = math.prod(n for d, n in enumerate(out_at.local(shape)) if parts[d] == 1 and before[d] == 1)
            source = (operand.shape, at)
            steps += exchange(
                shape, source, out_at, start, stride, beside, axis, where.grid, operand.itemsize, where.wafer
            )
        outs.append(out_at)
    return Lowered((at,), tuple(outs), tuple(steps))


def _folded_piece(op: Op, at: Layout, starts: list[tuple[int, ...]], stride: tuple[int, ...]) -> int | None:
    """The dimension, if every result is one piece of it as it is folded: then nothing moves."""
    shape = op.ins[0].shape
    shorter = {d for s in op.out_shapes for d in range(len(shape)) if s[d] != shape[d]}
    if len(shorter) != 1 or set(stride) != {1}:
        return None
    (d,) = shorter
    whole_pieces = all(s[d] * at.fold(d) == shape[d] for s in op.out_shapes)
    return d if at.fold(d) > 1 and whole_pieces and all(b[d] % op.out_shapes[0][d] == 0 for b in starts) else None


@rule("slice")
def slice_rule(op: Op, where: Where) -> Lowered:
    rank = op.ins[0].rank
    return _slices(op, where, [tuple(op.params["start_indices"])], tuple(op.params["strides"] or (1,) * rank))


@rule("split")
def split_rule(op: Op, where: Where) -> Lowered:
    rank, dim = op.ins[0].rank, op.params["axis"]
    begins = [sum(op.params["sizes"][:i]) for i in range(len(op.params["sizes"]))]
    return _slices(op, where, [tuple(b if d == dim else 0 for d in range(rank)) for b in begins], (1,) * rank)


@rule("concatenate")
def concatenate_rule(op: Op, where: Where) -> Lowered:
    if where.frames is not None:
        return joined(op, where)
    dim, shape = op.params["dimension"], op.out_shapes[0]
    laid = [o.layout for o in op.ins if o.layout is not None]
    at = max(laid, key=lambda a: a.parts.pes, default=whole(len(shape)))
    steps: list[Step] = []
    if len({(o.shape, o.layout) for o in op.ins}) == 1 and at.fold(dim) == 1 and at.y[dim] * at.x[dim] > 1:
        out_at = at.folded(dim, len(op.ins))  # equal pieces in the same places stay there, one over the other
        return Lowered((at,) * len(op.ins), (out_at,), (vector(out_at, shape, op.out_itemsizes[0], where, flops=0),))
    at = out_at = at.unfolded()
    wanted = [_no_finer(at, dim, o.shape[dim]) for o in op.ins]
    for axis in "yx":
        if at.along(axis)[dim] == 1:
            continue
        inner = math.prod(at.along(axis)[dim + 1 :])
        outer = math.prod(at.along(axis)[:dim])
        parts = list(at.along(axis))
        parts[dim] = cut(shape[dim], max(1, getattr(where.grid, axis) // (inner * outer)))
        out_at = out_at.with_axis(axis, parts)
        beside = math.prod(n for d, n in enumerate(out_at.local(shape)) if parts[d] == 1 and at.along(axis)[d] == 1)
        begin = 0
        for o, mine in zip(op.ins, wanted, strict=True):  # seen from the whole: where each element of it goes
            offset = tuple(begin if d == dim else 0 for d in range(len(shape)))
            steps += _spread(o.shape, mine, shape, out_at, offset, beside, axis, where, o.itemsize)
            begin += o.shape[dim]
    copy = vector(out_at, shape, op.out_itemsizes[0], where, flops=0)
    return Lowered(tuple(wanted), (out_at,), (*steps, copy))


def _no_finer(at: Layout, dim: int, n: int) -> Layout:
    """The layout with dimension `dim`, of n elements, in no more parts than it has elements."""
    y = cut(n, at.y[dim])
    x = cut(-(-n // y), at.x[dim])
    return Layout((*at.y[:dim], y, *at.y[dim + 1 :]), (*at.x[:dim], x, *at.x[dim + 1 :]))


def _spread(shape, at: Layout, new_shape, new_at: Layout, offset, beside, axis, where: Where, itemsize) -> list[Step]:
    """The exchange of a slice, run backwards: hops and loads are the same both ways."""
    one = (1,) * len(shape)
    return exchange(shape, (new_shape, new_at), at, offset, one, beside, axis, where.grid, itemsize, where.wafer)


@rule("pad")
def pad_rule(op: Op, where: Where) -> Lowered:
    """A padded dimension that is cut is spread anew: elements go where the padding pushes them."""
    if where.frames is not None:
        return padded_frame(op, where)
    operand, shape, config = op.ins[0], op.out_shapes[0], op.params["padding_config"]
    padded = [d for d, c in enumerate(config) if tuple(c) != (0, 0, 0)]
    at = _cut_once(operand.laid(), padded)
    if any(low < 0 or high < 0 for low, high, _ in config) or not operand.size:
        at = at.uncut(padded)
    out_at, steps = at, []
    for axis in "yx":
        if all(at.along(axis)[d] == 1 for d in padded):
            continue
        parts = tuple(cut(shape[d], p) if d in padded else p for d, p in enumerate(at.along(axis)))
        out_at = out_at.with_axis(axis, parts)
        beside = math.prod(n for d, n in enumerate(at.local(operand.shape)) if parts[d] == 1)
        low, stride = tuple(c[0] for c in config), tuple(c[2] + 1 for c in config)
        ends = (shape, out_at), at
        steps += exchange(operand.shape, *ends, low, stride, beside, axis, where.grid, operand.itemsize, where.wafer)
    copy = vector(out_at, shape, operand.itemsize, where, flops=0)
    return Lowered((at, whole(0)), (out_at,), (*steps, copy))


def _cut_once(at: Layout, dims) -> Layout:
    """The layout with each of `dims` cut along one axis at most, and not folded."""
    return at.unfolded(dims).uncut(d for d in dims if at.y[d] > 1 and at.x[d] > 1)


@rule("rev")
def rev_rule(op: Op, where: Where) -> Lowered:
    """Elements of a cut dimension change places with those of the other end."""
    shape, dims = op.out_shapes[0], op.params["dimensions"]
    at, steps = _cut_once(op.ins[0].laid(), dims), []
    first = tuple(n - 1 if d in dims else 0 for d, n in enumerate(shape))
    stride = tuple(-1 if d in dims else 1 for d in range(len(shape)))
    for axis in "yx":
        if any(at.along(axis)[d] > 1 for d in dims):
            beside = math.prod(n for d, n in enumerate(at.local(shape)) if at.along(axis)[d] == 1)
            ends = (shape, at), at
            steps += exchange(shape, *ends, first, stride, beside, axis, where.grid, op.ins[0].itemsize, where.wafer)
    return Lowered((at,), (at,), (*steps, vector(at, shape, op.out_itemsizes[0], where, flops=0)))


@rule("tile")
def tile_rule(op: Op, where: Where) -> Lowered:
    """Repeated dimensions are put together first; every PE then writes its part of the copies."""
    shape, reps, now = op.out_shapes[0], op.params["reps"], op.ins[0].laid()
    at = now.unfolded().uncut(d for d, r in enumerate(reps) if r > 1)
    y, x = (tuple(cut(n, p) for n, p in zip(shape, parts, strict=True)) for parts in (now.y, now.x))
    out_at = Layout(y, x)
    return Lowered((at,), (out_at,), (vector(out_at, shape, op.out_itemsizes[0], where, flops=0),))


@rule("stack")
def stack_rule(op: Op, where: Where) -> Lowered:
    shape, dim = op.out_shapes[0], op.params["axis"]
    at = main_layout(op.ins, op.ins[0].shape, where)
    old = iter(range(len(shape) - 1))
    out_at = at.take(None if d == dim else next(old) for d in range(len(shape)))
    return Lowered((at,) * len(op.ins), (out_at,), (vector(out_at, shape, op.out_itemsizes[0], where, flops=0),))
