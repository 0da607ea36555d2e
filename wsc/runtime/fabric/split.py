"""Large grids in pieces: rows or columns between which no route goes never meet, so that they can be simulated apart,
each small enough for the caches of a computer."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from wsc.runtime.fabric.program import EAST, NORTH, SOUTH, WEST, Fabric

PIECE = 1 << 15  # PEs of one
Piece = tuple[slice, slice]
T = TypeVar("T")


def pieces(fabric: Fabric) -> list[Piece]:
    """Rows and columns of pieces of about 32,768 PEs, as far as routes allow; one where they allow none.

    >>> from wsc.runtime.fabric.lines import reduce
    >>> [rows for rows, _ in pieces(reduce("chain", 1024, 1).across(80))]
    [slice(0, 32, None), slice(32, 64, None), slice(64, 80, None)]
    """
    everything = slice(0, fabric.rows), slice(0, fabric.columns)
    if fabric.rows * fabric.columns <= PIECE:
        return [everything]
    sent = np.bitwise_or.reduce(fabric.tx, axis=(0, 1))
    down = (sent[:-1] >> SOUTH & 1).any(axis=1) | (sent[1:] >> NORTH & 1).any(axis=1)
    if (rows := _cut(~down, max(1, PIECE // fabric.columns))) is not None:
        return [(r, everything[1]) for r in rows]
    along = (sent[:, :-1] >> EAST & 1).any(axis=0) | (sent[:, 1:] >> WEST & 1).any(axis=0)
    columns = _cut(~along, max(1, PIECE // fabric.rows))
    return [everything] if columns is None else [(everything[0], c) for c in columns]


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


def piece_of(fabric: Fabric, piece: Piece) -> Fabric:
    """The program of a piece."""
    found = Fabric(piece[0].stop - piece[0].start, piece[1].stop - piece[1].start)
    found.rx, found.tx = fabric.rx[..., *piece], fabric.tx[..., *piece]
    found.controls = fabric.controls[..., *piece]
    found.code = {name: table[..., *piece] for name, table in fabric.code.items()}
    found.instructions = fabric.instructions[..., *piece]
    return found


def each(run: Callable[[Piece], T], them: list[Piece]) -> list[T]:
    """What `run` makes of every piece, as many at once as the computer has cores."""
    if len(them) == 1:
        return [run(them[0])]
    with ThreadPoolExecutor(min(len(them), os.cpu_count() or 1)) as threads:
        return list(threads.map(run, them))


def together(parts: list[np.ndarray], them: list[Piece], at: int) -> np.ndarray:
    """Arrays of pieces as one of the grid; `at` is the axis of rows, that of columns comes behind it."""
    if len(parts) == 1:
        return parts[0]
    by_rows = them[0][0] != them[1][0]
    return np.concatenate(parts, axis=at if by_rows else at + 1)
