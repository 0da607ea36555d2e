"""What a placed language model is: where it lies, how fast it is, how many it serves, and how far from the least."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from wsc.bound import Bound, lower_bound
from wsc.compile import compile as place
from wsc.errors import ArgumentError, FitError
from wsc.machine.published import DECODE
from wsc.program import PlacedStage
from wsc.runtime.generate import LanguageModel
from wsc.runtime.serving import CONTEXTS, Capacity, FirstToken
from wsc.tables import Printed

PUBLISHED = 4096  # tokens of context of WaferLLM's published rows
KINDS = ("code", "weight", "state", "constant", "buffer")


@dataclass(frozen=True)
class Theirs:
    """One layer in WaferLLM's mapping on the same wafer, at the best of the grids it was published for; cycles of the
    decode step of a layer, beside ours. Where its layer does not fit for the context, it is that of the published rows:
    fewer tokens are in its favour."""

    grid: int  # PEs of a side
    cycles_per_layer: float
    ours: float
    conditions: str

    @property
    def ratio(self) -> float:
        """Their cycles over ours."""
        return self.cycles_per_layer / self.ours


@dataclass(frozen=True, repr=False)
class Plan(Printed):
    """The placed model `exe` in figures, all modelled; `theirs` where it was asked for."""

    columns = 132
    exe: LanguageModel
    first_token: FirstToken
    capacity: Capacity
    bound: Bound
    theirs: Theirs | None = None

    def sram(self) -> dict[str, dict[str, Any]]:
        """Bytes of SRAM on a PE by kind and free, for the stage with the fullest PEs and the one repeated most."""
        program = self.exe.program
        fullest = max(program.stages, key=lambda s: s.used_bytes)
        return {s.name: _sram(s, int(program.wafer.sram_bytes)) for s in (fullest, program.layer)}

    def figures(self) -> dict[str, Any]:
        """Where it lies and how fast it is, flat."""
        program, exe = self.exe.program, self.exe
        users = self.capacity[exe.context].users
        layers = [s.template for s in program.stages].count(program.layer.template)
        return {
            "wafers": program.wafers,
            "stages": len(program.stages),
            "layer": program.layer.name,
            "layers_alike": layers,
            "layer_region": [program.layer.region.height, program.layer.region.width],
            "pes": sum(s.region.pes for s in program.stages),
            "pes_of_wafers": int(program.wafer.pes) * program.wafers,
            "seconds": float(exe.telemetry.seconds),
            "tokens_per_second": exe.telemetry.tokens_per_second,
            "cycles_per_layer": float(exe.telemetry.cycles_per_layer),
            "initiation_interval": exe.initiation_interval,
            "pipeline_users": exe.pipeline_users,
            "users": users,
            "tokens_per_second_at_capacity": exe.user_speed(users),
            "throughput": exe.throughput(users),
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        theirs = asdict(self.theirs) | {"ratio": self.theirs.ratio} if self.theirs else None
        return {
            "conditions": self.exe.conditions,
            **self.figures(),
            "sram": self.sram(),
            "first_token": self.first_token.as_dict(),
            "capacity": self.capacity.as_dict()["rows"],
            "lower_bound": {"cycles": self.bound.cycles, "ratio": self.bound.ratio, "gap": dict(self.bound.causes)},
            "waferllm": theirs,
        }

    def __rich__(self) -> Group:
        tables = [self._where(), self._speed(), self.capacity, self._bound()]
        return Group(*tables, *([self._theirs()] if self.theirs else []))

    def _where(self) -> Table:
        f = self.figures()
        used = f"{f['pes']:,} of {f['pes_of_wafers']:,} PEs in {f['stages']} stages"
        table = Table(title=f"Where it lies, {used}: {self.exe.conditions}")
        table.add_column("bytes of SRAM on a PE of")
        for name in ("region", *KINDS, "free"):
            table.add_column(name, justify="right")
        for name, row in self.sram().items():
            alike = f" (and {f['layers_alike'] - 1} alike)" if name == f["layer"] and f["layers_alike"] > 1 else ""
            table.add_row(name + alike, row["region"], *(f"{row[kind]:,}" for kind in (*KINDS, "free")))
        return table

    def _speed(self) -> Table:
        f, first = self.figures(), self.first_token
        table = _table(f"How fast it is, modelled: {self.exe.conditions}", "figure", "value", "unit")
        n, chunk = f"{first.prompt_tokens:,}", first.chunk
        rows = (
            ("a token of one user: latency", 1e6 * f["seconds"], "us"),
            ("tokens per second of one user", f["tokens_per_second"], "1/s"),
            ("the busiest stage: from one user's token to the next", 1e6 * f["initiation_interval"], "us"),
            ("users that fill the stages, each as fast as one", f["pipeline_users"], "users"),
            ("users whose caches have room", f["users"], "users"),
            ("tokens per second of each of these", f["tokens_per_second_at_capacity"], "1/s"),
            ("tokens per second of them together", f["throughput"], "1/s"),
            (f"first token after a prompt of {n}, {first.way}", 1e3 * first.seconds, "ms"),
            (f"  in chunks of {chunk} through the prefill program", 1e3 * first.chunked, "ms"),
            ("  token by token through decode", 1e3 * first.streamed, "ms"),
        )
        for name, value, unit in rows:
            whole = value >= 1000 or isinstance(value, int)
            table.add_row(name, f"{value:,.0f}" if whole else f"{value:,.4g}", unit)
        return table

    def _bound(self) -> Table:
        found = self.bound
        title = f"Lower bound of a token on as many PEs, modelled: {self.exe.conditions}"
        table = _table(title, "what", "cycles", "of the bound")
        rows = {"this program": found.charged, "lower bound": found.cycles}
        rows |= {f"gap: {cause}": cycles for cause, cycles in found.causes.items()}
        for name, cycles in rows.items():
            table.add_row(name, f"{cycles:,.0f}", f"{cycles / found.cycles:.3f}" if found.cycles else "")
        return table

    def _theirs(self) -> Table:
        assert self.theirs
        t = self.theirs
        table = _table("Decode of one layer, without moves between stages", "mapping", "cycles", "modelled for")
        table.add_row(f"WaferLLM's, {t.grid} x {t.grid}", f"{t.cycles_per_layer:,.0f}", t.conditions)
        table.add_row("this one", f"{t.ours:,.0f}", self.exe.conditions)
        table.add_row("theirs / ours", f"{t.ratio:.2f}", "the best of the grids published for theirs")
        return table


def plan_report(
    exe: LanguageModel, prompt_tokens: int | None = None, contexts: Sequence[int] = CONTEXTS, waferllm: bool = False
) -> Plan:
    """What a compiled language model serves, in one report that prints.

    prompt_tokens: of the prompt before the first token, half the context unless told. contexts: rows of the capacity,
    that of the program besides. waferllm: also one layer of the model as WaferLLM maps it, on the same wafer.
    Raises ArgumentError for anything else, FitError when WaferLLM's layer fits on none of the grids published for it.

    >>> import dataclasses, wsc
    >>> tiny = wsc.models.LlamaConfig(64, 32, 48, num_hidden_layers=2, num_attention_heads=4)
    >>> wafer = dataclasses.replace(wsc.WSE3, rows=24, columns=24)
    >>> plan = plan_report(wsc.compile(wsc.models.Llama.abstract(tiny), context=32, wafer=wafer), contexts=[64])
    >>> plan.first_token.prompt_tokens, [row.context for row in plan.capacity.rows]
    (16, [32, 64])
    """
    if not isinstance(exe, LanguageModel):
        raise ArgumentError(f"{type(exe).__name__} is no compiled language model: give what wsc.compile made of one")
    first = exe.first_token(max(1, exe.context // 2) if prompt_tokens is None else prompt_tokens)
    capacity = exe.capacity(sorted({exe.context, *contexts}))
    return Plan(exe, first, capacity, lower_bound(exe), _theirs_beside(exe) if waferllm else None)


def _theirs_beside(exe: LanguageModel) -> Theirs:
    wafer, found = exe.program.wafer, []
    grids = sorted({grid for row in DECODE.values() for grid in row})
    for context in dict.fromkeys((exe.context, min(exe.context, PUBLISHED))):
        for grid in grids:
            with contextlib.suppress(FitError, ArgumentError):  # too few bytes on a PE, or PEs on the wafer
                layer = place(exe.model, strategy="waferllm", grid=(grid, grid), wafer=wafer, context=context)
                found.append((float(layer.telemetry.cycles_per_layer), grid, layer.conditions))
        if found:
            cycles, grid, conditions = min(found)
            return Theirs(grid, cycles, float(exe.telemetry.cycles_per_layer), conditions)
    raise FitError(f"no layer of WaferLLM's fits on any of the published grids of {grids} on a {wafer.name}")


def _sram(stage: PlacedStage, sram_bytes: int) -> dict[str, Any]:
    kinds = {kind: sum(a.nbytes for a in stage.memory if a.kind == kind) for kind in KINDS}
    region = f"{stage.region.height} x {stage.region.width}"
    return {"region": region, **kinds, "free": sram_bytes - sum(kinds.values())}


def _table(title: str, *names: str) -> Table:
    """Of three columns, the second of them figures."""
    table = Table(title=title)
    for name, justify in zip(names, ("left", "right", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    return table
