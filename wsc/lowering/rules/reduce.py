"""Reductions and scans: each PE reduces its tile, then the PEs that share a result all-reduce it, or pass
totals on."""

import math
from dataclasses import replace

from wsc.layout import Layout
from wsc.lowering.frames import without_margins
from wsc.lowering.layout import all_reduce, strides, wavelets, whole
from wsc.lowering.rules.elementwise import worked
from wsc.lowering.rules.registry import Lowered, Op, Where, rule, vector
from wsc.lowering.rules.work import Work
from wsc.machine.steps import Reduce, Step


def innermost(at: Layout, dims) -> Layout:
    """The layout in which a line of PEs along an axis holds parts of `dims` alone: those of them that have other cut
    dimensions nested inside are put together."""
    for axis in "yx":
        parts = at.along(axis)
        inner = max((d for d, p in enumerate(parts) if p > 1 and d not in dims), default=-1)
        at = at.with_axis(axis, [1 if d in dims and d < inner else p for d, p in enumerate(parts)])
    return at


@rule(
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin"
)
def reduce_rule(op: Op, where: Where) -> Lowered:
    operand, axes = op.ins[0], tuple(op.params["axes"])
    at = operand.laid()
    if any(min(at.margin(d)) < 0 for d in axes):  # what lies beyond the frame is not one of equal tiles
        at = without_margins(at, operand.shape)
    at = innermost(at, axes)
    kept = [d for d in range(operand.rank) if d not in axes]
    words = 2 if op.name in ("argmax", "argmin") else 1  # a value and its index travel together
    out_at, shape = at.take(kept), op.out_shapes[0]
    itemsize = max(operand.itemsize, op.out_itemsizes[0])
    kind = "sum" if out_at.size(shape) == 1 else "vector"  # into one accumulator, or lane by lane
    steps: list[Step] = [vector(at, operand.shape, operand.itemsize, where, kind, calls=words)]
    for axis in "xy":
        elements = words * out_at.size(shape)
        steps += all_reduce(at, axes, axis, elements, itemsize, where.grid, where.wafer, where.strategy)
    return Lowered((at,), (out_at,), tuple(steps))


@rule("reduce")
def general_reduce_rule(op: Op, where: Where) -> Lowered:
    """By any function of two values (or tuples): so many operations an element as it has equations, then as a sum."""
    count, dims = len(op.out_shapes), tuple(op.params["dimensions"])
    operand, shape = op.ins[0], op.out_shapes[0]
    laid = [o.layout for o in op.ins[:count] if o.layout is not None]
    at = innermost(max(laid, key=lambda a: a.parts.pes, default=whole(operand.rank)), dims)
    out_at = at.take(d for d in range(operand.rank) if d not in dims)
    calls = equations(op.params)
    steps: list[Step] = [vector(at, operand.shape, operand.itemsize, where, calls=calls, flops=calls)]
    for axis in "xy":
        elements = count * out_at.size(shape)
        steps += all_reduce(at, dims, axis, elements, operand.itemsize, where.grid, where.wafer, where.strategy)
    return Lowered((*(at,) * count, *(whole(o.rank) for o in op.ins[count:])), (out_at,) * count, tuple(steps))


_ALONG = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")


@rule(*_ALONG)
def scan_rule(op: Op, where: Where) -> Lowered:
    """Each PE scans its tile, its total goes down the line, and is added to the tiles that follow. The last dimension
    of a tile is worked through one element at a time, others lane by lane."""
    dim, shape, itemsize = op.params["axis"], op.out_shapes[0], op.out_itemsizes[0]
    at = op.ins[0].laid().unfolded([dim])
    at = innermost(at.uncut([dim]) if at.y[dim] > 1 and at.x[dim] > 1 else at, (dim,))
    done = Work(3, 0, 2) if op.name == "cumlogsumexp" else Work(2 if op.complexes else 1)
    beside = at.size(shape) // max(1, at.local(shape)[dim])
    steps = list(worked(done, at, shape, min(4, itemsize) if op.complexes else itemsize, where))
    if beside == 1:
        steps = [replace(s, kind="sum") if s.kind == "vector" else s for s in steps]
    for axis in "yx":
        parts, pes = at.along(axis), getattr(where.grid, axis)
        if parts[dim] > 1:
            spacing = strides(parts, pes)[dim]
            lines = where.grid.pes // pes * math.prod(p for d, p in enumerate(parts) if d != dim)
            words = wavelets(beside, itemsize, where.wafer)
            total = Reduce("chain", parts[dim], (parts[dim] - 1) * spacing, words, lines)
            steps += [total, *worked(done, at, shape, itemsize, where)]
    return Lowered((at,), (at,), tuple(steps))


def equations(params: dict) -> int:
    """Equations of the function that a reduction or update applies, one at least."""
    for name in ("jaxpr", "update_jaxpr"):
        body = params.get(name)
        eqns = getattr(getattr(body, "jaxpr", body), "eqns", None)
        if eqns is not None:
            return max(1, len(eqns))
    return 1
