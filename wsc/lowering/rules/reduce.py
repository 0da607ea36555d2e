"""Reductions: each PE reduces its tile, then the PEs that share a result all-reduce it."""

from wsc.lowering.layout import all_reduce
from wsc.lowering.rules.registry import Lowered, Op, Where, rule, vector
from wsc.machine.steps import Step


@rule(
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin"
)
def reduce_rule(op: Op, where: Where) -> Lowered:
    operand, axes = op.ins[0], tuple(op.params["axes"])
    at = operand.laid()
    kept = [d for d in range(operand.rank) if d not in axes]
    for axis in "yx":  # a reduced dimension with kept ones nested inside it is put together first
        parts = at.along(axis)
        inner = max((d for d in kept if parts[d] > 1), default=-1)
        outer = [d for d in axes if parts[d] > 1 and d < inner]
        at = at.with_axis(axis, [1 if d in outer else p for d, p in enumerate(parts)])
    words = 2 if op.name in ("argmax", "argmin") else 1  # a value and its index travel together
    out_at, shape = at.take(kept), op.out_shapes[0]
    itemsize = max(operand.itemsize, op.out_itemsizes[0])
    kind = "sum" if out_at.size(shape) == 1 else "vector"  # into one accumulator, or lane by lane
    steps: list[Step] = [vector(at, operand.shape, operand.itemsize, where, kind, calls=words)]
    for axis in "xy":
        elements = words * out_at.size(shape)
        steps += all_reduce(at, axes, axis, elements, itemsize, where.grid, where.wafer, where.strategy)
    return Lowered((at,), (out_at,), tuple(steps))
