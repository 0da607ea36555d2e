"""Scans, updates, the best k, experts, transforms, random and complex numbers: steps and operations counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal, run_everywhere, small
from jax import lax

import wsc
from wsc.lowering.layout import Grid, Layout, lay, whole
from wsc.lowering.rules import RULES, Op, Operand, Where
from wsc.lowering.rules.flexible import made
from wsc.lowering.rules.linalg import fft_flops
from wsc.lowering.rules.random import word_work
from wsc.lowering.rules.routing import Experts, routing
from wsc.lowering.rules.work import WORK, work
from wsc.machine.cost import cost
from wsc.machine.steps import AllReduce, Compute, Multicast, Reduce, Shift
from wsc.machine.wafer import WSE3

WHERE = Where(Grid(6, 5), WSE3)


def of(kind, steps):
    return [s for s in steps if isinstance(s, kind)]


def rule_of(name, fn, *args, layouts=(), kinds=(), where=WHERE):
    """The rule of the last equation `name` of a traced function, for operands that lie as `layouts`."""
    eqns = jax.jit(fn).trace(*args).jaxpr.eqns
    while not any(e.primitive.name == name for e in eqns):
        eqns = [e for outer in eqns for e in getattr(outer.params.get("jaxpr"), "eqns", ())]
    eqn = [e for e in eqns if e.primitive.name == name][-1]
    n = len(eqn.invars)
    at = [*layouts, *[None] * n][:n]
    of_kind = [*kinds, *["activation"] * n][:n]
    size = lambda a: 8 if jnp.issubdtype(a.dtype, jax.dtypes.extended) else a.dtype.itemsize  # noqa: E731
    ins = tuple(
        Operand(tuple(v.aval.shape), size(v.aval), kind, where_it_lies, str(v.aval.dtype))
        for v, kind, where_it_lies in zip(eqn.invars, of_kind, at, strict=True)
    )
    outs = [v.aval for v in eqn.outvars]
    op = Op(name, eqn.params, ins, tuple(tuple(o.shape) for o in outs), tuple(map(size, outs)), None,
            tuple(str(o.dtype) for o in outs))  # fmt: skip
    found = RULES[name](op, where)
    shapes = [*(i.shape for i in ins), *op.out_shapes]
    assert all(len(at.y) == len(s) for at, s in zip([*found.ins, *found.outs], shapes, strict=True) if at is not None)
    return found


ALONG_Y = lay((3, 12), "y", [1], 6)


def test_a_cut_scan_passes_totals_down_the_line():
    found = rule_of("cumsum", lambda x: lax.cumsum(x, 1), normal(3, 12), layouts=[ALONG_Y])
    assert found.ins == found.outs == (ALONG_Y,)
    local, again = of(Compute, found.steps)
    (down,) = of(Reduce, found.steps)
    assert local.calls * local.length == again.calls * again.length == 3 * 2
    assert (down.algorithm, down.pes, down.span, down.wavelets, down.instances) == ("chain", 6, 5, 3, 5)


def test_a_whole_scan_stays():
    at = lay((3, 12), "y", [0], 6)
    found = rule_of("cummax", lambda x: lax.cummax(x, 1), normal(3, 12), layouts=[at])
    assert not of(Reduce, found.steps) and found.outs == (at,)


def test_the_best_of_a_cut_row_are_merged():
    """4 of 120 in 6 tiles of 20: three comparisons an element, then 4 values and 4 indices travel."""
    at = lay((1, 120), "y", [1], 6)
    found = rule_of("top_k", lambda x: lax.top_k(x, 4), normal(1, 120), layouts=[at])
    (look,), (merge,) = of(Compute, found.steps), of(AllReduce, found.steps)
    assert (look.calls, look.length, merge.pes, merge.wavelets) == (3, 20, 6, 8)
    assert found.ins == (at,) and found.outs == (whole(2), whole(2))


def test_sorting_moves_every_operand():
    both = rule_of("sort", lambda x: lax.sort((x, x), dimension=0, num_keys=1), normal(16, 6))
    one = rule_of("sort", lambda x: lax.sort(x, dimension=0), normal(16, 6))
    assert (both.steps[0].calls, one.steps[0].calls) == (4 * 3, 4 * 2)  # lg 16 passes of a comparison and moves


def test_updates_travel_to_the_owners_of_their_features():
    """A table [40 rows @ x, 12 features @ y]: 8 rows of updates, cut as the features are, along every row of PEs."""
    table, updates = Layout((1, 6), (5, 1)), normal(8, 12)
    add = lambda t, i, u: t.at[i].add(u)  # noqa: E731
    found = rule_of("scatter-add", add, normal(40, 12), jnp.arange(8), updates, layouts=[table])
    assert found.ins == (table, whole(2), Layout((1, 6), (1, 1))) and found.outs == (table,)
    look, write = of(Compute, found.steps)
    assert (write.length, write.flops, look.length) == (8 * 2, 8 * 12, 8)


def test_a_table_that_is_made_here_is_cut_as_one_that_is_looked_up():
    found = rule_of("scatter-add", lambda i, u: jnp.zeros((40, 12)).at[i].add(u), jnp.arange(8), normal(8, 12))
    assert found.outs == (Layout((1, 6), (5, 1)),)


def test_the_gradient_of_an_embedding_fits_where_the_table_does():
    """The table has 19,200 B, and a PE room for 2,048."""
    table, tokens = normal(400, 12), jnp.array([3, 399, 3, 0])
    step = lambda t, i: t - 0.1 * jax.grad(lambda t: (t[i] ** 2).sum())(t)  # noqa: E731
    run_everywhere(step, table, tokens, wafer=small(usable=2048))


ROWS, EXPERTS, SIZES = normal(12, 16), normal(4, 16, 6), jnp.array([3, 0, 5, 4])


def test_experts_by_hand():
    """12 rows of 16 @ y, 4 experts @ x, on 8 x 4 PEs: the worst case is that one expert gets all rows."""
    at, where = lay((12, 16), "y", [1], 8), Where(Grid(8, 4), WSE3)
    found = rule_of(
        "ragged_dot_general",
        lax.ragged_dot,
        ROWS,
        EXPERTS,
        SIZES,
        layouts=[at],
        kinds=["activation", "weight", "control"],
        where=where,
    )
    assert found.ins[:2] == (at, Layout((1, 8, 1), (4, 1, 1)))
    assert found.steps == () and found.sized is not None
    (product,), (sums,) = of(Compute, found.sized.worst), of(AllReduce, found.sized.worst)
    assert product.calls * product.length == 12 * 2 * 6 and product.flops == 2 * 12 * 16 * 6
    assert (product.instances, sums.pes, sums.wavelets, sums.instances) == (8, 8, 12 * 6, 1)  # a column of PEs works
    (home,), (copies,) = of(Shift, found.sized.worst), of(Multicast, found.sized.worst)
    assert (home.distance, home.wavelets, copies.pes, copies.wavelets) == (3, 72, 4, 72)


def test_steps_of_an_even_routing():
    """The same with 3 rows an expert: a quarter of the cycles on four times the PEs, and all of the work."""
    at, where = lay((12, 16), "y", [1], 8), Where(Grid(8, 4), WSE3)
    kinds = ["activation", "weight", "control"]
    found = rule_of("ragged_dot_general", lax.ragged_dot, ROWS, EXPERTS, SIZES, layouts=[at], kinds=kinds, where=where)
    assert found.sized is not None
    numbers = found.sized.count([ROWS, EXPERTS, np.array([3, 3, 3, 3])])
    assert list(map(int, numbers)) == [12, 3, 3, 3 + 3 + 3, 3 * (0 + 1 + 2 + 3)]  # the last link carries three experts'
    product, sums, home, copies = found.sized.steps([int(n) for n in numbers])
    assert (product.calls * product.length, product.instances, product.flops) == (3 * 2 * 6, 32, 2 * 12 * 16 * 6)
    assert (sums.wavelets, sums.instances) == (3 * 6, 4)
    assert (home.distance, home.wavelets, home.total_wavelet_hops) == (3, 9 * 6, 18 * 6)
    assert copies.wavelets == 12 * 6
    assert found.sized.steps([0, 0, 0, 0, 0]) == ()


def test_routing_counts_the_busiest_and_the_way():
    at = Experts(pes=4, experts=4, segments=4, pieces=1)
    found = routing(np.asarray(SIZES), at)
    assert (int(found.busiest), int(found.piece_hops)) == (5, 0 * 3 + 1 * 0 + 2 * 5 + 3 * 4)
    assert (int(found.rows), int(found.farthest), int(found.fullest)) == (12, 3, 9)
    traced = jax.jit(lambda n: routing(n, at))(SIZES)
    assert (int(traced.busiest), int(traced.piece_hops)) == (5, 22)
    worst = routing(np.array([0, 0, 0, 12]), at)
    assert int(worst.busiest) == 12 and int(worst.piece_hops) == 36 >= int(found.piece_hops)
    assert list(map(int, routing(np.array([12]), Experts(pes=1, experts=1, segments=1, pieces=1)))) == [12, 12, 0, 0, 0]


def test_a_mixture_of_experts_and_its_gradients():
    moe = lambda w, x, n: lax.ragged_dot(jnp.tanh(x), w, n)  # noqa: E731
    exe = run_everywhere(moe, EXPERTS, ROWS, SIZES, wafer=small(usable=1024), weight_argnums=0)
    assert any(op.name == "ragged_dot_general" and of(AllReduce, op.bodies[0].tail) for _, op in exe.program.ops())
    loss = lambda w, x, n: (moe(w, x, n) ** 2).sum()  # noqa: E731
    run_everywhere(jax.grad(loss, (0, 1)), EXPERTS, ROWS, SIZES, wafer=small(usable=2048))


def test_operations_of_a_transform():
    """8 points: 5 x 8 x 3; 6 lines of it on each of 6 PEs are 6 x 120 operations."""
    found = rule_of("fft", jnp.fft.fft, normal(36, 8).astype(jnp.complex64), layouts=[lay((36, 8), "y", [0], 6)])
    (step,) = found.steps
    assert fft_flops(8) == 120 and step.flops == 36 * 120 and step.calls * step.length == 6 * 120
    real = rule_of("fft", jnp.fft.rfft, normal(36, 8), layouts=[lay((36, 8), "y", [0], 6)])
    assert real.steps[0].flops == 36 * 60
    back = rule_of("fft", jnp.fft.irfft, normal(36, 5).astype(jnp.complex64))
    assert back.steps[0].flops == 36 * 60
    square = rule_of("fft", jnp.fft.fft2, normal(1, 8, 4).astype(jnp.complex64))
    assert square.steps[0].flops == 4 * 120 + 8 * 5 * 4 * 2


def test_a_transformed_dimension_that_is_cut_is_put_together_and_its_lines_are_shared():
    found = rule_of("fft", jnp.fft.fft, normal(12, 8).astype(jnp.complex64), layouts=[lay((12, 8), "y", [1], 6)])
    assert found.ins == found.outs == (Layout((6, 1), (1, 1)),)


def test_operations_of_a_factorization():
    matrix = normal(6, 9, 9)
    found = rule_of("cholesky", lax.linalg.cholesky, matrix, layouts=[lay((6, 9, 9), "y", [0], 6)])
    product, division, root = found.steps
    assert product.flops == 6 * 9**3 // 3 and (division.calls, root.calls) == (9, 9)
    assert {s.kind for s in (division, root)} == {"divide", "transcendental"}
    solve = rule_of("triangular_solve", lambda a, b: lax.linalg.triangular_solve(a, b), matrix, normal(6, 9, 9))
    assert solve.steps[0].flops == 6 * 9 * 9 * 9


def test_a_matrix_larger_than_a_pe_is_refused():
    with pytest.raises(wsc.FitError):
        wsc.compile(lambda x: lax.linalg.cholesky(x), normal(40, 40), wafer=small(usable=2048))


def test_operations_of_random_bits():
    """threefry2x32: 20 rounds of an add, a rotation (two shifts, an or) and an xor, keys added: 119 for two words."""
    assert word_work() == 60
    key = jax.random.key(0)
    (step,) = rule_of("random_bits", lambda k: jax.random.bits(k, (3, 12)), key).steps
    assert step.calls == 60 and step.length == 3 * 2 and step.flops == 60 * 36
    (short,) = rule_of("random_bits", lambda k: jax.random.bits(k, (3, 12), jnp.uint16), key).steps
    assert short.flops <= step.flops
    two = jax.random.key(0, impl="rbg")
    (philox,) = rule_of("random_bits", lambda k: jax.random.bits(k, (3, 12)), two).steps
    assert philox.calls == 380 // 4


@pytest.mark.parametrize(("name", "flops"), [("add", 2), ("mul", 6), ("sub", 2), ("div", 11)])
def test_operations_of_complex_numbers(name, flops):
    x = normal(3, 12).astype(jnp.complex64)
    found = rule_of(name, getattr(lax, name), x, x, layouts=[ALONG_Y, ALONG_Y])
    assert sum(s.flops for s in found.steps) == flops * 36
    real = rule_of(name, getattr(lax, name), normal(3, 12), normal(3, 12), layouts=[ALONG_Y, ALONG_Y])
    cycles = [sum(cost(s, WSE3).cycles for s in f.steps) for f in (real, found)]
    assert cycles[1] > cycles[0]


@pytest.mark.parametrize("name", sorted(WORK))
def test_long_functions_cost_more_than_one_instruction(name):
    assert work(name, False, "vector").flops > 1 and WORK[name].source


def test_a_selection_of_many_costs_as_many():
    x = normal(3, 12)
    which = jnp.zeros((3, 12), jnp.int32)
    found = rule_of("select_n", lambda w, a, b, c: lax.select_n(w, a, b, c), which, x, x, x)
    assert found.steps[0].calls == 2


def test_mirrored_elements_travel():
    """12 elements in 6 tiles of 2: the first PE's go to the last, and so on."""
    found = rule_of("rev", lambda x: x[:, ::-1], normal(3, 12), layouts=[ALONG_Y])
    (send,) = of(Shift, found.steps)
    assert found.outs == (ALONG_Y,) and send.distance == 5 and send.total_wavelet_hops == 3 * 2 * (5 + 3 + 1) * 2
    assert not of(Shift, rule_of("rev", lambda x: x[::-1], normal(3, 12), layouts=[ALONG_Y]).steps)


