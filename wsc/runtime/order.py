"""The order in which a line of PEs adds partial sums, as array operations.

Each function adds exactly as the fabric does, so results are the fabric's bit for bit. A reduce is a tree of messages:
its *lines*, along which one sum grows PE by PE, are summed many at once; what then is left is a smaller tree of their
sums, and so on.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wsc.machine.messages import Senders, senders

FEW = 64  # PEs whose sum is written out, one addition after another
STEP = 8  # additions that are compiled together
AT_ONCE = 2  # such steps that are not worth a loop

Lines = tuple[tuple[int, ...], ...]


def reduce_in_order(parts: jax.Array, algorithm: str, shape: tuple[int, ...] = ()) -> jax.Array:
    """Sum over axis 0, the PEs, in the order of the named reduce or all-reduce; `shape` as in `AllReduce`."""
    sums: Any = parts
    for lines in levels(algorithm, len(parts), shape):
        sums = along(sums, lines)
    return sums[0]


@lru_cache(maxsize=1024)
def levels(algorithm: str, pes: int, shape: tuple[int, ...]) -> tuple[Lines, ...]:
    """The lines of PEs that add first, the longest first; then the lines of those lines' sums; the last has one line.

    >>> levels("two_phase", 5, ())            # groups of two
    (((3, 2, 4), (1, 0)), ((0, 1),))
    """
    tree, root = senders(algorithm, pes, shape)
    found = []
    while len(tree) > 1:
        lines, tree, root = _shorter(tree, root)
        found.append(lines)
    return tuple(found)


def _shorter(tree: Senders, root: int) -> tuple[Lines, Senders, int]:
    """The lines of a tree, and the tree that they leave, its nodes numbered as the lines."""
    ends: dict[
        int, tuple[list[int], tuple[int, ...]]
    ] = {}  # of a node: the line that ends at it, and what it then adds
    order, todo = [], [root]
    while todo:
        order.append(todo.pop())
        todo += tree[order[-1]]
    for node in reversed(order):
        line, left = [node], list(tree[node])
        if left and not ends[left[0]][1]:
            line = [*ends.pop(left.pop(0))[0], node]
        while left and not tree[left[0]]:
            line += ends.pop(left.pop(0))[0]
        ends[node] = line, tuple(left)
    nodes = sorted(ends, key=lambda n: -len(ends[n][0]))
    number = {node: i for i, node in enumerate(nodes)}
    shorter = tuple(tuple(number[n] for n in ends[node][1]) for node in nodes)
    return tuple(tuple(ends[n][0]) for n in nodes), shorter, number[root]


def along(parts: jax.Array | Sequence[jax.Array], lines: Lines) -> list[jax.Array]:
    """The sum along each line of PEs, the longest line first."""
    pes = len(parts)
    if pes <= FEW:
        return [_written_out(parts, line) for line in lines]
    whole: Any = parts if isinstance(parts, jax.Array | np.ndarray) else jnp.stack(parts)
    orders = steps(lines, pes)
    if any((order == pes).any() for order in orders):
        whole = jnp.concatenate([whole, jnp.full_like(whole[:1], -0.0)])  # x + -0.0 is x, for every x

    def add(total, taken):
        for i in range(taken.shape[1]):
            total = taken[:, i] if total is None else total + taken[:, i]
        return total

    return [total for order in orders for total in climb(add, whole[order])]


def _written_out(parts: jax.Array | Sequence[jax.Array], line: Sequence[int]) -> jax.Array:
    total = parts[line[0]]
    for pe in line[1:]:
        total = total + parts[pe]
    return total


def steps(lines: Lines, nothing: int, step: int = STEP) -> list[np.ndarray]:
    """PEs [trips, lines, step] of the lines that take as many trips at `step` PEs a trip, the longest lines first;
    `nothing` where a line has ended.

    >>> [order.shape for order in steps((tuple(range(20)), tuple(range(20, 25))), 25)]
    [(3, 1, 8), (1, 1, 8)]
    """
    found = []
    for trips, same in groupby(lines, lambda line: -(-len(line) // step)):
        rows = [(*line, *(nothing,) * (trips * step - len(line))) for line in same]
        found.append(np.array(rows).reshape(len(rows), trips, step).swapaxes(0, 1))
    return found


def climb(add: Callable[[jax.Array | None, Any], jax.Array], taken: Any) -> jax.Array:
    """The sums of lines that are equally long: `taken` is what their PEs have, each array [trips, lines, ...];
    `add(total, taken)` adds those of a trip to the totals of the lines, or makes totals of them."""
    trips = len(jax.tree.leaves(taken)[0])
    total = None
    for i in range(trips if trips <= AT_ONCE else 1):
        total = add(total, jax.tree.map(lambda t, i=i: t[i], taken))
    assert total is not None
    if trips <= AT_ONCE:
        return total

    def step(i, carried):  # what the next step adds is taken out in this one: slices are slow within a sum
        total, now = carried
        total = add(total, now)
        return total, next_of(i + 1 + never([total]))  # and after it has added, so that it goes where the last lay

    def next_of(i):
        return jax.tree.map(lambda t: lax.dynamic_index_in_dim(t, i, keepdims=False), taken)

    return lax.fori_loop(1, trips + never([total]), step, (total, next_of(1)))[0]  # not unrolled by compilers


def apart(array: jax.Array, zero: jax.Array) -> jax.Array:
    """The array, which compilers do not make anew in whatever reads it, where they do not know `zero` to be 0: it goes
    through a loop of one trip."""
    return lax.fori_loop(0, 1 + zero, lambda _, both: (both[0], both[0]), (array, jnp.zeros_like(array)))[1]


def read(array: jax.Array, zero: jax.Array) -> jax.Array:
    """The same without a copy, for arrays that are much work to make: a loop, which compilers leave as it is, reads it
    too."""

    def first(i, n):
        return n + never([lax.dynamic_index_in_dim(array.ravel(), i, keepdims=False)])

    return exactly(array, lax.fori_loop(0, 1 + zero, first, jnp.int32(0)))


def exactly(array: jax.Array, zero: jax.Array) -> jax.Array:
    """The array, as its bits, flipped where `zero` has ones, which it never has. Compilers that do not know that do not
    contract a product and the sum that follows into one rounding."""
    bits = jnp.dtype(f"uint{array.dtype.itemsize * 8}")
    return lax.bitcast_convert_type(lax.bitcast_convert_type(array, bits) ^ zero.astype(bits), array.dtype)


def never(arrays: Sequence[jax.Array]) -> jax.Array:
    """An integer 0 that no compiler knows to be one: n^3 - n is a multiple of three, whatever the first array of floats
    holds."""
    for array in arrays:
        if array.size and jnp.issubdtype(array.dtype, jnp.floating):
            first = lax.bitcast_convert_type(array.ravel()[0], jnp.dtype(f"uint{array.dtype.itemsize * 8}"))
            n = (first & 1023).astype(jnp.int32)
            return lax.rem(n * n * n - n, jnp.int32(3))
    return jnp.int32(0)
