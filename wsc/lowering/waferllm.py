"""WaferLLM's published mapping (OSDI 2025), to compare with: the layer that its timing loop runs, and its collectives.

Its kernels are not those of a whole model. One layer is timed on a square of P x P PEs. Sizes are padded to multiples
of P, attention is one head of the full width (no saving for grouped queries), all arrays are 16-bit. Every array comes
in P blocks, one for each row or column of PEs: a vector [P, d/P], a matrix [P, d/P, P, n/P], so that no value ever
changes place between ops. In decode the gate's SiLU is timed on the first d/P of each PE's f/P features. All ten
all-reduces of a decode layer are two-level trees rooted at the centre; the products of prefill run as rounds of two-hop
neighbour exchange. The layers below say that as JAX programs, and go through the same passes as any other program.

Sources: the paper; its public code for what is timed (SiLU, RoPE on neighbouring pairs, order of loops).
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wsc.errors import ArgumentError
from wsc.lowering.strategy import Strategy, pair
from wsc.machine.wafer import WSE2

GROUPS = {360: 18, 420: 20, 540: 20, 600: 24, 660: 22, 720: 24}  # number of groups by P, as published
DTYPE = jnp.float16


def two_levels(pes: int) -> tuple[str, tuple[int, ...]]:
    """Groups of P / G PEs, then the G roots. Where G is not published: about the square root of P, a divisor of it if
    one is near."""
    root = math.sqrt(pes)
    divisors = [g for g in range(1, pes + 1) if pes % g == 0 and root / 1.5 <= g <= root * 1.5]
    groups = GROUPS.get(pes) or min(divisors or [round(root)], key=lambda g: abs(g - root))
    return "k_level", (-(-pes // groups),)


WAFERLLM = Strategy("waferllm", WSE2, two_levels, compiled=False, blocked=True, gemm_along="m")


@dataclass(frozen=True)
class Sizes:
    """What one PE holds: features d/P, inner features f/P, tokens of cache or prompt s/P, all rounded up."""

    grid: int
    features: int
    inner: int
    tokens: int

    @classmethod
    def of(cls, config: Any, grid: int, tokens: int) -> "Sizes":
        return cls(grid, *(-(-n // grid) for n in (config.hidden_size, config.intermediate_size, tokens)))


def square(grid: Any) -> int:
    """P of a grid (P, P). Raises ArgumentError for anything else."""
    rows, columns = pair(grid)
    if rows != columns or rows < 2:
        raise ArgumentError(
            f"grid is {grid!r}: strategy 'waferllm' maps a layer onto a square of PEs, such as grid=(540, 540)"
        )
    return rows


def weights(s: Sizes) -> dict:
    """The weights of a layer as shapes; the KV cache is beside them, since the timing loop does not append to it."""
    p, d, f = s.grid, s.features, s.inner

    def matrix(rows: int, columns: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((p, rows, p, columns), DTYPE)

    def vector(length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((p, length), DTYPE)

    names = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "up": (d, f), "gate": (d, f), "down": (f, d)}
    vectors = {"norm": vector(d), "norm2": vector(d), "cos": vector(d // 2), "sin": vector(d // 2)}
    return {"layer": {name: matrix(*shape) for name, shape in names.items()} | vectors}


def decode_arguments(s: Sizes) -> tuple:
    """Shapes of the arguments of `decode_layer`: (weights and cache, x[P, d/P], cos and sin[P, d/P/2])."""
    found = weights(s)
    found["layer"]["keys"] = jax.ShapeDtypeStruct((s.grid, s.features, s.grid, s.tokens), DTYPE)
    found["layer"]["values"] = jax.ShapeDtypeStruct((s.grid, s.tokens, s.grid, s.features), DTYPE)
    return found, jax.ShapeDtypeStruct((s.grid, s.features), DTYPE)


def prefill_arguments(s: Sizes) -> tuple:
    """Shapes of the arguments of `prefill_layer`: (weights, x[P, tokens/P, P, d/P])."""
    return weights(s), jax.ShapeDtypeStruct((s.grid, s.tokens, s.grid, s.features), DTYPE)


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """The last two dimensions of x with the first two of w."""
    return lax.dot_general(x, w, (((x.ndim - 2, x.ndim - 1), (0, 1)), ((), ())), preferred_element_type=DTYPE)


def _rmsnorm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Over the last two dimensions, blocks and features."""
    mean = jnp.sum(x * x, axis=(-2, -1), keepdims=True, dtype=DTYPE) * DTYPE(1 / (x.shape[-1] * x.shape[-2]))
    return x * scale * lax.rsqrt(mean + DTYPE(1e-6))


