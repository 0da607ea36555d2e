"""The order in which a line of PEs adds partial sums, as array operations: index 0 of axis 0 is the first PE.

Each function adds exactly as the fabric does, so results are the fabric's bit for bit; many lines are summed at once.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from wsc.machine import reduce_tree
from wsc.machine.collectives import group_size, k_levels

# Sums run as a loop, so that the program text stays short, but for few PEs, or where one pass over memory is worth it.
FEW, UNROLLED = 8, 64
WIDE = 1 << 13  # elements a PE from which memory decides the time, not the number of operations


def chain(parts: jax.Array) -> jax.Array:
    """From the last PE to the first: `out = memory + in`."""
    pes = parts.shape[0]
    if pes <= FEW or (pes <= UNROLLED and parts[0].size >= WIDE):
        total = parts[pes - 1]
        for i in range(pes - 2, -1, -1):
            total = parts[i] + total
        return total
    return lax.fori_loop(1, pes, lambda i, total: parts[pes - 1 - i] + total, parts[pes - 1])


def tree(parts: jax.Array) -> jax.Array:
    """Pairs first, then pairs of pairs: in every round PE i adds what PE i + 2^round has."""
    while (pes := parts.shape[0]) > 1:
        paired = parts[0 : pes - pes % 2 : 2] + parts[1:pes:2]
        parts = jnp.concatenate([paired, parts[pes - 1 :]]) if pes % 2 else paired
    return parts[0]


def two_phase(parts: jax.Array) -> jax.Array:
    """Chains within groups of S PEs, then a chain over the groups' first PEs."""
    pes, size = parts.shape[0], group_size(parts.shape[0])
    whole = pes // size * size
    groups = chain(jnp.moveaxis(parts[:whole].reshape(whole // size, size, *parts.shape[1:]), 1, 0))
    if whole < pes:
        groups = jnp.concatenate([groups, chain(parts[whole:])[None]])
    return chain(groups)


def star(parts: jax.Array) -> jax.Array:
    """The first PE takes in one after the other, the nearest first."""
    return chain(parts[::-1])


def generated(parts: jax.Array, depth: int, root: int = 0) -> jax.Array:
    """The tree of that depth on the PEs after `root`, and on those before it."""
    tree = _tree(parts.shape[0], depth, root)
    if parts[0].size >= WIDE and parts.shape[0] <= UNROLLED:  # one pass over memory
        return _unrolled(parts, tree, root)
    order = jnp.asarray(_messages(tree, root), jnp.int32)

    def take_in(i, held):
        pe, child = order[i, 0], order[i, 1]
        total = lax.dynamic_index_in_dim(held, pe, keepdims=False) + lax.dynamic_index_in_dim(
            held, child, keepdims=False
        )
        return lax.dynamic_update_index_in_dim(held, total, pe, 0)

    return lax.fori_loop(0, len(order), take_in, parts)[root]


@lru_cache(maxsize=1024)
def _tree(pes: int, depth: int, root: int) -> tuple[tuple[int, ...], ...]:
    """From whom each PE takes in, in order: the root the PEs after it, then those before it."""
    found: list[list[int]] = [[] for _ in range(pes)]
    for size, step in ((pes - root, 1), (root + 1, -1)):
        if size > 1:
            for pe, children in enumerate(reduce_tree.children(size, min(depth, size - 1))):
                found[root + step * pe] += [root + step * c for c in children]
    return tuple(map(tuple, found))


@lru_cache(maxsize=1024)
def _messages(tree: tuple[tuple[int, ...], ...], root: int) -> np.ndarray:
    """(who takes in, from whom), each sum whole before it is sent on."""
    found: list[tuple[int, int]] = []
    todo = [(root, 0)]
    while todo:
        pe, done = todo.pop()
        if done:
            found.append((pe, tree[pe][done - 1]))
        if done < len(tree[pe]):
            todo += [(pe, done + 1), (tree[pe][done], 0)]
    return np.array(found)


def _unrolled(parts: jax.Array, tree: tuple[tuple[int, ...], ...], pe: int) -> jax.Array:
    total = parts[pe]
    for child in tree[pe]:
        total = total + _unrolled(parts, tree, child)
    return total


def k_level(parts: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Groups of `sizes[0]` PEs, each by chains from both ends to its middle, then groups of those sums, and so on."""
    for size in k_levels(parts.shape[0], sizes):
        pes = parts.shape[0]
        full = pes // size * size
        sums = []
        if full:
            sums.append(centre(jnp.moveaxis(parts[:full].reshape(full // size, size, *parts.shape[1:]), 1, 0), "chain"))
        if full < pes:
            sums.append(centre(parts[full:], "chain")[None])
        parts = jnp.concatenate(sums) if len(sums) > 1 else sums[0]
    return parts[0]


def centre(parts: jax.Array, algorithm: str, shape: tuple[int, ...] = ()) -> jax.Array:
    """The middle PE takes in the half after it, then, on top of that, the half before it."""
    middle = parts.shape[0] // 2
    after = reduce_in_order(parts[middle:], algorithm, shape)
    return reduce_in_order(jnp.concatenate([after[None], parts[:middle][::-1]]), algorithm, shape)


ORDERS = {"chain": chain, "tree": tree, "two_phase": two_phase, "star": star}


def reduce_in_order(parts: jax.Array, algorithm: str, shape: tuple[int, ...] = ()) -> jax.Array:
    """Sum over axis 0 in the order of the named reduce or all-reduce; `shape` as in `AllReduce`."""
    if parts.shape[0] == 1:
        return parts[0]
    if algorithm == "generated":
        return chain(parts) if shape[0] >= parts.shape[0] - 1 else generated(parts, shape[0])
    if algorithm == "centre_generated" and shape[0] < parts.shape[0] // 2:
        return generated(parts, shape[0], parts.shape[0] // 2)
    if algorithm == "k_level":
        return k_level(parts, shape)
    if algorithm.startswith("centre_"):
        return centre(parts, algorithm.removeprefix("centre_"), shape)
    return ORDERS[algorithm](parts)
