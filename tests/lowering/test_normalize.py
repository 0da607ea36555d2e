"""The first pass: the same function, flat; nothing twice, nothing for nobody, source lines kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import eqn_names, normal, traced
from jax import lax

from wsc.errors import UnsupportedError
from wsc.lowering import jaxapi
from wsc.lowering.loops import loop_of, run
from wsc.lowering.normalize import MAX_FOLD, normalize

CALLS = {"jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat2", "remat", "checkpoint", "closed_call"}


def evaluate(eqns, env, counts):
    for eqn in eqns:
        values = [a.val if isinstance(a, jaxapi.Literal) else env[a] for a in eqn.invars]
        results = run(eqn, env, counts, evaluate) if loop_of(eqn) else jaxapi.bind(eqn, values)
        env.update(zip(eqn.outvars, results, strict=True))


def flat(fn, *args, weights=()):
    """Normalize, check that the result computes what `fn` does, and return its jaxpr."""
    found = normalize(traced(fn, *args), frozenset(weights))
    jaxpr = found.jaxpr
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*found.consts, *jax.tree.leaves(args)], strict=True))
    evaluate(jaxpr.eqns, env, {})
    outputs = [a.val if isinstance(a, jaxapi.Literal) else env[a] for a in jaxpr.outvars]
    for a, b in zip(outputs, jax.tree.leaves(jax.jit(fn)(*args)), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6)
    assert not CALLS & set(eqn_names(found.jaxpr))
    assert len(found.consts) == len(found.jaxpr.constvars)
    return found.jaxpr


def cube(x):
    return x * x * x


custom = jax.custom_vjp(cube)
custom.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x * x * g,))


@pytest.mark.parametrize(
    "fn",
    [
        jax.jit(cube),
        jax.jit(jax.jit(jax.jit(cube))),
        jax.nn.relu,
        jax.nn.silu,
        jax.checkpoint(cube),
        custom,
        jax.grad(lambda x: cube(x).sum()),
        jax.grad(lambda x: jax.checkpoint(cube)(x).sum()),
        jax.grad(lambda x: custom(x).sum()),
        lambda x: jax.jvp(cube, (x,), (x,))[1],
        jax.vmap(lambda r: jnp.tanh(r).sum()),
    ],
)
def test_calls_are_inlined(fn):
    flat(fn, normal(3, 4))


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_is_unrolled_with_its_stacked_results(reverse):
    def fn(x, rows):
        return lax.scan(lambda c, r: (c * 0.5 + r, (c, r.sum())), x, rows, reverse=reverse)

    jaxpr = flat(fn, normal(4), normal(5, 4), weights=[1])
    assert eqn_names(jaxpr).count("reduce_sum") == 5
    jaxpr = flat(fn, normal(4), normal(5, 4))  # over time: a loop
    assert eqn_names(jaxpr) == ["scan"]


def test_scan_without_stacked_operands():
    jaxpr = flat(lambda x: lax.scan(lambda c, _: (c * 2, c), x, None, length=3), normal(4))
    (loop,) = map(loop_of, jaxpr.eqns)
    assert loop.length == 3 and [e.primitive.name for e in loop.bodies[0].eqns] == ["mul"]


def test_a_loop_that_takes_its_weight_by_the_step_is_layers():
    def fn(w, x):
        return lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ w[i]), x)

    names = eqn_names(flat(fn, normal(3, 4, 4), normal(2, 4), weights=[0]))
    assert names.count("dot_general") == 3 and names.count("slice") == 3 and "dynamic_slice" not in names
    assert eqn_names(flat(fn, normal(3, 4, 4), normal(2, 4))) == ["scan"]


def test_a_body_reads_what_is_around_it():
    def fn(w, x):
        y = jnp.tanh(x)
        return lax.fori_loop(0, 3, lambda i, c: c @ w + y, x)

    jaxpr = flat(fn, normal(4, 4), normal(2, 4), weights=[0])
    tanh, scan = jaxpr.eqns
    assert jaxpr.invars[0] in scan.invars and tanh.outvars[0] in scan.invars
    (body,) = loop_of(scan).bodies
    assert jaxpr.invars[0] in [a for e in body.eqns for a in e.invars if not isinstance(a, jaxapi.Literal)]


def test_scan_in_scan_and_fori_loop():
    def fn(x, w):
        inner = lambda c, w: (lax.fori_loop(0, 2, lambda i, c: c * 2 + i, c) @ w, None)  # noqa: E731
        return lax.scan(inner, x, w)[0]

    jaxpr = flat(fn, normal(4), normal(3, 4, 4), weights=[1])
    assert eqn_names(jaxpr).count("dot_general") == 3


def test_scan_of_square_operands_whose_shapes_mislead():
    """A constant of the body has the rank of the stacked operand."""

    def fn(const, x, rows):
        return lax.scan(lambda c, r: (jnp.tanh(c @ const) + r, c[0]), x, rows)

    flat(fn, normal(3, 3), normal(3, 3), normal(3, 3, 3))


def test_equal_equations_become_one():
    jaxpr = flat(lambda x: jnp.sin(x) + jnp.sin(x) * jnp.sin(x), normal(4))
    assert eqn_names(jaxpr).count("sin") == 1


def test_equal_equations_across_calls_become_one():
    def layer(x, pos):
        return x * jnp.cos(pos * 2.0)

    jaxpr = flat(lambda x, pos: jax.jit(layer)(jax.jit(layer)(x, pos), pos), normal(4), normal(4))
    assert eqn_names(jaxpr).count("cos") == 1


def test_different_parameters_or_signs_of_zero_stay_apart():
    jaxpr = flat(lambda x: (x.sum(0), x.sum(1), x * 0.0, x * -0.0), normal(3, 3))
    assert eqn_names(jaxpr).count("reduce_sum") == 2
    assert eqn_names(jaxpr).count("mul") == 2


def test_what_no_argument_reaches_is_computed_now():
    def fn(x):
        table = jnp.cos(jnp.arange(8.0)) * jax.random.normal(jax.random.key(3), (8,))
        return x + table

    assert eqn_names(flat(fn, normal(8))) == ["add"]


def test_large_constants_stay_equations():
    side = int(MAX_FOLD**0.5) + 1
    jaxpr = flat(lambda x: x + lax.broadcast(jnp.float32(1), (side, side)), normal(side, side))
    assert "broadcast_in_dim" in eqn_names(jaxpr)


def test_what_no_output_needs_is_dropped():
    def fn(x, unused):
        jnp.linalg.norm(x @ x.T)
        return x + 1

    jaxpr = flat(fn, normal(3, 3), normal(7))
    assert eqn_names(jaxpr) == ["add"]
    assert len(jaxpr.invars) == 2


def test_identities_go():
    def fn(x):
        y = lax.stop_gradient(jnp.copy(x)).astype(x.dtype)
        return lax.optimization_barrier(y) * 2

    assert eqn_names(flat(fn, normal(4))) == ["mul"]


def test_maximum_with_minus_infinity_goes_and_others_stay():
    jaxpr = flat(lambda x: (jnp.maximum(-jnp.inf, x.max()), jnp.maximum(x.min(), 0.5)), normal(4))
    assert eqn_names(jaxpr).count("max") == 1


def test_outputs_that_are_inputs_literals_constants():
    table = jnp.arange(5.0)
    jaxpr = flat(lambda x: (x, 2.0, table, x), normal(4))
    assert jaxpr.outvars[0] is jaxpr.invars[0] is jaxpr.outvars[3]


def test_source_lines_survive_inlining_and_unrolling():
    def body(c, r):
        return jnp.tanh(c) + r, c  # the line that made the tanh

    line = body.__code__.co_firstlineno + 1
    jaxpr = flat(lambda x, rows: lax.scan(jax.jit(body), x, rows), normal(4), normal(2, 4), weights=[1])
    tanhs = [e for e in jaxpr.eqns if e.primitive.name == "tanh"]
    assert len(tanhs) == 2
    assert all(f"test_normalize.py:{line}" in jaxapi.source_line(e) for e in tanhs)


def test_helpers_of_an_unrolled_scan_have_the_users_line():
    def fn(x, rows):
        return lax.scan(lambda c, r: (c + r, c), x, rows)

    jaxpr = flat(fn, normal(4), normal(2, 4), weights=[1])
    assert all("test_normalize.py" in jaxapi.source_line(e) for e in jaxpr.eqns)


def test_name_stacks_are_prepended_to():
    def fn(x):
        with jax.named_scope("outer"):
            return jax.jit(lambda x: jax.named_scope("inner")(jnp.tanh)(x))(x)

    (eqn,) = [e for e in flat(fn, normal(4)).eqns if e.primitive.name == "tanh"]
    assert jaxapi.scope(eqn).startswith("outer") and "inner" in jaxapi.scope(eqn)


def test_while_and_cond_stay_one_equation():
    jaxpr = flat(lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: jnp.abs(x) * 2 + 1, x), normal(4))
    assert eqn_names(jaxpr) == ["while"] and [len(b.outvars) for b in loop_of(jaxpr.eqns[0]).bodies] == [1, 1]
    jaxpr = flat(lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), normal(4))
    assert eqn_names(jaxpr)[-1] == "cond" and len(loop_of(jaxpr.eqns[-1]).bodies) == 2
    jaxpr = flat(lambda x: lax.cond(x.shape[0] > 3, jnp.sin, jnp.cos, x), normal(4))
    assert eqn_names(jaxpr) == ["sin"]


def test_meters_are_apart():
    def inner(c):
        return lax.while_loop(lambda c: c.sum() < 9, lambda c: c * 2, c)

    jaxpr = flat(lambda x: inner(lax.fori_loop(0, 2, lambda i, c: inner(c), jnp.abs(x) + 1)), normal(4))
    loops = [loop_of(e) for e in jaxpr.eqns if loop_of(e)]
    inside = [loop_of(e) for loop in loops for b in loop.bodies for e in b.eqns if loop_of(e)]
    assert sorted(loop.meter for loop in (*loops, *inside) if loop.counted) == [0, 2]


def test_effects_in_a_loop_are_refused():
    def fn(x):
        return lax.fori_loop(0, 3, lambda i, c: (jax.debug.print("{}", i), c * 2)[1], x)

    with pytest.raises(UnsupportedError, match=r"'debug_\w+' at .*test_normalize\.py.*side effect"):
        normalize(traced(fn, normal(4)))


def test_scan_of_no_steps():
    jaxpr = flat(lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=0)[0], normal(4))
    assert eqn_names(jaxpr) == []
    with pytest.raises(UnsupportedError, match="'scan' of no steps"):
        normalize(traced(lambda x: lax.scan(lambda c, _: (c * 2, c), x, None, length=0), normal(4)))
