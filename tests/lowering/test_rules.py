"""Every rule: work is charged, sums between PEs are reduced, and no PE gets more than the region has."""

import math

import jax.numpy as jnp
import pytest
from helpers import normal, run_everywhere

from wsc.lowering.layout import Grid, Layout, lay, whole
from wsc.lowering.rules import RULES, Op, Operand, Where, rule
from wsc.lowering.rules.dot import stationary
from wsc.lowering.rules.flexible import pull
from wsc.lowering.rules.shape import groups
from wsc.machine.cost import cost
from wsc.machine.steps import AllReduce, Compute, Multicast, Shift
from wsc.machine.wafer import WSE3

WHERE = Where(Grid(6, 5), WSE3)


def lowered(name, ins, outs, where=WHERE, itemsize=4, **params):
    """`ins` as (shape, kind, layout)."""
    operands = tuple(Operand(shape, itemsize, kind, at) for shape, kind, at in ins)
    found = RULES[name](Op(name, params, operands, tuple(outs), (itemsize,) * len(outs)), where)
    assert len(found.ins) == len(ins) and len(found.outs) == len(outs)
    for at, shape in [*zip(found.ins, (s for s, _, _ in ins)), *zip(found.outs, outs)]:
        assert at is None or (len(at.y) == len(shape) and at.fits(where.grid))
    return found


def dims(contract, batch=((), ())):
    return {"dimension_numbers": (contract, batch)}


def of(kind, steps):
    return [s for s in steps if isinstance(s, kind)]


def test_two_rules_for_one_primitive():
    with pytest.raises(ValueError, match="two rules for 'add'"):
        rule("add")(lambda op, where: None)


def test_weight_stays_before_state_before_the_larger():
    w, s, a, b = (
        Operand((2,), 4, "weight", None), Operand((9,), 4, "state", None),
        Operand((4,), 4, "activation", None), Operand((5,), 4, "activation", None),
    )  # fmt: skip
    assert [stationary(w, s), stationary(s, w), stationary(s, a), stationary(a, b), stationary(b, a)] == [0, 1, 0, 1, 0]


def test_product_of_an_activation_along_y():
    """x[2, 12 @ y] times W[12 @ y, 10 @ x]: sums along y, the result along x."""
    x = lay((2, 12), "y", [1], 6)
    found = lowered(
        "dot_general", [((2, 12), "activation", x), ((12, 10), "weight", None)], [(2, 10)], **dims(((1,), (0,)))
    )
    assert found.ins == (x, Layout((6, 1), (1, 5)))
    assert found.outs == (Layout((1, 1), (1, 5)),)
    (multiply,), (reduce,) = of(Compute, found.steps), of(AllReduce, found.steps)
    assert multiply.flops == 2 * 2 * 12 * 10
    assert multiply.calls * multiply.length == 2 * 2 * 2  # of one PE: 2 rows, 2 of 12 along y, 2 of 10 along x
    assert (reduce.pes, reduce.span, reduce.wavelets, reduce.instances) == (6, 5, 4, 5)


def test_product_of_an_activation_along_x_lies_the_other_way():
    x = lay((2, 12), "x", [1], 5)
    found = lowered(
        "dot_general", [((2, 12), "activation", x), ((12, 10), "weight", None)], [(2, 10)], **dims(((1,), (0,)))
    )
    assert found.outs[0].y[1] > 1 and found.outs[0].x == (1, 1)
    assert of(AllReduce, found.steps)[0].pes == x.x[1]


@pytest.mark.parametrize("shape", [(), (12,)])
def test_product_that_is_one_number(shape):
    """Nothing is left of either operand: two vectors, or two numbers."""
    x, k = lay(shape, "y", range(len(shape)), 6), tuple(range(len(shape)))
    found = lowered("dot_general", [(shape, "activation", x), (shape, "weight", None)], [()], **dims((k, k)))
    assert found.outs == (whole(0),)
    assert len(of(AllReduce, found.steps)) == len(shape)
    assert of(Compute, found.steps)[0].flops == 2 * math.prod(shape)


