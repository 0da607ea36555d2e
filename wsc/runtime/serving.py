"""Serving: what a compiled language model gives its users, all modelled and read off its placed programs.

A program is a pipeline of stages. As many users as their work fills it are served at once, each at the speed of one
alone; how many have room is another matter, that of their KV caches. A run serves `batch` users, so both count in runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import jax
from rich.table import Table

from wsc.errors import ArgumentError, FitError
from wsc.lowering.jaxapi import nbytes
from wsc.program import PlacedStage, Program
from wsc.runtime.telemetry import Telemetry
from wsc.tables import Printed

if TYPE_CHECKING:
    from wsc.runtime.generate import LanguageModel

CONTEXTS = (2048, 8192, 32768, 131072)  # tokens


@dataclass(frozen=True)
class FirstToken:
    """Modelled seconds from a prompt to the first token after it, two ways, on a machine with nothing else to do.

    Either way the parts of the prompt follow one another through the stages, each an interval of the busiest stage
    behind the one before, and the token comes of the logits after the last: no further step. Every pass is costed with
    the whole context in use.
    """

    prompt_tokens: int
    chunk: int  # tokens that the prefill program takes at a time
    chunked: float  # seconds: chunks through the stages of the prefill program
    streamed: float  # seconds: token by token through the stages of the decode program

    @property
    def seconds(self) -> float:
        """Of the faster way."""
        return min(self.chunked, self.streamed)

    @property
    def way(self) -> str:
        """The faster way, in words."""
        return f"in chunks of {self.chunk}" if self.chunked < self.streamed else "token by token through decode"

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return asdict(self) | {"seconds": self.seconds, "way": self.way}


def first_token(exe: LanguageModel, prompt_tokens: int) -> FirstToken:
    """See `FirstToken`. The last chunk is padded, and costs a whole one; where the context has no room for that, what
    is left of the prompt goes through decode once the chunks are done.

    >>> import dataclasses, wsc
    >>> tiny = wsc.models.LlamaConfig(64, 32, 48, num_hidden_layers=2, num_attention_heads=4)
    >>> wafer = dataclasses.replace(wsc.WSE3, rows=24, columns=24)
    >>> exe = wsc.compile(wsc.models.Llama.abstract(tiny), context=32, wafer=wafer)
    >>> exe.first_token_seconds(1) <= exe.telemetry.seconds < exe.first_token_seconds(16)
    True
    """
    if not _whole(prompt_tokens) or prompt_tokens > exe.context:
        raise ArgumentError(
            f"a prompt of {prompt_tokens!r} tokens: it must be a whole number from 1 to the context of {exe.context}"
        )
    chunks = min(-(-prompt_tokens // exe.chunk), exe.context // exe.chunk)
    rest = max(0, prompt_tokens - chunks * exe.chunk)
    chunked = following(exe.prefill.telemetry, chunks) + following(exe.telemetry, rest)
    return FirstToken(prompt_tokens, exe.chunk, chunked, following(exe.telemetry, prompt_tokens))


def following(telemetry: Telemetry, runs: int) -> float:
    """Seconds of so many runs, one behind the other: a whole one, and an interval for each further."""
    if not runs:
        return 0.0
    return float(telemetry.seconds) + (runs - 1) * float(telemetry.initiation_interval)


@dataclass(frozen=True)
class Room:
    """Users of one context: how many have room, and what each gets. All of them 0 where no program fits."""

    context: int  # tokens of each user
    chunk: int  # tokens that the prefill program beside takes at a time
    users: int  # whose caches fit on the PEs of every stage, beside code, weights and the buffers of both programs
    decode_only: int  # the same beside the buffers of decode alone: prompts go through decode
    pooled: int  # as `users`, if caches might lie on any PE as bare bytes, on PEs outside of regions too
    by_bytes: int  # if all usable SRAM held nothing but the weights, once, and caches: no code, buffers or copies
    flat: int  # users up to which the stages are not full: each is served as if alone
    tokens_per_second: float  # of one user alone
    at_capacity: float  # tokens per second of each, when all `users` are served

    @property
    def throughput(self) -> float:
        """Tokens per second of all `users` together."""
        return self.users * self.at_capacity

    @property
    def words(self) -> str:
        """Up to how many users the speed of each is flat, and what it falls to."""
        if not self.users:
            return "no room on these regions"
        last = min(self.users, self.flat)
        then = f", {self.at_capacity:,.0f} at {self.users}" if self.users > last else ""
        return f"flat from 1 user to {last}{then}" if last > 1 else f"1 user at full speed{then}"


@dataclass(frozen=True, repr=False)
class Capacity(Printed):
    """Users by context length, on the regions that a language model was compiled to.

    Each row is a program of its own, for that context on those regions: its state, its buffers, and prefill beside it,
    in chunks as large as fit, at most those compiled for. The users it is compiled for count. A further user takes what
    the state of one takes on every PE, rounded up to tiles as it lies; the stage with the least room decides. Buffers
    serve one run in a stage at a time, so further users need none.
    """

    columns = 132
    rows: tuple[Room, ...]
    batch: int  # users of one run; rooms are whole runs
    conditions: str

    def __getitem__(self, context: int) -> Room:
        """The row of a context. Raises ArgumentError where there is none."""
        found = [r for r in self.rows if r.context == context]
        if not found:
            raise ArgumentError(f"no row for a context of {context!r}: ask for capacity([{context!r}])")
        return found[0]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        rows = [asdict(r) | {"throughput": r.throughput, "words": r.words} for r in self.rows]
        return {"conditions": self.conditions, "batch": self.batch, "rows": rows}

    def __rich__(self) -> Table:
        table = Table(title=f"Users by context and their tokens/s, modelled, on the regions of: {self.conditions}")
        names = "context", "users", "decode\nonly", "pooled", "by\nbytes", "of one", "flat\nto", "of\neach", "of all"
        for name in names:
            table.add_column(name, justify="right")
        for r in self.rows:
            counts = (f"{n:,}" for n in (r.users, r.decode_only, r.pooled, r.by_bytes))
            rates = (r.tokens_per_second, min(r.users, r.flat), r.at_capacity, r.throughput)
            table.add_row(f"{r.context:,}", *counts, *(f"{n:,.0f}" if r.users else "-" for n in rates))
        chunks = ", ".join(f"{r.chunk}" for r in self.rows)
        table.caption = (
            "users: caches fit beside code, weights and buffers on the PEs of every stage, those of prefill too, in "
            f"chunks of {chunks} by row. decode only: no room for prefill, prompts go through decode. pooled: as "
            "users, were all free SRAM one, outside of regions too. by bytes: all usable SRAM less the weights, no "
            "code or buffers: how such figures are mostly derived, and never reached. Tokens/s of one user alone, the "
            "same up to so many users; of each and of all, when all users are served"
        )
        return table


def capacity(exe: LanguageModel, contexts: Sequence[int] = CONTEXTS) -> Capacity:
    """See `Capacity`; one row for each of `contexts`.

    >>> import dataclasses, wsc
    >>> tiny = wsc.models.LlamaConfig(64, 32, 48, num_hidden_layers=2, num_attention_heads=4)
    >>> wafer = dataclasses.replace(wsc.WSE3, rows=24, columns=24)
    >>> found = wsc.compile(wsc.models.Llama.abstract(tiny), context=32, wafer=wafer).capacity([32, 320])
    >>> found[32].by_bytes > found[32].pooled > found[32].users > found[320].users > 0
    True
    """
    if not contexts or not all(map(_whole, contexts)):
        raise ArgumentError(f"contexts are {contexts!r}: they must be whole numbers of at least 1, one or more")
    rows = tuple(_room(exe, context) for context in dict.fromkeys(contexts))
    return Capacity(rows, exe.batch, exe.conditions)


def _room(exe: LanguageModel, context: int) -> Room:
    wafer, batch = exe.program.wafer, exe.batch
    cache = jax.tree.leaves(exe.model.abstract_cache(batch=1, context=context))
    a_user = sum(nbytes(a.shape, a.dtype) for a in cache)
    pes = wafer.pes * exe.program.wafers
    by_bytes = max(0, (pes * wafer.sram_bytes - exe.memory_analysis().weight_bytes) // a_user)
    try:
        alone, program, chunk = _programs(exe, context)
    except FitError:
        return Room(context, 0, 0, 0, 0, by_bytes, 0, 0.0, 0.0)
    telemetry, runs = Telemetry(program), runs_that_fit(program)
    kept = sum(s.region.pes * _bytes(s, "weight", "constant", "buffer") for s in program.stages)
    pooled = (pes * (wafer.sram_bytes - wafer.code_bytes) - kept) // a_user
    return Room(
        context,
        chunk,
        batch * runs,
        batch * runs_that_fit(alone),
        pooled,
        by_bytes,
        batch * telemetry.in_flight,
        telemetry.tokens_per_second,
        telemetry.rate(runs),
    )


def _programs(exe: LanguageModel, context: int) -> tuple[Program, Program, int]:
    """Decode for a context without prefill, and beside it, with the chunk of that prefill."""
    programs, chunk = exe.again(exe, context), min(exe.chunk, context)
    (alone,) = programs(1)
    if context == exe.context:
        return alone, exe.program, chunk
    while chunk > 1:
        try:
            return alone, programs(1, chunk)[0], chunk
        except FitError:
            chunk //= 2
    return alone, alone, 1


def runs_that_fit(program: Program) -> int:
    """Runs whose state fits on the PEs of every stage, those of the stage with the least room; the one that the program
    holds counts. Raises ArgumentError where no stage keeps state."""
    sram = int(program.wafer.sram_bytes)
    found = [(sram - sum(a.nbytes for a in s.memory), _bytes(s, "state")) for s in program.stages]
    runs = [1 + left // state for left, state in found if state]
    if not runs:
        raise ArgumentError("no stage keeps any state: nothing limits how many users have room")
    return min(runs)


def check_users(users: Any) -> int:
    """The number of users, if it is one."""
    if not _whole(users):
        raise ArgumentError(f"users is {users!r}: it must be a whole number of at least 1")
    return users


def _bytes(stage: PlacedStage, *kinds: str) -> int:
    """On each PE."""
    return sum(a.nbytes for a in stage.memory if a.kind in kinds)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
