"""Programs of every kind to be timed, each 0.3 ms to 100 ms a call of plain JAX on a computer of few cores."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsc.models import Llama, LlamaConfig
from wsc.models.stencil import wave_step
from wsc.models.training import Recipe, new_state, train_step


@dataclass(frozen=True)
class Case:
    """`call(*args)`: an nnx module or a function; the arguments that are weights, and whether it works in place."""

    call: Any
    args: tuple
    weights: int | None = None
    in_place: bool = False


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


def whole(*shape: int, below: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, below, shape), jnp.int32)


class Attention(nnx.Module):
    """Softmax attention over (batch, time, width); causal, and with a soft cap on scores, where told."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, causal: bool, cap: float | None = None):
        self.heads, self.causal, self.cap = heads, causal, cap
        self.qkv, self.out = nnx.Linear(width, 3 * width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        batch, time, width = x.shape
        q, k, v = (a.reshape(batch, time, self.heads, -1) for a in jnp.split(self.qkv(x), 3, axis=-1))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(width // self.heads)
        scores = scores if self.cap is None else self.cap * jnp.tanh(scores / self.cap)
        scores = jnp.where(jnp.tril(jnp.ones((time, time), bool)), scores, -1e30) if self.causal else scores
        return self.out(jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1), v).reshape(x.shape))


class GPTBlock(nnx.Module):
    def __init__(self, width: int, heads: int, causal: bool, rngs: nnx.Rngs):
        self.before, self.after = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs, causal)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.before(x))
        return x + self.down(nnx.gelu(self.up(self.after(x))))


