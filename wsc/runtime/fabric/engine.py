"""One cycle of all routers and PEs, and the loop around it.

All decisions of a cycle are made from the state before it, so that its order of work does not matter. A router has one
queue for each color; the first wavelet of a queue leaves when every port of its route has room behind it and no other
color takes one of them. Where colors want the same port, the first in turn gets it: color (cycle mod colors) comes
first, then the others upwards, and a wavelet takes all its ports or none. Room is what a neighbour's queue had free
before the cycle; a PE's own queues pass a wavelet on and take one in at once. A control wavelet moves a switch on twice:
where wavelets come in as it comes in, and where they go out as it goes out, so that messages follow without a gap.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wsc.runtime.fabric import bits
from wsc.runtime.fabric.bits import any_of, is_one, less_one, more_than, plus_one, unpack
from wsc.runtime.fabric.program import OPPOSITE, RAMP
from wsc.runtime.fabric.sizes import Sizes, Tables
from wsc.runtime.fabric.state import LOW
from wsc.runtime.fabric.threads import go_on, threads
from wsc.runtime.fabric.values import Moves, values

FROM = (bits.from_north, bits.from_south, bits.from_west, bits.from_east)
State = dict[str, Any]


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def run(z: Sizes, tables: Tables, state: State, limit) -> State:
    """Cycles until the program has ended, nothing moves any more, or `limit` of them have passed."""
    state = lax.while_loop(lambda s: s["going"] & (s["cycle"] < limit), partial(cycle, z, tables), state)
    if z.values:
        state |= values(z, tables, state)
    return _emptied(state) if z.watch else state


def cycle(z: Sizes, tables: Tables, s: State) -> State:
    """The state one cycle later."""
    t, colors = z.timing, range(z.colors)
    rx, tx = [list(s["route_in"][k]) for k in colors], [list(s["route_out"][k]) for k in colors]
    nothing = jnp.zeros_like(s["at"][0][0])
    room = [~s["queued"][k, -1] for k in colors]

    # The ramp up: the first wavelet goes into the queue of its color.
    leaves_out = more_than([any_of(list(slot)) for slot in s["out_color"]], list(s["out_late"]))
    up = [s["out_color"][0, k] & leaves_out & rx[k][RAMP] & room[k] if RAMP in z.ports_in[k] else nothing for k in colors]
    any_up = any_of(up)

    # PEs: one element of each thread's instruction.
    inward = range(len(z.inward))
    there = [more_than(list(s["in_queued"][q]), list(s["in_late"][q])) for q in inward]
    pes = threads(z, s, there, ~any_of(list(s["out_color"][-1])) | any_up)
    taken = [any_of([t.fire & t.reads[q] for t in pes]) for q in inward]
    room_in = [~s["in_queued"][q, -1] | taken[q] for q in inward]
    puts = [any_of([t.fire & t.sends[k] for t in pes]) for k in colors]
    put_any = any_of(puts)

    # Routers: who leaves by which ports.
    waits, free = [], []
    for k in colors:
        late = s["late"][k]
        first = more_than(list(s["queued"][k]), list(late[: t.hop - 1]))
        if z.forks[k] and t.deliver > t.hop:
            fork = tx[k][RAMP] & any_of(tx[k][:RAMP])
            first = (first & ~fork) | (more_than(list(s["queued"][k]), list(late)) & fork)
        way = first
        for port in z.ports_out[k]:
            if port == RAMP:
                behind = any_of([tables.binding[q][k] & room_in[q] for q in inward if k in z.inward[q]])
            else:
                behind = FROM[port](rx[k][OPPOSITE[port]] & room[k])
            way = way & (~tx[k][port] | behind)
        waits.append(first)
        free.append(way & any_of(tx[k]))
    leave = _in_turn(z, free, tx, s["cycle"])
    sent = [{port: leave[k] & tx[k][port] for port in z.ports_out[k]} for k in colors]

    # Queues take in what was sent.
    new: State = {}
    come = [{p: FROM[p](sent[k][OPPOSITE[p]]) for p in z.neighbours(k)} for k in colors]
    comes = [any_of([up[k], *come[k].values()]) for k in colors]
    queues = [_queue(list(s["queued"][k]), leave[k], comes[k]) for k in colors]
    flags, switched_in = [], []
    for k in colors:
        controls = [FROM[p](sent[k][OPPOSITE[p]] & s["control"][k, 0]) for p in z.neighbours(k)]
        switched_in.append(any_of([up[k] & s["out_control"][0], *controls]))
        flags.append(_carried(list(s["control"][k]), leave[k], queues[k][1], switched_in[k]))
    new["queued"] = _stack([q for q, _ in queues], s["queued"])
    new["control"] = _stack(flags, s["control"])
    new["late"] = _aged(s["late"], comes)
    down = [{k: sent[k][RAMP] & tables.binding[q][k] for k in z.inward[q]} for q in inward]
    any_down = [any_of(list(down[q].values())) for q in inward]
    in_queues = [_queue(list(s["in_queued"][q]), taken[q], any_down[q]) for q in inward]
    new["in_queued"] = _stack([q for q, _ in in_queues], s["in_queued"])
    new["in_late"] = _aged(s["in_late"], any_down)
    out, out_put = _queue([any_of(list(slot)) for slot in s["out_color"]], any_up, put_any)
    out_color = [_carried([slot[k] for slot in s["out_color"]], any_up, out_put, puts[k]) for k in colors]
    new["out_color"] = jnp.stack([jnp.stack(slot) for slot in zip(*out_color, strict=True)]) & jnp.stack(out)[:, None]
    controls = any_of([t.last & t.control & any_of(t.sends) for t in pes])
    new["out_control"] = jnp.stack(_carried(list(s["out_control"]), any_up, out_put, controls))
    new["out_late"] = _aged(s["out_late"][None], [put_any])[0]

    # Switches and instructions move on.
    switched_out = [leave[k] & s["control"][k, 0] for k in colors]
    new |= _switched(z, tables.controls, tables.routes[:, :, :5], s, "in", switched_in)
    new |= _switched(z, tables.controls, tables.routes[:, :, 5:], s, "out", switched_out)
    after = [go_on(z, tables, s, i, t) for i, t in enumerate(pes)]
    new |= {name: [state[name] for state, _ in after] for name in ("at", "now", "wait")}

    if z.values:
        put, in_put = [p for _, p in queues], [p for _, p in in_queues]
        deep = [jnp.any(any_of([nothing, *s["queued"][k, 1:], *queues[k][0][1:]]) != 0) for k in colors]
        new["moves"] = Moves(deep, leave, come, put, taken, down, in_put, any_up, out_put, [done for _, done in after])
        new |= values(z, tables, s)
    aging = [*s["out_late"], *_flat(s["late"]), *_flat(s["in_late"])]
    moved = any_of([any_up, *leave, *aging, *(t.fire | t.waiting | (t.running & ~t.ready) for t in pes)])
    left = any_of([*_flat(new["at"]), *_flat(new["queued"]), *_flat(new["in_queued"]), *out])
    new["done"] = ~jnp.any(left != 0)
    new["going"] = jnp.any(moved != 0) & ~new["done"]
    if z.watch:
        links = [any_of([nothing, *(sent[k][p] for k in colors if p in sent[k])]) for p in range(5)]
        blocked = [w & ~f for w, f in zip(waits, free, strict=True)]
        lost = [f & ~g for f, g in zip(free, leave, strict=True)]
        pe = [
            any_of([t.fire for t in pes]),
            any_of([t.ready & ~t.has_input for t in pes]),
            any_of([t.ready & t.has_input & ~t.has_room for t in pes]),
            any_of([t.running & ~t.ready for t in pes]),
            any_of([t.running for t in pes]),
        ]
        routers = any_of([nothing, *blocked]), any_of([nothing, *lost])
        new |= _watched(s, [*links[:4], any_up, links[4], *pe, *routers, *_flat(s["queued"])])
        new["peak"] = s["peak"] | s["queued"]
    new["cycle"] = s["cycle"] + 1
    return new


def _flat(stack) -> list:
    return [w for row in stack for w in row]


def _stack(rows: list, like):
    return jnp.stack([jnp.stack(row) for row in rows]) if rows else like


def _in_turn(z: Sizes, free: list, tx: list, cycle) -> list:
    """Of the wavelets that are free to leave those that no other color keeps from it."""
    if not z.shared:
        return free
    begins = lax.rem(cycle, jnp.int32(z.colors))
    taken = [jnp.zeros_like(free[0]) for _ in range(5)]
    leave = [jnp.zeros_like(f) for f in free]
    for later in (False, True):
        for k in range(z.colors):
            mine = jnp.where((begins > k) == later, ~jnp.uint32(0), jnp.uint32(0))
            wins = free[k] & mine
            for port in z.ports_out[k]:
                wins = wins & ~(tx[k][port] & taken[port])
            for port in z.ports_out[k]:
                taken[port] = taken[port] | (wins & tx[k][port])
            leave[k] = leave[k] | wins
    return leave


def _queue(there: list, leaves, comes) -> tuple[list, list]:
    """A queue, of whose places the first so many are taken, after its first one `leaves` and another `comes`; and the
    place that takes what comes."""
    after, put = [], []
    for i, taken in enumerate(there):
        behind = there[i + 1] if i + 1 < len(there) else jnp.zeros_like(taken)
        after.append((behind & leaves) | (taken & ~leaves))
    for i, taken in enumerate(after):
        put.append(comes & ~taken & (after[i - 1] if i else ~jnp.zeros_like(taken)))
    return [a | p for a, p in zip(after, put, strict=True)], put


def _carried(bit: list, leaves, put: list, comes) -> list:
    """A bit of each wavelet in a queue."""
    after = []
    for i, b in enumerate(bit):
        behind = bit[i + 1] if i + 1 < len(bit) else b
        kept = (behind & leaves) | (b & ~leaves)
        after.append((comes & put[i]) | (kept & ~put[i]))
    return after


def _aged(late, comes: list):
    """Of the last cycles, whether a wavelet came in them."""
    if not late.shape[0] or not late.shape[1]:
        return late
    return jnp.concatenate([jnp.stack(comes)[:, None], late[:, :-1]], axis=1)


def _switched(z: Sizes, controls, routes, s: State, side: str, passed: list) -> State:
    """The side of all switches by which wavelets come in, or go out, after control wavelets `passed` it."""
    names = (f"position_{side}", f"left_{side}", f"route_{side}")
    if z.positions == 1 or not z.colors:
        return {name: s[name] for name in names}
    position, left, route = (s[name] for name in names)
    moves = jnp.stack([p & is_one(n) for p, n in zip(passed, left, strict=True)])
    left = jnp.stack([less_one(n, p & any_of(list(n))) for p, n in zip(passed, left, strict=True)])

    def on(position, left, route):
        position = (position & ~moves) | (jnp.concatenate([jnp.zeros_like(position[:1]), position[:-1]]) & moves)

        def pick(table, old):
            new = lax.reduce(position[:, :, None] & table, jnp.uint32(0), lax.bitwise_or, (0,))
            return (new & moves[:, None]) | (old & ~moves[:, None])

        return position, pick(controls, left), pick(routes, route)

    found = lax.cond(jnp.any(moves != 0), on, lambda *same: same, position, left, route)
    return dict(zip(names, found, strict=True))


def _watched(s: State, events: list) -> State:
    """Events counted: in a few bits each cycle, and those in whole numbers before they run over."""
    low = jnp.stack([plus_one(counter, event) for counter, event in zip(s["low"], events, strict=True)])
    due = lax.rem(s["cycle"], jnp.int32((1 << LOW) - 1)) == (1 << LOW) - 2
    return lax.cond(due, _emptied, lambda both: both, {"low": low, "counted": s["counted"]})


def _emptied(state: State) -> State:
    low = state["low"]
    more = sum(unpack(low[:, b]).astype(jnp.int32) << b for b in range(LOW))
    return {**state, "low": jnp.zeros_like(low), "counted": state["counted"] + more}
