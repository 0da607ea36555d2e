"""The threads of PEs in a cycle: what each could do with its instruction, and how it goes on."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from wsc.runtime.fabric.bits import any_of, is_one, less_one, union
from wsc.runtime.fabric.program import FLAGS
from wsc.runtime.fabric.sizes import Sizes, Tables
from wsc.runtime.fabric.values import Done

State = dict[str, Any]


class Thread(NamedTuple):
    """A thread in a cycle, in words of 32 PEs: queues, colors and flags of its instruction, elements and repeats left;
    whether it runs, waits to be prepared, is being so (a PE prepares one instruction at a time), has its turn, finds
    its inputs, may send; whether it does an element, the last of its words, that of the last repeat."""

    reads: Any
    sends: Any
    load: Any
    store: Any
    control: Any
    largest: Any
    length: Any
    repeat: Any
    running: Any
    waiting: Any
    prepares: Any
    ready: Any
    has_input: Any
    has_room: Any
    fire: Any
    last: Any
    end: Any


def threads(z: Sizes, s: State, there: list, room_out) -> list[Thread]:
    """What threads do, where queues inward have a wavelet `there` and the one outward has room."""
    found: list[Thread] = []
    queues, occupied = range(len(z.inward)), jnp.zeros_like(room_out)
    even = jnp.uint32(0) - (s["cycle"] & 1).astype(jnp.uint32)
    for i in range(len(z.threads)):
        now = s["now"][i]
        nothing = jnp.zeros_like(now[0])
        reads, sends = now[: len(queues)], now[len(queues) : len(queues) + z.colors]
        load, store, control, slow, _, largest, joins = now[len(queues) + z.colors : z.fields]
        length, repeat = now[z.fields : z.fields + z.length_bits], now[z.fields + z.length_bits :]
        running, waiting = union(s["at"][i]), union(s["wait"][i])
        any_sends = union(sends)
        has_input = ~any_of([nothing, *(reads[q] & ~there[q] for q in queues)])
        has_room = ~any_sends | room_out
        ready = running & ~waiting & (~slow | even)
        for other in range(len(z.threads)):
            if other != i:
                ready = ready & ~(joins & union(s["at"][other]) & ~s["now"][other][z.fields - 1])
        fire = ready & has_input & has_room
        last = fire & is_one(length)
        there = [w & ~(fire & reads[q]) for q, w in enumerate(there)]
        room_out = room_out & ~(fire & any_sends)
        found.append(
            Thread(
                reads, sends, load, store, control, largest, length, repeat, running, waiting, waiting & ~occupied,
                ready, has_input, has_room, fire,
                last, last & is_one(repeat),
            )
        )  # fmt: skip
        occupied = occupied | waiting
    return found


def go_on(z: Sizes, tables: Tables, s: State, i: int, t: Thread) -> tuple[State, Done]:
    """Where a thread is after the cycle: elements, repeats, the next instruction, what it takes to prepare it."""
    now = jnp.concatenate([s["now"][i][: z.fields], less_one(t.length, t.fire), less_one(t.repeat, t.last & ~t.end)])
    after_length = z.fields + z.length_bits

    def on(at, now):
        at = (at & ~t.end) | (jnp.concatenate([jnp.zeros_like(at[:1]), at[:-1]]) & t.end & tables.present[i])
        loaded = union(at[:, None] & tables.code[i])
        head = (loaded[:after_length] & t.last) | (now[:after_length] & ~t.last)
        tail = (loaded[after_length:] & t.end) | (now[after_length:] & ~t.end)
        return at, jnp.concatenate([head, tail])

    at, now = lax.cond(jnp.any(t.last != 0), on, lambda *same: same, s["at"][i], now)
    begins = t.end & union(at) & ~now[len(z.inward) + z.colors + FLAGS.index("bare")]
    setup = [begins if z.timing.setup >> b & 1 else jnp.zeros_like(begins) for b in range(len(s["wait"][i]))]
    state = {"at": at, "now": now, "wait": less_one(s["wait"][i], t.prepares) | jnp.stack(setup)}
    return state, Done(t.fire, t.last, t.reads, union(t.sends), t.load, t.store, t.largest, at)
