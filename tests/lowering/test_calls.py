"""Calls are inlined, whatever they are; a while loop under vmap goes on until all members of the batch are done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal, run_everywhere, small
from jax import lax

import wsc

SQUARE, RIGHT = normal(3, 4, 4) + 3 * jnp.eye(4), normal(3, 4, 2)


@jax.custom_batching.custom_vmap
def doubled(x):
    return jnp.tanh(x) * 2


@doubled.def_vmap
def _doubled(size, batched, x):
    return jnp.tanh(x) + jnp.tanh(x), batched[0]


def conjugate_gradients(a, b):
    matrix = a @ a.T + 4 * jnp.eye(4)
    return jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, b, maxiter=4)[0]


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (jnp.linalg.solve, (SQUARE, RIGHT)),
        (jnp.linalg.inv, (SQUARE[0],)),
        (conjugate_gradients, (SQUARE[0], RIGHT[0, :, 0])),
        (lax.composite(lambda x: jnp.tanh(x) * 2, "wsc.doubled"), (RIGHT,)),
        (doubled, (RIGHT,)),
        (jax.vmap(doubled), (RIGHT,)),
    ],
    ids=["solve", "inv", "cg", "composite", "custom_vmap", "custom_vmap of vmap"],
)
def test_what_is_in_a_call(fn, args):
    run_everywhere(fn, *args, wafer=small(usable=2048))


def grown(x):
    """(x over 10, trips) of one member."""
    return lax.while_loop(lambda c: c[0] < 10.0, lambda c: (c[0] * 1.5 + 1.0, c[1] + 1), (x, 0))


def test_members_of_a_batch_stop_by_themselves():
    """Each ends with its own trips; the wafer makes as many as the longest takes."""
    start = jnp.array([0.5, 20.0, 4.0, 9.0])
    exe = run_everywhere(jax.vmap(grown), start, wafer=small(usable=1024))
    outputs, telemetry = exe(start)
    trips = [int(grown(x)[1]) for x in start]
    assert list(map(int, outputs[1])) == trips and len(set(trips)) > 2
    assert telemetry.counts == (max(trips) + 1, max(trips))  # conditions, bodies


def test_keys_and_matrices_in_a_batched_loop():
    def drawn(key, w):
        go_on = lambda c: (c[2].sum() < 6.0) & (c[1] < 9)  # noqa: E731
        step = lambda c: (jax.random.split(c[0])[0], c[1] + 1, c[2] + jax.random.uniform(c[0], (2,)) @ w)  # noqa: E731
        _, n, total = lax.while_loop(go_on, step, (key, 0, jnp.zeros(3)))
        return n, total

    fn = lambda w, keys: jax.vmap(drawn, (0, None))(keys, w)  # noqa: E731
    w, keys = jnp.abs(normal(2, 3)) + 0.3, jax.random.split(jax.random.key(1), 3)
    exe = wsc.compile(fn, w, keys, wafer=small(usable=2048))
    for found, expected in zip(exe(w, keys)[0], jax.jit(fn)(w, keys), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5)
