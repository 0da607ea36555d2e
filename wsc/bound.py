"""Lower bounds: cycles that no mapping of a program goes below, printed beside what its placed ops are charged.

What is bounded: any mapping of the same equations (those of `exe.program.jaxpr`, after the compiler's rewrites) that
keeps weights in SRAM, on regions of as many PEs as the program's stages have and of any shape, with the numbers of this
wafer and the steps that the machine model knows. Tiles are real numbers, operands are always where they are needed, no
instruction stands in a loop, and ops that do not wait for one another overlap. `docs/lower-bound.md` derives each term.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Group
from rich.table import Table

from wsc.errors import ArgumentError
from wsc.lowering import jaxapi
from wsc.lowering.fuse import together
from wsc.lowering.jaxapi import Literal
from wsc.lowering.roles import UPDATES
from wsc.machine.bounds import NOTHING, Parts
from wsc.machine.cost import cost
from wsc.machine.steps import AllReduce, Compute, HostLink, Move, Reduce, Step, Stream, WaferLink
from wsc.machine.wafer import Wafer
from wsc.opbound import Node, nodes_of
from wsc.program import PlacedStage, Program, work
from wsc.runtime.executable import Executable
from wsc.runtime.telemetry import Telemetry
from wsc.tables import Printed

SHOWN = 12  # rows of the table of ops
CAUSES: tuple[str, ...] = (
    "instructions: loops, setup, nests",
    "arithmetic: rounding of tiles, copies, conflicts",
    "collectives: relays, setup, delivering",
    "operands moved: shifts, relayouts, multicasts",
    "between stages",
)


def _charged(steps: Iterable[tuple[Step, float]], wafer: Wafer) -> Parts:
    """What steps, each taken so many times, are charged, by cause."""
    found = NOTHING
    for step, times in steps:
        c = cost(step, wafer) * times
        fabric, overhead, arithmetic = float(c.latency + c.serial), float(c.overhead), float(c.arithmetic)
        if isinstance(step, Move | HostLink | WaferLink | Stream):
            found += Parts(stages=float(c.cycles))
        elif isinstance(step, AllReduce | Reduce):
            found += Parts(collectives=float(c.cycles))
        elif isinstance(step, Compute):
            found += Parts(overhead, arithmetic)
        else:
            found += Parts(overhead, arithmetic, movement=fabric)
    return found


def _charged_path(telemetry: Telemetry) -> Parts:
    """What the critical path of `telemetry` is charged, by cause; as `Telemetry.path`, of which it is a reader."""
    stages, times, wafer = telemetry.program.stages, telemetry.times, telemetry.wafer
    ends = [t.finish + telemetry.of(s.departures).cycles for t, s in zip(times, stages, strict=True)]
    at: int | None = ends.index(max(ends))
    found = _charged(_once(stages[at].departures), wafer)
    while at is not None:
        stage, when = stages[at], times[at]
        found += _charged((s for op in stage.ops if not op.control for s in work(op, telemetry.counts)), wafer)
        if not when.arrivals or when.control > max(when.arrivals):
            return found + _charged((s for op in stage.ops if op.control for s in work(op)), wafer)
        _, at, steps = stage.arrivals[when.arrivals.index(max(when.arrivals))]
        found += _charged(_once(steps), wafer)
    return found


def _once(steps: Iterable[Step]) -> Iterator[tuple[Step, float]]:
    return ((s, 1) for s in steps)


def _moved(steps: tuple[Step, ...], wafer: Wafer) -> Parts:
    """Least cycles between stages: links as charged; on one wafer, stages lie side by side."""
    links = sum(float(cost(s, wafer).cycles) for s in steps if not isinstance(s, Move))
    return Parts(stages=links + any(isinstance(s, Move) for s in steps) * (wafer.hop_cycles + wafer.relay_cycles))


def _longest_path(program: Program, nodes: dict[int, list[Node]]) -> Parts:
    """The path through the data dependencies of all stages that takes longest by the bounds of its ops."""
    wafer, ready, last = program.wafer, {}, NOTHING
    results = [v for v in program.jaxpr.outvars if not isinstance(v, Literal)]
    for stage in program.stages:
        there: dict = {}
        begin = NOTHING  # the host sends control first
        for v, source, steps in stage.arrivals:
            came = _moved(steps, wafer) + (ready[v] if source is not None else NOTHING)
            there[v] = came
            begin = came if v is None else begin
        first = {node.members[0]: node for node in nodes[stage.template]}
        later = {n for node in first.values() for n in node.members[1:]}
        for n, op in enumerate(stage.ops):
            if n in later:
                continue
            node = first[n]
            ops = [stage.ops[i].eqn for i in node.members]
            earliest = NOTHING if op.control else begin
            reads = [there.get(a, earliest) for e in ops for a in e.invars if not isinstance(a, Literal)]
            done = max((earliest, *reads), key=lambda p: p.cycles) + node.bound
            made = [v for e in ops for v in e.outvars]
            there.update(dict.fromkeys(made, done))
            ready.update(dict.fromkeys(made, done))
        for v in (v for v in results if v in there):
            link = HostLink(jaxapi.nbytes(v.aval.shape, v.aval.dtype))
            sent = _moved((link,), wafer) if link in stage.departures else NOTHING
            last = max(last, there[v] + sent, key=lambda p: p.cycles)
    return last


@dataclass(frozen=True)
class BoundRow:
    """An op, or several that share instructions or a collective, of `alike` equal stages: cycles charged, and bound."""

    stage: str
    alike: int
    op: str
    weights: tuple[str, ...]
    cycles: float
    bound: float

    @property
    def ratio(self) -> float:
        return self.cycles / self.bound if self.bound else (math.inf if self.cycles else 1.0)

    @property
    def gap(self) -> float:
        """Cycles above the bound, all equal stages."""
        return self.alike * (self.cycles - self.bound)


def _rows(stage: PlacedStage, alike: int, nodes: list[Node], telemetry: Telemetry) -> list[BoundRow]:
    """Ops that share a collective are one row: it is charged to the first of them. So are products of one operand."""
    of_op = {n: i for i, node in enumerate(nodes) for n in node.members}
    joined = list(range(len(nodes)))
    eqns = [op.eqn for op in stage.ops]
    for members in together(eqns, stage.ops, [True] * len(eqns)):
        rows = {joined[of_op[n]] for n, _ in members}
        joined = [min(rows) if j in rows else j for j in joined]
    found = []
    for row in dict.fromkeys(joined):
        mine = [nodes[i] for i, j in enumerate(joined) if j == row]
        ops = [stage.ops[n] for n in sorted(n for node in mine for n in node.members)]
        cycles = sum(float(telemetry.of(op).cycles) for op in ops)
        longest = max(mine, key=lambda node: node.bound.cycles)
        bound = longest.bound.cycles + sum(node.local for node in mine if node is not longest)
        if cycles or bound:
            weights = tuple(dict.fromkeys(w for op in ops for w in op.weights))
            found.append(BoundRow(stage.name, alike, " + ".join(op.name for op in ops), weights, cycles, bound))
    return found


@dataclass(frozen=True)
class LeastPes:
    """The PEs of a stage's region, and the fewest whose SRAM holds its weights and state beside the code."""

    stage: str
    pes: int
    least: float


