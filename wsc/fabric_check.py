"""The closed forms held against the fabric simulator, over random sizes: what `wsc validate --fabric` prints."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wsc.machine import collectives, patterns
from wsc.machine.collectives import Costs, Form, Line
from wsc.machine.wafer import WSE3, Wafer
from wsc.runtime.fabric import lines, rectangles
from wsc.runtime.fabric.program import Fabric, stacked
from wsc.runtime.fabric.simulate import simulate
from wsc.runtime.fabric.sizes import Timing

BAR = 0.04  # of the simulated cycles
SHORT = 10  # or as many cycles

LINE_REDUCES = ("chain", "tree", "two_phase", "generated", "star")
CENTRE = tuple(f"centre_{name}" for name in LINE_REDUCES)


@dataclass(frozen=True)
class Row:
    """One size of one pattern: PEs of a line, or rows and columns; wavelets; both numbers of cycles."""

    pattern: str
    algorithm: str
    size: tuple[int, ...]
    wavelets: int
    closed: float
    simulated: int

    @property
    def error(self) -> float:
        """Of the closed form, as a part of the simulated cycles."""
        return self.closed / self.simulated - 1

    @property
    def good(self) -> bool:
        return abs(self.closed - self.simulated) <= max(SHORT, BAR * self.simulated)


@dataclass(frozen=True)
class _Kind:
    """A pattern: its program and its closed form for a size, and the sizes that are tried."""

    pattern: str
    algorithm: str
    program: Callable[..., Fabric]
    form: Callable[..., Form]
    longest: int
    most: int
    flat: bool = False


def _kinds(c: Costs) -> list[_Kind]:
    def line(pes, wavelets):
        return Line(pes, wavelets, pes - 1)

    found = [
        _Kind("multicast", "", lines.multicast, lambda p, b: collectives.multicast(line(p, b), c), 600, 600),
        _Kind("exchange", "", lines.exchange, lambda p, b: patterns.exchange(p, b, c), 600, 600),
        *(
            _Kind(
                "shift", f"by {d}", lambda p, b, d=d: lines.shift(p, d, b), lambda p, b, d=d: patterns.passing(p, d, b, c),
                300, 200,
            )
            for d in (1, 2, 5)
        ),
    ]  # fmt: skip
    for name in LINE_REDUCES:
        most = 40 if name == "star" else 400
        program = lambda p, b, n=name: lines.reduce(n, p, b)  # noqa: E731
        found.append(_Kind("reduce", name, program, lambda p, b, n=name: collectives.reduce(n, line(p, b), c), 400, most))
    for name in (*LINE_REDUCES, *CENTRE, "k_level"):
        most = 40 if "star" in name else 200

        def shape(p, n=name):
            return (max(2, round(p**0.5)),) if n == "k_level" else ()

        found.append(
            _Kind(
                "all_reduce", name, lambda p, b, n=name, s=shape: lines.all_reduce(n, p, b, s(p)),
                lambda p, b, n=name, s=shape: collectives.all_reduce(n, line(p, b), c, s(p)), 400, most,
            )
        )  # fmt: skip

    def both(of):
        return lambda m, n, b: of(n, b).then(of(m, b))

    found.append(
        _Kind(
            "multicast", "rectangle", rectangles.multicast,
            lambda m, n, b: collectives.multicast(line(m + n - 1, b), c), 60, 100, True,
        )
    )  # fmt: skip
    for name in ("chain", "two_phase", "tree"):
        found.append(
            _Kind(
                "reduce", f"{name}, rectangle", lambda m, n, b, a=name: rectangles.reduce(a, m, n, b),
                both(lambda p, b, a=name: collectives.reduce(a, line(p, b), c)), 60, 100, True,
            )
        )  # fmt: skip
    for name in ("chain", "centre_two_phase"):
        found.append(
            _Kind(
                "all_reduce", f"{name}, rectangle", lambda m, n, b, a=name: rectangles.all_reduce(a, m, n, b),
                both(lambda p, b, a=name: collectives.all_reduce(a, line(p, b), c)), 60, 100, True,
            )
        )  # fmt: skip
    found.append(
        _Kind("shift", "by 1, rectangle", lambda m, n, b: rectangles.shift(1, m, n, b), both(lambda p, b: patterns.passing(p, 1, b, c)), 60, 100, True)
    )
    found.append(_Kind("exchange", "rectangle", rectangles.exchange, both(lambda p, b: patterns.exchange(p, b, c)), 60, 100, True))
    return found


def check(sizes: int = 200, seed: int = 0, wafer: Wafer = WSE3, setup: bool = True) -> list[Row]:
    """Closed forms and simulated cycles of `sizes` random sizes, over all patterns, on lines and rectangles.

    `setup=False` leaves out what software takes to prepare an instruction, as the published forms do.
    """
    costs = Costs.of(wafer) if setup else Costs.of(wafer)._replace(setup=0.0)
    timing = Timing.of(wafer, None if setup else 0.0)
    kinds, draw = _kinds(costs), random.Random(seed)
    share = [sizes // len(kinds) + (i < sizes % len(kinds)) for i in range(len(kinds))]
    return [row for kind, n in zip(kinds, share, strict=True) for row in _rows(kind, n, draw, timing)]


def _rows(kind: _Kind, count: int, draw: random.Random, timing: Timing) -> list[Row]:
    """Random sizes of one pattern, all on one grid, below one another."""
    if not count:
        return []
    drawn = [
        (*(_between(draw, 2, kind.longest) for _ in range(1 + kind.flat)), _between(draw, 1, kind.most)) for _ in range(count)
    ]
    programs = [kind.program(*size) for size in drawn]
    finished = simulate(stacked(programs), timing).finished
    tops = np.cumsum([0, *(p.rows for p in programs)])
    return [
        Row(kind.pattern, kind.algorithm, tuple(size[:-1]), size[-1], float(kind.form(*size).cycles), int(finished[a:b].max()))
        for size, a, b in zip(drawn, tops[:-1], tops[1:], strict=True)
    ]


def _between(draw: random.Random, least: int, most: int) -> int:
    """Small numbers as often as large ones."""
    return round(least * (most / least) ** draw.random())


def worst(rows: Sequence[Row]) -> list[tuple[str, int, int, float, float]]:
    """By pattern and algorithm: name, sizes, how many miss the bar, mean and largest error."""
    names = dict.fromkeys(f"{r.pattern} {r.algorithm}".strip() for r in rows)
    found = []
    for name in names:
        of = [r for r in rows if f"{r.pattern} {r.algorithm}".strip() == name]
        errors = [abs(r.error) for r in of]
        found.append((name, len(of), sum(not r.good for r in of), sum(errors) / len(of), max(errors)))
    return found
