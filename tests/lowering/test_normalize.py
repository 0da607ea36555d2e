"""The first pass: the same function, flat; nothing twice, nothing for nobody, source lines kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import eqn_names, normal, traced
from jax import lax

from wsc.errors import UnsupportedError
from wsc.lowering import jaxapi
from wsc.lowering.normalize import MAX_FOLD, MAX_UNROLL, normalize

CALLS = {"jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat2", "remat", "checkpoint", "scan", "closed_call"}


def flat(fn, *args):
    """Normalize, check that the result computes what `fn` does, and return its jaxpr."""
    found = normalize(traced(fn, *args))
    outputs = jaxapi.as_function(found.jaxpr, found.consts)(*jax.tree.leaves(args))
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

    jaxpr = flat(fn, normal(4), normal(5, 4))
    assert eqn_names(jaxpr).count("reduce_sum") == 5


def test_scan_without_stacked_operands():
    jaxpr = flat(lambda x: lax.scan(lambda c, _: (c * 2, c), x, None, length=3), normal(4))
    assert eqn_names(jaxpr).count("mul") == 3


def test_scan_in_scan_and_fori_loop():
    def fn(x, w):
        inner = lambda c, w: (lax.fori_loop(0, 2, lambda i, c: c * 2 + i, c) @ w, None)  # noqa: E731
        return lax.scan(inner, x, w)[0]

    jaxpr = flat(fn, normal(4), normal(3, 4, 4))
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
    jaxpr = flat(lambda x, rows: lax.scan(jax.jit(body), x, rows), normal(4), normal(2, 4))
    tanhs = [e for e in jaxpr.eqns if e.primitive.name == "tanh"]
    assert len(tanhs) == 2
    assert all(f"test_normalize.py:{line}" in jaxapi.source_line(e) for e in tanhs)


def test_helpers_of_an_unrolled_scan_have_the_users_line():
    def fn(x, rows):
        return lax.scan(lambda c, r: (c + r, c), x, rows)

    jaxpr = flat(fn, normal(4), normal(2, 4))
    assert all("test_normalize.py" in jaxapi.source_line(e) for e in jaxpr.eqns)


def test_name_stacks_are_prepended_to():
    def fn(x):
        with jax.named_scope("outer"):
            return jax.jit(lambda x: jax.named_scope("inner")(jnp.tanh)(x))(x)

    (eqn,) = [e for e in flat(fn, normal(4)).eqns if e.primitive.name == "tanh"]
    assert jaxapi.scope(eqn).startswith("outer") and "inner" in jaxapi.scope(eqn)


def test_while_and_cond_are_refused_with_line_and_way_out():
    def loop(x):
        return lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 2, x)

    line = loop.__code__.co_firstlineno + 1
    with pytest.raises(UnsupportedError, match=rf"'while' at .*test_normalize.py:{line}.*jnp.where"):
        normalize(traced(loop, normal(4)))
    with pytest.raises(UnsupportedError, match=r"'cond' at .*test_normalize\.py"):
        normalize(traced(lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), normal(4)))


def test_too_long_a_scan_is_refused():
    def fn(x):
        return lax.fori_loop(0, MAX_UNROLL + 1, lambda i, c: c * 0.5, x)

    with pytest.raises(UnsupportedError, match=f"'scan' of {MAX_UNROLL + 1} steps at .*up to {MAX_UNROLL}"):
        normalize(traced(fn, normal(4)))


def test_scan_of_no_steps():
    jaxpr = flat(lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=0)[0], normal(4))
    assert eqn_names(jaxpr) == []
    with pytest.raises(UnsupportedError, match="'scan' of no steps"):
        normalize(traced(lambda x: lax.scan(lambda c, _: (c * 2, c), x, None, length=0), normal(4)))