@pytest.mark.parametrize("shape, new_shape", [((1, 0), (0,)), ((0,), (0, 12, 3)), ((0, 6), (2, 0, 3))])
def test_reshape_of_nothing_is_whole_and_free(shape, new_shape):
    found = lowered("reshape", [(shape, "activation", whole(len(shape)))], [new_shape])
    assert found.outs == (whole(len(new_shape)),) and not found.steps
    run_everywhere(
        lambda x, n: (x.reshape(new_shape), n.reshape(new_shape)), jnp.ones(shape), jnp.ones(shape, jnp.int32)
    )


def test_view_of_an_empty_weight_that_is_wanted_in_parts():
    assert pull("reshape", {}, [(0, 12)], (0, 3, 4), Layout((1, 3, 1), (1, 1, 4))) == [whole(2)]


def test_view_of_a_weight_that_both_axes_cut():
    """36 elements over 12 x 3 PEs, one each: what one axis has cut of a row or column, the other cannot cut again."""
    assert pull("reshape", {}, [(3, 12)], (36,), Layout((12,), (3,))) == [Layout((3, 4), (1, 3))]


@pytest.mark.parametrize("kind", ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod"])
def test_reductions_of_a_cut_dimension_go_between_pes(kind):
    at = lay((3, 12), "y", [1], 6)
    found = lowered(kind, [((3, 12), "activation", at)], [(3,)], axes=(1,))
    (reduce,) = of(AllReduce, found.steps)
    assert (reduce.pes, reduce.wavelets, reduce.instances) == (6, 3, 5)
    assert found.outs == (whole(1),)


def test_reductions_of_a_whole_dimension_stay():
    at = lay((3, 12), "y", [0], 6)
    found = lowered("reduce_sum", [((3, 12), "activation", at)], [(3,)], axes=(1,))
    assert not of(AllReduce, found.steps)
    assert found.outs[0].y == (3,)


def test_argmax_sends_value_and_index():
    at = lay((3, 12), "y", [1], 6)
    (one,) = of(AllReduce, lowered("reduce_max", [((3, 12), "activation", at)], [(3,)], axes=(1,)).steps)
    (two,) = of(AllReduce, lowered("argmax", [((3, 12), "activation", at)], [(3,)], axes=(1,)).steps)
    assert two.wavelets == 2 * one.wavelets


UNARY = sorted(
    n for n in "abs neg exp tanh logistic rsqrt sqrt sin cos log floor sign erf square not is_finite".split()
)


@pytest.mark.parametrize("name", UNARY)
def test_elementwise_work_is_charged(name):
    at = lay((4, 30), "y", [1], 6)
    found = lowered(name, [((4, 30), "activation", at)], [(4, 30)])
    steps = of(Compute, found.steps)
    assert [s.kind for s in steps[1:]] == (["divide"] if name == "logistic" else [])  # 1 / (1 + exp(-x))
    for step in steps:
        assert cost(step, WSE3).cycles > 0
        assert step.calls * step.length * step.instances >= 120
    assert steps[0].flops == 120


def test_functions_cost_more_than_sums():
    at = lay((4, 30), "y", [1], 6)
    cycles = {
        n: sum(cost(s, WSE3).cycles for s in lowered(n, [((4, 30), "activation", at)], [(4, 30)]).steps)
        for n in ("exp", "neg")
    }
    assert cycles["exp"] > cycles["neg"]


@pytest.mark.parametrize(("power", "multiplies"), [(2, 1), (3, 2), (4, 2), (7, 4), (8, 3)])
def test_powers_by_squaring(power, multiplies):
    at = whole(1)
    (step,) = lowered("integer_pow", [((9,), "activation", at)], [(9,)], y=power).steps
    assert step.calls == multiplies
    steps = lowered("integer_pow", [((9,), "activation", at)], [(9,)], y=-power).steps
    assert [s.kind for s in steps] == ["vector", "divide"]


def test_a_row_of_a_broadcast_is_whole():
    at = lay((4, 30), "y", [1], 6)
    found = lowered(
        "add", [((4, 30), "activation", at), ((4, 1), "activation", whole(2)), ((), "constant", None)][:2], [(4, 30)]
    )
    assert found.ins[0] == at and found.ins[1] == whole(2)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((1, 4096), (1, 32, 128), [([0], [0]), ([1], [1, 2])]),
        ((6, 4), (24,), [([0, 1], [0])]),
        ((24,), (2, 3, 4), [([0], [0, 1, 2])]),
        ((2, 3, 5), (6, 5), [([0, 1], [0]), ([2], [1])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
    ],
)
def test_groups_of_a_reshape(old, new, expected):
    assert groups(old, new) == expected


@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 1, 5, 1), (1,), (2, 6), (4, 3, 1)])
def test_groups_hold_the_same_elements(shape):
    for new in ((math.prod(shape),), (1, math.prod(shape)), (math.prod(shape), 1), shape):
        found = groups(shape, new)
        assert sorted(d for old, _ in found for d in old) == list(range(len(shape)))
        assert sorted(d for _, n in found for d in n) == list(range(len(new)))
        assert all(math.prod(shape[d] for d in o) == math.prod(new[d] for d in n) for o, n in found)


