"""Matrix products where weights stream: activations stay, features along `y` and tokens along `x`, whatever the model.

What is a token and what a feature is read off the layouts: a contracted dimension that lies along `y` is one of
features. Three forms, see `wsc.machine.streaming_kernels`: a weight passes over an activation; two activations whose
contracted dimensions lie along one axis; two whose contracted dimensions lie along different ones. Dimensions of a
batch, such as sequences and heads, cut the region into rectangles that work on their own.
"""

import math
from dataclasses import dataclass

from wsc.lowering.layout import Layout, nest, whole
from wsc.lowering.rules.registry import Lowered, Op, Operand, Where
from wsc.machine import streaming_kernels as kernels
from wsc.machine.steps import Step

_STORED = ("weight",)


@dataclass(frozen=True)
class _Side:
    """One operand: its contracted, batch and free dimensions, and the axis along which the contracted ones lie."""

    operand: Operand
    k: tuple[int, ...]
    batch: tuple[int, ...]
    axis: str

    @property
    def free(self) -> list[int]:
        return [d for d in range(self.operand.rank) if d not in self.k + self.batch]

    @property
    def other(self) -> str:
        return "x" if self.axis == "y" else "y"

    def sizes(self, dims) -> tuple[int, ...]:
        return tuple(self.operand.shape[d] for d in dims)


def streamed(op: Op, where: Where) -> Lowered | None:
    """The product as weights stream; None for one of constants or control, which has nothing to stay."""
    contract, batch = op.params["dimension_numbers"]
    weights = [i for i in (0, 1) if op.ins[i].kind in _STORED]
    if len(weights) == 2 or any(o.kind not in ("activation", *_STORED) for o in op.ins):
        return None
    first, second = (_side(op.ins[i], tuple(contract[i]), tuple(batch[i])) for i in (0, 1))
    sides = first, second
    if weights:
        return None if sides[0].batch else _passing(op, sides, weights[0], where)
    return _both(op, sides, where)


def _side(operand: Operand, k: tuple[int, ...], batch: tuple[int, ...]) -> _Side:
    at = operand.laid()
    axis = max("yx", key=lambda a: math.prod(at.along(a)[d] for d in k))
    if math.prod(at.y[d] * at.x[d] for d in k) == 1:  # not cut: the axis that its free dimensions leave
        free = [d for d in range(operand.rank) if d not in k + batch]
        axis = min("yx", key=lambda a: math.prod(at.along(a)[d] for d in free))
    return _Side(operand, k, batch, axis)


def _put(at: Layout, axis: str, dims, parts) -> Layout:
    own = list(at.along(axis))
    for d, p in zip(dims, parts, strict=True):
        own[d] = p
    return at.with_axis(axis, own)


def _ordered(at: Layout, side: _Side, axis: str, dims, pes: int) -> Layout:
    """The dimensions nested along an axis, the first outermost."""
    dims = sorted(dims)
    return _put(at, axis, dims, nest(side.sizes(dims), pes))


