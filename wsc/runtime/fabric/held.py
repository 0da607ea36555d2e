"""Layouts as index arrays: which elements each PE of a region holds, and which PEs of a line add up what."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from wsc.layout import Grid, Layout, strides
from wsc.lowering.layout import shared_out
from wsc.program import PlacedOp
from wsc.runtime.fabric.phases import Lines


@dataclass(frozen=True)
class Cut:
    """A dimension along an axis: its parts, and which of them each PE of that axis has; -1 for none."""

    parts: int
    digit: np.ndarray


@dataclass(frozen=True)
class Held:
    """A result of which PEs hold partial sums: `partial` [rows, columns, 2] which one, along x and y; `index` [rows,
    columns, size] which elements of the result, -1 for none; `lines` where they are added up along an axis."""

    partial: np.ndarray
    index: np.ndarray
    lines: Lines


def cuts(parts: Sequence[int], pes: int) -> list[Cut]:
    """Nested dimensions of `parts` along an axis.

    >>> [c.digit.tolist() for c in cuts((2, 2), 5)]
    [[0, 0, 1, 1, -1], [0, 1, 0, 1, -1]]
    """
    rest, active, found = np.arange(pes), np.ones(pes, bool), []
    for p, stride in zip(parts, strides(tuple(parts), pes), strict=True):
        digit = rest // stride
        active &= digit < p
        rest = rest - digit * stride
        found.append((p, digit))
    return [Cut(p, np.where(active, digit, -1)) for p, digit in found]


def sums_of(op: PlacedOp, axes: Sequence[str], grid: Grid) -> dict[str, Held]:
    """For each of `axes` that the op's partial results are added up along, one after the other, who holds what."""
    shape = tuple(op.eqn.outvars[0].aval.shape)
    contracted, kept, at = _of_product(op, grid) if op.name == "dot_general" else _of_reduction(op, grid)
    found: dict[str, Held] = {}
    for axis in axes:
        other = "x" if axis == "y" else "y"
        where = dict(kept)
        if other in found:  # summed up there: all PEs of a segment go on, each with its share
            where[other] = cuts(at.along(other), getattr(grid, other))
        number = {axis: _number(contracted[axis], getattr(grid, axis))}
        number[other] = _number([] if other in found else contracted[other], getattr(grid, other))
        partial = np.stack(np.broadcast_arrays(number["x"][None, :], number["y"][:, None]), axis=-1)
        index = np.where((partial < 0).any(axis=-1, keepdims=True), -1, _index(at, shape, where, grid))
        found[axis] = Held(np.maximum(partial, 0), index, _lines(axis, number[axis], where[axis]))
        if _batched(op, axis):
            at = shared_out(at, shape, axis, getattr(grid, axis))
    return found


def _of_reduction(op: PlacedOp, grid: Grid) -> tuple[dict[str, list[Cut]], dict[str, list[Cut]], Layout]:
    """By axis, the cuts of the dimensions that are contracted and of those that are kept; how the result lies."""
    at, axes = op.ins[0], op.eqn.params["axes"]
    assert at is not None
    free = [d for d in range(len(at.y)) if d not in axes]
    every = {a: cuts(at.along(a), getattr(grid, a)) for a in "xy"}
    return (
        {a: [c[d] for d in axes] for a, c in every.items()},
        {a: [c[d] for d in free] for a, c in every.items()},
        at.take(free),
    )


def _of_product(op: PlacedOp, grid: Grid) -> tuple[dict[str, list[Cut]], dict[str, list[Cut]], Layout]:
    """The same of a product. Along an axis its PEs lie as the operand does that is cut into more parts there."""
    lhs, rhs = op.ins
    assert lhs is not None and rhs is not None
    contract, batch = op.eqn.params["dimension_numbers"]
    free = [
        [d for d in range(len(at.y)) if d not in (*k, *b)] for at, k, b in zip((lhs, rhs), contract, batch, strict=True)
    ]
    contracted, kept = {}, {}
    for a in "xy":
        both = [cuts(at.along(a), getattr(grid, a)) for at in (lhs, rhs)]
        side = 0 if math.prod(lhs.along(a)) >= math.prod(rhs.along(a)) else 1
        contracted[a] = [both[side][d] for d in contract[side]]
        kept[a] = [both[side][d] for d in batch[side]] + [both[i][d] for i in (0, 1) for d in free[i]]
    folds = tuple(lhs.fold(d) for d in (*batch[0], *free[0])) + tuple(rhs.fold(d) for d in free[1])
    down, along = (tuple(c.parts for c in kept[a]) for a in "yx")
    return contracted, kept, Layout(down, along, folds)


