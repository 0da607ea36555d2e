"""Routing of experts in loops and branches: amounts add up over runs, and what did not run costs nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal, small
from jax import lax

import wsc

KERNELS, ROWS = normal(4, 16, 6), normal(12, 16)
SIZES = jnp.array([[3, 3, 3, 3], [0, 0, 0, 12], [6, 0, 6, 0]])
WAFER = small(rows=16, columns=4, usable=1024)


def compiled(fn, *args):
    exe = wsc.compile(fn, *args, wafer=WAFER, weight_argnums=0)
    (body,) = (b for _, op in exe.program.ops() for b in op.bodies if b.sized is not None)
    return exe, body


def once(w, x, sizes):
    return lax.ragged_dot(jnp.tanh(x), w, sizes)


def all_of(w, x, sizes):
    return lax.scan(lambda c, n: (lax.ragged_dot(jnp.tanh(c), w, n) @ jnp.ones((6, 16)) * 0.1, None), x, sizes)[0]


def test_hops_of_every_routing():
    """Experts lie along a line; every piece of a row goes back to where its features lie. Nothing else differs."""
    exe, body = compiled(once, KERNELS, ROWS, SIZES[0])
    at = body.sized.at
    assert at.segments == 4
    found = []
    for sizes in SIZES:
        out, telemetry = exe(KERNELS, ROWS, sizes)
        np.testing.assert_allclose(out, jax.jit(once)(KERNELS, ROWS, sizes), rtol=2e-5, atol=2e-5)
        length = at.pes // 4
        ways = [
            abs(e * length + i * (length // at.pieces) - i * (at.pes // at.pieces))
            for e, n in enumerate(np.asarray(sizes))
            for i in range(at.pieces)
            for _ in range(n)
        ]
        found.append((sum(ways) * body.sized.n * body.sized.lines, telemetry))
    for (a, one), (b, other) in itertools.pairwise(found):
        assert one.total.hops - other.total.hops == a - b != 0
        assert one.cycles != other.cycles and one.total.flops == other.total.flops
    assert max(t.cycles for _, t in found) <= exe.telemetry.cycles


def test_trips_add_up():
    """A scan over three routings takes what three scans over one of them three times take in the mean."""
    exe, _ = compiled(all_of, KERNELS, ROWS, SIZES)
    out, mixed = exe(KERNELS, ROWS, SIZES)
    np.testing.assert_allclose(out, jax.jit(all_of)(KERNELS, ROWS, SIZES), rtol=2e-5, atol=2e-5)
    alone = [exe(KERNELS, ROWS, jnp.stack([n] * 3))[1] for n in SIZES]
    assert len({t.cycles for t in alone}) == 3
    assert mixed.total.flops == pytest.approx(sum(t.total.flops for t in alone) / 3)
    assert mixed.total.hops == pytest.approx(sum(t.total.hops for t in alone) / 3)
    assert mixed.cycles == pytest.approx(sum(t.cycles for t in alone) / 3, rel=1e-3)  # messages: not quite linear


def test_a_branch_that_is_not_taken_routes_nothing():
    def maybe(w, x, sizes, use):
        return lax.cond(use, lambda: lax.ragged_dot(jnp.tanh(x), w, sizes), lambda: x[:, :6])

    exe, body = compiled(maybe, KERNELS, ROWS, SIZES[0], jnp.bool_(True))
    (_, taken), (_, passed) = (exe(KERNELS, ROWS, SIZES[0], jnp.bool_(use)) for use in (True, False))
    assert taken.counts[body.meter] == 1 and passed.counts[body.meter] == 0
    assert taken.total.flops - passed.total.flops == pytest.approx(2 * 12 * 16 * 6, rel=0.2)


def test_the_text_says_that_amounts_are_counted():
    exe, _ = compiled(once, KERNELS, ROWS, SIZES[0])
    assert "each ends at worst with Compute(" in exe.as_text()
