"""What was decided: regions, memory maps and placed ops. Immutable values that print, compare and can be read."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wsc.layout import Grid, Layout
from wsc.machine.steps import Step
from wsc.machine.wafer import Wafer

COUNTED = 6  # numbers that a run counts of steps whose amounts it decides: its runs, and five for the amounts


@dataclass(frozen=True)
class Region:
    """A rectangle of PEs: `height` rows from `y` and `width` columns from `x` on wafer number `wafer`."""

    wafer: int
    y: int
    x: int
    height: int
    width: int

    @property
    def grid(self) -> Grid:
        return Grid(self.height, self.width)

    @property
    def pes(self) -> int:
        return self.height * self.width

    def overlaps(self, other: "Region") -> bool:
        return self.wafer == other.wafer and self._gap(other, 0) < 0 and self._gap(other, 1) < 0

    def touches(self, other: "Region") -> bool:
        """They share an edge, or are the ends of two neighbouring wafers."""
        if self.wafer != other.wafer:
            return abs(self.wafer - other.wafer) == 1
        gaps = sorted((self._gap(other, 0), self._gap(other, 1)))
        return gaps[0] < 0 and gaps[1] == 0

    def _gap(self, other: "Region", axis: int) -> int:
        """PEs between the two along an axis; negative when they overlap there."""
        a, b = ((r.y, r.y + r.height) if axis == 0 else (r.x, r.x + r.width) for r in (self, other))
        return max(a[0], b[0]) - min(a[1], b[1])

    def __str__(self) -> str:
        return f"wafer {self.wafer} [{self.y}:{self.y + self.height}, {self.x}:{self.x + self.width}]"


@dataclass(frozen=True)
class Allocation:
    """`nbytes` from `offset` in the SRAM of every PE of a region. Kinds: code, weight, state, constant, buffer."""

    kind: str
    name: str
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True)
class PlacedWeight:
    """A weight on a region: how it lies, how many PEs hold each element, and the bytes all its tiles take."""

    name: str
    layout: Layout
    shape: tuple[int, ...]
    nbytes: int  # of the weight itself
    copies: int
    stored_bytes: int  # over all PEs, padding included

    @property
    def padding_bytes(self) -> int:
        return self.stored_bytes - self.nbytes * self.copies


class Sized(Protocol):
    """Steps whose amounts are known only when a program runs, such as rows that go to an expert."""

    @property
    def worst(self) -> tuple[Step, ...]:
        """The steps for the largest amounts there may be."""
        ...

    def count(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Numbers that say the amounts, of the operands of a run; they add up over runs."""
        ...

    def steps(self, numbers: Sequence[float]) -> tuple[Step, ...]:
        """The steps for such numbers."""
        ...


@dataclass(frozen=True)
class Body:
    """What runs again and again: `ops`, then the steps of its `tail`. It runs `times` a run of its loop, or, None, as
    often as a run counts under `meter`. Where the tail is `sized`, its numbers are counted under the meters behind."""

    ops: tuple[Any, ...]
    tail: tuple[Step, ...]
    times: int | None
    meter: int = 0
    sized: Sized | None = None

    def runs(self, around: float, counts: Sequence[float]) -> float:
        """How often it runs in all, when what is around it runs so often; once each time where nothing was counted."""
        if self.times is not None:
            return around * self.times
        return counts[self.meter] if counts else around

    def end(self, counts: Sequence[float]) -> tuple[Step, ...]:
        """The steps of its tail; sized ones as in the mean of its runs, at worst where nothing was counted."""
        if self.sized is None or not counts or not counts[self.meter]:
            return self.tail
        numbers = counts[self.meter + 1 : self.meter + COUNTED]
        return self.sized.steps([n / counts[self.meter] for n in numbers])


def work(op: Any, counts: Sequence[float] = (), times: float = 1) -> Iterator[tuple[Step, float]]:
    """The steps of an op with the number of times each is taken, those of its bodies too. `counts` has the runs of
    bodies by meter."""
    for step in op.steps:
        yield step, times
    for body in op.bodies:
        runs = body.runs(times, counts)
        for inner in body.ops:
            yield from work(inner, counts, runs)
        for step in body.end(counts):
            yield step, runs


def with_bodies(ops: Iterable[Any]) -> Iterator[Any]:
    """Ops and those in their bodies."""
    for op in ops:
        yield op
        for body in op.bodies:
            yield from with_bodies(body.ops)


