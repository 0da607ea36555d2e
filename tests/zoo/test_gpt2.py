"""GPT-2: learned positions, LayerNorm with biases, one product for q, k and v, gelu, and the embedding as head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

VOCABULARY, WIDTH, HEADS, LAYERS, TIME = 40, 32, 4, 2, 8


def attend(qkv, mask):
    """Causal attention of (batch, time, 3 x width)."""
    q, k, v = (a.reshape(*a.shape[:2], HEADS, -1) for a in jnp.split(qkv, 3, axis=-1))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(WIDTH // HEADS)
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(*qkv.shape[:2], WIDTH)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, mask, *, deterministic: bool = True):
        h = nn.Dense(3 * WIDTH, name="c_attn")(nn.LayerNorm(name="ln_1")(x))
        h = nn.Dense(WIDTH, name="c_proj")(attend(h, mask))
        x = x + nn.Dropout(0.1)(h, deterministic=deterministic)
        h = nn.gelu(nn.Dense(4 * WIDTH, name="c_fc")(nn.LayerNorm(name="ln_2")(x)))
        return x + nn.Dropout(0.1)(nn.Dense(WIDTH, name="mlp_proj")(h), deterministic=deterministic)


class LinenGPT2(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        wte = nn.Embed(VOCABULARY, WIDTH, name="wte")
        x = wte(tokens) + nn.Embed(TIME, WIDTH, name="wpe")(jnp.arange(tokens.shape[1]))[None]
        mask = nn.make_causal_mask(tokens)
        for i in range(LAYERS):
            x = LinenBlock(name=f"h_{i}")(x, mask)
        return wte.attend(nn.LayerNorm(name="ln_f")(x))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.ln_1, self.ln_2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.c_attn = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.c_proj = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.c_fc = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.mlp_proj = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.dropout(self.c_proj(attend(self.c_attn(self.ln_1(x)), mask)))
        return x + self.dropout(self.mlp_proj(nnx.gelu(self.c_fc(self.ln_2(x)))))


class GPT2(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.wte, self.wpe = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs), nnx.Embed(TIME, WIDTH, rngs=rngs)
        self.h = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.ln_f = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens):
        time = tokens.shape[1]
        x = self.wte(tokens) + self.wpe(jnp.arange(time))[None]
        mask = jnp.tril(jnp.ones((1, 1, time, time), bool))
        for block in self.h:
            x = block(x, mask)
        return self.wte.attend(self.ln_f(x))


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, TIME)))


@pytest.mark.slow
def test_linen(equal, variables):
    exe = equal(LinenGPT2(), variables(LinenGPT2(), TOKENS), TOKENS)
    assert len([s for s in exe.program.stages if s.name.startswith("h_")]) == LAYERS


def test_nnx_in_eval(equal, filled):
    model = filled(GPT2)
    exe = equal(model, TOKENS)
    assert len([s for s in exe.program.stages if s.name.startswith("h[")]) == LAYERS


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 5])
def test_nnx_at_other_lengths(equal, filled, time):
    model = filled(GPT2)
    equal(model, TOKENS[:, :time])
