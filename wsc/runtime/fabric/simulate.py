"""Run a program of a fabric and say what happened: values, cycles, what every link and queue carried, who waited."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from wsc.errors import ArgumentError
from wsc.runtime.fabric import pictures, trace
from wsc.runtime.fabric.bits import unpacked
from wsc.runtime.fabric.check import check
from wsc.runtime.fabric.combine import checked
from wsc.runtime.fabric.drive import Driven, drive, drive_many
from wsc.runtime.fabric.program import Fabric
from wsc.runtime.fabric.sizes import Timing, sizes_of
from wsc.runtime.fabric.state import EVENTS
from wsc.runtime.fabric.unended import unended
from wsc.tables import Printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMIT = 10_000_000  # cycles of a run that was given no limit
WORDS = 1 << 16  # of a PE's memory; a PE of 48 KB has 12,288


@dataclass(frozen=True)
class Run(Printed):
    """What a program did. Arrays are [..., rows, columns], one entry a PE or router.

    `memory` is every PE's words after the run, as the dtype that it was given; `counts` has by name the wavelets sent
    over each link ("north" to "east", "up" and "down" the ramp) and the cycles a PE was "busy", "starved" of input,
    "blocked" by a full queue, "preparing" an instruction or "running" at all, and that a router's wavelets found the
    way "full" or "lost" a link to another color; `occupancy` [color, ...] is the mean length of a router's queue over
    the run in words, `peak` its longest; `ended` [thread, instruction, ...] the cycle after an instruction's last.
    """

    cycles: int
    fabric: Fabric
    timing: Timing
    memory: np.ndarray | None
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    occupancy: np.ndarray | None = None
    peak: np.ndarray | None = None
    ended: np.ndarray | None = None

    @property
    def finished(self) -> np.ndarray:
        """The cycle after a PE's last; 0 where it had nothing to do."""
        return self.counted()["running"]

    def counted(self) -> dict[str, np.ndarray]:
        """`counts`; ArgumentError where the run was not watched."""
        if not self.counts:
            raise ArgumentError("this run counted nothing but cycles: simulate it with watch=True")
        return self.counts

    def stalls(self) -> dict[str, int]:
        """Cycles summed over PEs and routers, by cause."""
        return {name: int(self.counted()[name].sum()) for name in pictures.STALLS}

    def links_figure(self) -> "Figure":
        """A map of what the links carried, in percent of the cycles, as a matplotlib figure."""
        return pictures.links(self)

    def stalls_figure(self) -> "Figure":
        """A map of who waited, by cause, in percent of the cycles, as a matplotlib figure."""
        return pictures.stalls(self)

    def save_links(self, path: str | Path) -> None:
        """Write `links_figure` as .png, .svg or .pdf. Raises ArgumentError where that cannot be, or for a run that was
        not watched, or without matplotlib."""
        pictures.save(self.links_figure(), path)

    def save_stalls(self, path: str | Path) -> None:
        """Write `stalls_figure` in the same way."""
        pictures.save(self.stalls_figure(), path)

    def save_trace(self, path: str | Path, pes: Iterable[tuple[int, int]] | None = None) -> None:
        """Write what PEs did when for ui.perfetto.dev: one track a thread of a PE, one slice an instruction, one
        nanosecond a cycle. `pes` are (row, column); without them, an even spread of at most some hundred. Raises
        ArgumentError for other PEs, where it cannot write, for a run that was not watched, or without perfetto."""
        trace.save_trace(self, path, pes)

    def __rich__(self) -> Table:
        return pictures.table(self)

    def _repr_html_(self) -> str:
        return super()._repr_html_() + pictures.html(self)

    def __repr__(self) -> str:
        pes = self.fabric.rows * self.fabric.columns
        return f"<fabric Run: {self.cycles:,} cycles of {pes:,} PEs, {self.timing}>"


def simulate(
    fabric: Fabric,
    timing: Timing = Timing(),  # noqa: B008 - a value
    memory: Any = None,
    combine: str = "add",
    limit: int = LIMIT,
    watch: bool = True,
) -> Run:
    """Run a program to its end, cycle by cycle.

    memory: [words, rows, columns] of float32, int32, uint32, or [words, rows, columns, 2] of a 16-bit dtype: what the
    PEs have before; without it only time is simulated. combine: "add", "max", "min" or "mul", what an instruction does
    with its operands. `watch=False` leaves out all counts. Raises RouteLoopError, MissingReceiverError, QueueSizeError
    and ArgumentError before the first cycle, DeadlockError and CycleLimitError where it comes to no end.

    >>> from wsc.runtime.fabric.lines import reduce
    >>> line = reduce("chain", 4, wavelets=2)
    >>> run = simulate(line, memory=np.arange(8.0, dtype=np.float32).reshape(2, 1, 4))
    >>> run.cycles, run.memory[:, 0, 0].tolist()                    # 2 + 6 * 3 cycles
    (20, [6.0, 22.0])
    """
    timing.check()
    fabric, words, kind = _checked(fabric, memory)
    values = None if memory is None else checked(kind, combine)
    return _read(drive(fabric, sizes_of(fabric, timing, values, watch), words, limit), words, kind, limit)


