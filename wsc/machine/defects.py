"""Wafers with dead PEs: which are dead, and the clean logical mesh that software sees instead.

Published: 5 to 6 % of a wafer's cores are spare, and defects are remapped onto spare cores and links, so that software
sees a clean mesh. How a vendor chooses the spares is not; here they are chosen so:

- Every row leaves the same number of PEs idle, its dead ones among them; the others, in order, are its logical PEs.
- The first row spreads its idle PEs evenly. Each further row keeps those of the row above, and every dead PE takes the
  place of a near one: the PEs between the two shift by one. All these distances together are the least possible.
- Rows with more dead PEs than that are left out whole. A dead row is one of them.

Assumed: the router of a dead PE still forwards. A logical hop then takes as many hops as its ends are apart: sideways
over idle PEs; downwards over rows left out, and along the row by as much as the column has shifted. That is careful: by
second-hand accounts the spare links lead to diagonal neighbours. For their sake bandwidth is taken as unharmed.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np

from wsc.errors import ArgumentError

MOST_DEAD = 0.2  # as a rate; assumed: beyond it no wafer would be sold
SIDE = 64  # PEs of a side of the squares over which `stretch` is a mean: regions of large models have at least that


@dataclass(frozen=True)
class Defects:
    """The dead PEs of a wafer of `rows` x `columns` physical PEs, as a value: equal and hashed by which are dead.

    >>> dead = np.zeros((3, 4), bool); dead[1, 0] = True
    >>> d = Defects.of(dead)
    >>> d.shape, d.positions.tolist()
    ((3, 3), [[0, 1, 3], [1, 2, 3], [1, 2, 3]])
    >>> d.slowest(0, 0, 3, 3)                                # 4 hops for 2 logical ones, down and along
    (1.5, 1.5)
    """

    rows: int
    columns: int
    packed: bytes = field(repr=False)  # the mask, 8 PEs a byte; bytes keep their hash, so a wafer's is cheap

    @classmethod
    def of(cls, dead: np.ndarray) -> "Defects":
        """From a mask, bool [rows, columns], True where a PE is dead. Raises ArgumentError if no PE is alive."""
        if dead.all():
            raise ArgumentError(f"all {dead.size:,} PEs of the wafer are dead: at least one must be alive")
        rows, columns = dead.shape
        return cls(rows, columns, np.packbits(dead).tobytes())

    @cached_property
    def dead(self) -> np.ndarray:
        """The mask, bool [rows, columns], read-only."""
        bits = np.unpackbits(np.frombuffer(self.packed, np.uint8), count=self.rows * self.columns)
        return _fixed(bits.astype(bool).reshape(self.rows, self.columns))

    @cached_property
    def kept(self) -> np.ndarray:
        """The physical row of every logical row, int [logical rows], read-only."""
        return _fixed(np.flatnonzero(self.dead.sum(axis=1) <= self._idle))

    @cached_property
    def _idle(self) -> int:
        return idle_columns(self.dead.sum(axis=1), self.columns)

    @cached_property
    def positions(self) -> np.ndarray:
        """The physical column of every logical PE, int32 [logical rows, logical columns], read-only."""
        alive = np.ones((len(self.kept), self.columns), bool)
        idle = ((np.arange(self._idle) + 0.5) * self.columns / max(1, self._idle)).astype(np.int32)
        for row, dead in zip(alive, self.dead[self.kept], strict=True):
            idle = follow(idle, np.flatnonzero(dead).astype(np.int32))
            row[idle] = False
        return _fixed(np.nonzero(alive)[1].astype(np.int32).reshape(len(alive), -1))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the logical mesh."""
        return len(self.kept), self.columns - self._idle

    def physical(self, y: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Physical rows and columns of the PEs at logical `y` and `x`, ints or integer arrays that broadcast.

        Raises ArgumentError for coordinates outside the logical mesh.
        """
        y, x = np.broadcast_arrays(y, x)
        for name, at, size in (("y", y, self.shape[0]), ("x", x, self.shape[1])):
            if at.size and (at.min() < 0 or at.max() >= size):
                raise ArgumentError(f"{name} is {at.min()} to {at.max()}: the logical mesh has {name} in 0..{size - 1}")
        return self.kept[y], self.positions[y, x]

    def slowest(self, y: int, x: int, height: int, width: int) -> tuple[float, float]:
        """Hops for one logical hop along the longest column, and along the longest row, of a logical rectangle."""
        rows, columns = self.physical(np.arange(y, y + height)[:, None], np.arange(x, x + width))
        down = (np.diff(rows, axis=0) + np.abs(np.diff(columns, axis=0))).sum(axis=0)
        along = columns[:, -1] - columns[:, 0]
        return (
            float(down.max()) / (height - 1) if height > 1 else 1.0,
            float(along.max()) / (width - 1) if width > 1 else 1.0,
        )

    @cached_property
    def stretch(self) -> float:
        """Hops for one logical hop: of the slowest line, row or column, of a square with sides of at least 64 PEs; the
        mean over all such squares, as the stages of a program, one after the other, lie on many of them."""
        rows, columns = (np.linspace(0, n, max(1, n // SIDE) + 1).astype(int).tolist() for n in self.shape)
        found = [
            max(self.slowest(y, x, end - y, stop - x))
            for y, end in itertools.pairwise(rows)
            for x, stop in itertools.pairwise(columns)
        ]
        return math.fsum(found) / len(found)

    def __str__(self) -> str:
        dead, (rows, columns) = int(self.dead.sum()), self.shape
        lost = 100 * (1 - rows * columns / (self.rows * self.columns))
        return f"{dead:,} dead PEs ({lost:.1f} % of PEs lost, hops x {self.stretch:.2f})"


def idle_columns(dead: np.ndarray, columns: int) -> int:
    """How many PEs every row leaves idle, given the dead ones of each row, int [rows].

    At least as many as keep the largest mesh, rows with more dead PEs left out. More shorten the ways around dead PEs:
    with n of them, those cost about dead / n of the hops, and the columns n / columns of the PEs, which is least at
    n ~ sqrt(dead * columns). The factor is chosen: it keeps 95 % of the PEs when 1.5 % are dead.
    """
    idle = np.arange(columns)
    kept = np.cumsum(np.bincount(dead, minlength=columns + 1))[:columns]
    needed = int(np.argmax(kept * (columns - idle)))
    mean = dead[dead <= needed].mean()
    return max(needed, int(0.4 * math.sqrt(mean * columns)))


def follow(idle: np.ndarray, dead: np.ndarray) -> np.ndarray:
    """Idle columns of a row, sorted, given those of the row above and its own dead ones (sorted, not more): each dead
    one takes the place of one idle before, with the least distances in all. O(idle x dead).

    >>> follow(np.array([2, 6]), np.array([5])).tolist()
    [2, 5]
    """
    if not len(dead):
        return idle
    # Pairs in order are never worse on a line: total[k] is the least for the dead so far, k idle ones skipped.
    ways = np.lib.stride_tricks.sliding_window_view(idle, len(idle) - len(dead) + 1)
    distance = np.abs(dead[:, None] - ways)
    totals = [distance[0]]
    for step in distance[1:]:
        totals.append(np.minimum.accumulate(totals[-1]) + step)
    moved, skipped = idle.copy(), len(ways[0]) - 1
    for j in range(len(dead) - 1, -1, -1):
        skipped = int(totals[j][: skipped + 1].argmin())
        moved[j + skipped] = dead[j]
    return np.sort(moved)


def dead_pes(mask_or_rate: Any, rows: int, columns: int, seed: int = 0, dead_rows: Sequence[int] = ()) -> np.ndarray:
    """The mask, bool [rows, columns], from a mask or a rate in [0, 0.2] of PEs that die at random, and rows that are
    dead altogether. Raises ArgumentError for a mask of another shape or kind, another rate, and rows not there."""
    if isinstance(mask_or_rate, Real) and not isinstance(mask_or_rate, bool):
        rate = float(mask_or_rate)
        if not 0 <= rate <= MOST_DEAD:
            raise ArgumentError(f"the rate of dead PEs is {mask_or_rate!r}: it must be from 0 to {MOST_DEAD}")
        if not isinstance(seed, Integral) or seed < 0:
            raise ArgumentError(f"the seed of dead PEs is {seed!r}: it must be a whole number of at least 0")
        dead = np.random.default_rng(int(seed)).random((rows, columns)) < rate
    else:
        try:
            dead = np.array(mask_or_rate)
        except ValueError as error:
            raise ArgumentError(f"the mask of dead PEs is no array: {error}") from error
        if dead.dtype != bool or dead.shape != (rows, columns):
            raise ArgumentError(
                f"the mask of dead PEs is {dead.dtype} {list(dead.shape)}: it must be bool [{rows}, {columns}], True "
                f"where a PE is dead; or give a rate, such as 0.015"
            )
    listed: Any = (dead_rows,) if isinstance(dead_rows, Integral) else dead_rows
    for row in listed:
        if not isinstance(row, Integral) or isinstance(row, bool) or not 0 <= int(row) < rows:
            raise ArgumentError(f"dead_rows has {row!r}: the wafer has rows 0 to {rows - 1}")
        dead[int(row)] = True
    return dead


def _fixed(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
