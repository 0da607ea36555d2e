"""Hold the machine model against everything that is published: one row a measurement, and a bar for each group."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from rich.console import Group
from rich.table import Table

from wsc.errors import ArgumentError, FitError
from wsc.lowering.waferllm import GROUPS, kv_tokens
from wsc.machine import baselines, collectives, kernels
from wsc.machine.collectives import Line
from wsc.machine.cost import Cost, cost
from wsc.machine.published import BARS, MEASUREMENTS, Measurement
from wsc.machine.steps import AllReduce, Compute, Step
from wsc.machine.wafer import WAFERS, WSE2, WSE3, Wafer
from wsc.runtime.telemetry import Telemetry
from wsc.tables import Printed

ADVERTISED_WSE2 = 850_000  # cores; the published KV capacities need more than the rectangle programs may use


@dataclass(frozen=True)
class Row:
    """A measurement and what the model says of it; `note` where the two are not of the same thing."""

    measurement: Measurement
    predicted: float
    note: str = ""

    @property
    def error(self) -> float:
        """In percent; above 0 when the model says more."""
        return 100 * (self.predicted / self.measurement.value - 1)

    @property
    def held_out(self) -> bool:
        return not self.measurement.fits


@dataclass(frozen=True, repr=False)
class Validation(Printed):
    """Rows by group, with the bar each group is held to."""

    columns = 150
    rows: tuple[Row, ...]

    def groups(self) -> dict[str, tuple[float, float, tuple[float, float] | None, bool]]:
        """(mean, largest absolute error in percent, bar, within it) of each group."""
        found = {}
        for name in dict.fromkeys(r.measurement.group for r in self.rows):
            errors = [abs(r.error) for r in self.rows if r.measurement.group == name]
            mean, largest, bar = sum(errors) / len(errors), max(errors), BARS[name]
            found[name] = (mean, largest, bar, bar is None or (mean <= bar[0] and largest <= bar[1]))
        return found

    @property
    def passed(self) -> bool:
        """Every group is within its bar."""
        return all(within for *_, within in self.groups().values())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        rows = [
            {
                "group": r.measurement.group, "what": r.measurement.what, "source": r.measurement.source,
                "unit": r.measurement.unit, "measured": r.measurement.value, "predicted": r.predicted,
                "error_percent": r.error, "held_out": r.held_out, "fits": list(r.measurement.fits), "note": r.note,
            }
            for r in self.rows
        ]  # fmt: skip
        groups = {
            name: {"mean_percent": mean, "largest_percent": largest, "bar_percent": bar, "within": within}
            for name, (mean, largest, bar, within) in self.groups().items()
        }
        return {"rows": rows, "groups": groups, "passed": self.passed}

    def __rich__(self) -> Group:
        table = Table(title="The model against published measurements")
        table.add_column("measured thing, by group")
        for name in ("measured", "predicted", "error", "unit"):
            table.add_column(name, justify="right" if name != "unit" else "left")
        table.add_column("row is")
        sources: dict[str, int] = {}
        for name in dict.fromkeys(r.measurement.group for r in self.rows):
            table.add_row(f"[bold]{name}", end_section=False)
            for r in (r for r in self.rows if r.measurement.group == name):
                m = r.measurement
                number = sources.setdefault(m.source, len(sources) + 1)
                kind = "held out" if r.held_out else f"used: {', '.join(m.fits)}"
                cells = f"{m.value:,.5g}", f"{r.predicted:,.5g}", f"{r.error:+.1f} %", m.unit, kind
                table.add_row(f"  {m.what} [{number}]", *cells)
            table.add_section()
        summary = Table(title="Absolute error by group, percent")
        for name in ("group", "rows", "mean", "bar", "largest", "bar", ""):
            summary.add_column(name, justify="left" if name in ("group", "") else "right")
        for name, (mean, largest, bar, within) in self.groups().items():
            count = sum(r.measurement.group == name for r in self.rows)
            bars = (f"{bar[0]:g}", f"{bar[1]:g}", "within" if within else "OVER") if bar else ("-", "-", "no bar")
            summary.add_row(name, str(count), f"{mean:.2f}", bars[0], f"{largest:.2f}", bars[1], bars[2])
        lines = [f"[{n}] {source}" for source, n in sources.items()]
        notes: dict[str, str] = {}
        for r in self.rows:
            if r.note:
                notes.setdefault(r.note, r.measurement.what)
        return Group(table, summary, *lines, *(f"{what}: {note}" for note, what in notes.items()))

    def plot(self, path: str | Path | IO[bytes]) -> None:
        """Predicted against measured, both axes logarithmic, as a picture. Needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ArgumentError("a plot needs matplotlib: pip install 'wsc[plot]'") from error
        figure = Figure(figsize=(7, 7), layout="constrained")
        axes = figure.add_subplot()
        for name in self.groups():
            own = [r for r in self.rows if r.measurement.group == name]
            for held_out in (True, False):
                dots = [(r.measurement.value, r.predicted) for r in own if r.held_out == held_out]
                if dots:
                    label = f"{name}, {'held out' if held_out else 'used for a constant'}"
                    axes.scatter(*zip(*dots, strict=True), s=14, marker="o" if held_out else "x", label=label)
        if isinstance(path, str | Path) and not Path(path).suffix:
            raise ArgumentError(f"cannot write the plot to {str(path)!r}: name a file with an ending, such as out.png")
        ends = min(r.measurement.value for r in self.rows), max(r.measurement.value for r in self.rows)
        axes.plot(ends, ends, linewidth=0.7, color="gray")
        axes.set(xscale="log", yscale="log", xlabel="measured (each row's own unit)", ylabel="predicted")
        axes.legend(fontsize=7)
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise ArgumentError(f"cannot write the plot to {str(path)!r}: {error}") from error