def _batched(op: PlacedOp, axis: str) -> bool:
    """A product with batch dimensions that are cut along the axis."""
    if op.name != "dot_general":
        return False
    batch = op.eqn.params["dimension_numbers"][1]
    return any(at is not None and any(at.along(axis)[d] > 1 for d in b) for at, b in zip(op.ins, batch, strict=True))


def _number(along: Sequence[Cut], pes: int) -> np.ndarray:
    """The number of the part that each PE of an axis has of all dimensions together; -1 for none."""
    number, active = np.zeros(pes, np.int64), np.ones(pes, bool)
    for c in along:
        number, active = number * c.parts + c.digit, active & (c.digit >= 0)
    return np.where(active, number, -1)


def _index(at: Layout, shape: tuple[int, ...], where: dict[str, list[Cut]], grid: Grid) -> np.ndarray:
    """Elements [rows, columns, size] of an array of `shape` that PEs hold."""
    index = np.zeros((*grid, 1), np.int64)
    for d, n in enumerate(shape):
        down, along = where["y"][d], where["x"][d]
        f, (before, _) = at.fold(d), at.margin(d)
        piece, parts = -(-at.frame(d, n) // f), down.parts * along.parts
        tile = -(-piece // parts)
        part = np.arange(parts)[:, None, None] * tile + np.arange(tile)
        own = np.arange(f)[:, None] * piece + part - before
        own = np.where((part < piece) & (own >= 0) & (own < n), own, -1).reshape(parts, f * tile)
        held = own[np.maximum(down.digit[:, None] * along.parts + along.digit, 0)]
        held = np.where(((down.digit[:, None] < 0) | (along.digit < 0))[..., None], -1, held)
        both = index[..., :, None] * n + held[..., None, :]
        index = np.where((index[..., :, None] < 0) | (held[..., None, :] < 0), -1, both).reshape(*grid, -1)
    return index


def _lines(axis: str, number: np.ndarray, kept: Sequence[Cut]) -> Lines:
    """Lines of the PEs that hold the same part of what is kept: the first of each number takes part, all hear."""
    segment = _number(kept, len(number))
    places, heard = [], []
    for s in np.unique(segment[(number >= 0) & (segment >= 0)]):
        (mine,) = np.nonzero((segment == s) & (number >= 0))
        places.append(tuple(int(mine[number[mine] == i][0]) for i in np.unique(number[mine])))
        heard.append(tuple(mine.tolist()))
    return Lines(axis, tuple(places), tuple(heard))


def in_order(lines: Lines, pes: int) -> bool:
    """Each line has `pes` participants, one after the other."""
    ordered = all(len(p) == pes and all(a < b for a, b in pairwise(p)) for p in lines.places)
    return ordered and bool(lines.places)


def words(partial: np.ndarray, held: Held) -> np.ndarray:
    """What PEs hold of partial results [PEs along x, PEs along y, ...], as 32-bit words [words, rows, columns]."""
    flat = partial.reshape(*partial.shape[:2], -1)
    own = flat[held.partial[..., 0], held.partial[..., 1]]
    tile = np.take_along_axis(own, np.maximum(held.index, 0), axis=-1)
    tile = np.where(held.index < 0, np.zeros((), partial.dtype), tile)
    if tile.dtype.itemsize == 2 and tile.shape[-1] % 2:
        tile = np.concatenate([tile, np.zeros_like(tile[..., :1])], axis=-1)
    return np.moveaxis(np.ascontiguousarray(tile).view(np.uint32), -1, 0)


def result(found: np.ndarray, held: Held, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, bool]:
    """The array [PEs across, *shape] of which PEs hold the words `found` [words, rows, columns], and whether all PEs
    agree that hold the same part."""
    tile = np.ascontiguousarray(np.moveaxis(found, 0, -1)).view(dtype)[..., : held.index.shape[-1]]
    across = held.partial[..., 1 if held.lines.axis == "x" else 0]
    size, there = math.prod(shape), held.index >= 0
    index, tile = (across[..., None] * size + held.index)[there], np.ascontiguousarray(tile[there])
    flat = np.zeros((int(across.max()) + 1) * size, dtype)
    flat[index] = tile
    return flat.reshape(-1, *shape), flat[index].tobytes() == tile.tobytes()
