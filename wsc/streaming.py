"""Weight streaming: a training step of a model whose weights lie outside the wafers, over one wafer or many.

Weights stream in, a layer at a time, from external memory that also keeps the optimizer and updates them; gradients
stream back. Every wafer takes its own sequences; a tree of broadcast-reduce nodes copies weights to all of them and
sums their gradients at the rate of a link. A layer's transfers and its work overlap, so that it takes the longer:

    step = passes * (sum over layers of max(work, W / rate) + sum of max(work, max(W, G) / rate) + embedding and head)
           + 2 * (1 + levels) * latency

See docs/streaming.md for what of it is published, and what is assumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from rich.console import Group
from rich.table import Table

from wsc.errors import ArgumentError
from wsc.machine.wafer import WSE3, Wafer
from wsc.models.config import LlamaConfig
from wsc.streaming_schedule import Schedule, schedule
from wsc.tables import Printed

ARITY = 4  # published: a broadcast-reduce node of SwarmX does 1:4, or two times 1:2
# Assumed for published rows of a model of 1T parameters: layers, width, heads and vocabulary of the 1T GPT of Narayanan
# et al., SC 2021 (Megatron-LM), with an MLP of three matrices and as many weights as its two of 4 x the width.
TRILLION = LlamaConfig(51_200, 25_600, 68_224, 128, 160, max_position_embeddings=2048, dtype="bfloat16")
SCALING = ("weak", "strong")
KEEP = ("wafer", "memory")


def levels(wafers: int) -> int:
    """Levels of broadcast-reduce nodes between the external memory and the wafers: none for one.

    >>> [levels(n) for n in (1, 2, 4, 5, 16, 64)]
    [0, 1, 1, 2, 2, 3]
    """
    found, reach = 0, 1
    while reach < wafers:
        found, reach = found + 1, reach * ARITY
    return found


@dataclass(frozen=True, repr=False)
class Streamed(Printed):
    """What a training step would take on several numbers of wafers; see `streamed`.

    wafers: the numbers of wafers; schedules: that of one of them for each
    batch: sequences of a step, of each wafer ("weak" scaling) or of all together ("strong")
    """

    model: str
    parameters: int
    wafer: Wafer
    sequence: int
    batch: int
    scaling: str
    keep: str
    wafers: tuple[int, ...]
    schedules: tuple[Schedule, ...]

    @property
    def conditions(self) -> str:
        """What the figures hold for."""
        of = "a wafer" if self.scaling == "weak" else "all wafers"
        kept = "on the wafer" if self.keep == "wafer" else "in external memory"
        return (
            f"training of {self.model}, {self.parameters:,} parameters, {self.batch} sequences of {self.sequence} for "
            f"{of}, {self.wafer.name} at {self.wafer.clock_hz / 1e9:.3f} GHz, inputs of layers kept {kept}"
        )

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """Modelled time of a step for each number of wafers."""
        return tuple(s.seconds(self.wafer, levels(n)) for n, s in zip(self.wafers, self.schedules, strict=True))

    @property
    def tokens_per_second(self) -> tuple[float, ...]:
        """Of all wafers together."""
        each = (n * s.microbatch * s.passes * self.sequence for n, s in zip(self.wafers, self.schedules, strict=True))
        return tuple(t / s for t, s in zip(each, self.seconds, strict=True))

    @property
    def speedup(self) -> tuple[float, ...]:
        """Tokens per second against those of the first number of wafers, times that number."""
        rates = self.tokens_per_second
        return tuple(r / rates[0] * self.wafers[0] for r in rates)

    def utilization(self, i: int = 0) -> float:
        """Flops of the model (6 a parameter and token) per second, against the dense 16-bit peak of all PEs."""
        peak = 2 * float(self.wafer.lanes16) * self.wafer.pes * float(self.wafer.clock_hz) * self.wafers[i]
        return 6 * self.parameters * self.tokens_per_second[i] / peak

    def as_dict(self) -> dict[str, Any]:
        """The modelled figures as plain values, for JSON."""
        rows = [
            {
                "wafers": n, "levels": levels(n), "seconds": t, "tokens_per_second": r, "speedup": u,
                "work_seconds": s.work_seconds(self.wafer), "link_seconds": s.link_seconds(self.wafer),
                "microbatch": s.microbatch, "passes": s.passes, "bands": s.bands, "used_bytes": s.used_bytes,
                "utilization": self.utilization(i),
            }
            for i, (n, s, t, r, u) in enumerate(
                zip(self.wafers, self.schedules, self.seconds, self.tokens_per_second, self.speedup, strict=True)
            )
        ]  # fmt: skip
        return {
            "model": self.model, "parameters": self.parameters, "wafer": self.wafer.name, "sequence": self.sequence,
            "batch": self.batch, "scaling": self.scaling, "keep": self.keep, "conditions": self.conditions,
            "rows": rows,
        }  # fmt: skip

    def __rich__(self) -> Group:
        table = Table(title=f"Modelled: {self.conditions}")
        for name in ("wafers", "step, ms", "tokens/s", "times 1", "ideal", "PEs busy", "link busy", "of peak"):
            table.add_column(name, justify="right")
        for row in self.as_dict()["rows"]:
            n, seconds = row["wafers"], row["seconds"]
            shares = (row["work_seconds"] / seconds, row["link_seconds"] / seconds, row["utilization"])
            cells = f"{1e3 * seconds:,.1f}", f"{row['tokens_per_second']:,.0f}", f"{row['speedup']:.2f}"
            ideal = row["speedup"] / n
            table.add_row(str(n), *cells, *(f"{100 * s:.1f} %" for s in (ideal, *shares)))
        first = self.schedules[0]
        title = f"One wafer: {first.passes} x {first.microbatch} sequences on {first.bands} bands of PEs"
        pieces = Table(title=title)
        for name in ("piece", "times", "work, ms", "link, ms", "in, MB", "out, MB", "bytes a PE"):
            pieces.add_column(name, justify="left" if name == "piece" else "right")
        for p in first.pieces:
            times = (p.work_cycles / float(self.wafer.clock_hz), p.link_seconds(self.wafer))
            cells = [f"{1e3 * t:,.2f}" for t in times] + [f"{n / 1e6:,.1f}" for n in (p.inward, p.outward)]
            pieces.add_row(p.name, str(p.count), *cells, f"{p.used_bytes:,}")
        return Group(table, pieces)

    def plot(self, path: str | Path | IO[bytes]) -> None:
        """Speed against wafers, and the ideal line, as a picture. Needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ArgumentError("a plot needs matplotlib: pip install 'wsc[plot]'") from error
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(self.wafers, self.wafers, "--", color="gray", label="ideal")
        axes.plot(self.wafers, self.speedup, "o-", label="modelled")
        axes.set(xscale="log", yscale="log", xlabel="wafers", ylabel="times one wafer", title=self.model)
        axes.legend()
        figure.savefig(path, dpi=150)