def test_heads_of_a_cut_row_do_not_move():
    """[1, 24 @ y] seen as 6 heads of 4, cut between heads."""
    at = lay((1, 24), "y", [1], 6)
    found = lowered("reshape", [((1, 24), "activation", at)], [(1, 6, 4)])
    assert found.steps == () and found.outs == (Layout((1, 6, 1), (1, 1, 1)),)


def test_slices_of_a_cut_dimension_move():
    at = lay((1, 24), "y", [1], 6)
    first_half = lowered(
        "slice", [((1, 24), "activation", at)], [(1, 12)], start_indices=(0, 0), limit_indices=(1, 12), strides=None
    )
    assert of(Shift, first_half.steps), "12 elements of 3 PEs are spread over 6"
    rows = lowered("slice", [((4, 24), "activation", lay((4, 24), "y", [1], 6))], [(2, 24)],
                   start_indices=(0, 0), limit_indices=(2, 24), strides=None)  # fmt: skip
    assert rows.steps == ()


def test_transposes_are_free_when_order_stays():
    at = lay((2, 12), "y", [1], 6)
    found = lowered("transpose", [((2, 12), "activation", at)], [(12, 2)], permutation=(1, 0))
    assert found.steps == () and found.ins == (at,) and found.outs == (at.take([1, 0]),)


def test_a_sorted_dimension_is_whole():
    at = lay((3, 12), "y", [1], 6)
    found = lowered("sort", [((3, 12), "activation", at)], [(3, 12)], dimension=1)
    assert found.ins[0].y[1] == found.ins[0].x[1] == 1
    assert found.steps


def test_an_update_writes_where_the_rows_are():
    state = Layout((1, 6), (4, 1))
    found = lowered(
        "dynamic_update_slice",
        [
            ((8, 12), "state", state),
            ((1, 12), "activation", lay((1, 12), "y", [1], 6)),
            ((), "control", None),
            ((), "control", None),
        ],
        [(8, 12)],
    )
    assert found.ins[0] == found.outs[0] == state
    assert found.ins[1] == Layout((1, 6), (1, 1))
    assert len(found.steps) == 1


def test_a_dynamic_slice_is_sent_to_all_that_want_it():
    at = Layout((1, 6), (4, 1))
    found = lowered("dynamic_slice", [((8, 12), "state", at), ((), "control", None), ((), "control", None)], [(1, 12)])
    assert found.outs == (Layout((1, 6), (1, 1)),)
    (send,) = of(Multicast, found.steps)
    assert send.wavelets == 2 and send.pes == 5


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_is_of_a_primitive_name(name):
    assert name == name.strip() and name


def test_embedding_rows_are_multicast():
    numbers = jnp.take(normal(40, 12), jnp.array([1]), axis=0).shape
    assert numbers == (1, 12)
    from jax.lax import GatherDimensionNumbers

    found = lowered(
        "gather", [((40, 12), "weight", None), ((1, 1), "control", None)], [(1, 12)],
        dimension_numbers=GatherDimensionNumbers((1,), (0,), (0,)), slice_sizes=(1, 12),
    )  # fmt: skip
    assert found.ins[0] == Layout((1, 6), (5, 1))
    assert found.outs[0] == Layout((1, 6), (1, 1))
    (send,) = of(Multicast, found.steps)
    assert (send.pes, send.span, send.wavelets, send.instances) == (5, 4, 2, 6)