def _rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Neighbouring features rotate; an odd last one stays."""
    pairs = x[..., : 2 * cos.shape[-1]].reshape(*x.shape[:-1], cos.shape[-1], 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([turned, x[..., 2 * cos.shape[-1] :]], axis=-1)


def _softmax(scores: jax.Array, width: int) -> jax.Array:
    """Over the last two dimensions; one division, then products."""
    scores = scores * DTYPE(1 / math.sqrt(width))
    top = jnp.max(scores, axis=(-2, -1), keepdims=True)
    e = jnp.exp(scores - top)
    return e * (1 / jnp.sum(e, axis=(-2, -1), keepdims=True, dtype=DTYPE))


def _layer(w: dict, x: jax.Array, keys, values, silu) -> tuple[jax.Array, tuple]:
    w, width = w["layer"], x.shape[-1] * x.shape[-2]
    h = _rmsnorm(x, w["norm"])
    q, k, v = (_dot(h, w[name]) for name in "qkv")
    q, k = _rope(q, w["cos"], w["sin"]), _rope(k, w["cos"], w["sin"])
    out = _dot(_softmax(keys(q, k), width), values(v))
    kept = (k, v)
    x = x + _dot(out, w["o"])
    h = _rmsnorm(x, w["norm2"])
    return x + _dot(silu(_dot(h, w["gate"])) * _dot(h, w["up"]), w["down"]), kept


def decode_layer(w: dict, x: jax.Array) -> tuple[jax.Array, tuple]:
    """One token through one layer, as the timing loop runs it. x[P, d/P] -> the same shape, and the token's K and V."""
    some = x.shape[-1]

    def silu(gate: jax.Array) -> jax.Array:  # on as many features as x has
        return jnp.concatenate([jax.nn.silu(gate[..., :some]), gate[..., some:]], axis=-1)

    cached = w["layer"]
    return _layer(w, x, lambda q, k: _dot(q, cached["keys"]), lambda v: cached["values"], silu)


def prefill_layer(w: dict, x: jax.Array) -> tuple[jax.Array, tuple]:
    """A whole prompt through one layer. x[P, tokens/P, P, d/P] -> the same shape, and K and V."""

    def keys(q: jax.Array, k: jax.Array) -> jax.Array:
        return lax.dot_general(q, k, (((2, 3), (2, 3)), ((), ())), preferred_element_type=DTYPE)

    return _layer(w, x, keys, lambda v: v, jax.nn.silu)


def kv_tokens(config: Any, grid: int, sram_bytes: int, pes: int, shifted: bool, code_bytes: int = 0) -> int:
    """Tokens of KV cache that fit when layers share `pes` PEs in squares of P x P, each square some layers. Appended to
    one row of PEs, the cache ends when that row is full; shifted from row to row, when all are.

    The published count holds weights and cache against the whole SRAM: code is not in it unless `code_bytes` says so.
    """
    layers = -(-config.num_hidden_layers // max(1, pes // grid**2))
    width = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    d, f, q, n = (-(-size // grid) for size in (config.hidden_size, config.intermediate_size, width, kv))
    stored = 2 * (2 * d * q + 2 * d * n + 3 * d * f)
    left = (sram_bytes - code_bytes) / layers - stored
    a_row = max(0, int(left // (2 * 2 * n)))
    return a_row * grid if shifted else a_row
