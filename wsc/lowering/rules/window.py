"""Reductions over windows, such as pooling, and their gradients: neighbours exchange the elements at the edges."""

import math

from wsc.lowering.layout import Layout, whole
from wsc.lowering.rules.halo import Window, exchange_halo, windowed
from wsc.lowering.rules.reduce import equations
from wsc.lowering.rules.registry import Lowered, Op, Where, rule, vector
from wsc.machine.steps import Step


def windows_of(op: Op, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> tuple[Window, ...]:
    """The windows of `reduce_window` and its like, a dimension."""
    ones = (1,) * len(shape)
    params = op.params
    base, dilation = params.get("base_dilation") or ones, params.get("window_dilation") or ones
    sizes, steps = params["window_dimensions"], params["window_strides"]
    rows = zip(shape, out_shape, sizes, steps, params["padding"], base, dilation, strict=True)
    return tuple(Window(n, out, size, step, pad[0], b, d) for n, out, size, step, pad, b, d in rows)


def _edges(
    windows: tuple[Window, ...], shape, at: Layout, out_at: Layout, values: int, itemsize: int, where: Where
) -> tuple[list[Step], int]:
    """The steps that bring every PE the edges of `values` arrays, and the bytes these take."""
    local, steps = list(at.local(shape)), []
    for axis in "yx":
        for d, window in enumerate(windows):
            if window.moves and at.along(axis)[d] > 1:
                beside = values * math.prod(n for e, n in enumerate(local) if e != d)
                found, most = exchange_halo(window, d, at, d, out_at, beside, axis, itemsize, where)
                steps += found
                local[d] += most
    return steps, values * (math.prod(local) - at.size(shape)) * itemsize


@rule(
    "reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window_mul",
    "select_and_gather_add",
)  # fmt: skip
def reduce_window_rule(op: Op, where: Where) -> Lowered:
    """Every PE reduces the windows of its results, after neighbours have exchanged the elements at the edges."""
    count = len(op.ins) // 2 if op.name == "reduce_window" else len(op.ins)  # the others are initial values
    operand, shape = op.ins[0], op.out_shapes[0]
    windows = windows_of(op, operand.shape, shape)
    laid = [o.layout for o in op.ins[:count] if o.layout is not None]
    at, out_at = windowed(max(laid, key=lambda a: a.parts.pes, default=whole(operand.rank)), windows)
    steps, scratch = _edges(windows, operand.shape, at, out_at, count, operand.itemsize, where)
    body = {"reduce_window": equations(op.params), "select_and_gather_add": 3}  # a comparison, two selections
    calls = body.get(op.name, 1) * max(1, math.prod(w.size for w in windows) - 1)
    steps.append(vector(out_at, shape, operand.itemsize, where, calls=calls, flops=calls))
    rest = tuple(whole(o.rank) for o in op.ins[count:])
    return Lowered((*(at,) * count, *rest), (out_at,) * len(op.out_shapes), tuple(steps), scratch)


@rule("select_and_scatter_add", "select_and_scatter")
def select_and_scatter_rule(op: Op, where: Where) -> Lowered:
    """The gradient of a maximum over windows: each is looked through again, and what it gets goes back to the element
    that was the greatest, at the edges by the way it came."""
    pooled, operand = op.ins[:2] if op.name == "select_and_scatter_add" else (op.ins[1], op.ins[0])
    windows = windows_of(op, operand.shape, pooled.shape)
    at, out_at = windowed(operand.laid(), windows)
    steps, scratch = _edges(windows, operand.shape, at, out_at, 1, operand.itemsize, where)
    taps = max(1, math.prod(w.size for w in windows) - 1)
    look = vector(out_at, pooled.shape, operand.itemsize, where, calls=2 * taps, flops=2 * taps)
    add = vector(out_at, pooled.shape, operand.itemsize, where)
    ins = (out_at, at) if op.name == "select_and_scatter_add" else (at, out_at, whole(0))
    return Lowered(ins, (at,), (*steps, look, add, *steps), scratch)