def _passing(op: Op, sides: tuple[_Side, _Side], at: int, where: Where) -> Lowered:
    """An activation with its features along `y`, whatever they were, and a weight that is not stored: its layout says
    on which PEs its elements are used first."""
    weight, x, grid = sides[at], sides[1 - at], where.grid
    x_at = _ordered(_ordered(whole(x.operand.rank), x, "y", x.k, grid.y), x, "x", x.free, grid.x)
    n_parts = nest(weight.sizes(weight.free), grid.y)
    k_parts = [x_at.y[x.k[weight.k.index(d)]] for d in weight.k]
    w_at = _put(_put(whole(weight.operand.rank), "y", weight.k, k_parts), "x", weight.free, _within(weight, grid.x))
    x_out, w_out = Layout(x_at.y, x_at.x).take(x.free), _put(whole(len(weight.free)), "y", range(len(n_parts)), n_parts)
    out = _join(w_out, x_out) if at == 0 else _join(x_out, w_out)
    rows, columns = max(math.prod(k_parts), math.prod(n_parts)), x_at.parts.x
    m, k = (math.prod(x_at.local(x.operand.shape)[d] for d in dims) for dims in (x.free, x.k))
    n = math.prod(-(-s // p) for s, p in zip(weight.sizes(weight.free), n_parts, strict=True))
    flops = 2 * math.prod(op.out_shapes[0]) * math.prod(x.sizes(x.k))
    itemsize = max(o.itemsize for o in op.ins)
    steps = kernels.passing_weights(m, k, n, rows, columns, itemsize, where.wafer, flops, rows * columns)
    return Lowered((w_at, x_at) if at == 0 else (x_at, w_at), (out,), steps)


def _within(weight: _Side, pes: int) -> tuple[int, ...]:
    return nest(weight.sizes(weight.free), pes)


def _join(first: Layout, second: Layout) -> Layout:
    return Layout((*first.y, *second.y), (*first.x, *second.x))


def _both(op: Op, sides: tuple[_Side, _Side], where: Where) -> Lowered:
    """Two activations. The one whose dimensions of a batch are cut further decides how these lie for both."""
    first, second = sides
    lead = max(sides, key=lambda s: math.prod(s.operand.laid().y[d] * s.operand.laid().x[d] for d in s.batch))
    batch = {a: [lead.operand.laid().along(a)[d] for d in lead.batch] for a in "yx"}
    room = {a: getattr(where.grid, a) // math.prod(batch[a]) for a in "yx"}
    ats = []
    for side in sides:
        at = whole(side.operand.rank)
        for a in "yx":
            at = _put(at, a, side.batch, batch[a])
        at = _ordered(at, side, side.other, side.free, room[side.other])
        ats.append(_put(at, side.axis, side.k, _parts_of_k(side, first, room)))
    itemsize, local = max(o.itemsize for o in op.ins), [a.local(s.operand.shape) for a, s in zip(ats, sides)]
    count = math.prod(local[0][d] for d in first.batch)
    flops = 2 * math.prod(op.out_shapes[0]) * math.prod(first.sizes(first.k))
    frees = [math.prod(local[i][d] for d in s.free) for i, s in enumerate(sides)]
    pes = math.prod(room.values()) * math.prod(batch["y"]) * math.prod(batch["x"])
    if first.axis == second.axis:
        stays = _stays(op, sides)
        A, B = sides[stays], sides[1 - stays]
        parts = nest(B.sizes(B.free), room[B.axis])
        kept = _put(whole(len(B.free)), B.axis, range(len(B.free)), parts)
        outs = [ats[i].take(sides[i].free) for i in (0, 1)]
        outs[1 - stays] = kept
        k = math.prod(local[0][d] for d in first.k)
        ring = max(math.prod(ats[i].along(A.other)[d] for d in sides[i].free) for i in (0, 1))
        line = max(math.prod(ats[0].along(A.axis)[d] for d in first.k), math.prod(parts))
        m, n = frees[stays], frees[1 - stays]
        steps: tuple[Step, ...] = kernels.turning(m, k, n, ring, line, itemsize, where.wafer, flops, pes, count)
    else:
        outs = [ats[i].take(sides[i].free) for i in (0, 1)]
        A = next(i for i in (0, 1) if sides[i].axis == "y")
        k = math.prod(first.sizes(first.k))
        parts = {a: max(math.prod(at.along(a)) // math.prod(batch[a]) for at in ats) for a in "yx"}
        steps = kernels.meeting(
            frees[A], k, frees[1 - A], parts["y"], parts["x"], itemsize, where.wafer, flops, pes, count
        )
    out = _join(_join(ats[0].take(first.batch), outs[0]), outs[1])
    return Lowered((ats[0], ats[1]), (out,), steps)


def _parts_of_k(side: _Side, first: _Side, room: dict[str, int]) -> tuple[int, ...]:
    """The contracted dimensions nest in the order of the first operand's, so that both sides are cut alike."""
    order = sorted(range(len(first.k)), key=lambda i: first.k[i])
    parts = nest(tuple(side.operand.shape[side.k[i]] for i in order), room[side.axis])
    found = [1] * len(side.k)
    for i, p in zip(order, parts, strict=True):
        found[i] = p
    return tuple(found)


def _stays(op: Op, sides: tuple[_Side, _Side]) -> int:
    """Which operand stays while the other's tiles go round; the other's free dimensions change their axis. As the
    result is wanted, if that is known; else tokens end up along `x`: the smaller free dimension are features."""
    first, second = sides
    if op.hint is not None:
        start = len(first.batch)
        wants = [op.hint.take(range(start, start + len(first.free)))]
        wants.append(op.hint.take(range(start + len(first.free), start + len(first.free) + len(second.free))))
        cuts = [math.prod(w.along(s.other)) for w, s in zip(wants, sides)]
        if cuts[0] != cuts[1]:
            return 0 if cuts[0] > cuts[1] else 1
    if first.axis == "y":
        return 0
    return 0 if math.prod(first.sizes(first.free)) <= math.prod(second.sizes(second.free)) else 1