def _capacity(stage: PlacedStage, program: Program) -> LeastPes:
    inputs = set(program.jaxpr.invars)
    eqns = [op.eqn for op in stage.ops if op.name in UPDATES and not isinstance(op.eqn.invars[0], Literal)]
    states = {e.invars[0] for e in eqns if e.invars[0] in inputs}
    nbytes = sum({w.name: w.nbytes for w in stage.weights}.values())
    nbytes += sum(jaxapi.nbytes(v.aval.shape, v.aval.dtype) for v in states)
    return LeastPes(stage.name, stage.region.pes, nbytes / (program.wafer.sram_bytes - program.wafer.code_bytes))


@dataclass(frozen=True, repr=False)
class Bound(Printed):
    """Cycles below which no mapping of the program goes, `charged` what this one takes, and why it takes more.

    `ops` has a row for every op of each distinct stage, `path` the bound by cause, `causes` the gap by cause, and
    `capacity` the least PEs by SRAM for each distinct stage.
    """

    cycles: float
    charged: float
    ops: tuple[BoundRow, ...]
    path: Parts
    causes: dict[str, float]
    capacity: tuple[LeastPes, ...]
    conditions: str

    @property
    def ratio(self) -> float:
        """Cycles charged over the bound."""
        return self.charged / self.cycles if self.cycles else (math.inf if self.charged else 1.0)

    @property
    def gap(self) -> float:
        return self.charged - self.cycles

    def as_dict(self) -> dict[str, Any]:
        """For JSON: cycles, their bound and ratio, the gap by cause, a dict an op and a stage, and the conditions."""
        return {
            "conditions": self.conditions,
            "cycles": self.charged,
            "bound_cycles": self.cycles,
            "ratio": self.ratio,
            "gap": self.causes,
            "ops": [dataclasses.asdict(row) for row in self.ops],
            "capacity": [dataclasses.asdict(row) for row in self.capacity],
        }

    def __rich__(self) -> Group:
        return Group(self._gap(), self._largest(), self._sram())

    def _gap(self) -> Table:
        table = Table(title=f"Cycles charged and least possible, modelled: {self.conditions}")
        for name, justify in (("what", "left"), ("cycles", "right"), ("of the bound", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        rows = {"charged": self.charged, "lower bound": self.cycles}
        rows |= {f"gap: {name}": cycles for name, cycles in self.causes.items()}
        for name, cycles in rows.items():
            share = f"{cycles / self.cycles:.3f}" if self.cycles else ""
            table.add_row(name, f"{cycles:,.0f}", share)
        return table

    def _largest(self) -> Table:
        table = Table(title=f"Ops furthest above their bound, the first {SHOWN} of {len(self.ops)}")
        for name in ("stage", "op", "weights", "cycles", "bound", "ratio", "gap, all alike"):
            table.add_column(name, justify="left" if name in ("stage", "op", "weights") else "right")
        for row in sorted(self.ops, key=lambda r: -r.gap)[:SHOWN]:
            named = ", ".join(".".join(w.split(".")[-2:]) for w in row.weights)
            times = f"{row.stage} x {row.alike}" if row.alike > 1 else row.stage
            cells = f"{row.cycles:,.0f}", f"{row.bound:,.0f}", f"{row.ratio:.2f}", f"{row.gap:,.0f}"
            table.add_row(times, row.op, named, *cells)
        return table

    def _sram(self) -> Table:
        table = Table(title="Least PEs by SRAM: weights and state beside the code")
        for name in ("stage", "least PEs", "PEs of its region", "share"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        for c in self.capacity:
            table.add_row(c.stage, f"{c.least:,.1f}", f"{c.pes:,}", f"{100 * c.least / c.pes:.0f} %")
        return table


def lower_bound(exe: Executable) -> Bound:
    """The lower bound of a compiled program and of each of its ops, in cycles, beside what they are charged.

    Raises ArgumentError when `exe` is not what `wsc.compile` returned.

    >>> import jax.numpy as jnp, wsc
    >>> exe = wsc.compile(lambda w, x: x @ w, jnp.ones((64, 32)), jnp.ones((1, 64)), weight_argnums=0)
    >>> found = lower_bound(exe)
    >>> 0 < found.cycles <= found.charged == exe.telemetry.cycles
    True
    """
    if not isinstance(exe, Executable):
        raise ArgumentError(f"{type(exe).__name__} is no compiled program: give what wsc.compile returned")
    program, telemetry = exe.program, exe.telemetry
    templates = [s.template for s in program.stages]
    distinct = {s.template: s for s in reversed(program.stages)}  # the first of each
    nodes = {template: nodes_of(stage, program) for template, stage in distinct.items()}
    shown = [distinct[t] for t in dict.fromkeys(templates)]
    rows = [r for s in shown for r in _rows(s, templates.count(s.template), nodes[s.template], telemetry)]
    path = _longest_path(program, nodes)
    gap = _charged_path(telemetry) - path
    causes: dict[str, float] = dict(zip(CAUSES, (getattr(gap, f.name) for f in fields(gap)), strict=True))
    conditions = f"{program.wafers} x {program.wafer.name}, {program.conditions}"
    capacity = tuple(_capacity(s, program) for s in shown)
    return Bound(path.cycles, float(telemetry.cycles), tuple(rows), path, causes, capacity, conditions)
