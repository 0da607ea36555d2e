"""`Executable.simulate`: a placed stage on the fabric simulator, beside what the closed forms say of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from wsc.errors import ArgumentError
from wsc.layout import Grid
from wsc.lowering.jaxapi import Literal
from wsc.machine.steps import AllReduce
from wsc.program import PlacedOp, PlacedStage, Program
from wsc.runtime.execute import PARTIALS, algorithms, as_function
from wsc.runtime.fabric import stage as stages
from wsc.runtime.fabric.combine import DTYPES
from wsc.runtime.fabric.held import Held, in_order, result, sums_of, words
from wsc.runtime.fabric.simulate import LIMIT, Run, simulate
from wsc.runtime.fabric.sizes import Timing
from wsc.runtime.order import reduce_in_order
from wsc.tables import Printed


@dataclass(frozen=True)
class PhaseTimes:
    """Cycles that one phase of a stage adds, simulated and by the closed forms."""

    name: str
    source: str
    simulated: int
    modelled: float


@dataclass(frozen=True, repr=False)
class Simulation(Printed):
    """A stage as it was simulated: `outputs` are the arrays that it hands on, made of the sums that the fabric
    returned, None where only time was simulated; `equal`, that these are bit for bit what order="fabric" computes, and
    that every PE got the same; `summed` of its `collectives` carried the true values. Cycles are of the wafer's clock.
    """

    run: Run
    stage: str
    conditions: str
    phases: tuple[PhaseTimes, ...]
    summed: int
    collectives: int
    outputs: tuple[Any, ...] | None = None
    equal: bool | None = None

    @property
    def cycles(self) -> int:
        """Simulated, from the first PE's start to the last PE's end."""
        return self.run.cycles

    @property
    def modelled(self) -> float:
        """By the closed forms."""
        return sum(p.modelled for p in self.phases)

    @property
    def error(self) -> float:
        """Of the closed forms, in percent of the simulated cycles."""
        return 100 * (self.modelled / max(1, self.cycles) - 1)

    def as_dict(self) -> dict[str, Any]:
        """Everything but arrays as plain values, for JSON."""
        return {
            "stage": self.stage,
            "conditions": self.conditions,
            "cycles": self.cycles,
            "modelled_cycles": self.modelled,
            "error_percent": self.error,
            "equal": self.equal,
            "collectives": self.collectives,
            "collectives_with_values": self.summed,
            "stalls": self.run.stalls(),
            "phases": [vars(p) for p in self.phases],
        }

    def __rich__(self) -> Table:
        table = Table(title=f"{self.stage}, simulated wavelet by wavelet: {self.conditions}")
        for name in ("phase", "simulated", "closed form"):
            table.add_column(name, justify="left" if name == "phase" else "right", overflow="fold")
        for p in self.phases:
            table.add_row(p.name, f"{p.simulated:,}", f"{p.modelled:,.0f}")
        table.add_row("in all, cycles", f"{self.cycles:,}", f"{self.modelled:,.0f} ({self.error:+.1f} %)", style="bold")
        values = "time only" if self.equal is None else "outputs equal" if self.equal else "OUTPUTS DIFFER"
        waited = ", ".join(f"{name} {n:,}" for name, n in self.run.stalls().items())
        table.caption = f"{values}; {self.summed} of {self.collectives} collectives with their values; {waited}"
        return table


def simulate_stage(
    exe: Any, leaves: list | None, stage: int | str | None = None, scale: float = 1.0, limit: int = LIMIT
) -> Simulation:
    """See `Executable.simulate`; `leaves` are all flat inputs of the program, None for time alone."""
    program: Program = exe.program
    placed = _chosen(program, stage)
    if not isinstance(scale, int | float) or not 0 < scale <= 1:
        raise ArgumentError(f"scale is {scale!r}: it must be a share of the region's sides above 0, up to 1")
    if leaves is not None and scale < 1:
        raise ArgumentError("a cut-out of a region has no values: leave out the arguments, or the scale")
    grid = placed.region.grid
    sums = _known_sums(placed, grid) if leaves is not None else []
    phases, sums = _phases(placed, scale, sums)
    if scale < 1:
        grid = Grid(*(max(min(n, 2), math.ceil(n * scale)) for n in grid))
    fabric, counts = stages.program_of(phases, grid, program.wafer)
    memory = outputs = equal = evaluate = None
    expected = partials = None
    if leaves is not None:
        evaluate = _evaluator(program, placed, sums, leaves)
        expected, partials = evaluate()
        data = {key: words(partials[key], held) for found in sums for key, held in found.held()}
        memory = stages.memory_of(phases, data, grid, sums[0].dtype if sums else np.dtype("float32"))
    run = simulate(fabric, _timing(program, phases), memory, limit=limit)
    if evaluate is not None:
        returned, agreed = _returned(run, phases)
        outputs, again = evaluate(returned)
        equal = agreed and _alike((expected, partials), (outputs, again))
    assert run.ended is not None
    ends = stages.ends_of(run.ended, counts)
    times = [
        PhaseTimes(p.name, p.source, end - before, p.modelled(program.wafer))
        for p, end, before in zip(phases, ends, [0, *ends], strict=False)
    ]
    collectives = sum(isinstance(s, AllReduce) for p in phases for s in p.steps)
    where = f"{grid.y} x {grid.x} PEs" + (f", {scale:g} of its region's sides" if scale < 1 else "")
    carried = sum(len(p.parts) for p in phases)
    return Simulation(
        run, placed.name, f"{exe.conditions}; {where}", tuple(times), carried, collectives, outputs, equal
    )


def _chosen(program: Program, stage: int | str | None) -> PlacedStage:
    if stage is None:
        return program.layer
    numbers = range(len(program.stages))
    found = [s for i, s in enumerate(program.stages) if stage in (i, s.name)]
    if not found or isinstance(stage, bool):
        names = ", ".join(dict.fromkeys(s.name for s in program.stages))
        raise ArgumentError(
            f"there is no stage {stage!r}: there are numbers {numbers.start} to {numbers.stop - 1}, and {names}"
        )
    return found[0]


def _timing(program: Program, phases: list[stages.Phase]) -> Timing:
    straight = any(getattr(s, "straight", False) for p in phases for s in p.steps)
    return Timing.of(program.wafer, float(program.wafer.straight_cycles) if straight else None)


@dataclass(frozen=True)
class _Known:
    """An op of which it is known who holds what it adds up: by axis the step, its position, and who."""

    op: PlacedOp
    along: dict[str, tuple[AllReduce, int, Held]]

    @property
    def dtype(self) -> Any:
        return self.op.eqn.outvars[0].aval.dtype

    def held(self) -> list[tuple[tuple[int, str], Held]]:
        """Who holds what of each sum, by the op and the axis."""
        return [((id(self.op), a), held) for a, (_, _, held) in self.along.items()]


def _known_sums(stage: PlacedStage, grid: Grid) -> list[_Known]:
    """Sums and maxima of one dtype, the first that a wavelet can carry, whose steps are as their layouts have it."""
    found: list[_Known] = []
    for op in stage.ops:
        if op.control or op.name not in PARTIALS or not any(isinstance(s, AllReduce) for s in op.steps):
            continue
        dtype = op.eqn.outvars[0].aval.dtype
        if str(dtype) not in DTYPES or (found and dtype != found[0].dtype):
            continue
        at, dims = op.ins[0], op.eqn.params.get("axes")
        assert at is not None
        steps = [(s, i) for i, s in enumerate(op.steps) if isinstance(s, AllReduce)]
        axes = list(algorithms(op, at, tuple(dims if dims is not None else op.eqn.params["dimension_numbers"][0][0])))
        held = sums_of(op, axes, grid)
        along = {a: (s, i, held[a]) for a, (s, i) in zip(axes, steps, strict=True)}
        per_word = 4 // dtype.itemsize
        if all(
            in_order(h.lines, s.pes) and -(-h.index.shape[-1] // per_word) == s.wavelets for s, _, h in along.values()
        ):
            found.append(_Known(op, along))
    return found


def _phases(stage: PlacedStage, scale: float, sums: list[_Known]) -> tuple[list[stages.Phase], list[_Known]]:
    """The phases of a stage, and those sums all of whose data go through them."""
    while True:
        held = {(id(k.op), i): h for k in sums for _, i, h in k.along.values()}
        phases = stages.phases_of(stage, scale, held)
        through = [id(part.op) for p in phases for part in p.parts]
        whole = [k for k in sums if through.count(id(k.op)) == len(k.along)]
        if len(whole) == len(sums):
            break
        sums = whole
    if not phases:
        raise ArgumentError(f"stage '{stage.name}' does nothing between its input and its output")
    return phases, sums


def _evaluator(program: Program, stage: PlacedStage, sums: list[_Known], leaves: list) -> Callable:
    """What computes the values that a stage hands on and the partial results of its sums, adding as the fabric does;
    or, where it is given what all of these came to, with that in their place."""
    kept = _handed_on(program, stage)
    along = {id(k.op): {a: s for a, (s, _, _) in k.along.items()} for k in sums}

    def evaluate(flat, given, use):
        partials: dict = {}

        def total(op, now):
            for axis in "xy":
                if (step := along[id(op)].get(axis)) is None:
                    now = now[0]
                    continue
                partials[id(op), axis] = now if axis == "x" else now[None]
                largest = op.name == "reduce_max"
                now = jnp.max(now, axis=0) if largest else reduce_in_order(now, step.algorithm, step.shape)
                now = jnp.where(use, given[id(op), axis].reshape(now.shape), now) if given else now
            return now

        function = as_function(program, "fabric", {id(k.op.eqn): total for k in sums}, kept)
        values, _ = function(*flat)
        return tuple(values[len(values) - len(kept) :]), partials

    shapes = jax.eval_shape(lambda *flat: evaluate(flat, {}, False)[1], *leaves)
    nothing = {key: jnp.zeros(a.shape[1 if key[1] == "x" else 2 :], a.dtype) for key, a in shapes.items()}
    jitted = jax.jit(evaluate)

    def run(given: dict | None = None) -> tuple[tuple, dict]:
        return jax.device_get(jitted(leaves, nothing if given is None else given, given is not None))

    return run


def _handed_on(program: Program, stage: PlacedStage) -> list:
    """Values made in a stage that others read, or that are results."""
    mine = {id(op.eqn) for op in stage.ops}
    made = {v for op in stage.ops for v in op.eqn.outvars}
    read = {a for e in program.jaxpr.eqns if id(e) not in mine for a in e.invars if not isinstance(a, Literal)}
    read |= {a for a in program.jaxpr.outvars if not isinstance(a, Literal)}
    return [v for op in stage.ops if not op.control for v in op.eqn.outvars if v in made & read]


def _returned(run: Run, phases: list[stages.Phase]) -> tuple[dict, bool]:
    """What the sums came to in the memories of PEs, and whether all PEs of a sum have the same."""
    assert run.memory is not None
    found, agreed = {}, True
    bits = _words(run.memory)
    for p in phases:
        for part in p.parts:
            aval = part.op.eqn.outvars[0].aval
            start = p.address + part.offset
            size = -(-part.held.index.shape[-1] * aval.dtype.itemsize // 4)
            array, same = result(bits[start : start + size], part.held, tuple(aval.shape), aval.dtype)
            found[id(part.op), part.held.lines.axis] = array
            agreed &= same
    return found, agreed


def _words(memory: np.ndarray) -> np.ndarray:
    if memory.dtype.itemsize == 4:
        return memory.view(np.uint32)
    return np.ascontiguousarray(memory).view(np.uint32)[..., 0]


def _alike(a: Any, b: Any) -> bool:
    """The same bits."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(one).tobytes() == np.asarray(other).tobytes() for one, other in pairs)