def simulate_many(
    fabrics: Sequence[Fabric],
    timing: Timing = Timing(),  # noqa: B008 - a value
    memories: Sequence[Any] | None = None,
    combine: str = "add",
    limit: int = LIMIT,
    watch: bool = True,
) -> list[Run]:
    """Run several programs at once, each on a grid of its own: one compiled loop steps all of them, which suits many
    small ones, and GPUs. `memories` are those of each, of one dtype; all else is as in `simulate`, and so are the runs.

    >>> from wsc.runtime.fabric.lines import reduce
    >>> [run.cycles for run in simulate_many([reduce("chain", n, 2) for n in (4, 2)], watch=False)]
    [20, 8]
    """
    if not fabrics or (memories is not None and len(memories) != len(fabrics)):
        given = "no" if memories is None else len(memories)
        raise ArgumentError(f"{len(fabrics)} programs and {given} memories: expected at least one, and one for each")
    timing.check()
    found = [_checked(f, None if memories is None else memories[i]) for i, f in enumerate(fabrics)]
    kinds = sorted({kind for *_, kind in found})
    if len(kinds) > 1:
        raise ArgumentError(f"memories of {', '.join(kinds)}: programs that run at once have one dtype")
    values = None if memories is None else checked(kinds[0], combine)
    driven = drive_many([f for f, *_ in found], timing, values, watch, [words for _, words, _ in found], limit)
    return [_read(one, words, kind, limit) for one, (_, words, kind) in zip(driven, found, strict=True)]


def _checked(fabric: Fabric, memory: Any) -> tuple[Fabric, np.ndarray | None, str]:
    """A program that can be run, its memory as 32-bit words, and its dtype."""
    if not fabric.colors:  # arrays have one at least
        fabric = copy(fabric)
        fabric.color()
    check(fabric)
    words, kind = (None, "float32") if memory is None else _words(fabric, memory)
    _check_memory(fabric, words)
    return fabric, words, kind


def _words(fabric: Fabric, memory: Any) -> tuple[np.ndarray, str]:
    """Memory as 32-bit words, and its dtype."""
    array = np.asarray(memory)
    kind = str(array.dtype)
    checked(kind, "add")
    grid = (fabric.rows, fabric.columns)
    if array.dtype.itemsize == 2:
        good = array.ndim == 4 and array.shape[1:] == (*grid, 2)
        wanted = f"[words, {grid[0]}, {grid[1]}, 2]"
    else:
        good = array.ndim == 3 and array.shape[1:] == grid
        wanted = f"[words, {grid[0]}, {grid[1]}]"
    if not good or not len(array):
        raise ArgumentError(f"memory is {kind}{list(array.shape)}: expected {kind}{wanted}, at least one word")
    if array.dtype.itemsize == 2:
        half = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32)
        return half[..., 0] | half[..., 1] << 16, kind
    return np.ascontiguousarray(array).view(np.uint32), kind


def _check_memory(fabric: Fabric, words: np.ndarray | None):
    if words is None:
        return
    if len(words) > WORDS:
        raise ArgumentError(f"memory has {len(words):,} words: a PE is simulated with at most {WORDS:,}")
    code = fabric.code
    touches = (code["flags"] & 3) > 0
    end = np.where(touches, code["address"] + code["length"], 0)
    if end.size and end.max() > len(words):
        _, i, y, x = np.unravel_index(int(end.argmax()), end.shape)
        raise ArgumentError(
            f"instruction {i} of PE ({y}, {x}) reaches word {int(end.max())} of its memory, which has {len(words)}"
        )


def _read(driven: Driven, words: np.ndarray | None, kind: str, limit: int) -> Run:
    """What happened; `words` were its memory. Raises DeadlockError and CycleLimitError where it came to no end."""
    if not driven.ended:
        raise unended(driven, limit)
    fabric, z, cycles, memory = driven.fabric, driven.z, driven.cycles, None
    if words is not None:
        held = driven.grid(lambda s: np.moveaxis(np.asarray(s["memory"])[:, :, : len(words)], 2, 0))
        memory = _as(held, kind)
    found: dict[str, Any] = {}
    if z.watch:
        counted = driven.grid(lambda s: np.asarray(s["counted"]))
        queues = counted[len(EVENTS) :].reshape(z.timing.router, z.colors, fabric.rows, fabric.columns)
        colors, instructions = slice(fabric.colors), slice(max(1, fabric.code["length"].shape[1]))
        found = {
            "counts": dict(zip(EVENTS, counted, strict=False)),
            "occupancy": queues.sum(axis=0)[colors] / cycles,
            "peak": driven.grid(lambda s: unpacked(np.asarray(s["peak"]))).sum(axis=0)[colors],
            "ended": driven.grid(lambda s: np.stack(jax.device_get(s["ended"])))[:, instructions],
        }
    return Run(cycles, fabric, z.timing, memory, **found)


def _as(words: np.ndarray, kind: str) -> np.ndarray:
    dtype = jnp.dtype(kind)
    if dtype.itemsize == 4:
        return np.ascontiguousarray(words).view(dtype)
    halves = np.stack([words & 0xFFFF, words >> 16], axis=-1).astype(np.uint16)
    return halves.view(dtype)