def test_padding_pushes_elements_on():
    """12 elements in 6 tiles of 2, 6 zeros before them: 18 in tiles of 3."""
    found = rule_of("pad", lambda x: lax.pad(x, 0.0, [(0, 0, 0), (6, 0, 0)]), normal(3, 12), layouts=[ALONG_Y])
    (send,) = of(Shift, found.steps)
    hops = sum(abs((i + 6) // 3 - i // 2) for i in range(12))
    assert found.outs == (ALONG_Y,) and send.total_wavelet_hops == 3 * hops


def test_the_bytes_of_a_number_stay_where_it_is():
    split = rule_of(
        "bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, jnp.uint8), normal(3, 12), layouts=[ALONG_Y]
    )
    assert split.steps == () and split.outs == (Layout((1, 6, 1), (1, 1, 1)),)
    joined = rule_of("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, jnp.float32),
                     jnp.zeros((3, 12, 4), jnp.uint8), layouts=[Layout((1, 3, 2), (1, 1, 1))])  # fmt: skip
    assert joined.ins == (Layout((1, 3, 1), (1, 1, 1)),) and joined.outs == (Layout((1, 3), (1, 1)),)


def test_what_no_activation_reaches_costs_the_same():
    """Of the control plane: views are free, a hash is 60 operations a word, a power two functions and a product."""
    number, key = Operand((3, 12), 4, "control", None, "float32"), Operand((), 8, "control", None, "key<fry>")
    ops = {
        "transpose": Op("transpose", {}, (number,), ((3, 12),), (4,)),
        "random_bits": Op("random_bits", {}, (key,), ((3, 12),), (4,)),
        "pow": Op("pow", {}, (number, number), ((3, 12),), (4,)),
        "iota": Op("iota", {}, (), ((3, 12),), (4,)),
    }
    steps = {name: made(op, ALONG_Y, (3, 12), 4, WHERE) for name, op in ops.items()}
    assert {n: [(s.kind, s.calls) for s in found] for n, found in steps.items()} == {
        "transpose": [], "random_bits": [("vector", 60)], "pow": [("vector", 1), ("transcendental", 2)],
        "iota": [("vector", 1)],
    }  # fmt: skip


def test_numbers_drawn_from_a_key_alone_cost_what_others_do():
    """A key is control, and noise made of it all the same 60 operations a word and 42 an erf_inv."""
    fn = lambda w, x, key: (x + jax.random.bits(key, (16, 64)).astype(jnp.float32)) @ w  # noqa: E731
    exe = wsc.compile(fn, normal(64, 8), normal(16, 64), jax.random.key(0), wafer=small(usable=16384))
    (bits,) = (op for _, op in exe.program.ops() if op.name == "random_bits")
    (step,) = bits.steps
    assert bits.control and step.flops == 60 * 16 * 64
    noise = wsc.compile(lambda w, key: jax.random.normal(key, (16, 64)) @ w, normal(64, 8), jax.random.key(0))
    (inverse,) = (op for _, op in noise.program.ops() if op.name == "erf_inv")
    assert inverse.control and sum(s.flops for s in inverse.steps) == 42 * 16 * 64
    assert step.calls * step.length * step.instances >= 60 * 16 * 64
    gamma = lambda w, key: jax.random.gamma(key, 2.0, (64,)) @ w  # noqa: E731
    exe = wsc.compile(gamma, normal(64, 8), jax.random.key(0), wafer=small(usable=16384))
    (drawn,) = (op for _, op in exe.program.ops() if op.name == "random_gamma")
    assert {s.kind for s in drawn.steps} == {"vector", "divide", "transcendental"}
    assert sum(s.flops for s in drawn.steps) > 2 * 3 * 60 * 64
