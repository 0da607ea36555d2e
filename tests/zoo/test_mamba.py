"""Selective state spaces: a scan over time, step by step and as an associative scan, and a causal convolution."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

TIME, WIDTH, STATE, KERNEL = 6, 12, 4, 3


def in_steps(decay, drive, c):
    """h_t = decay_t h_(t-1) + drive_t, y_t = sum over states of h_t c_t; decay and drive (t, d, n), c (t, n)."""

    def step(h, at):
        a, b, c = at
        h = a * h + b
        return h, h @ c

    return jax.lax.scan(step, jnp.zeros_like(decay[0]), (decay, drive, c))[1]


def at_once(decay, drive, c):
    def join(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jnp.einsum("tdn,tn->td", jax.lax.associative_scan(join, (decay, drive))[1], c)


SCANS = pytest.mark.parametrize(
    "scan", [in_steps, pytest.param(at_once, marks=pytest.mark.slow)], ids=lambda f: f.__name__
)


def shifted(x, kernel):
    """Each channel's causal convolution over time, as a sum of shifted products; x (t, d), kernel (k, d)."""
    padded = jnp.pad(x, ((KERNEL - 1, 0), (0, 0)))
    return sum(padded[i : i + x.shape[0]] * kernel[i] for i in range(KERNEL))


def selective(x, gate, b, c, step, a_log, skip, scan):
    delta = jax.nn.softplus(step)
    decay = jnp.exp(-delta[..., None] * jnp.exp(a_log))
    y = scan(decay, (delta * x)[..., None] * b[:, None, :], c)
    return (y + skip * x) * jax.nn.silu(gate)


class LinenMamba(nn.Module):
    scan: object

    @nn.compact
    def __call__(self, x):
        h, gate = jnp.split(nn.Dense(2 * WIDTH, use_bias=False)(nn.RMSNorm()(x)), 2, axis=-1)
        h = nn.silu(shifted(h, self.param("conv", nn.initializers.normal(), (KERNEL, WIDTH))))
        b, c, step = jnp.split(nn.Dense(2 * STATE + WIDTH)(h), [STATE, 2 * STATE], axis=-1)
        a_log = self.param("a_log", nn.initializers.normal(), (WIDTH, STATE))
        skip = self.param("skip", nn.initializers.ones, (WIDTH,))
        return x + nn.Dense(WIDTH, use_bias=False)(selective(h, gate, b, c, step, a_log, skip, self.scan))


class Mamba(nnx.Module):
    def __init__(self, scan, rngs: nnx.Rngs):
        self.scan = scan
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.into = nnx.Linear(WIDTH, 2 * WIDTH, use_bias=False, rngs=rngs)
        self.conv = nnx.Param(jnp.ones((KERNEL, WIDTH)))
        self.select = nnx.Linear(WIDTH, 2 * STATE + WIDTH, rngs=rngs)
        self.a_log, self.skip = nnx.Param(jnp.zeros((WIDTH, STATE))), nnx.Param(jnp.ones(WIDTH))
        self.out = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x):
        h, gate = jnp.split(self.into(self.norm(x)), 2, axis=-1)
        h = nnx.silu(shifted(h, self.conv))
        b, c, step = jnp.split(self.select(h), [STATE, 2 * STATE], axis=-1)
        return x + self.out(selective(h, gate, b, c, step, self.a_log[...], self.skip[...], self.scan))


X = jnp.asarray(np.random.default_rng(0).normal(size=(TIME, WIDTH)), jnp.float32)


@SCANS
def test_linen(equal, variables, scan):
    equal(LinenMamba(scan), variables(LinenMamba(scan), X), X)


@pytest.mark.slow
@SCANS
def test_nnx(equal, filled, scan):
    equal(filled(partial(Mamba, scan)), X)


def test_one_step_keeps_its_state(equal):
    """Decode: the state comes in and goes out, its sizes those of one token."""
    rng = np.random.default_rng(1)
    a_log, into = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((WIDTH, STATE), (WIDTH, 3 * WIDTH)))

    def step(weights, state, x):
        delta, gate, drive = jnp.split(x @ weights["into"], 3)
        decay = jnp.exp(-jax.nn.softplus(delta)[:, None] * jnp.exp(weights["a_log"]))
        state = decay * state + drive[:, None]
        return state, state.sum(-1) * jax.nn.silu(gate)

    equal(step, {"a_log": a_log, "into": into}, jnp.zeros((WIDTH, STATE)), X[0], weight_argnums=0)
