"""Windows: updates and slices at places that are known when a program is compiled, as the simplest equations for them.

`x.at[4:-4].set(y)` is a scatter at one known place: a dynamic_update_slice. A slice of a padded array is a padded
slice: the padded array itself is never made.
"""

from typing import Any

import numpy as np
from jax import lax


def update_start(eqn: Any, indices: Any) -> tuple[int, ...] | None:
    """Where a scatter writes its updates as one block within the operand; None when it does something else.

    `indices`: their value, None while it is not known.
    """
    if indices is None or eqn.primitive.name != "scatter" or np.ndim(indices) != 1:
        return None
    operand, _, updates = (a.aval for a in eqn.invars)
    numbers = eqn.params["dimension_numbers"]
    rank = len(operand.shape)
    if numbers.inserted_window_dims or numbers.operand_batching_dims or updates.ndim != rank:
        return None
    if sorted(numbers.scatter_dims_to_operand_dims) != sorted(set(numbers.scatter_dims_to_operand_dims)):
        return None
    start = [0] * rank
    for d, at in zip(numbers.scatter_dims_to_operand_dims, np.asarray(indices), strict=True):
        start[d] = int(at)
    inside = all(0 <= s <= n - k for s, n, k in zip(start, operand.shape, updates.shape, strict=True))
    return tuple(start) if inside else None


def padded_slice(pad: Any, eqn: Any) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] | None:
    """A slice of a padded array as (begin, end) of what it takes of the array, and (before, after) that it is padded
    with, a dimension; None where it takes nothing of it, or the slice or the padding has strides."""
    if any(i for _, _, i in pad.params["padding_config"]) or set(eqn.params["strides"] or (1,)) != {1}:
        return None
    taken, around = [], []
    bounds = zip(
        pad.invars[0].aval.shape,
        pad.params["padding_config"],
        eqn.params["start_indices"],
        eqn.params["limit_indices"],
        strict=True,
    )
    for n, (low, _, _), start, limit in bounds:
        begin, end = (min(max(0, int(i) - int(low)), n) for i in (start, limit))
        if begin >= end:
            return None
        taken.append((begin, end))
        around.append((begin - (int(start) - int(low)), int(limit) - int(low) - end))
    return tuple(taken), tuple(around)


def write(operand, update, start):
    """The update as one block from `start`."""
    return lax.dynamic_update_slice(operand, update, start)


def slice_and_pad(operand, value, taken, around):
    """A slice, with `value` around it."""
    part = lax.slice(operand, [b for b, _ in taken], [e for _, e in taken])
    if not any(map(any, around)):
        return part
    return lax.pad(part, value, [(b, a, 0) for b, a in around])
