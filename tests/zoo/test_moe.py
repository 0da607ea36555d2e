"""Mixtures of experts, two for each token: dense one-hot einsums with a capacity, every expert masked, and ragged
products of tokens sorted by expert."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import wsc

TOKENS, WIDTH, HIDDEN, EXPERTS, TOP = 12, 16, 24, 4, 2
CAPACITY = TOKENS  # of an expert: no token is ever dropped


def route(logits):
    """(tokens, top) weights that add up to one, and experts."""
    values, experts = jax.lax.top_k(logits, TOP)
    return jax.nn.softmax(values, -1), experts


def dense(x, router, gate, up, down):
    """Tokens are sent to places of their experts by a one-hot product, and brought back by another."""
    weights, experts = route(x @ router)
    chosen = jax.nn.one_hot(experts, EXPERTS)  # (tokens, top, experts)
    flat = chosen.reshape(-1, EXPERTS)
    places = ((jnp.cumsum(flat, 0) - flat) * flat).sum(-1).reshape(experts.shape)
    slots = jax.nn.one_hot(places.astype(jnp.int32), CAPACITY)
    combine = jnp.einsum("tk,tke,tkc->tec", weights, chosen, slots)
    sent = jnp.einsum("tec,td->ecd", (combine > 0).astype(x.dtype), x)
    h = jax.nn.silu(jnp.einsum("ecd,edf->ecf", sent, gate)) * jnp.einsum("ecd,edf->ecf", sent, up)
    return jnp.einsum("tec,ecd->td", combine, jnp.einsum("ecf,efd->ecd", h, down))


def masked(x, router, gate, up, down):
    """Every expert sees every token, and most of what they say is multiplied by zero."""
    weights, experts = route(x @ router)
    scale = jnp.zeros((x.shape[0], EXPERTS)).at[jnp.arange(x.shape[0])[:, None], experts].set(weights)
    h = jax.nn.silu(jnp.einsum("td,edf->tef", x, gate)) * jnp.einsum("td,edf->tef", x, up)
    return jnp.einsum("te,tef,efd->td", scale, h, down)


def ragged(x, router, gate, up, down):
    """Tokens are sorted by expert, and each run of them is multiplied by its expert's weights."""
    weights, experts = route(x @ router)
    order = jnp.argsort(experts.reshape(-1), stable=True)
    sizes = jnp.bincount(experts.reshape(-1), length=EXPERTS)
    sent = x[order // TOP]
    h = jax.nn.silu(jax.lax.ragged_dot(sent, gate, sizes)) * jax.lax.ragged_dot(sent, up, sizes)
    back = jax.lax.ragged_dot(h, down, sizes)
    return (back[jnp.argsort(order)].reshape(-1, TOP, WIDTH) * weights[..., None]).sum(1)


RAGGED = pytest.mark.xfail(raises=wsc.UnsupportedError, strict=False, reason="ragged products have no rule yet")
KINDS = pytest.mark.parametrize("kind", [dense, masked, pytest.param(ragged, marks=RAGGED)], ids=lambda f: f.__name__)


class LinenMoE(nn.Module):
    kind: object

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.normal(0.3)
        shapes = {
            "router": (WIDTH, EXPERTS),
            "gate": (EXPERTS, WIDTH, HIDDEN),
            "up": (EXPERTS, WIDTH, HIDDEN),
            "down": (EXPERTS, HIDDEN, WIDTH),
        }
        weights = [self.param(name, normal, shape) for name, shape in shapes.items()]
        return x + self.kind(nn.RMSNorm()(x), *weights)


class MoE(nnx.Module):
    def __init__(self, kind, rngs: nnx.Rngs):
        self.kind = kind
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        normal = nnx.initializers.normal(0.3)
        self.router = nnx.Param(normal(rngs.params(), (WIDTH, EXPERTS)))
        self.gate = nnx.Param(normal(rngs.params(), (EXPERTS, WIDTH, HIDDEN)))
        self.up = nnx.Param(normal(rngs.params(), (EXPERTS, WIDTH, HIDDEN)))
        self.down = nnx.Param(normal(rngs.params(), (EXPERTS, HIDDEN, WIDTH)))

    def __call__(self, x):
        return x + self.kind(self.norm(x), self.router[...], self.gate[...], self.up[...], self.down[...])


X = jnp.asarray(np.random.default_rng(0).normal(size=(TOKENS, WIDTH)), jnp.float32)


def by_hand(x, scale, weights):
    """The same in float64 numpy, token by token."""
    router, gate, up, down = (np.asarray(w, np.float64) for w in weights)
    normed = np.asarray(x, np.float64)
    normed = normed / np.sqrt((normed**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(scale)
    found = []
    for t in normed:
        logits = t @ router
        best = np.argsort(-logits, kind="stable")[:TOP]
        weight = np.exp(logits[best] - logits[best].max())
        parts = [(t @ gate[e], t @ up[e], down[e]) for e in best]
        found.append(
            sum(w / weight.sum() * ((g / (1 + np.exp(-g)) * u) @ d) for w, (g, u, d) in zip(weight, parts, strict=True))
        )
    return np.asarray(x, np.float64) + np.stack(found)


@pytest.mark.slow
@KINDS
def test_linen(equal, variables, kind):
    model = LinenMoE(kind)
    equal(model, variables(model, X), X)


@KINDS
def test_nnx(equal, filled, kind):
    model = filled(partial(MoE, kind))
    exe = equal(model, X)
    weights = [w[...] for w in (model.router, model.gate, model.up, model.down)]
    np.testing.assert_allclose(exe(X)[0], by_hand(X, model.norm.scale[...], weights), rtol=2e-5, atol=2e-5)
