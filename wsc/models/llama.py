"""A Llama in flax.nnx: one pure call for prefill and decode alike.

Axes: B batch, T new tokens, S cache length in tokens, V vocabulary, d hidden, f MLP hidden,
H query heads, KV key/value heads, G = H / KV query heads that share one, h head width.
Kernels are `[in, out]`. Activations have the dtype of the embedding; norms, softmax, rotation and logits are float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from wsc.errors import ArgumentError, ConfigError
from wsc.models.config import LlamaConfig
from wsc.models.config import config as named
from wsc.models.rope import inverse_frequencies, rotate

Array = jax.Array
New = Callable[[tuple[int, ...], float | None], Any]
Past = tuple[Array, Array, Array]  # of one layer: its keys, its values, and how many tokens they are


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens seen so far."""

    k: tuple[Array, ...]  # one [B, KV, S, h] per layer, already rotated
    v: tuple[Array, ...]  # one [B, KV, S, h] per layer
    length: Array  # int32 scalar: tokens already in it, the same for every row


def _dot(x: Array, y: Array, contract: tuple[int, int], dtype: Any, batch: tuple[int, ...] = ()) -> Array:
    dims = (((contract[0],), (contract[1],)), (batch, batch))
    return lax.dot_general(x, y, dims, preferred_element_type=dtype)


class Linear(nnx.Module):
    """`x[..., in] -> x @ kernel[in, out]`, no bias."""

    def __init__(self, shape: tuple[int, int], new: New):
        self.kernel = nnx.Param(new(shape, 1 / math.sqrt(shape[0])))

    def __call__(self, x: Array, dtype: Any = None) -> Array:
        return _dot(x, self.kernel[...], (x.ndim - 1, 0), dtype or x.dtype)


class RMSNorm(nnx.Module):
    """`x[..., d] * scale[d] / rms(x)`, the mean square taken in float32."""

    def __init__(self, width: int, eps: float, new: New):
        self.scale = nnx.Param(new((width,), None))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        return (wide * lax.rsqrt(square + self.eps)).astype(x.dtype) * self.scale[...]


class Embedding(nnx.Module):
    """`tokens[...] -> embedding[V, d][tokens]`; an id outside the vocabulary counts as the nearest one inside."""

    def __init__(self, shape: tuple[int, int], new: New):
        self.embedding = nnx.Param(new(shape, 0.02))

    def __call__(self, tokens: Array) -> Array:
        return jnp.take(self.embedding[...], tokens, axis=0, mode="clip")


class Attention(nnx.Module):
    """Causal attention of T new tokens over the cache and themselves, G query heads to a key/value head.

    `past` are the layer's keys and values in the cache, [B, KV, S, h], and its length; None: there are none yet.
    """

    def __init__(self, c: LlamaConfig, new: New):
        query, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q = Linear((c.hidden_size, query), new)
        self.k = Linear((c.hidden_size, kv), new)
        self.v = Linear((c.hidden_size, kv), new)
        self.o = Linear((query, c.hidden_size), new)
        self.kv_heads, self.head_dim = c.num_key_value_heads, c.head_dim  # static: part of every jit key

    def __call__(self, x: Array, rope: tuple[Array, Array], past: Past | None) -> tuple[Array, Array, Array]:
        b, t = x.shape[:2]
        n, h = self.kv_heads, self.head_dim
        q = rotate(self.q(x).reshape(b, t, -1, h), rope).reshape(b, t, n, -1, h)
        k = rotate(self.k(x).reshape(b, t, n, h), rope).transpose(0, 2, 1, 3)
        v = self.v(x).reshape(b, t, n, h).transpose(0, 2, 1, 3)
        length: Any = 0
        if past is not None:
            old_k, old_v, length = past
            at = (0, 0, length, 0)
            k = lax.dynamic_update_slice(old_k, k.astype(old_k.dtype), at, allow_negative_indices=False)
            v = lax.dynamic_update_slice(old_v, v.astype(old_v.dtype), at, allow_negative_indices=False)
        # [B, T, KV, G, h] x [B, KV, S, h] -> [B, KV, T, G, S]: grouped queries read the one K they share.
        scores = lax.dot_general(q, k.astype(q.dtype), (((4,), (3,)), ((0, 2), (0, 1))), preferred_element_type=q.dtype)
        ts = (t, k.shape[2])
        seen = lax.broadcasted_iota(jnp.int32, ts, 1) <= length + lax.broadcasted_iota(jnp.int32, ts, 0)
        masked = jnp.where(seen[:, None, :], scores.astype(jnp.float32) * (1 / math.sqrt(h)), -jnp.inf)
        weights = jax.nn.softmax(masked, axis=-1).astype(x.dtype)
        # [B, KV, T, G, S] x [B, KV, S, h] -> [B, KV, T, G, h]
        out = lax.dot_general(
            weights, v.astype(x.dtype), (((4,), (2,)), ((0, 1), (0, 1))), preferred_element_type=x.dtype
        )
        return self.o(out.transpose(0, 2, 1, 3, 4).reshape(b, t, -1)), k, v


class MLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, c: LlamaConfig, new: New):
        self.gate = Linear((c.hidden_size, c.intermediate_size), new)
        self.up = Linear((c.hidden_size, c.intermediate_size), new)
        self.down = Linear((c.intermediate_size, c.hidden_size), new)

    def __call__(self, x: Array) -> Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """One layer: attention, then MLP, each normed before and added after."""

    def __init__(self, c: LlamaConfig, new: New):
        self.attn_norm = RMSNorm(c.hidden_size, c.rms_norm_eps, new)
        self.attn = Attention(c, new)
        self.mlp_norm = RMSNorm(c.hidden_size, c.rms_norm_eps, new)
        self.mlp = MLP(c, new)

    def __call__(self, x: Array, rope: tuple[Array, Array], past: Past | None) -> tuple[Array, Array, Array]:
        out, k, v = self.attn(self.attn_norm(x), rope, past)
        x = x + out
        return x + self.mlp(self.mlp_norm(x)), k, v


