"""Telemetry: what the wafer did, per op, per stage and in all. Read off the steps of a placed program."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from wsc.errors import UnsupportedError
from wsc.machine.cost import Cost, cost, energy_joules
from wsc.machine.numbers import Number, maximum
from wsc.machine.steps import Step
from wsc.machine.wafer import Wafer
from wsc.program import PlacedOp, PlacedStage, Program, with_bodies, work


@dataclass(frozen=True)
class StageTimes:
    """When a stage works, in cycles from the start: each arrival there, control ready, the work begun, output there."""

    arrivals: tuple[Number, ...]
    control: Number
    start: Number
    finish: Number


@dataclass(frozen=True)
class Telemetry:
    """The modelled work of one run of `program`. Cycles are modelled for `program.wafer`; see `program.conditions`."""

    program: Program
    counts: tuple[int, ...] = ()  # by meter, how often each counted body ran, and amounts; none: each once, at worst

    @cached_property
    def times(self) -> tuple[StageTimes, ...]:
        """Stages start when their inputs are there; control needs no activation and is worked out while they wait."""
        found: list[StageTimes] = []
        for stage in self.program.stages:
            arrivals = tuple(
                (found[source].finish if source is not None else 0.0) + self.of(steps).cycles
                for _, source, steps in stage.arrivals
            )
            control = self._part(stage, True).cycles
            start = maximum(0.0, control, *arrivals)
            found.append(StageTimes(arrivals, control, start, start + self._part(stage, False).cycles))
        return tuple(found)

    @cached_property
    def cycles(self) -> Number:
        """From the host's input to the last result back at the host."""
        return maximum(*self._ends)

    @cached_property
    def _ends(self) -> list[Number]:
        return [t.finish + self.of(s.departures).cycles for t, s in zip(self.times, self.program.stages, strict=True)]

    @cached_property
    def total(self) -> Cost:
        """All work of all stages; its cycles are summed work, not the time on the critical path."""
        return sum(self.stages, Cost())

    @cached_property
    def stages(self) -> tuple[Cost, ...]:
        """Work per stage: its ops, control included, and the moves that bring its input."""
        return tuple(
            self._part(s, False) + self._part(s, True) + self.moves(i) for i, s in enumerate(self.program.stages)
        )

    @cached_property
    def path(self) -> Cost:
        """The critical path by cause, walked back from the last result: its cycles are `cycles`."""
        stages = self.program.stages
        at: int | None = self._ends.index(max(self._ends))
        found = self.of(stages[at].departures)
        while at is not None:
            stage, times = stages[at], self.times[at]
            found += self._part(stage, False)
            if not times.arrivals or times.control > max(times.arrivals):
                return found + self._part(stage, True)
            _, at, steps = stage.arrivals[times.arrivals.index(max(times.arrivals))]
            found += self.of(steps)
        return found

    def moves(self, i: int) -> Cost:
        """Bringing the input of stage i, and its results to the host."""
        stage = self.program.stages[i]
        return sum((self.of(steps) for _, _, steps in stage.arrivals), self.of(stage.departures))

    def of(self, what: tuple[Step, ...] | PlacedOp) -> Cost:
        """The cost of steps, or of one placed op."""
        if not isinstance(what, PlacedOp):
            return sum((self._cost(s) for s in what), Cost())
        return sum((self._cost(s) if n == 1 else self._cost(s) * n for s, n in work(what, self.counts)), Cost())

    def _cost(self, step: Step) -> Cost:
        """Each distinct step once."""
        if step not in self._by_step:
            self._by_step[step] = cost(step, self.program.wafer)
        return self._by_step[step]

    @cached_property
    def _by_step(self) -> dict:
        return {}

    def ops(self) -> list[dict]:
        """One row an op that does work: stage, primitive, weights, source line, cycles by cause, bytes, hops."""
        rows = []
        for stage, op in ((s, op) for s in self.program.stages for op in s.ops):
            if op.steps or op.bodies:
                found = self.of(op)
                row = {"stage": stage.name, "op": op.name, "weights": list(op.weights), "source": op.source}
                rows.append(row | {"control": op.control, "cycles": found.cycles} | dataclasses.asdict(found))
        return rows

    @cached_property
    def _by_template(self) -> dict:
        return {}

    def _part(self, stage: PlacedStage, control: bool) -> Cost:
        counted = any(body.times is None for op in with_bodies(stage.ops) for body in op.bodies)
        key = (id(stage) if counted else stage.template, counted, control)
        if key not in self._by_template:
            self._by_template[key] = sum((self.of(op) for op in stage.ops if op.control == control), Cost())
        return self._by_template[key]

    @property
    def wafer(self) -> Wafer:
        return self.program.wafer

    @cached_property
    def seconds(self) -> Number:
        """Modelled time of one run on the wafer."""
        return self.cycles / self.wafer.clock_hz

    @property
    def cycles_per_layer(self) -> Number:
        """Of the stage that is repeated most, from its input to its output."""
        return self._part(self.program.layer, False).cycles

    @property
    def tokens_per_second(self) -> float:
        """Of one user: tokens of one run over the time of all passes it takes."""
        return self.program.tokens / (self.seconds * self.program.passes) if self.seconds else 0.0

    @cached_property
    def initiation_interval(self) -> Number:
        """Seconds after which the next run may follow through the same stages: those of the busiest stage. It takes a
        run when it has brought in, worked on and sent off the one before; control counts, since a stage that is never
        idle does not work it out while it waits. Raises UnsupportedError where a stage reads from further back than
        the stage before it: runs that follow one another would be mixed up.

        >>> import jax.numpy as jnp, wsc
        >>> exe = wsc.compile(lambda w, x: x @ w, jnp.ones((64, 32)), jnp.ones((1, 64)), weight_argnums=0)
        >>> exe.telemetry.initiation_interval == exe.telemetry.seconds  # one stage: one run after the other
        True
        """
        for i, stage in enumerate(self.program.stages):
            if any(source not in (None, i - 1) for _, source, _ in stage.arrivals):
                raise UnsupportedError(
                    f"stage '{stage.name}' reads from one further back than the one before it, and runs that follow "
                    f"one another through the stages would be mixed up: pass what it reads through every stage"
                )
        return maximum(*(c.cycles for c in self.stages)) / self.wafer.clock_hz

    @cached_property
    def in_flight(self) -> int:
        """Runs under way at once, each as fast as alone: seconds / initiation_interval, and no more than stages."""
        fill = float(self.seconds) / float(self.initiation_interval) if self.seconds else 1.0
        return max(1, min(int(fill * (1 + 1e-12)), len(self.program.stages)))

    def rate(self, runs: int) -> float:
        """Tokens per second of each of so many runs under way at once: that of one until `in_flight`, then each run
        waits for its turn at the busiest stage, `runs` intervals. Runs begin evenly spread: none ever queues."""
        alone = self.tokens_per_second
        if runs <= self.in_flight:
            return alone
        return alone * float(self.seconds) / max(float(self.seconds), runs * float(self.initiation_interval))

    @cached_property
    def energy(self) -> dict[str, float]:
        """Joules by cause; idle power of every wafer over the whole run."""
        timed = dataclasses.replace(self.total, latency=self.cycles, serial=0, arithmetic=0, overhead=0, links=0)
        return energy_joules(timed, self.wafer, self.program.wafers)

    def as_dict(self) -> dict[str, float]:
        """A flat dict with JAX's keys where they mean the same (`flops`, `bytes accessed`) and the wafer's own."""
        total, path = self.total, self.path
        return {
            "flops": total.flops,
            "bytes accessed": total.sram_bytes,
            "cycles": self.cycles,
            "cycles_ideal": path.ideal_cycles,
            "cycles_per_layer": self.cycles_per_layer,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_ideal": self.tokens_per_second * self.cycles / max(1e-9, path.ideal_cycles),
            "cycles_latency": path.latency,
            "cycles_serial": path.serial,
            "cycles_arithmetic": path.arithmetic,
            "cycles_overhead": path.overhead,
            "cycles_links": path.links,
            "cycles_contention": path.contention,
            "hops": total.hops,
            "wavelets": total.wavelets,
            "sram_bytes": total.sram_bytes,
            "sram_utilization": total.sram_bytes / self.seconds / self._peak if self.seconds else 0.0,
            "fabric_bytes": total.wavelets * self.wafer.wavelet_bytes,
            "link_bytes": total.link_bytes,
            "energy_joules": sum(self.energy.values()),
            "dynamic_energy_joules": self.energy["cores"] + self.energy["fabric"],
            "pes": float(sum(s.region.pes for s in self.program.regions)),
            "wafers": float(self.program.wafers),
        }

    @property
    def _peak(self) -> float:
        return self.wafer.peak_sram_bytes_per_second * self.program.wafers

    def __repr__(self) -> str:
        figures = f"{self.cycles:,.0f} cycles, {self.seconds * 1e6:,.1f} us"
        return f"<Telemetry: {figures} on {self.wafer.name}, {self.program.conditions}>"
