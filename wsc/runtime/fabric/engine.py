"""One cycle of all routers and PEs, and the loop around it.

All decisions of a cycle are made from the state before it, so that its order of work does not matter. A router has one
queue for each color; the first wavelet of a queue leaves when every port of its route has room behind it and no other
color takes one of them. Where colors want the same port, the first in turn gets it, and a wavelet takes all its ports
or none: color (cycle mod colors) comes first, then the others upwards. Room is what a neighbour's queue had free before
the cycle; a PE's own queues pass a wavelet on and take one in at once. A control wavelet moves a switch on twice: where
wavelets come in as it comes in, and where they go out as it goes out, so that messages follow without a gap.

Arrays are words of 32 PEs, [..., row of the band, column]; of routers, one such for each color.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wsc.runtime.fabric import bits
from wsc.runtime.fabric.bits import any_of, is_one, less_one, more_than, plus_one, union, unpack
from wsc.runtime.fabric.program import OPPOSITE, RAMP
from wsc.runtime.fabric.sizes import Sizes, Tables
from wsc.runtime.fabric.state import LOW
from wsc.runtime.fabric.threads import go_on, threads
from wsc.runtime.fabric.values import Moves, values

FROM = (bits.from_north, bits.from_south, bits.from_west, bits.from_east)
State = dict[str, Any]
SMALL = 1 << 16  # PEs of a grid for which the quickly compiled runs as fast as the well compiled


def run(z: Sizes, tables: Tables, state: State, limit) -> State:
    """Cycles until the program has ended, nothing moves any more, or `limit` of them have passed."""
    return (_run if z.pes <= SMALL else _run_well)(z, tables, state, limit)


def run_many(z: Sizes, tables: Tables, states: State, limit) -> State:
    """The same of several grids at once, of which all arrays have a leading axis."""
    return _run_many(z, tables, states, limit)


def block(z: Sizes, tables: Tables, state: State, west: State, east: State, begin, end) -> tuple[State, State, State]:
    """Cycles `begin` to `end` of a strip of columns, after its halo has been taken from the `edges` of those beside it:
    the state, and its edges. Those cycles must not reach further than the halo; its own columns are then as they are on
    the whole grid."""
    return (_block if z.pes <= SMALL else _block_well)(z, tables, state, west, east, begin, end)


def _cycles(z: Sizes, tables: Tables, state: State, limit) -> State:
    """Cycles while anything moves; of strips that are watched, while anything is left: who waits is counted, too."""

    def more(s):
        on = ~s["done"] if z.halo and z.watch else s["going"]
        return on & (s["cycle"] < limit)

    return lax.while_loop(more, partial(cycle, z, tables), state)


def _to_end(z: Sizes, tables: Tables, state: State, limit) -> State:
    return _flushed(z, tables, _cycles(z, tables, state, limit))


def _of_block(z: Sizes, tables: Tables, state: State, west: State, east: State, begin, end):
    def with_halo(here, west, east):
        if here.ndim < 2:
            return here
        columns = here.shape[-1]
        here = lax.dynamic_update_slice_in_dim(here, west, 0, axis=-1)
        return lax.dynamic_update_slice_in_dim(here, east, columns - z.halo, axis=-1)

    state = jax.tree.map(with_halo, state, west, east)
    state |= {"cycle": begin, "going": jnp.bool_(True), "done": jnp.bool_(False)}
    state = _cycles(z, tables, state, end)
    return state, *_edges(z, state)


def _edges(z: Sizes, state: State) -> tuple[State, State]:
    """The first and the last of a strip's own columns: what those beside it have as halo."""

    def edge(columns):
        return jax.tree.map(lambda a: a if a.ndim < 2 else a[..., columns], state)

    return edge(slice(z.halo, 2 * z.halo)), edge(slice(-2 * z.halo, -z.halo))


def _flushed(z: Sizes, tables: Tables, state: State) -> State:
    """The state after the moves of the last cycle, all counted."""
    if z.values:
        state |= values(z, tables, state)
    return _emptied(state) if z.watch else state