def streamed(
    model: Any,
    *,
    sequence: int = 2048,
    batch: int = 8,
    wafers: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    wafer: Wafer = WSE3,
    scaling: str = "weak",
    microbatch: int | None = None,
    keep: str = "wafer",
    name: str | None = None,
) -> Streamed:
    """Model a training step of a `wsc.models.Llama` whose weights stream in from external memory.

    sequence, batch: tokens of a sequence, and sequences of a step: of each wafer, or of all of them where `scaling` is
    "strong". microbatch: sequences that a wafer takes at a time, weights streaming in anew for each; None takes all of
    them. keep: where the inputs of layers wait for the way back, the "wafer" or external "memory", which costs the link
    a transfer each way. What a layer computes is compiled (`wsc.compile`, strategy "streaming") and computed again on
    the way back. The embedding is looked up, and the optimizer runs, in external memory.

    Raises ArgumentError for values of the wrong kind, FitError when activations do not fit the SRAM.

    >>> from wsc.models import Llama, LlamaConfig
    >>> tiny = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    ...                    num_attention_heads=2, dtype="bfloat16")
    >>> found = streamed(Llama.abstract(tiny), sequence=16, batch=2, wafers=(1, 4))
    >>> found.wafers, [round(s, 1) for s in found.speedup][0]
    ((1, 4), 1.0)
    """
    if not hasattr(model, "config") or not hasattr(model, "layers"):
        raise ArgumentError(f"model is {type(model).__name__}: it must be a wsc.models.Llama, such as Llama.abstract")
    if not isinstance(wafer, Wafer):
        raise ArgumentError(f"wafer is {wafer!r}: it must be a wsc.Wafer, such as wsc.WSE3")
    for what, value in (("sequence", sequence), ("batch", batch), ("microbatch", microbatch)):
        _check_count(what, value, what == "microbatch")
    counts = tuple(wafers)
    for n in counts:
        _check_count("wafers", n)
    if not counts or list(counts) != sorted(set(counts)):
        raise ArgumentError(f"wafers is {wafers!r}: it must be one or more numbers, from few to many")
    if scaling not in SCALING or keep not in KEEP:
        raise ArgumentError(f"scaling is {scaling!r}, keep {keep!r}: one of {', '.join(SCALING)}; of {', '.join(KEEP)}")
    found: dict[int, Schedule] = {}
    for n in counts:
        each = batch if scaling == "weak" else batch // n
        if scaling == "strong" and batch % n:
            raise ArgumentError(f"{batch} sequences are not shared evenly by {n} wafers: take a multiple of {n}")
        if each not in found:
            found[each] = schedule(model, each, sequence, wafer, microbatch, keep)
    per_wafer = [batch if scaling == "weak" else batch // n for n in counts]
    what = name or f"a Llama of {model.config.num_hidden_layers} layers"
    return Streamed(
        what, model.config.parameters, wafer, sequence, batch, scaling, keep, counts, tuple(found[b] for b in per_wafer)
    )


def _check_count(name: str, value: Any, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"{name} is {value!r}: it must be a whole number of at least 1")
