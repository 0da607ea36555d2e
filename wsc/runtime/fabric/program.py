"""What a grid of PEs is told before the first cycle: the routes of its colors, and vector instructions for PEs."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsc.errors import ArgumentError, ColorClashError

NORTH, SOUTH, WEST, EAST, RAMP = PORTS = range(5)
PORT_NAMES = ("north", "south", "west", "east", "ramp")
OPPOSITE = (SOUTH, NORTH, EAST, WEST)
NOWHERE = 255  # a port that a router does not have
POSITIONS = 4  # of a switch
THREADS = 3  # of a PE that are simulated

Where = tuple[Any, Any]  # how numpy picks rows and columns


@dataclass(frozen=True)
class Instruction:
    """One vector instruction, element by element: `length` times it takes one wavelet of each color of `reads`, adds
    what memory has (`load`), and puts the result into memory (`store`), on the fabric (`sends`), or both.

    Memory is read and written from word `address` on. With `repeat` it goes over the same words so many times. The last
    wavelet of each time that it sends is a `control` wavelet: it counts at every switch on its way. `slow` ones do an
    element every other cycle, as transfers in the background. One that neither reads, sends, loads nor stores is busy
    for `length` cycles. `bare` ones need no preparing; `largest` keeps the larger of its operands, whatever else the
    run does with them. A PE has threads 0 to 2 that run at the same time, each through its own instructions; all
    have the ramps, and the lower number goes first where they want the same. One that `joins` waits until all other
    threads are at one, too, or have ended.
    """

    length: int
    reads: tuple[int, ...] = ()
    sends: int | None = None
    load: bool = False
    store: bool = False
    address: int = 0
    repeat: int = 1
    control: bool = True
    slow: bool = False
    bare: bool = False
    largest: bool = False
    joins: bool = False
    thread: int = 0


class Fabric:
    """A program for `rows` x `columns` PEs, built route by route and instruction by instruction.

    >>> line = Fabric(1, 3)
    >>> red = line.color()
    >>> line.route(red, (0, 2), RAMP, [WEST])
    >>> line.route(red, (0, 1), EAST, [WEST])
    >>> line.route(red, (0, 0), EAST, [RAMP])
    >>> line.instruct((0, 2), Instruction(8, sends=red, load=True))
    >>> line.instruct((0, 0), Instruction(8, reads=(red,), store=True))
    >>> line
    <Fabric: 1 x 3 PEs, 1 colors, at most 1 instructions a PE>
    """

    def __init__(self, rows: int, columns: int):
        if rows < 1 or columns < 1:
            raise ArgumentError(f"a grid of {rows} x {columns} PEs: it must have at least one")
        grid = rows, columns
        self.rows, self.columns = grid
        self.rx = np.full((0, POSITIONS, *grid), NOWHERE, np.uint8)  # the port a color comes in by, in each position
        self.tx = np.zeros((0, POSITIONS, *grid), np.uint8)  # a bit for each port it goes out by
        self.controls = np.zeros((0, POSITIONS, *grid), np.uint32)  # control wavelets that move the switch on
        self.code = {name: np.zeros((THREADS, 0, *grid), np.uint32) for name in FIELDS}
        self.instructions = np.zeros((THREADS, *grid), np.int64)  # of each PE

    @property
    def colors(self) -> int:
        return len(self.rx)

    def __repr__(self) -> str:
        most = int(self.instructions.max())
        return f"<Fabric: {self.rows} x {self.columns} PEs, {self.colors} colors, at most {most} instructions a PE>"

    def color(self) -> int:
        """A new color, without routes."""
        grid = self.rows, self.columns
        self.rx = np.concatenate([self.rx, np.full((1, POSITIONS, *grid), NOWHERE, np.uint8)])
        self.tx = np.concatenate([self.tx, np.zeros((1, POSITIONS, *grid), np.uint8)])
        self.controls = np.concatenate([self.controls, np.zeros((1, POSITIONS, *grid), np.uint32)])
        return self.colors - 1

    def route(self, color: int, where: Where, rx: int, tx: Iterable[int], controls: int = 1, switch: bool = True):
        """The next position of a color's switch at the routers `where`: wavelets come in by port `rx` and leave by all
        ports of `tx`, until so many `controls` have passed; the last position stays. The same route as in the position
        before makes that one last longer. Without `switch` a second route of a color is a clash.
        """
        out = np.uint8(sum(1 << port for port in set(tx)))
        rows, columns = self._picked(where)
        used = (self.rx[color][:, rows, columns] != NOWHERE).sum(axis=0)
        last = np.maximum(used - 1, 0)
        same = (used > 0) & (self.rx[color, last, rows, columns] == rx) & (self.tx[color, last, rows, columns] == out)
        at = np.where(same, last, used)
        full = at >= (POSITIONS if switch else 1)
        if full.any():
            i = int(np.argmax(full))
            had = ", ".join(
                f"{PORT_NAMES[self.rx[color, p, rows[i], columns[i]]]} to "
                f"{port_names(self.tx[color, p, rows[i], columns[i]])}"
                for p in range(used[i])
            )
            raise ColorClashError(
                f"color {color} at the router of PE ({rows[i]}, {columns[i]}) is routed {had}, and now "
                f"{PORT_NAMES[rx]} to {port_names(int(out))}: a switch has {POSITIONS} positions; "
                f"take another color for one of the two"
            )
        self.rx[color, at, rows, columns] = rx
        self.tx[color, at, rows, columns] = out
        self.controls[color, at, rows, columns] += np.uint32(controls)

    def instruct(self, where: Where, instruction: Instruction):
        """The next instruction of the PEs `where`."""
        for color in (*instruction.reads, *((instruction.sends,) if instruction.sends is not None else ())):
            if not 0 <= color < self.colors:
                raise ArgumentError(f"{instruction}: there are colors 0 to {self.colors - 1}")
        if min(instruction.length, instruction.address, instruction.repeat - 1) < 0 or instruction.thread not in range(
            THREADS
        ):
            raise ArgumentError(
                f"{instruction}: length and address are at least 0, repeat at least 1, thread 0 to {THREADS - 1}"
            )
        if instruction.length == 0:
            return
        rows, columns = self._picked(where)
        values = {name: np.uint32(value) for name, value in encoded(instruction).items()}
        self._append(instruction.thread, rows, columns, values)

    def _picked(self, where: Where) -> list[np.ndarray]:
        """Row and column of each PE of `where`."""
        rows, columns = np.arange(self.rows)[where[0]], np.arange(self.columns)[where[1]]
        return [i.ravel() for i in np.broadcast_arrays(*np.ix_(np.atleast_1d(rows), np.atleast_1d(columns)))]

    def _append(self, thread: int, rows, columns, values: dict[str, Any]):
        at = self.instructions[thread, rows, columns]
        more = int(at.max(initial=-1)) + 1 - self.code["length"].shape[1]
        if more > 0:
            space = np.zeros((THREADS, more, self.rows, self.columns), np.uint32)
            self.code = {name: np.concatenate([table, space], axis=1) for name, table in self.code.items()}
        for name, value in values.items():
            self.code[name][thread, at, rows, columns] = value
        self.instructions[thread, rows, columns] = at + 1

    def tidy(self) -> "Fabric":
        """This program without the colors that no router has a route for."""
        used = (self.rx != NOWHERE).any(axis=(1, 2, 3))
        if used.all():
            return self
        kept = copy(self)
        kept.rx, kept.tx, kept.controls = self.rx[used], self.tx[used], self.controls[used]
        kept.code = dict(self.code)
        for name in ("reads", "sends"):
            kept.code[name] = renumbered(self.code[name], np.cumsum(used) - 1)
        return kept

    def then(self, other: "Fabric") -> "Fabric":
        """Every PE runs its instructions of `other` after those of this one, on colors of their own; they are numbered
        in turn, so that those of either, which meet at links, have equally many turns there."""
        if (other.rows, other.columns) != (self.rows, self.columns):
            raise ArgumentError(f"{self!r} and {other!r}: only grids of the same size run one after the other")
        both = Fabric(self.rows, self.columns)
        at = np.concatenate([(np.arange(f.colors) + 0.5) / max(f.colors, 1) for f in (self, other)])
        order = np.argsort(at, kind="stable")
        for name in ("rx", "tx", "controls"):
            setattr(both, name, np.concatenate([getattr(self, name), getattr(other, name)])[order])
        numbers = np.argsort(order)
        for f, own in ((self, numbers[: self.colors]), (other, numbers[self.colors :])):
            both.extend(
                {n: renumbered(t, own) if n in ("reads", "sends") else t for n, t in f.code.items()}, f.instructions
            )
        return both

    def extend(self, code: dict[str, np.ndarray], instructions: np.ndarray):
        """Further instructions for PEs, as another program has them, their colors numbered as here."""
        for thread, i in np.ndindex(code["length"].shape[:2]):
            rows, columns = np.nonzero(instructions[thread] > i)
            self._append(thread, rows, columns, {name: table[thread, i, rows, columns] for name, table in code.items()})

    def across(self, rows: int, axis: str = "x") -> "Fabric":
        """This line (one row) on each of `rows` lines: of rows, or, where `axis` is "y", of columns."""
        if self.rows != 1:
            raise ArgumentError(f"{self!r} is no line")
        turned = axis == "y"
        many = Fabric(*((self.columns, rows) if turned else (rows, self.columns)))

        def laid(array):
            array = np.repeat(array, rows, axis=-2)
            return np.ascontiguousarray(np.swapaxes(array, -1, -2)) if turned else array

        many.rx, many.tx, many.controls = laid(self.rx), laid(self.tx), laid(self.controls)
        many.code = {name: laid(table) for name, table in self.code.items()}
        many.instructions = laid(self.instructions)
        if turned:  # east becomes south, west north, and the other way about
            ports = np.array([WEST, EAST, NORTH, SOUTH, RAMP], np.uint8)
            many.rx = np.where(many.rx == NOWHERE, many.rx, ports[np.minimum(many.rx, RAMP)])
            many.tx = sum((((many.tx >> p) & 1) << ports[p] for p in PORTS), np.zeros_like(many.tx))
        return many


def stacked(fabrics: Sequence[Fabric], columns: int = 0, rows: int = 0) -> Fabric:
    """Programs one below the other, each at the left, on a grid as wide as the widest, or of `columns`, and on at least
    so many `rows`; they do not meet. Colors of the same number are the same color, and PEs outside do nothing.
    """
    high = [max(rows, f.rows) for f in fabrics]
    whole = Fabric(sum(high), max(columns, *(f.columns for f in fabrics)))
    for _ in range(max(f.colors for f in fabrics)):
        whole.color()
    depth = max(f.code["length"].shape[1] for f in fabrics)
    whole.code = {name: np.zeros((THREADS, depth, whole.rows, whole.columns), np.uint32) for name in FIELDS}
    top = 0
    for f, after in zip(fabrics, high, strict=True):
        down, across = slice(top, top + f.rows), slice(f.columns)
        whole.rx[: f.colors, :, down, across] = f.rx
        whole.tx[: f.colors, :, down, across] = f.tx
        whole.controls[: f.colors, :, down, across] = f.controls
        for name, table in f.code.items():
            whole.code[name][:, : table.shape[1], down, across] = table
        whole.instructions[:, down, across] = f.instructions
        top += after
    return whole


FIELDS = ("length", "repeat", "address", "reads", "sends", "flags")
FLAGS = ("load", "store", "control", "slow", "bare", "largest", "joins")


def encoded(instruction: Instruction) -> dict[str, int]:
    """An instruction as numbers: masks of colors and flags."""
    return {
        "length": instruction.length,
        "repeat": instruction.repeat,
        "address": instruction.address,
        "reads": sum(1 << color for color in set(instruction.reads)),
        "sends": 0 if instruction.sends is None else 1 << instruction.sends,
        "flags": sum(getattr(instruction, name) << i for i, name in enumerate(FLAGS)),
    }


def renumbered(masks: np.ndarray, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """Masks of colors in which color k has become `numbers[k]`."""
    found = np.zeros_like(masks)
    for k, number in enumerate(numbers):
        found |= (masks >> np.uint32(k) & np.uint32(1)) << np.uint32(max(int(number), 0))
    return found


def port_names(mask: int) -> str:
    """The ports of a mask in words."""
    return " and ".join(PORT_NAMES[p] for p in PORTS if int(mask) >> p & 1) or "nowhere"
