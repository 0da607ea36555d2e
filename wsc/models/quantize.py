"""Weights stored as 8- or 4-bit integers with scales, computed with in the model's dtype.

Symmetric, round to nearest: a weight is about `code * scale`, with `scale = max|w| / qmax` over one output column, or
over a group of consecutive input rows of one, and qmax 127 or 7. The codes alone are rounded to integers: activations,
embedding and norms stay as they are. Axes: in, out as in `wsc.models.llama.Linear`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from wsc.errors import ArgumentError
from wsc.models.llama import Linear, Llama

Array = jax.Array
CODES: dict[int, Any] = {8: jnp.int8, 4: jnp.int4}  # by bits


class QuantizedLinear(nnx.Module):
    """`x[..., in] -> x @ (codes[in, out] * scale)`, no bias.

    A scale a column, `[out]`, multiplies the product: one multiplication an output element. Scales of groups of rows,
    `[in / group, out]`, multiply the codes before it: one a weight.
    """

    def __init__(self, codes: Any, scale: Any):
        self.codes = nnx.Param(codes)
        self.scale = nnx.Param(scale)

    def __call__(self, x: Array, dtype: Any = None) -> Array:
        dtype = jnp.dtype(dtype or x.dtype)
        weight, scale = self.codes[...].astype(x.dtype), self.scale[...]
        grouped = scale.ndim == 2
        if grouped:
            weight *= jnp.repeat(scale, weight.shape[0] // scale.shape[0], axis=0)
        # Sums of codes are not scaled yet and may pass float16's 65,504.
        wide = jnp.dtype(jnp.float32) if dtype == jnp.float16 and not grouped else dtype
        product = lax.dot_general(x, weight, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=wide)
        return product if grouped else (product * scale.astype(wide)).astype(dtype)


def quantize(model: Llama, bits: int = 8, group: int | None = None) -> Llama:
    """A Llama of the same class whose linear layers hold codes of `bits` bits, 8 or 4; `model` stays as it is.

    Scales have the model's dtype: one an output column, or, with `group`, one for every `group` input rows of it.
    Tied embeddings are not touched, so a head that shares them is not either. Works on real weights, one matrix at a
    time, and on abstract ones, without memory.

    Raises ArgumentError for other bits, a group that does not divide a layer's inputs, or a quantized model.

    >>> small = quantize(Llama.abstract("llama-3.2-1b"), bits=4, group=64).layers[0].attn.k
    >>> small.codes.shape, small.codes.dtype, small.scale.shape
    ((2048, 512), dtype(int4), (32, 512))
    """
    if not isinstance(model, Llama):
        raise ArgumentError(f"{type(model).__name__} is no wsc.models.Llama: quantize takes a Llama")
    if bits not in CODES:
        raise ArgumentError(f"bits is {bits!r}: it must be 8 or 4")
    if group is not None and (not isinstance(group, int) or isinstance(group, bool) or group < 1):
        raise ArgumentError(f"group is {group!r}: it must be a whole number of at least 1, or None")
    new = jax.tree.map(lambda leaf: leaf, model)
    places = _places(new)
    for where, module, name in places:  # before any of the work
        layer = getattr(module, name)
        if isinstance(layer, QuantizedLinear):
            raise ArgumentError(f"{where} is quantized: give the model as it was loaded")
        rows = layer.kernel.shape[0]
        if group is not None and rows % group:
            raise ArgumentError(
                f"group is {group}, and {where} has {rows} input rows: give a number that divides them, or None"
            )
    for _, module, name in places:
        setattr(module, name, _quantized(getattr(module, name), bits, group))
    return new


def _places(model: Llama) -> list[tuple[str, Any, str]]:
    """(path, module, attribute) of every linear layer."""
    found = []
    for i, layer in enumerate(model.layers):
        found += [(f"layers[{i}].attn.{name}", layer.attn, name) for name in ("q", "k", "v", "o")]
        found += [(f"layers[{i}].mlp.{name}", layer.mlp, name) for name in ("gate", "up", "down")]
    if not model.config.tie_word_embeddings:
        found.append(("lm_head", model, "lm_head"))
    return found


def _quantized(layer: Linear, bits: int, group: int | None) -> QuantizedLinear:
    kernel = layer.kernel.get_value()
    encode = partial(_encode, bits=bits, group=group)
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return QuantizedLinear(*jax.eval_shape(encode, kernel))
    return QuantizedLinear(*encode(kernel))


@partial(jax.jit, static_argnames=("bits", "group"))
def _encode(kernel: Array, bits: int, group: int | None) -> tuple[Array, Array]:
    """(codes, scales) of a kernel `[in, out]`; codes are of the scales as they are stored, rounded to the dtype."""
    rows, columns = kernel.shape
    most = 2 ** (bits - 1) - 1
    groups = kernel.astype(jnp.float32).reshape(-1, group or rows, columns)
    scale = (jnp.abs(groups).max(axis=1) / most).astype(kernel.dtype)
    divisor = jnp.where(scale == 0, 1, scale).astype(jnp.float32)
    codes = jnp.clip(jnp.round(groups / divisor[:, None, :]), -most, most)
    return codes.reshape(rows, columns).astype(CODES[bits]), scale[0] if group is None else scale
