"""Arithmetic that serves plain numbers and JAX tracers alike, so that every closed form is a function of the wafer.

Plain numbers in, plain numbers out: compiling asks for hundreds of thousands of costs.
"""

import builtins
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = Any  # a float, or a JAX array or tracer of floats


def plain(*values: Number) -> bool:
    """No JAX array or tracer among them."""
    return all(isinstance(v, float | int | np.floating | np.integer) for v in values)


def maximum(*values: Number) -> Number:
    """The largest; of arrays element by element."""
    if plain(*values):
        return builtins.max(values)
    found = values[0]
    for v in values[1:]:
        found = jnp.maximum(found, v)
    return found


def ceil(value: Number) -> Number:
    """Rounded up. Its derivative is taken as 1, that of the line which the steps follow: otherwise no lane or link
    would ever matter to `jax.grad`.

    >>> ceil(2.2), float(jax.grad(ceil)(2.2))
    (3, 1.0)
    """
    if plain(value):
        return math.ceil(value)
    return value + jax.lax.stop_gradient(jnp.ceil(value) - value)


def where(condition: Any, yes: Number, no: Number) -> Number:
    """`yes` where the condition holds, else `no`."""
    if isinstance(condition, bool):
        return yes if condition else no
    return jnp.where(condition, yes, no)
