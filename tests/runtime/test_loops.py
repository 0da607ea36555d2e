"""Loops on the wafer: placed once, run as JAX runs them, charged for the trips that were taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_within_sram, normal, run_everywhere, small
from jax import lax

import wsc
from wsc.program import work
from wsc.runtime.reference import interpret

WAFER = small(12, 10, usable=8192)
W, X = normal(16, 16) / 4, normal(2, 16)


def newton(w, x):
    return lax.while_loop(
        lambda c: (c[1] < 50) & (jnp.abs(c[0]).sum() > 1.0), lambda c: (c[0] @ w / 2, c[1] + 1), (x, 0)
    )


def generate(w, cache, x):
    def body(i, carry):
        x, cache = carry
        cache = lax.dynamic_update_slice(cache, x[None], (i, 0))
        return jnp.tanh((jax.nn.softmax(cache @ x) @ cache) @ w), cache

    return lax.fori_loop(0, 6, body, (x, cache))


def nested(w, x):
    inner = lambda i, c: lax.while_loop(lambda d: d[1] < i + 2, lambda d: (jnp.tanh(d[0] @ w), d[1] + 1), (c, 0))[0]  # noqa: E731
    return lax.fori_loop(0, 3, inner, x)


PROGRAMS = {
    "rnn": (lambda w, xs: lax.scan(lambda c, r: (jnp.tanh(c @ w + r), c.sum()), X, xs), (W, normal(7, 2, 16))),
    "reverse": (lambda w, xs: lax.scan(lambda c, r: (c * 0.9 + r, c @ w), X, xs, reverse=True), (W, normal(7, 2, 16))),
    "while": (newton, (W, X)),
    "nested": (nested, (W, X)),
    "map": (lambda w, xs: lax.map(lambda r: jnp.tanh(r @ w), xs), (W, normal(5, 2, 16))),
    "cache": (generate, (W, jnp.zeros((8, 16)), normal(16))),
    "branch": (lambda w, x: lax.cond(x.sum() > 0, lambda a: a @ w, jnp.sin, x), (W, X)),
    "swap": (lambda w, x: lax.fori_loop(0, 3, lambda i, c: (c[1], c[0] @ w), (x, jnp.cos(x))), (W, X)),
    "gradient": (
        lambda w, xs: jax.grad(lambda w: lax.scan(lambda c, r: (jnp.tanh(c @ w + r), None), X, xs)[0].sum())(w),
        (W, normal(7, 2, 16)),
    ),
    "training": (
        lambda w, xs: lax.scan(lambda w, b: (w - 0.1 * jax.grad(lambda w: ((b @ w) ** 2).mean())(w), None), w, xs)[0],
        (W, normal(7, 2, 16)),
    ),
    "unused result": (lambda w, x: lax.fori_loop(0, 3, lambda i, c: (c[0] @ w, c[1] + 1.0), (x, x))[0], (W, X)),
    "no trips": (lambda w, x: lax.fori_loop(0, x.shape[0] - 2, lambda i, c: c @ w, x) @ w, (W, X)),
}


@pytest.mark.parametrize("order", ["fabric", "xla"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_loops_compute_what_jax_computes(name, order):
    fn, args = PROGRAMS[name]
    exe = wsc.compile(fn, *args, wafer=WAFER, weight_argnums=0, order=order)
    found, telemetry = exe(*args)
    expected = jax.jit(fn)(*args)
    assert_close(found, expected, 2e-5)
    assert_close(jax.tree.unflatten(exe.out_tree, interpret(exe.program, *args)), expected, 2e-5)
    assert_within_sram(exe.program)
    assert telemetry.cycles > 0
    assert sum(c.cycles for c in telemetry.stages) == pytest.approx(
        sum(telemetry.of(op).cycles for s in exe.program.stages for op in s.ops)
        + sum(telemetry.moves(i).cycles for i in range(len(exe.program.stages)))
    )
    assert "body" in exe.as_text() or not any(op.bodies for _, op in exe.program.ops())


def test_cycles_follow_the_trips_that_were_taken():
    exe = wsc.compile(newton, W, X, wafer=WAFER, weight_argnums=0)
    (_, few), (_, many) = exe(W, X * 0.1), exe(W, X * 100)
    trips = [int(jax.jit(newton)(W, X * s)[1]) for s in (0.1, 100)]
    assert [t.counts for t in (few, many)] == [(n + 1, n) for n in trips]  # the condition once more
    assert trips[0] < trips[1]
    (loop,) = [op for _, op in exe.program.ops() if op.bodies]
    condition, body = (sum(telemetry_of(exe, op) for op in b.ops) + tail(exe, b) for b in loop.bodies)
    assert many.cycles - few.cycles == pytest.approx((trips[1] - trips[0]) * (condition + body))
    assert exe.telemetry.counts == () and exe.telemetry.cycles > 0


def telemetry_of(exe, op):
    return exe.telemetry.of(op).cycles


def tail(exe, body):
    return exe.telemetry.of(body.tail).cycles


def test_a_branch_is_charged_when_it_is_taken():
    exe = wsc.compile(PROGRAMS["branch"][0], W, X, wafer=WAFER, weight_argnums=0)
    (_, first), (_, second) = exe(W, jnp.abs(X)), exe(W, -jnp.abs(X))
    assert (first.counts, second.counts) == ((0, 1), (1, 0))
    assert first.total.flops > second.total.flops  # a product, and a sine


def test_a_scan_over_time_is_placed_once():
    """The code and the weights do not grow with its length; the time does, in proportion."""
    fn = lambda w, xs: lax.scan(lambda c, r: (jnp.tanh(c @ w + r), None), jnp.zeros((2, 16)), xs)[0]  # noqa: E731
    short, long = (wsc.compile(fn, W, normal(n, 2, 16), wafer=WAFER, weight_argnums=0) for n in (10, 20))
    for a, b in zip(short.program.stages, long.program.stages, strict=True):
        assert a.weights == b.weights and len(a.ops) == len(b.ops)
    (a,), (b,) = ([op for _, op in exe.program.ops() if op.bodies] for exe in (short, long))
    assert [body.times for body in (*a.bodies, *b.bodies)] == [10, 20]
    trip = short.telemetry.of(a).cycles - short.telemetry.of(a.steps).cycles
    assert long.telemetry.of(b).cycles - long.telemetry.of(b.steps).cycles == pytest.approx(2 * trip)


def test_what_a_body_reads_is_brought_before_the_first_trip():
    """`b` lies along y and is wanted along x: it moves once, not in every trip."""

    def fn(w, x, b):
        return lax.fori_loop(0, 5, lambda i, c: jnp.tanh((c @ w) + b) @ w.T, x)

    exe = wsc.compile(fn, W, X, normal(2, 16), wafer=WAFER, weight_argnums=0)
    (loop,) = [op for _, op in exe.program.ops() if op.bodies]
    moves = [s for s in loop.steps if type(s).__name__ in ("Shift", "Multicast")]
    assert moves
    inside = [s for op in loop.bodies[0].ops if op.name == "add" for s in op.steps]
    assert not [s for s in inside if type(s).__name__ in ("Shift", "Multicast")]


def test_steps_of_nested_loops_are_multiplied():
    exe = wsc.compile(nested, W, X, wafer=WAFER, weight_argnums=0)
    _, telemetry = exe(W, X)
    assert telemetry.counts == (12, 9)  # 2 + 3 + 4 trips, the condition once more each
    (outer,) = [op for s in exe.program.stages for op in s.ops if op.bodies]
    products = [n for step, n in work(outer, telemetry.counts) if getattr(step, "kind", "") == "fmac"]
    assert set(products) == {9}


def test_loop_results_agree_with_a_python_loop():
    exe = wsc.compile(newton, W, X, wafer=WAFER, weight_argnums=0)
    (value, trips), _ = exe(W, X)
    expected, n = np.asarray(X, np.float64), 0
    while n < 50 and np.abs(expected).sum() > 1.0:
        expected, n = expected @ np.asarray(W, np.float64) / 2, n + 1
    assert int(trips) == n
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_state_that_no_trip_looks_at(dtype):
    """It is carried, but every trip leaves the argument itself."""
    s, x = normal(24).astype(dtype), normal(24, seed=1)
    scanned = lambda s, x: (lax.scan(lambda c, _: (s, None), s, length=2)[0], jnp.sin(x))  # noqa: E731
    run_everywhere(scanned, s, x, wafer=small(5, 4, 16384))
    again = lambda c, x: c[1] < x[0]  # noqa: E731
    waited = lambda s, x: lax.while_loop(lambda c: again(c, x), lambda c: (s, c[1] + 1), (s, 0.0))[0]  # noqa: E731
    run_everywhere(lambda s, x: (waited(s, x), jnp.sin(x)), s, x, wafer=small(5, 4, 16384))
