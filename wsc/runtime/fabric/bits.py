"""Booleans of all PEs of a grid, 32 a word, and counters made of them.

A grid of rows x columns is cut into 32 bands of rows, one above the other: bit b of the word [i, x] is the PE in row i
of band b. So one operation on words is the same logic for 32 PEs, neighbours are neighbouring words, and `unpack`,
which lays the bands out again for arrays of values [band, row of the band, column], reads words side by side.
A counter is a stack of such words, the lowest bit first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BANDS = 32


def height(rows: int) -> int:
    """Rows of a band."""
    return -(-rows // BANDS)


def banded(array: np.ndarray, nothing=0) -> np.ndarray:
    """[..., rows, columns] as [..., band, row of the band, column]."""
    *front, rows, columns = array.shape
    filling = [(0, 0)] * len(front) + [(0, height(rows) * BANDS - rows), (0, 0)]
    return np.pad(array, filling, constant_values=nothing).reshape(*front, BANDS, height(rows), columns)


def unbanded(array, rows: int):
    """[..., band, row of the band, column] as [..., rows, columns]."""
    *front, bands, high, columns = array.shape
    return array.reshape(*front, bands * high, columns)[..., :rows, :]


def pack(array: np.ndarray) -> np.ndarray:
    """Booleans [..., rows, columns] as words [..., row of the band, column].

    >>> pack(np.ones((33, 1), bool))[:, 0].tolist()          # two rows a band: 17 bands have a PE in them
    [131071, 65535]
    """
    bits = banded(np.asarray(array, bool)).astype(np.uint32)
    shifts = np.arange(BANDS, dtype=np.uint32)[:, None, None]
    return np.bitwise_or.reduce(bits << shifts, axis=-3)


def planes(array: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers [..., rows, columns] as counters [..., bits, row of the band, column]."""
    return np.stack([pack((array >> b) & 1) for b in range(bits)], axis=-3)


def unpack(words: jax.Array) -> jax.Array:
    """Words [..., row of the band, column] as booleans [..., band, row of the band, column]."""
    shifts = jnp.arange(BANDS, dtype=jnp.uint32)[:, None, None]
    return (words[..., None, :, :] >> shifts) & 1 != 0


def unpacked(words: np.ndarray) -> np.ndarray:
    """The same outside of a compiled program: words as booleans [..., band, row of the band, column]."""
    return (words[..., None, :, :] >> np.arange(BANDS, dtype=np.uint32)[:, None, None]) & 1 != 0


def from_north(words: jax.Array) -> jax.Array:
    """What the PE one row up has; 0 at the edge."""
    return jnp.concatenate([words[..., -1:, :] << 1, words[..., :-1, :]], axis=-2)


def from_south(words: jax.Array) -> jax.Array:
    return jnp.concatenate([words[..., 1:, :], words[..., :1, :] >> 1], axis=-2)


def from_west(words: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.zeros_like(words[..., :1]), words[..., :-1]], axis=-1)


def from_east(words: jax.Array) -> jax.Array:
    return jnp.concatenate([words[..., 1:], jnp.zeros_like(words[..., :1])], axis=-1)


def values_from(side: int, values: jax.Array) -> jax.Array:
    """Values [band, row of the band, column] of the PE to the north, south, west or east (0 to 3)."""
    bands, high, columns = values.shape
    grid = values.reshape(bands * high, columns)
    if side == 0:
        grid = jnp.concatenate([jnp.zeros_like(grid[:1]), grid[:-1]])
    elif side == 1:
        grid = jnp.concatenate([grid[1:], jnp.zeros_like(grid[:1])])
    elif side == 2:
        grid = jnp.concatenate([jnp.zeros_like(grid[:, :1]), grid[:, :-1]], axis=1)
    else:
        grid = jnp.concatenate([grid[:, 1:], jnp.zeros_like(grid[:, :1])], axis=1)
    return grid.reshape(bands, high, columns)


def less_one(counter: jax.Array, where: jax.Array) -> jax.Array:
    """The counter, one less `where` it says so (where it is not 0)."""
    out, borrow = [], where
    for bit in counter:
        out.append(bit ^ borrow)
        borrow = ~bit & borrow
    return jnp.stack(out)


def plus_one(counter: jax.Array, where: jax.Array) -> jax.Array:
    """The counter, one more `where` it says so."""
    out, carry = [], where
    for bit in counter:
        out.append(bit ^ carry)
        carry = bit & carry
    return jnp.stack(out)


def any_of(words) -> jax.Array:
    """The bits that are set in any of a list of words."""
    found = words[0]
    for w in words[1:]:
        found = found | w
    return found


def union(stack: jax.Array) -> jax.Array:
    """The bits that are set in any of a stack of words."""
    return lax.reduce(stack, jnp.uint32(0), lax.bitwise_or, (0,))


def is_one(counter: jax.Array) -> jax.Array:
    """Where a counter is exactly 1."""
    return counter[0] & ~any_of(counter[1:]) if len(counter) > 1 else counter[0]


def more_than(unary, late) -> jax.Array:
    """Where more of the bits `unary` (of which the first n are set, for some n) are set than of the bits `late`."""
    at_least = [~jnp.zeros_like(unary[0])]  # at least i of those late that were looked at
    for bit in late:
        at_least = [
            at_least[0],
            *(at_least[i] | (at_least[i - 1] & bit) for i in range(1, len(at_least))),
            at_least[-1] & bit,
        ]
    found = unary[0] & ~at_least[1] if len(at_least) > 1 else unary[0]
    for i in range(1, len(unary)):  # unary[i]: more than i are there; late at most i
        found = found | (unary[i] & ~at_least[i + 1] if i + 1 < len(at_least) else unary[i])
    return found
