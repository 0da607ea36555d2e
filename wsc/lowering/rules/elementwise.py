"""Element-wise primitives run where their operand lies."""

from wsc.lowering.layout import Layout, relayout, shared_out, whole
from wsc.lowering.rules.registry import Lowered, Op, Operand, Where, default_layout, rule, vector
from wsc.machine.cost import cost

# One vector instruction each, unless a count says otherwise.
VECTOR = (
    "abs add add_any and bitcast_convert_type ceil clamp clz conj convert_element_type copysign eq eq_to floor ge gt "
    "imag is_finite le le_to lt lt_to max min mul ne neg nextafter not or population_count real reduce_precision round "
    "select_n shift_left shift_right_arithmetic shift_right_logical sign square sub xor"
).split()
DIVIDE = ("div", "rem")
TRANSCENDENTAL = (
    "acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log log1p "
    "logistic pow rsqrt sin sinh sqrt tan tanh"
).split()


def main_layout(ins: tuple[Operand, ...], shape: tuple[int, ...], where: Where) -> Layout:
    """The layout of the operand cut into most parts: the others, cut less, come to it."""
    laid = [o.layout for o in ins if o.layout is not None and o.shape == shape]
    return max(laid, key=lambda layout: layout.parts.pes, default=default_layout(shape, where))


def beside(layout: Layout, shape: tuple[int, ...], other: tuple[int, ...]) -> Layout:
    """How an operand of shape `other` lies beside one of `shape`: dimensions of size one are whole everywhere."""
    if len(other) != len(shape):
        return whole(len(other))
    return layout.uncut(d for d in range(len(shape)) if other[d] != shape[d])


def lower_elementwise(op: Op, where: Where, kind: str, calls: int = 1) -> Lowered:
    shape = op.out_shapes[0]
    layout = main_layout(op.ins, shape, where)
    if op.hint is not None and not relayout(shape, 4, layout, op.hint, where.grid, where.wafer):
        layout = op.hint  # every PE has what it will need: the rest is not worked on
    if kind in ("transcendental", "divide") and where.strategy.compiled:
        layout = _shared(layout, shape, kind, where)
    wanted = tuple(beside(layout, shape, o.shape) for o in op.ins)
    itemsize = max([o.itemsize for o in op.ins if o.shape == shape] + [op.out_itemsizes[0]])
    return Lowered(wanted, (layout,), (vector(layout, shape, itemsize, where, kind, calls, flops=calls),))


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


@rule(*VECTOR)
def vector_rule(op: Op, where: Where) -> Lowered:
    return lower_elementwise(op, where, "vector")


@rule(*DIVIDE)
def divide_rule(op: Op, where: Where) -> Lowered:
    """By a scalar known at compile time: a multiplication by its inverse."""
    by_constant = op.name == "div" and op.ins[1].kind == "constant" and op.ins[1].shape == ()
    return lower_elementwise(op, where, "vector" if by_constant else "divide")


@rule("logistic")
def logistic_rule(op: Op, where: Where) -> Lowered:
    """1 / (1 + exp(-x)): an exponential and a division."""
    lowered = lower_elementwise(op, where, "transcendental")
    layout, shape = lowered.outs[0], op.out_shapes[0]
    inverse = vector(layout, shape, op.out_itemsizes[0], where, "divide", flops=2)
    return Lowered(lowered.ins, lowered.outs, (*lowered.steps, inverse))


@rule(*(name for name in TRANSCENDENTAL if name != "logistic"))
def transcendental_rule(op: Op, where: Where) -> Lowered:
    return lower_elementwise(op, where, "transcendental")


@rule("integer_pow")
def integer_pow_rule(op: Op, where: Where) -> Lowered:
    """By repeated squaring: as many multiplies as the exponent has bits and ones, a division for a negative one."""
    exponent = abs(op.params["y"])
    multiplies = max(1, exponent.bit_length() - 1 + exponent.bit_count() - 1)
    lowered = lower_elementwise(op, where, "vector", multiplies)
    if op.params["y"] >= 0:
        return lowered
    layout, shape = lowered.outs[0], op.out_shapes[0]
    inverse = vector(layout, shape, op.out_itemsizes[0], where, "divide")
    return Lowered(lowered.ins, lowered.outs, (*lowered.steps, inverse))