class GemmaBlock(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.before, self.within, self.after = (nnx.RMSNorm(width, rngs=rngs) for _ in range(3))
        self.attention = Attention(width, heads, rngs, causal=True, cap=30.0)
        self.gate, self.up = (nnx.Linear(width, 4 * width, use_bias=False, rngs=rngs) for _ in range(2))
        self.down = nnx.Linear(4 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = x + self.within(self.attention(self.before(x)))
        h = self.after(x)
        return x + self.down(nnx.gelu(self.gate(h)) * self.up(h))


class Decoder(nnx.Module):
    """Token ids (batch, time) to logits, the embedding as head."""

    def __init__(self, vocabulary: int, width: int, layers: int, block: Callable, rngs: nnx.Rngs):
        self.embed, self.norm = nnx.Embed(vocabulary, width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.layers = nnx.List([block(rngs=rngs) for _ in range(layers)])

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embed.attend(self.norm(x))


class ViT(nnx.Module):
    def __init__(self, width: int, layers: int, rngs: nnx.Rngs):
        self.patch = nnx.Conv(3, width, (8, 8), strides=8, padding="VALID", rngs=rngs)
        self.layers = nnx.List([GPTBlock(width, 4, False, rngs) for _ in range(layers)])
        self.head = nnx.Linear(width, 100, rngs=rngs)

    def __call__(self, images):
        x = self.patch(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(axis=1))


class ConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        widths = (3, 32, 64, 64, 128)
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in pairwise(widths)])
        self.norms = nnx.List([nnx.BatchNorm(n, use_running_average=True, rngs=rngs) for n in widths[1:]])
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        x = images
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = nnx.relu(norm(conv(x)))
            x = nnx.max_pool(x, (2, 2), strides=(2, 2)) if i % 2 else x
        return self.head(x.mean(axis=(1, 2)))


def experts(weights: dict, x):
    """Two experts for each of (tokens, width): tokens sorted by expert, and ragged products."""
    count = weights["router"].shape[1]
    values, chosen = jax.lax.top_k(x @ weights["router"], 2)
    order, sizes = jnp.argsort(chosen.reshape(-1)), jnp.bincount(chosen.reshape(-1), length=count)
    sent = x[order // 2]
    h = jax.nn.silu(jax.lax.ragged_dot(sent, weights["gate"], sizes)) * jax.lax.ragged_dot(sent, weights["up"], sizes)
    back = jax.lax.ragged_dot(h, weights["down"], sizes)[jnp.argsort(order)].reshape(*chosen.shape, -1)
    return x + (back * jax.nn.softmax(values, -1)[..., None]).sum(1)


def mamba(weights: dict, x):
    """A selective state space over (time, width), a scan over time, then its gate and projection."""
    h, gate = jnp.split(x @ weights["into"], 2, axis=-1)
    states = weights["a_log"].shape[1]
    b, c, step = jnp.split(h @ weights["select"], [states, 2 * states], axis=-1)
    delta = jax.nn.softplus(step)
    decay, drive = jnp.exp(-delta[..., None] * jnp.exp(weights["a_log"])), (delta * h)[..., None] * b[:, None]

    def at(state, now):
        state = now[0] * state + now[1]
        return state, state @ now[2]

    _, y = jax.lax.scan(at, jnp.zeros_like(weights["a_log"]), (decay, drive, c))
    return x + (y * jax.nn.silu(gate)) @ weights["out"]


def conjugate_gradients(matrix, b):
    """Solve `matrix @ x = b`, symmetric and positive, until the residual has fallen a million times."""

    def step(state):
        x, r, p, rr = state
        q = matrix @ p
        alpha = rr / (p @ q)
        x, r = x + alpha * p, r - alpha * q
        new = r @ r
        return x, r, r + new / rr * p, new

    first = (jnp.zeros_like(b), b, b, b @ b)
    return jax.lax.while_loop(lambda s: s[3] > 1e-12 * (b @ b), step, first)[0]


def _experts() -> Case:
    shapes = {"router": (256, 8), "gate": (8, 256, 512), "up": (8, 256, 512), "down": (8, 512, 256)}
    return Case(experts, ({n: normal(*s, scale=0.06) for n, s in shapes.items()}, normal(128, 256)), 0)


def _mamba() -> Case:
    shapes = {"into": (32, 64), "select": (32, 2 * 16 + 32), "a_log": (32, 16), "out": (32, 32)}
    return Case(mamba, ({n: normal(*s, scale=0.06) for n, s in shapes.items()}, normal(128, 32)), 0)


def _decode() -> Case:
    model = Llama(LlamaConfig(32_000, 288, 768, 6, 6), rngs=nnx.Rngs(0))
    return Case(model, (whole(1, 1, below=32_000), model.init_cache(context=256)))


def _training() -> Case:
    recipe = Recipe(batch=4, sequence=64)
    return Case(train_step, (*new_state(recipe), whole(4, 65, below=256)), in_place=True)


def _stencil() -> Case:
    return Case(wave_step, (normal(96, 96, 96), normal(96, 96, 96, seed=1)))


def _solver() -> Case:
    a = normal(768, 768) / np.sqrt(768)
    return Case(conjugate_gradients, (a @ a.T + 0.1 * jnp.eye(768), normal(768, seed=1)), 0)


def _decoder(block: Callable) -> Case:
    return Case(Decoder(8192, 256, 4, block, nnx.Rngs(0)), (whole(1, 128, below=8192),))


CASES: dict[str, Callable[[], Case]] = {
    "GPT-2, 4 layers of 256, 128 tokens": lambda: _decoder(partial(GPTBlock, 256, 8, True)),
    "Gemma-like, 4 layers of 256, 128 tokens": lambda: _decoder(partial(GemmaBlock, 256, 8)),
    "MoE by ragged_dot, 8 experts, 128 tokens": _experts,
    "ViT, 4 layers of 192, 2 images of 64 x 64": lambda: Case(ViT(192, 4, nnx.Rngs(0)), (normal(2, 64, 64, 3),)),
    "convnet, 4 images of 32 x 32": lambda: Case(ConvNet(nnx.Rngs(0)), (normal(4, 32, 32, 3),)),
    "Mamba, scan over 128 tokens of 32": _mamba,
    "Llama 15M, a decode step": _decode,
    "training step, 4 x 64 tokens": _training,
    "25-point stencil, 96 x 96 x 96": _stencil,
    "CG in a while loop, 768 unknowns": _solver,
}
