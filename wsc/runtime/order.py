"""The order in which a line of PEs adds partial sums, as array operations: index 0 of axis 0 is the first PE.

Each function adds exactly as the fabric does, so results are the fabric's bit for bit; many lines are summed at once.
"""

import jax
import jax.numpy as jnp

from wsc.machine.collectives import group_size

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


ORDERS = {"chain": chain, "tree": tree, "two_phase": two_phase}


def reduce_in_order(parts: jax.Array, algorithm: str) -> jax.Array:
    """Sum over axis 0 in the order of the named reduce."""
    return parts[0] if parts.shape[0] == 1 else ORDERS[algorithm](parts)
