"""Mixtures of experts, two for each token: dense one-hot einsums with a capacity, every expert masked, and ragged
products of tokens sorted by expert."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import plain
from flax import nnx
from helpers import small

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


MASKED = pytest.param(masked, marks=pytest.mark.slow)
KINDS = pytest.mark.parametrize("kind", [dense, MASKED, ragged], ids=lambda f: f.__name__)


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


def routed(busy) -> jax.Array:
    """Tokens that a router of ones at [e, e] sends to experts `busy[t]`, two each."""
    x = np.random.default_rng(1).normal(0, 0.1, (TOKENS, WIDTH))
    for t, experts in enumerate(busy):
        x[t, list(experts)] += 2.0, 1.5
    return jnp.asarray(x, jnp.float32)


EVEN, CROWDED = routed([(0, 1), (2, 3)] * 6), routed([(2, 3)] * 12)


@pytest.mark.parametrize("flavour", ["nnx", pytest.param("linen", marks=pytest.mark.slow)])
def test_the_cost_is_that_of_the_real_routing(equal, variables, filled, flavour):
    """6 rows for each of 4 experts, or 12 for two of them. On 12 x 8 PEs, gate and up lie with 2 columns an expert,
    each with 12 features, and k cut over 8 rows of PEs; down with 3 rows of PEs an expert, 6 features each."""
    router = jnp.eye(WIDTH, EXPERTS) * 8
    if flavour == "nnx":
        model, weights = filled(partial(MoE, ragged)), ()
        model.router[...] = router
    else:
        model = LinenMoE(ragged)
        weights = (variables(model, X),)
        weights[0]["params"]["router"] = router
    exe = equal(model, *weights, EVEN, wafer=small(usable=4096))
    assert {s.region.grid for s in exe.program.stages} == {(12, 8)}
    (_, even), (crowded_out, crowded) = exe(*weights, EVEN), exe(*weights, CROWDED)
    np.testing.assert_allclose(crowded_out, plain(model, *weights, CROWDED), rtol=2e-5, atol=2e-5)
    # gate, up: an expert starts 2 columns after the one before it; two pieces of a row go to columns 0 and 4
    ways = [[abs(2 * e + i - 4 * i) for i in range(2)] for e in range(4)]
    hops = [sum(6 * sum(w) for w in ways), sum(12 * sum(w) for w in ways[2:])]
    # down: three rows of PEs an expert; three pieces go to rows 0, 4 and 8
    ways = [[abs(3 * e + i - 4 * i) for i in range(3)] for e in range(4)]
    down = [sum(6 * sum(w) for w in ways), sum(12 * sum(w) for w in ways[2:])]
    # 12 or 6 wavelets a piece, on 12 or 8 lines of PEs; the sums of partial products are as many, elsewhere
    assert crowded.total.hops - even.total.hops == 2 * 12 * 12 * (hops[1] - hops[0]) + 8 * 6 * (down[1] - down[0])
    # 6 rows more on the busiest: 2 x 12 and 3 x 6 instructions that much longer; 12 and 6 wavelets more a row go down
    # the chain and back; the fullest link home carries three pieces, or four, of that many rows
    added = 2 * (2 * 12 * 6 + 2 * 12 * 6 + 12 * (3 * 12 - 3 * 6)) + (3 * 6 * 6 + 2 * 6 * 6 + 6 * (4 * 12 - 4 * 6))
    assert crowded.cycles - even.cycles == pytest.approx(added, rel=1e-3)  # messages of a shift: not quite linear
    assert even.total.flops == crowded.total.flops
    assert crowded.cycles < exe.telemetry.cycles and crowded.total.hops < exe.telemetry.total.hops
