"""All pieces of a grid, driven to the end of its program."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from wsc.runtime.fabric import split
from wsc.runtime.fabric.bits import unbanded
from wsc.runtime.fabric.engine import block, edges, flushed, run, run_many
from wsc.runtime.fabric.program import Fabric, stacked
from wsc.runtime.fabric.sizes import Sizes, Tables, Timing, sizes_of
from wsc.runtime.fabric.split import Piece, each, pieces, together
from wsc.runtime.fabric.state import start, tables_of

State = dict[str, Any]


@dataclass(frozen=True)
class Driven:
    """A program when it has ended, or was left: the states of its pieces."""

    fabric: Fabric
    z: Sizes
    pieces: list[Piece]
    states: list[State]

    @property
    def ended(self) -> bool:
        return all(s["left"] < s["cycle"] for s in self.states)

    @property
    def cycles(self) -> int:
        """Until nothing was left to do."""
        return max(int(s["left"]) for s in self.states) + 1

    @property
    def moved(self) -> int:
        """Cycles until nothing moved any more."""
        return max(int(s["moved"]) for s in self.states)

    @property
    def stuck(self) -> bool:
        return self.moved < max(int(s["cycle"]) for s in self.states)

    def grid(self, read: Callable[[State], np.ndarray]) -> np.ndarray:
        """What is `read` of the state of a piece, [..., band, row of the band, column], as [..., rows, columns]."""
        parts = [unbanded(read(s), p.rows.stop - p.rows.start) for p, s in zip(self.pieces, self.states, strict=True)]
        return together(parts, self.pieces, (self.fabric.rows, self.fabric.columns))


def drive(fabric: Fabric, z: Sizes, words: np.ndarray | None, limit: int) -> Driven:
    """Runs a program until it has ended, nothing moves any more, or `limit` cycles have passed. `words` is its memory
    [words, rows, columns]."""
    them = pieces(fabric)
    halo = them[0].halo
    if len(them) > 1:
        rows, columns = (max(s.stop - s.start for s in (getattr(p, a) for p in them)) for a in ("rows", "columns"))
        z = replace(z, pes=rows * (columns + 2 * halo), halo=halo, storing=None)

    def begun(piece: Piece) -> tuple[Tables, State]:
        part = piece.of(fabric) if len(them) > 1 else fabric
        tables = tables_of(part, z)
        return tables, start(part, z, tables, None if words is None else piece.cut_out(words))

    last = np.int32(min(limit, np.iinfo(np.int32).max))
    states = _strips(z, them, begun, last) if halo else each(lambda piece: run(z, *begun(piece), last), them)
    return Driven(fabric, z, them, states)


def drive_many(fabrics: list[Fabric], timing: Timing, values, watch: bool, words: list, limit: int) -> list[Driven]:
    """The same for several programs at once, each on a grid of its own."""
    rows, columns = max(f.rows for f in fabrics), max(f.columns for f in fabrics)
    below = stacked(fabrics, rows=rows)
    z = replace(sizes_of(below, timing, values, watch), pes=rows * columns, storing=None)
    deepest, tables, states = max(len(w) for w in words) if values else 0, [], []
    for i, (fabric, memory) in enumerate(zip(fabrics, words, strict=True)):
        part = Piece(slice(i * rows, (i + 1) * rows), slice(0, columns)).of(below)
        if values:
            filling = (0, deepest - len(memory)), (0, rows - fabric.rows), (0, columns - fabric.columns)
            memory = np.pad(memory, filling)
        tables.append(tables_of(part, z)._replace(colors=np.int32(fabric.colors)))
        states.append(start(part, z, tables[-1], memory))
    last = np.int32(min(limit, np.iinfo(np.int32).max))

    def many(trees: list) -> Any:
        return jax.tree.map(lambda *a: np.stack(a), *trees)

    ended = run_many(z, many(tables), many(states), last)
    return [
        Driven(f, z, [Piece(slice(0, f.rows), slice(0, f.columns))], [jax.tree.map(lambda a, i=i: a[i], ended)])
        for i, f in enumerate(fabrics)
    ]


def _strips(z: Sizes, them: list[Piece], begun: Callable[[Piece], tuple[Tables, State]], limit) -> list[State]:
    """The states of strips, driven in blocks of cycles.

    One in which, and in whose neighbours, nothing moved in a block stays as it is in the next: what moves further away
    does not reach it before that ends.
    """
    end, wide = them[-1].columns.stop, them[-1].columns.stop - them[-1].columns.start
    outside = Piece(them[-1].rows, slice(end, end + wide), z.halo)  # west of the first one, east of the last
    tables, states = map(list, zip(*each(begun, [*them, outside]), strict=True))
    sides = [edges(z, state) for state in states]
    moved, now = [True] * len(them) + [False], np.int32(0)
    while any(moved) and now < limit:
        then = np.int32(min(now + split.BLOCK, limit))

        def on(i: int, now=now, then=then) -> tuple[State, tuple[State, State]]:
            west, east = i - 1, (i + 1) % len(states)
            counts = z.watch and not states[i]["done"]
            if not (counts or moved[west] or moved[i] or moved[east]):
                return states[i], sides[i]
            state, *own = block(z, tables[i], states[i], sides[west][1], sides[east][0], now, then)
            return state, (own[0], own[1])

        found = each(on, range(len(them)))
        states[:-1], sides[:-1] = (list(part) for part in zip(*found, strict=True))
        moved[:-1] = [bool(s["moved"] > now) for s in states[:-1]]
        now = then
    return each(lambda i: flushed(z, tables[i], states[i]), range(len(them)))
