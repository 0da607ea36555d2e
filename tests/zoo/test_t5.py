"""T5: a bias by bucketed distance shared by all layers, norms without mean or bias, an encoder and a decoder that looks
across, no scaling of scores, gated gelu."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

VOCABULARY, WIDTH, HEADS, HIDDEN, BUCKETS, FAR = 40, 16, 4, 24, 8, 12
SOURCE, TARGET = 6, 4


def buckets(queries: int, keys: int, both_ways: bool):
    """(queries, keys) numbers of buckets: exact up to half of them, then logarithmic."""
    distance = jnp.arange(keys)[None, :] - jnp.arange(queries)[:, None]
    number, found = BUCKETS, jnp.zeros_like(distance)
    if both_ways:
        number //= 2
        found = (distance > 0).astype(jnp.int32) * number
        distance = jnp.abs(distance)
    else:
        distance = -jnp.minimum(distance, 0)
    exact = number // 2
    far = exact + jnp.log(distance / exact + 1e-6) / np.log(FAR / exact) * (number - exact)
    return found + jnp.where(distance < exact, distance, jnp.minimum(far.astype(jnp.int32), number - 1))


def attend(q, k, v, bias):
    """(batch, time, width) three times; bias (1, heads, queries, keys)."""
    q, k, v = (a.reshape(*a.shape[:2], HEADS, WIDTH // HEADS) for a in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) + bias, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(q.shape[0], -1, WIDTH)


def causal(bias):
    time = bias.shape[-1]
    return jnp.where(jnp.tril(jnp.ones((time, time), bool)), bias, -1e9)


class LinenT5(nn.Module):
    @nn.compact
    def __call__(self, source, target):
        shared = nn.Embed(VOCABULARY, WIDTH, name="shared")
        x = shared(source)
        table = nn.Embed(BUCKETS, HEADS, name="encoder_bias")
        x = self.layer("encoder_0", x, table(buckets(SOURCE, SOURCE, True)).transpose(2, 0, 1)[None], None)
        memory = nn.RMSNorm(name="encoder_norm")(x)
        table = nn.Embed(BUCKETS, HEADS, name="decoder_bias")
        bias = causal(table(buckets(TARGET, TARGET, False)).transpose(2, 0, 1)[None])
        y = self.layer("decoder_0", shared(target), bias, memory)
        return nn.RMSNorm(name="decoder_norm")(y) * WIDTH**-0.5 @ shared.embedding.T

    def layer(self, name, x, bias, memory):
        def dense(part, n):
            return nn.Dense(n, use_bias=False, name=f"{name}_{part}")

        h = nn.RMSNorm(name=f"{name}_norm_1")(x)
        h = attend(dense("q", WIDTH)(h), dense("k", WIDTH)(h), dense("v", WIDTH)(h), bias)
        x = x + dense("o", WIDTH)(h)
        if memory is not None:
            h = dense("cross_q", WIDTH)(nn.RMSNorm(name=f"{name}_norm_2")(x))
            h = attend(h, dense("cross_k", WIDTH)(memory), dense("cross_v", WIDTH)(memory), 0.0)
            x = x + dense("cross_o", WIDTH)(h)
        h = nn.RMSNorm(name=f"{name}_norm_3")(x)
        return x + dense("wo", WIDTH)(nn.gelu(dense("wi_0", HIDDEN)(h)) * dense("wi_1", HIDDEN)(h))


class Encoder(nnx.Module):
    """Two layers that share one table of biases."""

    def __init__(self, rngs: nnx.Rngs):
        self.shared, self.bias = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs), nnx.Embed(BUCKETS, HEADS, rngs=rngs)
        self.block = nnx.List([EncoderLayer(rngs) for _ in range(2)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)

    def __call__(self, source):
        bias = self.bias(buckets(source.shape[1], source.shape[1], True)).transpose(2, 0, 1)[None]
        x = self.shared(source)
        for block in self.block:
            x = block(x, bias)
        return self.norm(x)


class EncoderLayer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.before, self.after = nnx.RMSNorm(WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, use_bias=False, rngs=rngs)
        self.o = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)
        self.wi = nnx.Linear(WIDTH, 2 * HIDDEN, use_bias=False, rngs=rngs)
        self.wo = nnx.Linear(HIDDEN, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x, bias):
        x = x + self.o(attend(*jnp.split(self.qkv(self.before(x)), 3, -1), bias))
        gate, up = jnp.split(self.wi(self.after(x)), 2, -1)
        return x + self.wo(nnx.gelu(gate) * up)


RNG = np.random.default_rng(0)
IDS = jnp.asarray(RNG.integers(0, VOCABULARY, (1, SOURCE))), jnp.asarray(RNG.integers(0, VOCABULARY, (1, TARGET)))


@pytest.mark.slow
def test_linen(equal, variables):
    equal(LinenT5(), variables(LinenT5(), *IDS), *IDS)


def test_nnx(equal, filled):
    equal(filled(Encoder), IDS[0])