def validate(groups: Iterable[str] | None = None) -> Validation:
    """Predict every published measurement, or those of some groups.

    >>> print(validate(["collectives"]).passed)
    True
    """
    wanted = tuple(BARS) if groups is None else (groups,) if isinstance(groups, str) else tuple(groups)
    if not wanted:
        raise ArgumentError(f"no group of measurements was named: there are {', '.join(BARS)}")
    if unknown := [g for g in wanted if g not in BARS]:
        raise ArgumentError(f"no group {unknown[0]!r} of measurements: there are {', '.join(BARS)}")
    return Validation(tuple(_predict(m) for m in MEASUREMENTS if m.group in wanted))


def _predict(m: Measurement) -> Row:
    found = _PREDICTIONS[m.setting[0]](*m.setting[1:])
    return Row(m, *found) if isinstance(found, tuple) else Row(m, found)


def _cycles(steps: Iterable[Step], wafer: Wafer) -> Any:
    return sum((cost(s, wafer) for s in steps), Cost()).cycles


def _collective(name: str, pes: int, wavelets: int) -> float | tuple[float, str]:
    """With the parameters of that model."""
    line = Line(pes, wavelets, pes - 1)
    if name != "multicast":
        return float(collectives.reduce(name, line).cycles)
    return float(collectives.multicast(line).cycles), (
        f"as that model has it, 1 cycle a hop that delivers; ours is {WSE2.deliver_cycles:g}, as a log and WaferLLM say"
    )


def _vector(wafer: str, kind: str, calls: int, length: int, itemsize: int, conflict: float) -> float:
    return _cycles([Compute(kind, calls, length, itemsize, 0, 1, conflict=conflict, bare=True)], WAFERS[wafer])


def _map(wafer: str, length: int, itemsize: int) -> float:
    """A call of many, the cost of the map itself apart."""
    found = cost(Compute("fmac", 1000, length, itemsize, 0, 1, maps=1, conflict=1.0), WAFERS[wafer])
    return (found.cycles - WAFERS[wafer].nest_cycles) / 1000


def _loop(wafer: str, calls: int, length: int, itemsize: int) -> float:
    return _cycles([Compute("fmac", calls, length, itemsize, 0, 1, conflict=1.0)], WAFERS[wafer])


def _summa(part: str) -> float:
    """4 x 4 PEs, 14^3 tiles in 32 bits; the sample loops over instructions within loops, its tiles placed apart."""
    tile, pes, w = 14, 16, WSE2
    broadcasts, _ = kernels.gemm_summa(4 * tile, 4 * tile, 4 * tile, (4, 4), 4, w)
    calls = 4 * tile * tile
    instructions = Compute("fmac", calls, tile, 4, 0, pes, bare=True)
    parts = {
        "products": _cycles([instructions], w) + calls * w.nest_cycles,
        "broadcasts": _cycles([broadcasts], w),
        "in": 2 * pes * tile * tile * w.memcpy_in_cycles,
        "out": pes * tile * tile * w.memcpy_out_cycles,
    }
    return sum(parts.values()) if part == "whole" else parts[part]


