"""Element-wise primitives run where their operand lies."""

from dataclasses import replace

from wsc.lowering.frames import home
from wsc.lowering.layout import Layout, relayout, shared_out, whole
from wsc.lowering.rules.registry import Lowered, Op, Operand, Where, default_layout, rule, vector
from wsc.lowering.rules.work import Work, work
from wsc.machine.cost import cost
from wsc.machine.steps import Compute

# One vector instruction each, one division or one scalar function, unless `wsc.lowering.rules.work` counts otherwise.
VECTOR = (
    "abs add add_any and ceil clamp clz complex conj convert_element_type copysign eq eq_to floor ge gt imag is_finite "
    "le le_to lt lt_to max min mul mulhi ne neg nextafter not or population_count real reduce_precision round select_n "
    "shift_left shift_right_arithmetic shift_right_logical sign square sub xor zeros_like"
).split()
DIVIDE = ("div", "reciprocal", "rem")
TRANSCENDENTAL = (
    "acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt cos cosh digamma erf erf_inv erfc exp exp2 "
    "expm1 igamma igamma_grad_a igammac lgamma log log1p logistic polygamma pow random_gamma_grad "
    "regularized_incomplete_beta rsqrt sin sinh sqrt tan tanh zeta"
).split()

BY_CHANCE = 0.25  # of reads of two tiles that lie anywhere: a PE's banks conflict with those four apart, of eight


def main_layout(ins: tuple[Operand, ...], shape: tuple[int, ...], where: Where) -> Layout:
    """The layout of the operand cut into most parts, in the middle of its frame: the others come to it."""
    laid = [home(o.layout, shape) for o in ins if o.layout is not None and o.shape == shape]
    return max(laid, key=lambda layout: layout.parts.pes, default=default_layout(shape, where))


def beside(layout: Layout, shape: tuple[int, ...], other: tuple[int, ...]) -> Layout:
    """How an operand of shape `other` lies beside one of `shape`: dimensions of size one are whole everywhere."""
    if len(other) != len(shape):
        return whole(len(other))
    return layout.uncut(d for d in range(len(shape)) if other[d] != shape[d])


def lower_elementwise(op: Op, where: Where, done: Work, slowest: str) -> Lowered:
    """Every PE does `done` to each element of its tile."""
    shape = op.out_shapes[0]
    layout = main_layout(op.ins, shape, where)
    hint = op.hint if where.frames is None else None
    if hint is not None and not relayout(shape, 4, layout, hint, where.grid, where.wafer):
        layout = hint  # every PE has what it will need: the rest is not worked on
    if slowest in ("transcendental", "divide") and where.strategy.compiled and not layout.margins:
        layout = _shared(layout, shape, slowest, where)
    wanted = tuple(beside(layout, shape, o.shape) for o in op.ins)
    itemsize = max([o.itemsize for o in op.ins if o.shape == shape] + [op.out_itemsizes[0]])
    steps = worked(done, layout, shape, min(itemsize, 4) if op.complexes else itemsize, where)
    if where.frames is not None and sum(o.shape == shape for o in op.ins) > 1:
        steps = tuple(s if s.bare or s.kind != "vector" else replace(s, conflict=BY_CHANCE) for s in steps)
    return Lowered(wanted, (layout,), steps)


def worked(done: Work, layout: Layout, shape: tuple[int, ...], itemsize: int, where: Where) -> tuple[Compute, ...]:
    """`done` to each element of an array, as steps."""
    return tuple(vector(layout, shape, itemsize, where, kind, count, flops=count) for kind, count in done.kinds)


def _shared(layout: Layout, shape: tuple[int, ...], kind: str, where: Where) -> Layout:
    """Slow operations are shared by the PEs that hold a copy, if putting the shares together again is cheaper."""
    for axis in "yx":
        shared = shared_out(layout, shape, axis, getattr(where.grid, axis))
        saved = vector(layout, shape, 4, where, kind), vector(shared, shape, 4, where, kind)
        cycles = [cost(step, where.wafer).cycles for step in saved]
        gather = relayout(shape, 4, shared, layout, where.grid, where.wafer)
        if cycles[0] - cycles[1] > sum(cost(step, where.wafer).cycles for step in gather):
            layout = shared
    return layout


def work_of(op: Op) -> Work:
    """Operations of one element of an element-wise op."""
    kind = "transcendental" if op.name in TRANSCENDENTAL else "divide" if op.name in DIVIDE else "vector"
    if op.name == "div" and not op.complexes and op.ins[1].kind == "constant" and op.ins[1].shape == ():
        return Work(1)  # by a scalar known at compile time: a multiplication by its inverse
    done = work(op.name, op.complexes, kind, len(op.ins) - 1)
    if op.name != "integer_pow":
        return done
    # By repeated squaring: as many multiplies as the exponent has bits and ones, a division for a negative one.
    exponent = abs(op.params["y"])
    multiplies = done.times(max(1, exponent.bit_length() - 1 + exponent.bit_count() - 1))
    return multiplies if op.params["y"] >= 0 else multiplies + work("div", op.complexes, "divide")


@rule(*(name for name in (*VECTOR, *DIVIDE, *TRANSCENDENTAL, "integer_pow") if name != "logistic"))
def elementwise_rule(op: Op, where: Where) -> Lowered:
    done = work_of(op)
    return lower_elementwise(op, where, done, done.kinds[-1][0])


@rule("logistic")
def logistic_rule(op: Op, where: Where) -> Lowered:
    """1 / (1 + exp(-x)): an exponential and a division."""
    if op.complexes:
        return elementwise_rule(op, where)
    lowered = lower_elementwise(op, where, Work(transcendental=1), "transcendental")
    layout, shape = lowered.outs[0], op.out_shapes[0]
    inverse = vector(layout, shape, op.out_itemsizes[0], where, "divide", flops=2)
    return Lowered(lowered.ins, lowered.outs, (*lowered.steps, inverse))