@jax.jit
def block(layer: Block, x: Array, rope: tuple[Array, Array], past: Past | None) -> tuple[Array, Array, Array]:
    """One layer under its own jit: equal layers are traced once, however many there are."""
    return layer(x, rope, past)


class Llama(nnx.Module):
    """The whole model.

    `dtype` is that of weights, activations and cache; None takes the config's. `rngs` None is `Llama.abstract`.

    >>> from wsc.models import LlamaConfig
    >>> tiny = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    ...                    num_attention_heads=2)
    >>> model = Llama(tiny, rngs=nnx.Rngs(0))
    >>> logits, cache = model(jnp.array([[1, 2, 3]]), model.init_cache(context=8))
    >>> logits.shape, int(cache.length)
    ((1, 3, 32), 3)
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs | None, dtype: Any = None):
        new = _initializer(rngs, weight_dtype(config.dtype if dtype is None else dtype))
        self.config = config
        self.embed = Embedding((config.vocab_size, config.hidden_size), new)
        self.layers = nnx.List([Block(config, new) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, new)
        if not config.tie_word_embeddings:
            self.lm_head = Linear((config.hidden_size, config.vocab_size), new)

    @classmethod
    def abstract(cls, config: str | LlamaConfig, dtype: Any = None) -> "Llama":
        """The same module with `jax.ShapeDtypeStruct` leaves: no memory, any size. ConfigError for an unknown name.

        >>> Llama.abstract("llama-3.1-8b").layers[31].attn.k.kernel.shape
        (4096, 1024)
        """
        c = named(config) if isinstance(config, str) else config
        return cls(c, rngs=None, dtype=dtype)

    def abstract_cache(self, batch: int = 1, context: int = 2048, dtype: Any = None) -> Cache:
        """The shapes of `init_cache(...)`, without memory."""
        c = self.config
        shape = (batch, c.num_key_value_heads, context, c.head_dim)
        layer = jax.ShapeDtypeStruct(shape, self.embed.embedding.dtype if dtype is None else jnp.dtype(dtype))
        layers: Any = (layer,) * c.num_hidden_layers
        length: Any = jax.ShapeDtypeStruct((), jnp.int32)
        return Cache(layers, layers, length)

    def init_cache(self, batch: int = 1, context: int = 2048, dtype: Any = None) -> Cache:
        """An empty cache for `batch` rows of up to `context` tokens; `dtype` None takes the model's."""
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.abstract_cache(batch, context, dtype))

    def __call__(self, tokens: Array, cache: Cache | None = None) -> tuple[Array, Cache]:
        """`tokens` int32 [B, T] after those in `cache` -> logits float32 [B, T, V] and the longer cache.

        Without a cache they are the first of a text, and the cache that is returned holds them and no room for more.
        The caller keeps `cache.length + T <= S`: under jit the length is not known here.
        Raises ArgumentError when shapes or dtypes do not fit the model.
        """
        self._check(tokens, cache)
        c = self.config
        frequencies = inverse_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        length = jnp.int32(0) if cache is None else cache.length
        positions = length + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        angles = positions.astype(jnp.float32)[:, None] * frequencies
        rope = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]  # [T, 1, h/2]: the same for every head
        x = self.embed(tokens)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            x, k, v = block(layer, x, rope, None if cache is None else (cache.k[i], cache.v[i], length))
            keys.append(k)
            values.append(v)
        x = self.norm(x)
        if c.tie_word_embeddings:
            logits = _dot(x, self.embed.embedding[...], (2, 1), jnp.float32)
        else:
            logits = self.lm_head(x, jnp.float32)
        return logits, Cache(tuple(keys), tuple(values), length + tokens.shape[1])

    def _check(self, tokens: Array, cache: Cache | None) -> None:
        c = self.config
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ArgumentError(f"tokens must be integers [batch, time], got {tokens.dtype}{list(tokens.shape)}")
        if cache is None:
            return
        if len(cache.k) != c.num_hidden_layers or len(cache.v) != c.num_hidden_layers:
            raise ArgumentError(f"the cache has {len(cache.k)} layers, the model {c.num_hidden_layers}; use init_cache")
        want = (tokens.shape[0], c.num_key_value_heads, cache.k[0].shape[2], c.head_dim)
        wrong = next((a.shape for a in (*cache.k, *cache.v) if a.shape != want), None)
        if wrong is not None:
            raise ArgumentError(
                f"a cache layer must be {want} for these tokens, got {wrong}; use init_cache(batch=...)"
            )
        if tokens.shape[1] > want[2]:
            raise ArgumentError(f"{tokens.shape[1]} tokens do not fit a cache of {want[2]}; use a longer context")


def weight_dtype(dtype: Any) -> Any:
    """The dtype of that name, if a wafer computes in it: ConfigError otherwise."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype is {dtype!r}: it must be one of float32, bfloat16, float16")
    return found


def _initializer(rngs: nnx.Rngs | None, dtype: Any) -> New:
    """Makes one weight of `shape`: normal of deviation `scale`, or ones (None); its shape without `rngs`."""

    def new(shape: tuple[int, ...], scale: float | None) -> Any:
        if rngs is None:  # not nnx.eval_shape: tracing an initializer for each of 1,000 weights takes seconds
            return jax.ShapeDtypeStruct(shape, dtype)
        return jnp.ones(shape, dtype) if scale is None else scale * jax.random.normal(rngs.params(), shape, dtype)

    return new