_QUICK = {"xla_llvm_disable_expensive_passes": True}
_run_well = jax.jit(_to_end, static_argnums=0, donate_argnums=2)
_run = jax.jit(_to_end, static_argnums=0, donate_argnums=2, compiler_options=_QUICK)
_block_well = jax.jit(_of_block, static_argnums=0, donate_argnums=2)
_block = jax.jit(_of_block, static_argnums=0, donate_argnums=2, compiler_options=_QUICK)
_run_many = jax.jit(
    lambda z, *grids: jax.vmap(partial(_to_end, z), in_axes=(0, 0, None))(*grids),
    static_argnums=0, donate_argnums=2, compiler_options=_QUICK,
)  # fmt: skip
edges = jax.jit(_edges, static_argnums=0)
flushed = jax.jit(_flushed, static_argnums=0, donate_argnums=2, compiler_options=_QUICK)


def cycle(z: Sizes, tables: Tables, s: State) -> State:
    """The state one cycle later."""
    t, queued, out_color = z.timing, list(s["queued"]), list(s["out_color"])
    rx = {port: s["route_in"][i] for i, port in enumerate(z.ports_in)}
    tx = {port: s["route_out"][i] for i, port in enumerate(z.ports_out)}
    nothing, inward = jnp.zeros_like(queued[0]), range(len(z.inward))
    room = ~queued[-1]

    # The ramp up: the first wavelet goes into the queue of its color.
    out_there = [union(slot) for slot in out_color]
    up = out_color[0] & more_than(out_there, list(s["out_late"])) & rx.get(RAMP, nothing) & room
    any_up = union(up)

    # PEs: one element of each thread's instruction.
    there = [more_than(list(s["in_queued"][q]), list(s["in_late"][q])) for q in inward]
    pes = threads(z, s, there, ~out_there[-1] | any_up)
    taken = [any_of([p.fire & p.reads[q] for p in pes]) for q in inward]
    puts = any_of([p.fire & p.sends for p in pes])
    any_put = union(puts)

    # Routers: who leaves by which ports.
    first = more_than(queued, list(s["late"][: t.hop - 1]))
    if t.deliver > t.hop and z.forks:
        fork = tx[RAMP] & any_of([nothing, *(tx[p] for p in z.ports_out if p != RAMP)])
        first = (first & ~fork) | (more_than(queued, list(s["late"])) & fork)
    way = first & any_of(list(tx.values()))
    for port in z.ports_out:
        if port == RAMP:
            behind = any_of([nothing, *(tables.binding[q] & (~s["in_queued"][q, -1] | taken[q]) for q in inward)])
        else:
            behind = FROM[port](rx.get(OPPOSITE[port], nothing) & room)
        way = way & (~tx[port] | behind)
    leave = _in_turn(z, tables.colors, way, tx, s["cycle"])
    sent = {port: leave & tx[port] for port in z.ports_out}

    # Queues take in what was sent.
    come = {p: FROM[p](sent[OPPOSITE[p]]) for p in z.neighbours}
    comes = any_of([up, *come.values()])
    control = list(s["control"])
    controls = {p: FROM[p](sent[OPPOSITE[p]] & control[0]) for p in z.neighbours}
    control_comes = any_of([up & s["out_control"][0], *controls.values()])
    after, put = _queue(queued, leave, comes)
    down = [sent[RAMP] & tables.binding[q] for q in inward]
    any_down = [union(d) for d in down]
    in_queues = [_queue(list(s["in_queued"][q]), taken[q], any_down[q]) for q in inward]
    out, out_put = _queue(out_there, any_up, any_put)
    out_controls = any_of([p.last & p.control & union(p.sends) for p in pes])
    steps = [go_on(z, tables, s, i, p) for i, p in enumerate(pes)]
    new: State = {
        "cycle": s["cycle"] + 1,
        "queued": jnp.stack(after),
        "control": jnp.stack(_carried(control, leave, put, control_comes)),
        "late": _aged(s["late"], any_of([nothing, *come.values()])),
        "in_queued": jnp.stack([jnp.stack(q) for q, _ in in_queues]) if in_queues else s["in_queued"],
        "in_late": jnp.stack([_aged(s["in_late"][q], any_down[q]) for q in inward]) if in_queues else s["in_late"],
        "out_color": jnp.stack(_carried(out_color, any_up, out_put, puts)) & jnp.stack(out)[:, None],
        "out_control": jnp.stack(_carried(list(s["out_control"]), any_up, out_put, out_controls)),
        "out_late": _aged(s["out_late"], any_put),
        **{name: [state[name] for state, _ in steps] for name in ("at", "now", "wait")},
        **_switched(z, tables.controls, tables.routes_in, s, "in", control_comes),
        **_switched(z, tables.controls, tables.routes_out, s, "out", leave & control[0]),
    }
    if z.values:
        in_put = [p for _, p in in_queues]
        new["moves"] = Moves(leave, come, put, taken, down, in_put, any_up, out_put, [done for _, done in steps])
        new |= values(z, tables, s)
    aging = [union(w.reshape(-1, *w.shape[-2:])) for w in (s["late"], s["in_late"], s["out_late"]) if w.size]
    moved = any_of([any_up, union(leave), *aging, *(p.fire | p.waiting | (p.running & ~p.ready) for p in pes)])
    left = any_of([union(new["queued"]), *(union(at) for at in new["at"]), *out, *(w for q, _ in in_queues for w in q)])
    new["done"] = ~jnp.any(left != 0)
    new["going"] = jnp.any(moved != 0) & ~new["done"]
    own = slice(z.halo, left.shape[-1] - z.halo)
    for name, words in (("moved", moved), ("left", left)):
        new[name] = jnp.where(jnp.any(words[..., own] != 0), new["cycle"], s[name])
    if z.watch:
        links = [union(sent[p]) if p in sent else nothing[0] for p in range(5)]
        pe = [
            any_of([p.fire for p in pes]),
            any_of([p.ready & ~p.has_input for p in pes]),
            any_of([p.ready & p.has_input & ~p.has_room for p in pes]),
            any_of([p.running & ~p.ready for p in pes]),
            any_of([p.running for p in pes]),
        ]
        stuck = [union(first & ~way), union(way & ~leave)]
        new |= _watched(s, jnp.concatenate([jnp.stack([*links[:4], any_up, links[4], *pe, *stuck]), *queued]))
        new["peak"] = s["peak"] | s["queued"]
        new["ended"] = [_ended(s, i, p) for i, p in enumerate(pes)]
    return new


