"""The order in which a line of PEs adds partial sums, as array operations: index 0 of axis 0 is the first PE.

Each function adds exactly as the fabric does, so results are the fabric's bit for bit; many lines are summed at once.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from wsc.machine import reduce_tree
from wsc.machine.collectives import group_size, k_levels

UNROLLED = 64  # longer chains run as a loop, so that the program text stays short


def chain(parts: jax.Array) -> jax.Array:
    """From the last PE to the first: `out = memory + in`."""
    pes = parts.shape[0]
    if pes <= UNROLLED:
        total = parts[pes - 1]
        for i in range(pes - 2, -1, -1):
            total = parts[i] + total
        return total
    return jax.lax.fori_loop(1, pes, lambda i, total: parts[pes - 1 - i] + total, parts[pes - 1])


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


def generated(parts: jax.Array, depth: int) -> jax.Array:
    """The tree of that depth: in every round all sums whose operands are there are taken at once."""
    pes = parts.shape[0]
    if depth >= pes - 1:
        return chain(parts)
    for taking, giving in _rounds(pes, depth):
        parts = parts.at[taking].set(parts[taking] + parts[giving])
    return parts[0]


@lru_cache(maxsize=1024)
def _rounds(pes: int, depth: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(PEs that add, PEs whose sum they add) round by round: a PE adds its children in order, each when it is whole."""
    tree = reduce_tree.children(pes, depth)
    ready = np.zeros(pes, int)  # the round after which a PE's sum is whole
    pairs: dict[int, list[tuple[int, int]]] = {}
    for pe in reversed(range(pes)):
        at = 0
        for child in tree[pe]:
            at = max(at, int(ready[child])) + 1
            pairs.setdefault(at, []).append((pe, child))
        ready[pe] = at
    return [(np.array([p for p, _ in pairs[r]]), np.array([c for _, c in pairs[r]])) for r in sorted(pairs)]


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
        return generated(parts, shape[0])
    if algorithm == "k_level":
        return k_level(parts, shape)
    if algorithm.startswith("centre_"):
        return centre(parts, algorithm.removeprefix("centre_"), shape)
    return ORDERS[algorithm](parts)
