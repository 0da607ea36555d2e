"""The values of a cycle: they move as their wavelets do, and PEs combine them with what their memory has.

What moves is decided without them, so they follow one cycle behind: what a cycle decided is part of the state.
"""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from wsc.runtime.fabric import bits
from wsc.runtime.fabric.bits import unpack
from wsc.runtime.fabric.combine import combine
from wsc.runtime.fabric.sizes import Sizes, Tables, Thread


class Done(NamedTuple):
    """What a thread did: an element, the last of its words; the instruction's queues and flags; where it is then."""

    fire: Any
    last: Any
    reads: Any
    sends: Any
    load: Any
    store: Any
    largest: Any
    at: Any


class Moves(NamedTuple):
    """What a cycle decided, in words of 32 PEs. Of routers, by color: what leaves, by which port others come, which
    place of the queue they take; the same of PEs' queues inward, and of the one outward; by thread what is done."""

    leave: Any
    comes: dict[int, Any]
    put: list
    taken: list
    in_comes: list
    in_put: list[list]
    up: Any
    out_put: list
    threads: list[Done]


def no_moves(z: Sizes, words: tuple[int, ...]) -> Moves:
    """What was decided before the first cycle, for words [row of the band, column]."""
    t = z.timing

    def zeros(*front):
        return np.zeros((*front, *words), np.uint32)

    colors, one = zeros(z.colors), zeros()
    done = Done(one, one, zeros(len(z.inward)), one, one, one, one, zeros(z.instructions))
    return Moves(
        colors,
        dict.fromkeys(z.neighbours, colors),
        [colors] * t.router,
        [one for _ in z.inward],
        [colors for _ in z.inward],
        [[one] * t.inward for _ in z.inward],
        one,
        [one] * t.outward,
        [done for _ in z.threads],
    )


def values(z: Sizes, tables: Tables, s: dict[str, Any]) -> dict[str, Any]:
    """Values, memories and addresses after the moves of the cycle before.

    What nothing moves in is left as it is. Each part reads what the next one writes, so they are kept in that order:
    then all of them write over what they had.
    """
    moves: Moves = s["moves"]
    elements = partial(_elements, z, tables, s["in_value"], moves)
    kept = s["memory"], s["address"], s["sent"]
    more, (memory, address, sent) = only_if(_any(d.fire for d in moves.threads), elements, kept)
    inward, router = [], []
    for q, held in enumerate(s["in_value"]):
        change = partial(_inward, z, s["value"], moves, q)
        more, held = only_if(_any([moves.taken[q], *moves.in_put[q]]) | more, change, held)
        inward.append(held)
    for k, held in enumerate(s["value"]):
        change = partial(_routed, s["out_value"][0], moves, k)
        more, held = only_if(_any([moves.leave[k], *(p[k] for p in moves.put)]) | more, change, held)
        router.append(held)
    out = partial(_moved, moves.up, moves.out_put, sent)
    outward = only_if(_any([moves.up, *moves.out_put]) | more, out, s["out_value"])[1]
    return {
        "memory": memory,
        "address": address,
        "sent": sent,
        "value": router,
        "in_value": inward,
        "out_value": outward,
    }


def _any(words):
    """Whether anything of these is anywhere on the grid."""
    return jnp.any(bits.any_of(list(words)) != 0)


def only_if(wanted, change, held):
    """Whether there is more to do (never, but compilers do not know), and `change(held)` where it is `wanted`. A loop
    that is run once or not at all: unlike a branch it copies nothing of what is `held`."""
    return lax.while_loop(lambda at: at[0], lambda at: (jnp.zeros_like(at[0]), change(at[1])), (wanted, held))


def _elements(z: Sizes, tables: Tables, inward: list, moves: Moves, held: tuple) -> tuple:
    """Memory, addresses and what is sent after the elements of all threads."""
    memory, addresses, sent = held
    after, read, first = [], jnp.zeros_like(sent), True
    for i, done in enumerate(moves.threads):
        result, read, memory = _element(z, i, inward, addresses[i], memory, read, done)
        after.append(_address(z, tables, i, addresses[i], done))
        if z.threads[i].sends and result is not None:
            sent = result if first else jnp.where(unpack(done.fire & done.sends), result, sent)
            first = False
    return memory, after, sent


