"""The schedule of a training step on one wafer while weights stream: its pieces, compiled, and how they overlap."""

import math
from dataclasses import dataclass
from typing import Any

from wsc.errors import ArgumentError, FitError
from wsc.machine.cost import cost
from wsc.machine.steps import Stream
from wsc.machine.wafer import Wafer
from wsc.streaming_layer import Work, nbytes, programs, work

LEAST_ROWS = 8  # of a band
WAYS = 4  # numbers of bands that are looked at


@dataclass(frozen=True)
class Piece:
    """Something a step does `count` times: its cycles on the PEs, bytes in and out of a wafer meanwhile, and how many
    bytes of SRAM a PE needs for it, code and kept activations included."""

    name: str
    count: int
    work_cycles: float
    inward: int
    outward: int
    used_bytes: int

    def seconds(self, wafer: Wafer) -> float:
        """Of one of them: the longer of work and transfer."""
        return max(self.work_cycles / float(wafer.clock_hz), self.link_seconds(wafer))

    def link_seconds(self, wafer: Wafer) -> float:
        """Transfers alone: the stream goes on from piece to piece, so that its latency is paid at the ends."""
        flowing, still = (cost(Stream(*n, 0), wafer).links for n in ((self.inward, self.outward), (0, 0)))
        return float(flowing - still) / float(wafer.clock_hz)


@dataclass(frozen=True)
class Schedule:
    """One training step of one wafer: `passes` times the pieces, each with `microbatch` sequences on `bands` bands."""

    microbatch: int
    passes: int
    bands: int
    pieces: tuple[Piece, ...]
    flops: float  # of all pieces of one pass, what is computed again included

    @property
    def used_bytes(self) -> int:
        """SRAM of the fullest PE."""
        return max(p.used_bytes for p in self.pieces)

    def seconds(self, wafer: Wafer, levels: int = 0) -> float:
        """Modelled time of a step, with the latency of the tree at its two ends."""
        ends = 2 * float(cost(Stream(0, 0, levels), wafer).links) / float(wafer.clock_hz)
        return self.passes * sum(p.count * p.seconds(wafer) for p in self.pieces) + ends

    def link_seconds(self, wafer: Wafer) -> float:
        """Time in which the link alone would be done."""
        return self.passes * sum(p.count * p.link_seconds(wafer) for p in self.pieces)

    def work_seconds(self, wafer: Wafer) -> float:
        """Time in which the PEs alone would be done."""
        return self.passes * sum(p.count * p.work_cycles for p in self.pieces) / float(wafer.clock_hz)


def schedule(model: Any, batch: int, sequence: int, wafer: Wafer, microbatch: int | None, keep: str) -> Schedule:
    """The step of one wafer on the number of bands that is fastest of those that fit. Raises FitError if none does."""
    micro = batch if microbatch is None else microbatch
    if batch % micro:
        raise ArgumentError(f"{batch} sequences of a wafer are not a multiple of the microbatch of {micro}")
    tried = [_schedule(model, batch, micro, sequence, wafer, keep, b) for b in _bands(micro, wafer)]
    fits = [s for s in tried if s.used_bytes <= wafer.sram_bytes]
    if fits:
        return min(fits, key=lambda s: s.seconds(wafer))
    least = min(s.used_bytes for s in tried)
    ways = ["fewer sequences at a time (microbatch)"] if micro > 1 else ["shorter sequences"]
    if keep == "wafer":
        ways.append("keep='memory', which holds the inputs of layers outside")
    raise FitError(
        f"activations of {micro} sequences of {sequence} tokens take {least:,} B a PE, and a PE of a {wafer.name} has "
        f"{wafer.sram_bytes:,}: take {' or '.join(ways)}"
    )


def _bands(micro: int, wafer: Wafer) -> list[int]:
    """Numbers of bands worth trying: equal shares of the sequences, the most ones first."""
    most = max(1, int(wafer.rows) // LEAST_ROWS)
    shares = [b for b in range(1, min(micro, most) + 1) if micro % b == 0]
    if len(shares) <= WAYS:
        return shares
    return sorted({shares[round(i * (len(shares) - 1) / (WAYS - 1))] for i in range(WAYS)})


def _schedule(model: Any, batch: int, micro: int, sequence: int, wafer: Wafer, keep: str, bands: int) -> Schedule:
    layers, parts = model.config.num_hidden_layers, programs(model)
    code, weights = int(wafer.code_bytes), nbytes(parts["forward"][1])
    ahead = work(model, "forward", micro, sequence, bands, wafer)
    back = work(model, "backward", micro, sequence, bands, wafer)
    kept = ahead.input_bytes * (layers - 1) if keep == "wafer" else 0
    activations = micro * sequence * model.config.hidden_size * model.embed.embedding.dtype.itemsize
    outside = activations if keep == "memory" else 0
    cut, head = _head(model, micro, sequence, bands, wafer, kept)
    streamed_head = nbytes(parts["head"][1])
    pieces = (
        Piece("embedding", 1, 0.0, activations, activations, code + kept),
        Piece("forward", layers, ahead.cycles, weights, outside, code + kept + ahead.peak_bytes),
        Piece("head, loss", cut, head.cycles, streamed_head, streamed_head, code + kept + head.peak_bytes),
        Piece("backward", layers, back.cycles, weights + outside, weights, code + kept + back.peak_bytes),
    )
    flops = bands * float(layers * (ahead.cost.flops + back.cost.flops) + cut * head.cost.flops)
    return Schedule(micro, batch // micro, bands, pieces, flops)


def _head(model: Any, micro: int, sequence: int, bands: int, wafer: Wafer, kept: int) -> tuple[int, Work]:
    """The head, for some tokens of every sequence at a time: as many as fit, in 1, 2, 4, ... parts."""
    cut, room = 1, wafer.sram_bytes - wafer.code_bytes - kept
    while True:
        found = work(model, "head", micro, math.ceil(sequence / cut), bands, wafer)
        if found.peak_bytes <= room or cut * 2 > sequence or room <= 0:
            return cut, found
        cut *= 2