def _gemv(size: int) -> float:
    """The all-reduce of the paper, on the grid of those it names that is best."""
    found = []
    for p, groups in GROUPS.items():
        product, reduce = kernels.gemv(size, size, (p, p), 2, WSE2)
        assert isinstance(reduce, AllReduce)
        tree = dataclasses.replace(reduce, algorithm="k_level", shape=(p // groups,))
        found.append(_cycles([product, tree], WSE2))
    return min(found)


@lru_cache(maxsize=64)
def timed_layer(phase: str, model: str, grid: int, context: int) -> Telemetry:
    """The layer of a named model as WaferLLM maps it on WSE-2, in "decode" or "prefill"."""
    import wsc

    exe: Any = wsc.compile(
        wsc.models.Llama.abstract(model), strategy="waferllm", grid=(grid, grid), context=context, wafer=WSE2
    )
    return (exe if phase == "decode" else exe.prefill).telemetry


@lru_cache(maxsize=4)
def _compiled_stencil(cells: int) -> tuple[float, str]:
    """A column of `cells` on every PE, from the stage's input to its output."""
    import jax

    import wsc
    from wsc.models.stencil import wave_step

    u = jax.ShapeDtypeStruct((WSE2.columns, WSE2.rows, cells), "float32")
    exe = wsc.compile(wave_step, u, u, wafer=WSE2)
    return float(exe.telemetry.cycles_per_layer), f"{WSE2.columns} columns of PEs; measured on 755, each as busy"


def _kv(model: str, grid: int, shifted: bool) -> tuple[float, str]:
    from wsc.models.config import config

    held = kv_tokens(config(model), grid, WSE2.sram_bytes, ADVERTISED_WSE2, shifted)
    beside = kv_tokens(config(model), grid, WSE2.sram_bytes, ADVERTISED_WSE2, shifted, WSE2.code_bytes)
    note = f"weights and cache against all SRAM; beside {WSE2.code_bytes:,} B of code it would be {beside:,}"
    return float(held), note


@lru_cache(maxsize=8)
def _service(model: str, wafers: int) -> tuple[float, str]:
    """Our own mapping; when it needs more wafers than the service has, with as many as it needs."""
    import wsc

    network = wsc.models.Llama.abstract(model)
    used, note = wafers, ""
    try:
        exe = wsc.compile(network, wafer=WSE3, wafers=wafers, context=8192)
    except FitError:
        exe = wsc.compile(network, wafer=WSE3, context=8192)
        used = exe.program.wafers
        note = f"we need {used} wafers, since {WSE3.code_bytes:,} B of every PE are kept for code; "
    predicted = exe.cost_analysis()["tokens_per_second"]
    ratio = predicted / next(m.value for m in MEASUREMENTS if m.setting == ("service", model, wafers))
    return predicted, (
        f"{note}ours is {ratio:.2f} of the service at 0.875 GHz, context 8,192, batch 1, bfloat16 on {used} wafer(s). "
        "The model leaves out what a product has: a clock that may be higher (0.85 to 1.1 GHz seen), kernels that "
        "overlap moving with multiplying, instruction overheads below those measured on public kernels; and what it "
        "pays: host, network, sampling, scheduling. Context and clock of the service are not published."
    )


def _scaling(wafers: int) -> tuple[float, str]:
    """With sizes that are assumed: no others are published."""
    from wsc.models import Llama
    from wsc.streaming import TRILLION, streamed

    found = streamed(Llama.abstract(TRILLION), sequence=2048, batch=1, wafers=(1, wafers))
    return found.speedup[-1], (
        "with the sizes of Megatron-LM's 1T model, one sequence of 2,048 tokens a wafer: nearly all of a step is the "
        "stream of weights, which a tree brings to all wafers at once. What the 4 % are is not published; input, "
        "stragglers and a tree below the rate of its links are not modelled."
    )


def decode_bytes(context: int) -> tuple[int, int]:
    """16-bit weights of Llama-3-8B, and its cache of `context` tokens."""
    from wsc.models.config import config

    c = config("llama-3-8b")
    return 2 * c.parameters, 2 * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * context


def _gpu(name: str, chips: int, batch: int, context: int) -> float:
    weights, cache = decode_bytes(context)
    served = baselines.decode(baselines.ACCELERATORS[name], weights, cache, weights, batch, chips, layers=32)
    return served.tokens_per_second_per_user


_PREDICTIONS: dict[str, Callable] = {
    "collective": _collective,
    "vector": _vector,
    "map": _map,
    "loop": _loop,
    "column": lambda cells: _cycles(kernels.stencil_column(cells, 4, 43, (994, 755)), WSE2),
    "compiled stencil": _compiled_stencil,
    "summa": _summa,
    "arrival": lambda first, further: float(first + further * WSE2.deliver_cycles),
    "direct": lambda wafer: _cycles(kernels.stencil_direct(WAFERS[wafer]), WAFERS[wafer]),
    "stencil": lambda wafer, tile: _cycles(kernels.star_stencil(tile, (5, 5), WAFERS[wafer]), WAFERS[wafer]),
    "sgemm": lambda size, p: _cycles(kernels.gemm_summa(size, size, size, (p, p), 4, WSE2), WSE2),
    "gemv": _gemv,
    "decode": lambda *setting: timed_layer("decode", *setting).cycles_per_layer,
    "prefill": lambda *setting: timed_layer("prefill", *setting).cycles_per_layer,
    "kv": _kv,
    "service": _service,
    "scaling": _scaling,
    "gpu": _gpu,
}
