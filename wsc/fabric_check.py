"""The closed forms held against the fabric simulator, over random sizes: what `wsc validate --fabric` prints."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from wsc.errors import ArgumentError
from wsc.machine import collectives, patterns
from wsc.machine.collectives import REDUCES, Costs, Form, Line
from wsc.machine.published import SDK
from wsc.machine.wafer import WSE3, Wafer
from wsc.runtime.fabric import lines, rectangles
from wsc.runtime.fabric.meshes import BAR as MESH_BAR
from wsc.runtime.fabric.meshes import Mesh
from wsc.runtime.fabric.meshes import meshes as published_meshes
from wsc.runtime.fabric.program import Fabric, stacked
from wsc.runtime.fabric.simulate import simulate
from wsc.runtime.fabric.sizes import Timing
from wsc.tables import Printed

BAR = 0.04  # of the simulated cycles
SHORT = 10  # or as many cycles

ALL_REDUCES = (*REDUCES, *(f"centre_{name}" for name in REDUCES), "k_level")


@dataclass(frozen=True)
class Row:
    """One size of one pattern: PEs of a line, or rows and columns; wavelets; both numbers of cycles."""

    name: str
    size: tuple[int, ...]
    wavelets: int
    closed: float
    simulated: int

    @property
    def error(self) -> float:
        """Of the closed form, in percent of the simulated cycles."""
        return 100 * (self.closed / self.simulated - 1)

    @property
    def within(self) -> bool:
        return abs(self.closed - self.simulated) <= max(SHORT, BAR * self.simulated)


@dataclass(frozen=True, repr=False)
class FabricCheck(Printed):
    """Rows of random sizes, and published runs of small meshes; `conditions` says for which hardware the rows hold."""

    conditions: str
    rows: tuple[Row, ...]
    meshes: tuple[Mesh, ...] = ()

    @property
    def passed(self) -> bool:
        """Every closed form is within its bar of the simulated cycles, and these of what is published."""
        return all(r.within for r in (*self.rows, *self.meshes))

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        rows = [{**vars(r), "error_percent": r.error, "within": r.within} for r in self.rows]
        meshes = [{**vars(m), "error_percent": m.error, "within": m.within} for m in self.meshes]
        return {"conditions": self.conditions, "rows": rows, "meshes": meshes, "passed": self.passed}

    def __rich__(self) -> Group:
        return Group(self._forms(), *([self._published()] if self.meshes else []))

    def _published(self) -> Table:
        table = Table(title="The fabric simulator against published small meshes, cycles")
        for name in ("mesh", "published", "simulated", "error, %"):
            table.add_column(name, justify="left" if name == "mesh" else "right")
        for m in self.meshes:
            table.add_row(m.name, f"{m.published:,.0f}", f"{m.simulated:,.4g}", f"{m.error:+.1f}")
        table.caption = f"bar: {MESH_BAR:.0%}; {SDK}"
        return table

    def _forms(self) -> Table:
        table = Table(title=f"Closed forms against the fabric simulator: {self.conditions}")
        for name in ("pattern", "sizes", "over the bar", "mean error, %", "largest, %", "at PEs x wavelets"):
            table.add_column(name, justify="left" if name == "pattern" else "right")
        for name in dict.fromkeys(r.name for r in self.rows):
            of = [r for r in self.rows if r.name == name]
            worst = max(of, key=lambda r: abs(r.error))
            mean = sum(abs(r.error) for r in of) / len(of)
            over = str(sum(not r.within for r in of))
            where = f"{' x '.join(map(str, worst.size))}, {worst.wavelets}"
            table.add_row(name, str(len(of)), over, f"{mean:.1f}", f"{worst.error:+.1f}", where)
        good = sum(r.within for r in self.rows)
        table.caption = f"{good} of {len(self.rows)} within {BAR:.0%} or {SHORT} cycles; error is of the closed form"
        return table


@dataclass(frozen=True)
class _Kind:
    """A pattern: its program and its closed form by size, and the sizes that are tried."""

    name: str
    program: Callable[..., Fabric]
    form: Callable[..., Form]
    longest: int
    most: int
    sides: int = 1
    least: int = 2


def _kinds(c: Costs) -> Iterator[_Kind]:
    def multicast(pes, wavelets):
        return collectives.multicast(Line(pes, wavelets, pes - 1), c)

    def shift(distance, pes, wavelets):
        return patterns.passing(pes, distance, wavelets, c)

    def exchange(pes, wavelets):
        return patterns.exchange(pes, wavelets, c)

    def reduce(name, pes, wavelets):
        return collectives.reduce(name, Line(pes, wavelets, pes - 1), c)

    def all_reduce(name, pes, wavelets):
        return collectives.all_reduce(name, Line(pes, wavelets, pes - 1), c, _shape(name, pes))

    def all_reduced(name, pes, wavelets):
        return lines.all_reduce(name, pes, wavelets, _shape(name, pes))

    def shifted(distance, pes, wavelets):
        return lines.shift(pes, distance, wavelets)

    def both(form):
        return lambda rows, columns, wavelets: form(columns, wavelets).then(form(rows, wavelets))

    yield _Kind("multicast", lines.multicast, multicast, 600, 600)
    yield _Kind("exchange", lines.exchange, exchange, 600, 600)
    for d in (1, 2, 5):
        yield _Kind(f"shift by {d}", partial(shifted, d), partial(shift, d), 300, 200, least=d + 1)
    for name in REDUCES:
        most = 40 if name == "star" else 400
        yield _Kind(f"reduce, {name}", partial(lines.reduce, name), partial(reduce, name), 400, most)
    for name in ALL_REDUCES:
        most = 40 if "star" in name else 200
        yield _Kind(f"all-reduce, {name}", partial(all_reduced, name), partial(all_reduce, name), 400, most)

    def corner(rows, columns, wavelets):
        return multicast(rows + columns - 1, wavelets)

    yield _Kind("2-D multicast", rectangles.multicast, corner, 60, 100, 2)
    yield _Kind("2-D shift by 1", partial(rectangles.shift, 1), both(partial(shift, 1)), 60, 100, 2)
    yield _Kind("2-D exchange", rectangles.exchange, both(exchange), 60, 100, 2)
    for name in ("chain", "two_phase", "tree"):
        yield _Kind(f"2-D reduce, {name}", partial(rectangles.reduce, name), both(partial(reduce, name)), 60, 100, 2)
    for name in ("chain", "centre_two_phase"):
        program = partial(rectangles.all_reduce, name)
        yield _Kind(f"2-D all-reduce, {name}", program, both(partial(all_reduce, name)), 60, 100, 2)


def _shape(name: str, pes: int) -> tuple[int, ...]:
    return (max(2, round(math.sqrt(pes))),) if name == "k_level" else ()


def fabric_check(
    sizes: int = 200, seed: int = 0, wafer: Wafer = WSE3, setup: bool = True, meshes: bool = True
) -> FabricCheck:
    """Closed forms and simulated cycles of `sizes` random sizes, over all patterns, on lines and rectangles; and
    published runs of small `meshes` beside the simulator.

    `setup=False` leaves out what software takes to prepare an instruction, as the published forms do. Raises
    ArgumentError.

    >>> fabric_check(1, setup=False, meshes=False).rows[0].name
    'multicast'
    """
    if not isinstance(sizes, int) or sizes < 1:
        raise ArgumentError(f"{sizes!r} sizes to check: it must be a whole number above 0")
    costs = Costs.of(wafer) if setup else Costs.of(wafer)._replace(setup=0.0)
    timing = Timing.of(wafer, None if setup else 0.0)
    kinds, draw = list(_kinds(costs)), random.Random(seed)
    share = [sizes // len(kinds) + (i < sizes % len(kinds)) for i in range(len(kinds))]
    rows = [row for kind, n in zip(kinds, share, strict=True) for row in _rows(kind, n, draw, timing)]
    prepared = f"{timing.setup} cycles to prepare an instruction" if setup else "nothing to prepare instructions"
    conditions = f"{wafer.name}, {prepared}, a hop {timing.hop}, one that delivers {timing.deliver}"
    return FabricCheck(conditions, tuple(rows), published_meshes() if meshes else ())


def _rows(kind: _Kind, count: int, draw: random.Random, timing: Timing) -> list[Row]:
    """Random sizes of one pattern, all on one grid, below one another."""
    if not count:
        return []
    drawn = [
        (*(_between(draw, kind.least, kind.longest) for _ in range(kind.sides)), _between(draw, 1, kind.most))
        for _ in range(count)
    ]
    programs = [kind.program(*size) for size in drawn]
    finished = simulate(stacked(programs), timing).finished
    ends = np.cumsum([p.rows for p in programs])
    return [
        Row(kind.name, size[:-1], size[-1], float(kind.form(*size).cycles), int(finished[end - p.rows : end].max()))
        for size, p, end in zip(drawn, programs, ends, strict=True)
    ]


def _between(draw: random.Random, least: int, most: int) -> int:
    """Small numbers as often as large ones."""
    return round(least * (most / least) ** draw.random())
