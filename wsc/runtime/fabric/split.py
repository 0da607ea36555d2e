"""Large grids in pieces, each small enough for the caches of a computer. Rows or columns between which no route goes
never meet, so that they are simulated apart; other grids are cut into strips of columns that are simulated together
with some of their neighbours' columns.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from wsc.runtime.fabric.program import EAST, NORTH, NOWHERE, PORTS, SOUTH, WEST, Fabric

PIECE = 1 << 15  # PEs of one
STRIP = 3 * PIECE  # PEs of a strip's own columns
BLOCK = 12  # cycles that a strip is simulated without looking at its neighbours
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Piece:
    """Rows and columns of a grid. `halo` are those columns on either side that are simulated with it, which may be
    outside of the grid, as may its own last ones."""

    rows: slice
    columns: slice
    halo: int = 0

    def cut_out(self, array: np.ndarray, nothing: int = 0) -> np.ndarray:
        """What an array [..., rows, columns] of the grid has here, its halo with it, and `nothing` outside."""
        start, stop, columns = self.columns.start - self.halo, self.columns.stop + self.halo, array.shape[-1]
        part = array[..., self.rows, max(start, 0) : stop]
        outside = max(-start, 0), max(stop - max(start, columns), 0)
        if not any(outside):
            return part
        return np.pad(part, [(0, 0)] * (part.ndim - 1) + [outside], constant_values=nothing)

    def of(self, fabric: Fabric) -> Fabric:
        """The program of these PEs."""
        found = Fabric(self.rows.stop - self.rows.start, self.columns.stop - self.columns.start + 2 * self.halo)
        found.rx, found.tx = self.cut_out(fabric.rx, NOWHERE), self.cut_out(fabric.tx)
        found.controls, found.instructions = self.cut_out(fabric.controls), self.cut_out(fabric.instructions)
        found.code = {name: self.cut_out(table) for name, table in fabric.code.items()}
        return found


def pieces(fabric: Fabric) -> list[Piece]:
    """Pieces of about 32,768 PEs; those that have no halo never meet.

    >>> from wsc.runtime.fabric.lines import reduce
    >>> [piece.rows for piece in pieces(reduce("chain", 1024, 1).across(80))]
    [slice(0, 32, None), slice(32, 64, None), slice(64, 80, None)]
    >>> from wsc.runtime.fabric.rectangles import multicast
    >>> pieces(multicast(512, 400, 1))[-1]
    Piece(rows=slice(0, 512, None), columns=slice(268, 402, None), halo=12)
    """
    rows, columns = slice(0, fabric.rows), slice(0, fabric.columns)
    if fabric.rows * fabric.columns <= PIECE:
        return [Piece(rows, columns)]
    sent = np.bitwise_or.reduce(fabric.tx, axis=(0, 1))
    down = (sent[:-1] >> SOUTH & 1).any(axis=1) | (sent[1:] >> NORTH & 1).any(axis=1)
    if (apart := _cut(~down, max(1, PIECE // fabric.columns))) is not None:
        return [Piece(r, columns) for r in apart]
    along = (sent[:, :-1] >> EAST & 1).any(axis=0) | (sent[:, 1:] >> WEST & 1).any(axis=0)
    if (apart := _cut(~along, max(1, PIECE // fabric.rows))) is not None:
        return [Piece(rows, c) for c in apart]
    halo = _reach(fabric)
    number = -(-fabric.columns // max(halo, STRIP // fabric.rows))
    wide = -(-fabric.columns // number)
    if wide < halo or number == 1:
        return [Piece(rows, columns)]
    return [Piece(rows, slice(x, x + wide), halo) for x in range(0, fabric.columns, wide)]


def _reach(fabric: Fabric) -> int:
    """Columns that the cycles of a block reach: one each, and another where what leaves a router to one side hangs on
    the other side: it goes both ways at once, or wants the same port as what does."""
    joined = np.full(fabric.rx.shape[-2:], 1 << EAST, np.uint8)
    for _ in PORTS:
        for ports in fabric.tx.reshape(-1, *joined.shape):
            joined |= np.where(ports & joined, ports, 0).astype(np.uint8)
    return BLOCK + min(BLOCK, int((joined >> WEST & 1).any(axis=0).sum()))


def _cut(free: np.ndarray, size: int) -> list[slice] | None:
    """Slices of at most `size` that end where `free` says that one may; None where one would be longer."""
    found, start, length = [], 0, len(free) + 1
    while start < length:
        stop = min(start + size, length)
        while stop < length and stop > start and not free[stop - 1]:
            stop -= 1
        if stop == start:
            return None
        found.append(slice(start, stop))
        start = stop
    return found


def each(run: Callable[[A], B], them: Iterable[A]) -> list[B]:
    """What `run` makes of each, as many at once as the computer has cores."""
    them = list(them)
    if len(them) <= 1:
        return [run(one) for one in them]
    with ThreadPoolExecutor(min(len(them), os.cpu_count() or 1)) as threads:
        return list(threads.map(run, them))


def together(parts: list[np.ndarray], them: list[Piece], grid: tuple[int, int]) -> np.ndarray:
    """Arrays [..., rows, columns] of pieces, halos with them, as one of the grid."""
    own = [part[..., piece.halo : part.shape[-1] - piece.halo] for part, piece in zip(parts, them, strict=True)]
    by_rows = them[0].rows != them[-1].rows
    return np.concatenate(own, axis=-2 if by_rows else -1)[..., : grid[0], : grid[1]]
