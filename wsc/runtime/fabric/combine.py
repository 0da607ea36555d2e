"""How a PE combines the 32 bits of two wavelets: as one value, or as two of 16 bits."""

import jax
import jax.numpy as jnp
from jax import lax

from wsc.errors import ArgumentError

DTYPES = ("float32", "int32", "uint32", "float16", "bfloat16", "int16", "uint16")
WAYS = {"add": jnp.add, "max": jnp.maximum, "min": jnp.minimum, "mul": jnp.multiply}


def checked(dtype: str, way: str) -> tuple[str, str]:
    """The two, where wavelets can carry and PEs combine such values."""
    if dtype not in DTYPES or way not in WAYS:
        raise ArgumentError(
            f"wavelets of {dtype} combined by {way!r}: there are {', '.join(DTYPES)}, and {', '.join(WAYS)}"
        )
    return dtype, way


def combine(a: jax.Array, b: jax.Array, dtype: str, way: str) -> jax.Array:
    """Words a and b (uint32) combined as values of `dtype`."""
    of, kind = WAYS[way], jnp.dtype(dtype)
    if kind.itemsize == 4:
        return _word(of(lax.bitcast_convert_type(a, kind), lax.bitcast_convert_type(b, kind)))
    low, high = (_half(of(_of_half(a, s, kind), _of_half(b, s, kind))) for s in (0, 16))
    return low | (high << 16)


def _word(value: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(value, jnp.uint32)


def _of_half(word: jax.Array, shift: int, kind) -> jax.Array:
    return lax.bitcast_convert_type((word >> shift).astype(jnp.uint16), kind)


def _half(value: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(value, jnp.uint16).astype(jnp.uint32)