@dataclass(frozen=True)
class PlacedOp:
    """One equation where it runs: operand and result layouts, steps, the weights it reads, the user's source line; of a
    loop, what its bodies are."""

    eqn: Any
    ins: tuple[Layout | None, ...]
    outs: tuple[Layout | None, ...]
    steps: tuple[Step, ...]
    control: bool
    weights: tuple[str, ...]
    source: str
    bodies: tuple[Body, ...] = ()

    @property
    def name(self) -> str:
        return self.eqn.primitive.name


@dataclass(frozen=True)
class PlacedStage:
    """A stage on its region. `arrivals` are (value, stage it comes from or None for the host, steps that bring it)."""

    name: str
    region: Region
    ops: tuple[PlacedOp, ...]
    weights: tuple[PlacedWeight, ...]
    memory: tuple[Allocation, ...]
    arrivals: tuple[tuple[Any, int | None, tuple[Step, ...]], ...]
    departures: tuple[Step, ...]  # to the host
    template: int  # stages of the same number are the same plan
    colors: int  # that its communication takes
    home: int | None = None  # the stage that it is a later visit of: its region, memory and weights are that one's

    @property
    def used_bytes(self) -> int:
        """SRAM in use on the fullest PE."""
        return max(a.end for a in self.memory)


@dataclass(frozen=True)
class Program:
    """A normalized jaxpr and where every equation of it runs."""

    jaxpr: Any
    consts: tuple
    wafer: Wafer
    wafers: int
    stages: tuple[PlacedStage, ...]
    conditions: str  # what figures hold for: batch, context, precision
    weight_vars: frozenset  # the variables of the jaxpr that are stored weights
    tokens: int = 1  # that one user gets of one run (of a prefill: reads)
    passes: int = 1  # runs that these tokens take: layers, where the program is one of equal layers
    written: tuple[Any, tuple] | None = (
        None  # the jaxpr and constants as the user wrote them, where they were rewritten
    )

    def ops(self) -> Iterator[tuple[PlacedStage, PlacedOp]]:
        """Every placed op with its stage, in order; those in the bodies of a loop after it."""
        for stage in self.stages:
            for op in with_bodies(stage.ops):
                yield stage, op

    @property
    def regions(self) -> tuple[PlacedStage, ...]:
        """One stage for each region: without later visits."""
        return tuple(s for s in self.stages if s.home is None)

    @property
    def layer(self) -> PlacedStage:
        """The stage that is repeated most, the first of its kind; of a transformer, a layer."""
        counts = [s.template for s in self.stages]
        return max(self.stages, key=lambda s: (counts.count(s.template), sum(w.nbytes for w in s.weights)))

    def as_text(self) -> str:
        """One line a stage, then the ops of each distinct stage once: layouts and steps."""
        lines = [f"program on {self.wafers} x {self.wafer.name}, {self.conditions}"]
        shown: set[int] = set()
        for i, stage in enumerate(self.stages):
            lines.append(
                f"stage {i} {stage.name} on {stage.region}, {stage.used_bytes:,} of {self.wafer.sram_bytes:,} B a PE, "
                f"{stage.colors} of {self.wafer.colors} colors"
            )
            if stage.template in shown:
                lines.append("  as the first of its kind above")
                continue
            shown.add(stage.template)
            lines += [f"  {a.offset:6d}..{a.end:<6d} {a.kind} {a.name}" for a in stage.memory]
            lines += [f"  {line}" for op in stage.ops for line in _op_lines(op)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.as_text()

    def __repr__(self) -> str:
        pes = sum(s.region.pes for s in self.regions)
        where = f"{pes:,} PEs of {self.wafers} x {self.wafer.name}"
        return f"<Program: {len(self.stages)} stages on {where}, {self.conditions}>"


def _op_lines(op: PlacedOp) -> Iterator[str]:
    if op.steps or op.weights or op.bodies:
        yield _op_text(op)
    for body in op.bodies:
        times = f"{body.times} times" if body.times is not None else "as often as a run says"
        amounts = " at worst" if body.sized is not None else ""
        yield f"  body, {times}; each ends{amounts} with {'; '.join(map(repr, body.tail)) or 'nothing'}"
        yield from (f"    {line}" for inner in body.ops for line in _op_lines(inner))


def _op_text(op: PlacedOp) -> str:
    operands = ", ".join(f"{a.aval.str_short()}{layout or ''}" for a, layout in zip(op.eqn.invars, op.ins, strict=True))
    results = ", ".join(
        f"{v.aval.str_short()}{layout or ''}" for v, layout in zip(op.eqn.outvars, op.outs, strict=True)
    )
    named = f" <{', '.join(op.weights)}>" if op.weights else ""
    steps = "; ".join(map(repr, op.steps))
    return f"{op.name}{named}({operands}) -> {results}{' control' if op.control else ''} | {steps}"