def _in_turn(z: Sizes, colors, way, tx: dict, cycle):
    """Of the wavelets that are free to leave those that no other color keeps from it."""
    if not z.shared:
        return way
    wants = jnp.stack([tx[p] for p in z.ports_out])

    def one(i, found):
        taken, leave = found
        k = (cycle + i) % colors
        mine = lax.dynamic_index_in_dim(wants, k, axis=1, keepdims=False)
        wins = lax.dynamic_index_in_dim(way, k, keepdims=False) & ~union(mine & taken)
        return taken | (wins & mine), lax.dynamic_update_index_in_dim(leave, wins, k, axis=0)

    return lax.fori_loop(0, colors, one, (jnp.zeros_like(wants[:, 0]), jnp.zeros_like(way)))[1]


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


def _aged(late, comes):
    """Of the last cycles, whether a wavelet came in them."""
    return jnp.concatenate([comes[None], late[:-1]]) if len(late) else late


def _switched(z: Sizes, controls, routes, s: State, side: str, passed) -> State:
    """The side of all switches by which wavelets come in, or go out, after control wavelets `passed` it."""
    names = (f"position_{side}", f"left_{side}", f"route_{side}")
    if z.positions == 1:
        return {name: s[name] for name in names}
    position, left, route = (s[name] for name in names)
    moves = passed & is_one(left)
    left = less_one(left, passed & union(left))

    def on(position, left, route):
        position = (position & ~moves) | (jnp.concatenate([jnp.zeros_like(position[:1]), position[:-1]]) & moves)

        def pick(table, old):
            return (union(position[:, None] & table) & moves) | (old & ~moves)

        return position, pick(controls, left), pick(routes, route)

    found = lax.cond(jnp.any(moves != 0), on, lambda *same: same, position, left, route)
    return dict(zip(names, found, strict=True))


def _watched(s: State, events) -> State:
    """Events counted: in a few bits each cycle, and those in whole numbers before they run over."""
    low = plus_one(s["low"], events)
    due = lax.rem(s["cycle"], jnp.int32((1 << LOW) - 1)) == (1 << LOW) - 2
    return lax.cond(due, _emptied, lambda both: both, {"low": low, "counted": s["counted"]})


def _ended(s: State, i: int, thread):
    """The cycle after the last of each instruction."""

    def noted(ended):
        return jnp.where(unpack(s["at"][i] & thread.end), s["cycle"] + 1, ended)

    return lax.cond(jnp.any(thread.end != 0), noted, lambda same: same, s["ended"][i])


def _emptied(state: State) -> State:
    low = state["low"]
    more = sum(unpack(low[b]).astype(jnp.int32) << b for b in range(LOW))
    return {**state, "low": jnp.zeros_like(low), "counted": state["counted"] + more}
