"""Gemma: grouped queries, norms with (1 + w), geglu, scaled embeddings, soft caps on scores and logits, RoPE."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, LAYERS, TIME = 48, 24, 4, 2, 8, 40, 2, 6
CAP = 30.0


def soft_cap(x):
    return CAP * jnp.tanh(x / CAP)


def norm(x, scale):
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6) * (1 + scale)).astype(x.dtype)


def rotate(x, positions):
    """x of (batch, time, heads, head), the halves of a head turned against each other."""
    angles = positions[..., None] / 10_000 ** (2 * jnp.arange(HEAD // 2) / HEAD)
    sin, cos = jnp.sin(angles)[..., None, :], jnp.cos(angles)[..., None, :]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attend(q, k, v, mask):
    """Queries (b, t, n, h) in groups over keys and values (b, s, g, h); mask (b, t, s)."""
    q = (q * HEAD**-0.5).reshape(*q.shape[:2], KV_HEADS, HEADS // KV_HEADS, HEAD)
    scores = soft_cap(jnp.einsum("btgqh,bsgh->bgqts", q, k))
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -2.3e38), -1)
    return jnp.einsum("bgqts,bsgh->btgqh", weights, v).reshape(*q.shape[:2], HEADS, HEAD)


class LinenLayer(nn.Module):
    """The weights as Gemma keeps them: einsums over 4-D arrays, the weight of keys and values on the left."""

    @nn.compact
    def __call__(self, x, positions, mask):
        normal = nn.initializers.normal(0.2)
        h = norm(x, self.param("pre_attention", nn.initializers.zeros, (WIDTH,)))
        q = jnp.einsum("btd,ndh->btnh", h, self.param("q", normal, (HEADS, WIDTH, HEAD)))
        k, v = jnp.einsum("cgdh,btd->cbtgh", self.param("kv", normal, (2, KV_HEADS, WIDTH, HEAD)), h)
        h = attend(rotate(q, positions), rotate(k, positions), v, mask)
        x = x + jnp.einsum("btnh,nhd->btd", h, self.param("o", normal, (HEADS, HEAD, WIDTH)))
        h = norm(x, self.param("pre_ffw", nn.initializers.zeros, (WIDTH,)))
        gate = self.param("gating", normal, (2, WIDTH, HIDDEN))
        h = nn.gelu(h @ gate[0]) * (h @ gate[1])
        return x + h @ self.param("linear", normal, (HIDDEN, WIDTH))


class LinenGemma(nn.Module):
    @nn.compact
    def __call__(self, tokens, positions, mask):
        table = self.param("embedder", nn.initializers.normal(0.2), (VOCABULARY, WIDTH))
        x = table[tokens] * jnp.sqrt(WIDTH).astype(table.dtype)
        for i in range(LAYERS):
            x = LinenLayer(name=f"layer_{i}")(x, positions, mask)
        x = norm(x, self.param("final_norm", nn.initializers.zeros, (WIDTH,)))
        return soft_cap(x @ table.T)


class Norm(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x):
        return norm(x, self.scale[...])


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.before, self.within, self.after = Norm(), Norm(), Norm()
        self.q = nnx.LinearGeneral(WIDTH, (HEADS, HEAD), use_bias=False, rngs=rngs)
        self.k = nnx.LinearGeneral(WIDTH, (KV_HEADS, HEAD), use_bias=False, rngs=rngs)
        self.v = nnx.LinearGeneral(WIDTH, (KV_HEADS, HEAD), use_bias=False, rngs=rngs)
        self.o = nnx.LinearGeneral((HEADS, HEAD), WIDTH, axis=(-2, -1), use_bias=False, rngs=rngs)
        self.gate = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x, positions, mask):
        h = self.before(x)
        h = attend(rotate(self.q(h), positions), rotate(self.k(h), positions), self.v(h), mask)
        x = x + self.within(self.o(h))
        h = self.after(x)
        return x + self.down(nnx.gelu(self.gate(h)) * self.up(h))


class Gemma(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.norm = Norm()

    def __call__(self, tokens, positions, mask):
        x = self.embed(tokens) * jnp.sqrt(jnp.float32(WIDTH))
        for layer in self.layers:
            x = layer(x, positions, mask)
        return soft_cap(self.embed.attend(self.norm(x)))


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (1, TIME)))
POSITIONS = jnp.arange(TIME)[None] + 3
MASK = jnp.tril(jnp.ones((1, TIME, TIME), bool))


@pytest.mark.slow
def test_linen(equal, variables):
    model = LinenGemma()
    equal(model, variables(model, TOKENS, POSITIONS, MASK), TOKENS, POSITIONS, MASK)


@pytest.mark.slow
def test_nnx(equal, filled):
    equal(filled(Gemma), TOKENS, POSITIONS, MASK)


@pytest.mark.slow
def test_a_window_as_the_mask(equal, filled):
    equal(filled(Gemma), TOKENS, POSITIONS, jnp.triu(MASK, -2))


def test_cache_is_state(equal, variables):
    """Decode as Gemma does it: keys and values are written at one place of a cache, a ring when it is full."""
    table = jnp.asarray(np.random.default_rng(1).normal(size=(VOCABULARY, WIDTH)), jnp.float32)
    layer = LinenCached()
    cache = {name: jnp.zeros((1, 8, KV_HEADS, HEAD)) for name in "kv"}
    weights = variables(layer, table[:1][None], jnp.int32(0), cache)

    def step(weights, tokens, at, cache):
        return layer.apply(weights, table[tokens], at, cache)

    exe = equal(step, weights, jnp.asarray([[3]]), jnp.int32(9), cache, weight_argnums=0)
    assert exe.memory_analysis().state_bytes >= 2 * 8 * KV_HEADS * HEAD * 4


class LinenCached(nn.Module):
    @nn.compact
    def __call__(self, x, at, cache):
        normal = nn.initializers.normal(0.2)
        positions = jnp.full((1, 1), at)
        q = rotate(jnp.einsum("btd,ndh->btnh", x, self.param("q", normal, (HEADS, WIDTH, HEAD))), positions)
        k, v = jnp.einsum("btd,cgdh->cbtgh", x, self.param("kv", normal, (2, KV_HEADS, WIDTH, HEAD)))
        slot = at % cache["k"].shape[1]
        new = {
            name: jax.lax.dynamic_update_slice_in_dim(cache[name], value, slot, axis=1)
            for name, value in (("k", rotate(k, positions)), ("v", v))
        }
        mask = (jnp.arange(8) <= at)[None, None]
        h = attend(q, new["k"], new["v"], mask)
        return jnp.einsum("btnh,nhd->btd", h, self.param("o", normal, (HEADS, HEAD, WIDTH))), new