def _inward(z: Sizes, router: list, moves: Moves, q: int, held: list) -> list:
    """One of PEs' queues inward: the router's wavelets come in."""
    colors = z.inward[q]
    comes = router[colors[0]][0]
    for k in colors[1:]:
        comes = jnp.where(unpack(moves.in_comes[q][k]), router[k][0], comes)
    return _moved(moves.taken[q], moves.in_put[q], comes, held)


def _routed(up, moves: Moves, k: int, held: list) -> list:
    """Routers' queues of a color: wavelets come `up` from PEs, and from neighbours."""
    comes = up
    for port, here in moves.comes.items():
        comes = jnp.where(unpack(here[k]), bits.values_from(port, held[0]), comes)
    return _moved(moves.leave[k], [p[k] for p in moves.put], comes, held)


def _element(z: Sizes, i: int, inward: list, address, memory, before, done: Done):
    """The result of a thread's element, what was read last (`before` it, where it reads nothing), and the memory after
    it is stored."""
    thread, value, read = z.threads[i], None, jnp.zeros_like(done.fire)
    if thread.reads:
        for q in range(len(z.inward)):
            head = inward[q][0]
            if value is None:
                value, read = head, done.reads[q]
                continue
            both = head
            if thread.doubles:
                both = jnp.where(unpack(read), _combined(z, thread, done, value, head), head)
            value = jnp.where(unpack(done.reads[q]), both, value)
            read = read | done.reads[q]
    bands, high, words, columns = memory.shape
    line = jnp.arange(bands * high, dtype=jnp.int32).reshape(bands, high, 1) * words
    column = jnp.arange(columns, dtype=jnp.int32)
    result = value
    if thread.loads:
        where = (line + address.astype(jnp.int32)) * columns + column
        before = memory.reshape(-1).at[where].get(mode="promise_in_bounds")
        if value is None:
            result = before
        else:
            result = jnp.where(unpack(done.load & read), _combined(z, thread, done, value, before), before)
            result = jnp.where(unpack(read & ~done.load), value, result)
    if not thread.stores:
        return result, before, memory
    # Others store what was read, into a word for that: so compilers see that memory was read before it is changed.
    keeps, kept = done.fire & done.store, before if result is None else result
    if z.storing is not None:
        few = jnp.asarray(z.storing, jnp.int32)
        keeps, address, kept, before_here, column = (a[..., few] for a in (keeps, address, kept, before, column))
    else:
        before_here = before
    keeps = unpack(keeps)
    where = (line + jnp.where(keeps, address.astype(jnp.int32), words - 1)) * columns + column
    kept = jnp.where(keeps, kept, before_here)
    flat = memory.reshape(-1).at[where].set(kept, mode="promise_in_bounds", unique_indices=True)
    return result, before, flat.reshape(memory.shape)


def _combined(z: Sizes, thread: Thread, done: Done, a, b):
    """Both operands combined as the run does, or, where the instruction says so, the larger."""
    assert z.values is not None
    dtype, way = z.values
    usual = combine(a, b, dtype, way)
    return jnp.where(unpack(done.largest), combine(a, b, dtype, "max"), usual) if thread.largest else usual


def _address(z: Sizes, tables: Tables, i: int, address, done: Done):
    """Where in memory a thread is next."""
    thread = z.threads[i]
    if not thread.loads and not thread.stores:
        return address
    address = address + unpack(done.fire & (done.load | done.store)).astype(address.dtype)
    if thread.addresses is None:
        picked = sum(jnp.where(unpack(done.at[j]), tables.address[i][j], 0) for j in range(z.instructions))
    elif len(set(thread.addresses)) == 1:
        picked = thread.addresses[0]
    else:
        picked = sum(jnp.where(unpack(done.at[j]), a, 0) for j, a in enumerate(thread.addresses) if a)
    return jnp.where(unpack(done.last), picked, address).astype(address.dtype)


def _moved(leaves, put: list, comes, held: list) -> list:
    """The values of a queue after its first one leaves and another comes."""
    leaves = unpack(leaves)
    after = [jnp.where(leaves, later, value) for value, later in pairwise(held)] + held[-1:]
    return [jnp.where(unpack(p), comes, value) for p, value in zip(put, after, strict=True)]
