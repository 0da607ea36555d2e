"""A program as the arrays that the cycle works on: tables that stay, and the state before the first cycle."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsc.runtime.fabric.bits import banded, pack, planes
from wsc.runtime.fabric.program import FLAGS, NOWHERE, THREADS, Fabric
from wsc.runtime.fabric.sizes import Sizes, Tables, bound
from wsc.runtime.fabric.values import no_moves

LOW = 5  # bits of the counters that are emptied into whole numbers before they run over


def tables_of(fabric: Fabric, z: Sizes) -> Tables:
    """The tables of a program."""
    rx, tx = (np.swapaxes(a[:, : z.positions], 0, 1) for a in (fabric.rx, fabric.tx))
    more = np.concatenate([rx[1:] != NOWHERE, np.zeros_like(rx[:1], bool)])  # the last position stays
    controls = np.where(more, np.swapaxes(fabric.controls[:, : z.positions], 0, 1), 0)
    threads = range(len(z.threads))
    code = {name: _at_least_one(table, z) for name, table in fabric.code.items()}
    binding = bound(fabric)
    masks = [
        np.bitwise_or.reduce([(code["reads"] >> k & 1) * (binding[k] == q) for k in colors])
        for q, colors in enumerate(z.inward)
    ]
    masks += [code["sends"] >> k & 1 for k in range(z.colors)]
    masks += [code["flags"] >> i & 1 for i in range(len(FLAGS))]
    fields = [
        np.concatenate(
            [
                np.stack([pack(m[i]) for m in masks], axis=1),
                planes(code["length"][i], z.length_bits),
                planes(code["repeat"][i], z.repeat_bits),
            ],
            axis=1,
        )
        for i in threads
    ]
    return Tables(
        np.stack([pack(rx == p) for p in z.ports_in], axis=1),
        np.stack([pack(tx >> p & 1) for p in z.ports_out], axis=1),
        np.stack([pack(controls >> b & 1) for b in range(z.control_bits)], axis=1),
        fields,
        [pack(code["length"][i] > 0) for i in threads],
        [
            np.zeros(0, np.int32) if z.threads[i].addresses else banded(code["address"][i]).astype(np.uint16)
            for i in threads
        ],
        np.stack([pack(binding == q) for q in range(len(z.inward))]) if z.inward else np.zeros(0, np.uint32),
        np.int32(fabric.colors),
    )


def _at_least_one(table: np.ndarray, z: Sizes) -> np.ndarray:
    return table if table.shape[1] else np.zeros((THREADS, z.instructions, *table.shape[2:]), table.dtype)


def start(fabric: Fabric, z: Sizes, tables: Tables, memory: np.ndarray | None) -> dict[str, Any]:
    """The state before the first cycle; `memory` is [words, rows, columns] of 32 bits."""
    t, k = z.timing, z.colors
    words = tables.routes_in.shape[-2:]
    threads = range(len(z.threads))

    def zeros(*front):
        return np.zeros((*front, *words), np.uint32)

    begun = [pack(fabric.instructions[i] > 0) for i in threads]
    bare = [tables.code[i][0, z.fields - len(FLAGS) + FLAGS.index("bare")] for i in threads]
    first = zeros(z.positions, k)
    first[0] = ~np.uint32(0)
    state: dict[str, Any] = {
        "cycle": np.int32(0),
        "going": np.bool_(True),
        "done": np.bool_(False),
        "moved": np.int32(0),  # how many cycles it was until nothing moved any more, and until nothing was left to do
        "left": np.int32(0),
        "position_in": first,
        "position_out": first,
        "left_in": tables.controls[0],
        "left_out": tables.controls[0],
        "route_in": tables.routes_in[0],
        "route_out": tables.routes_out[0],
        "queued": zeros(t.router, k),
        "control": zeros(t.router, k),
        "late": zeros(t.deliver - 1, k),
        "out_color": zeros(t.outward, k),
        "out_control": zeros(t.outward),
        "out_late": zeros(t.ramp - 1),
        "in_queued": zeros(len(z.inward), t.inward),
        "in_late": zeros(len(z.inward), t.ramp - 1),
        "at": [np.concatenate([begun[i][None], zeros(z.instructions - 1)]) for i in threads],
        "now": [tables.code[i][0] for i in threads],
        "wait": [
            np.stack(
                [begun[i] & ~bare[i] if t.setup >> b & 1 else zeros() for b in range(max(1, t.setup.bit_length()))]
            )
            for i in threads
        ],
    }
    if z.values:
        assert memory is not None
        lines = banded(np.concatenate([memory, np.zeros_like(memory[:1])]))  # the last is for what is not stored
        plane = np.zeros((32, *words), np.uint32)
        state |= {
            "memory": np.moveaxis(lines, 0, 2),  # [band, row of the band, word, column]
            "address": [
                np.full(plane.shape, a[0], np.uint16) if (a := z.threads[i].addresses) else tables.address[i][0]
                for i in threads
            ],
            "sent": plane,
            "value": [[plane] * t.router for _ in range(k)],
            "moves": no_moves(z, words),
            "out_value": [plane] * t.outward,
            "in_value": [[plane] * t.inward for _ in z.inward],
        }
    if z.watch:
        events = len(EVENTS) + k * t.router
        state |= {
            "low": zeros(LOW, events),
            "counted": np.zeros((events, 32, *words), np.int32),
            "peak": zeros(t.router, k),
            "ended": [np.zeros((z.instructions, 32, *words), np.int32) for _ in threads],
        }
    return jax.tree.map(jnp.array, state)  # no array twice: the run takes them over


EVENTS = (
    "north", "south", "west", "east",  # wavelets sent over each link
    "up", "down",  # and over the ramp
    "busy", "starved", "blocked", "preparing", "running",  # cycles of a PE, its program not ended
    "full", "lost",  # cycles that a router has wavelets whose way on is full, or that lose a link to another color
)  # fmt: skip
