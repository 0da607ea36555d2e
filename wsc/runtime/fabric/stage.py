"""A placed stage wavelet by wavelet: its steps one after the other as one program of the fabric."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from wsc.errors import ArgumentError
from wsc.layout import Grid
from wsc.machine.cost import cost
from wsc.machine.steps import AllReduce, Compute, HostLink, Step, Stream, WaferLink
from wsc.machine.wafer import Wafer
from wsc.program import PlacedOp, PlacedStage, work
from wsc.runtime.fabric.held import Held
from wsc.runtime.fabric.phases import phase, scaled
from wsc.runtime.fabric.phases import work as busy
from wsc.runtime.fabric.program import THREADS, Fabric, Instruction
from wsc.runtime.fabric.sharing import after

STEPS = 2000  # of a stage that are simulated at most
LINKS = HostLink, WaferLink, Stream


@dataclass(frozen=True)
class Part:
    """What one step of an op adds up along an axis: who holds what, `offset` words into the data of its collective."""

    op: PlacedOp
    held: Held
    offset: int


@dataclass(frozen=True)
class Phase:
    """Steps that are one piece of the program, what they are for, and the user's source line; `step` is the one that
    goes over the fabric, None for arithmetic, `address` where its data begin, `parts` what of that is known."""

    name: str
    source: str
    steps: tuple[Step, ...]
    step: Step | None = None
    parts: tuple[Part, ...] = ()
    address: int = 0

    def modelled(self, wafer: Wafer) -> float:
        """Cycles by the closed forms."""
        return float(sum(cost(s, wafer).cycles for s in self.steps))


def phases_of(stage: PlacedStage, scale: float, held: Mapping[tuple[int, int], Held]) -> list[Phase]:
    """The steps of a stage on its critical path in the order that they are taken, those of loops trip by trip.
    Arithmetic between two steps over the fabric is one phase; sums that share a collective are one. `held` says who
    holds what by the id of an op and the position of its step. Raises ArgumentError for more than 2,000 steps."""
    found: list[Phase] = []
    open_sums: dict[tuple, int] = {}  # collectives that others may join, by their lines and wavelets
    for op, i, step in _steps(stage):
        name, source = (op.name, op.source) if op else ("arrival", "")
        step = scaled(step, scale) if scale < 1 else step
        if isinstance(step, Compute):
            found = _with_arithmetic(found, name, source, step)
        elif isinstance(step, AllReduce):
            mine = held.get((id(op), i))
            parts = (Part(op, mine, step.after),) if op and mine else ()
            lines = step.pes, step.span, step.instances, step.algorithm, step.shape
            at = open_sums.pop((lines, step.after), None) if step.after else None
            if at is None:
                at = len(found)
                found.append(Phase(name, source, (step,), replace(step, after=0), parts))
            else:
                first = found[at]
                if not first.parts or (mine and mine.lines != first.parts[0].held.lines):
                    parts = ()
                whole = replace(step, wavelets=step.after + step.wavelets, after=0)
                named = f"{first.name}, {name}"
                found[at] = Phase(named, first.source, (*first.steps, step), whole, (*first.parts, *parts))
            open_sums[lines, step.after + step.wavelets] = at
        else:
            found.append(Phase(name, source, (step,), step))
        if len(found) > STEPS:
            raise ArgumentError(f"stage '{stage.name}' takes more than {STEPS:,} steps: they are simulated one by one")
    return _addressed(found)


def _steps(stage: PlacedStage) -> Iterator[tuple[PlacedOp | None, int, Step]]:
    """With the op that each is of and its position in that; those in the bodies of loops have none."""
    for _, _, steps in stage.arrivals:
        yield from ((None, -1, step) for step in steps if not isinstance(step, LINKS))
    for op in stage.ops:
        if not op.control:
            yield from ((op, i, step) for i, step in enumerate(op.steps))
            for step, times in islice(work(op), len(op.steps), None):
                for _ in range(round(times)):
                    yield op, -1, step


def _with_arithmetic(found: list[Phase], name: str, source: str, step: Step) -> list[Phase]:
    if not found or found[-1].step is not None:
        return [*found, Phase(name, source, (step,))]
    before = found[-1]
    named = before.name if name in before.name.split(", ") else f"{before.name}, {name}"
    return [*found[:-1], replace(before, name=named, steps=(*before.steps, step))]


def _addressed(phases: list[Phase]) -> list[Phase]:
    """Data that are known have words of their own; all others the same, behind them."""
    found, free = [], 0
    for p in phases:
        found.append(replace(p, address=free if p.parts else -1))
        free += p.step.wavelets if p.parts and isinstance(p.step, AllReduce) else 0
    return [replace(p, address=free) if p.address < 0 else p for p in found]


def program_of(phases: list[Phase], grid: Grid, wafer: Wafer) -> tuple[Fabric, np.ndarray]:
    """The program of all phases, and how many instructions [phase, thread, rows, columns] a PE has up to each."""
    whole, counts = Fabric(*grid), []
    for p in phases:
        if p.step is None:
            piece = busy(grid, round(p.modelled(wafer)))
        else:
            at = p.parts[0].held.lines if p.parts else None
            largest = bool(p.parts) and p.parts[0].op.name == "reduce_max"
            piece = phase(p.step, grid, wafer, Instruction(0, address=p.address, largest=largest), at)
        whole = after(whole, piece)
        counts.append(whole.instructions.copy())
    return whole, np.array(counts)


def ends_of(ended: np.ndarray, counts: np.ndarray) -> list[int]:
    """The cycle in which each phase has ended on all PEs; `ended` as in `Run`."""
    found, now = [], 0
    before = np.zeros_like(counts[0])
    for until in counts:
        for thread in range(min(THREADS, len(ended))):
            rows, columns = np.nonzero(until[thread] > before[thread])
            last = until[thread, rows, columns] - 1
            now = max(now, int(ended[thread, last, rows, columns].max(initial=0)))
        found.append(now)
        before = until
    return found


def memory_of(phases: list[Phase], data: Mapping[tuple[int, str], Any], grid: Grid, dtype: Any) -> np.ndarray:
    """What PEs have before: the words `data` of each part, by its op and axis, at the address of its phase."""
    memory = np.zeros((1 + max(_reach(p) for p in phases), *grid), np.uint32)
    for p in phases:
        for part in p.parts:
            values = data[id(part.op), part.held.lines.axis]
            start = p.address + part.offset
            memory[start : start + len(values)] = values
    return memory.view(dtype).reshape(*memory.shape, 2) if dtype.itemsize == 2 else memory.view(dtype)


def _reach(p: Phase) -> int:
    """The word after the last that a phase touches."""
    words = max((getattr(s, "wavelets", 0) + getattr(s, "after", 0) for s in _inner(p.step)), default=0)
    return p.address + words


def _inner(step: Any) -> Iterator[Any]:
    yield step
    for inner in getattr(step, "fabric", ()):
        yield from _inner(inner)
