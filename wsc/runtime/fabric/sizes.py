"""The numbers that a compiled cycle depends on: the hardware's, and those of a program."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from wsc.errors import QueueSizeError
from wsc.machine.wafer import Wafer
from wsc.runtime.fabric.program import FLAGS, NOWHERE, OPPOSITE, PORTS, RAMP, THREADS, Fabric


@dataclass(frozen=True)
class Timing:
    """Cycles and words of the hardware, whole numbers: `hop` from router to router, `deliver` into one that also
    delivers what it passes on, `ramp` each way, `setup` before each instruction; words that queues hold: a router's of
    each color, a PE's of each color it takes in, a PE's of what it sends.

    >>> from wsc.machine.wafer import WSE3
    >>> Timing.of(WSE3)
    Timing(hop=1, deliver=2, ramp=2, setup=21, router=3, inward=2, outward=2)
    """

    hop: int = 1
    deliver: int = 1
    ramp: int = 2
    setup: int = 0
    router: int = 3
    inward: int = 2
    outward: int = 2

    @classmethod
    def of(cls, wafer: Wafer, setup: float | None = None) -> "Timing":
        """Those of a wafer. A router's queue is as long as full speed needs (none is published); a PE's are the
        shortest published ones, 2 words, or what full speed needs where its ramp is longer."""
        hop, deliver, ramp = (
            max(1, round(float(n))) for n in (wafer.hop_cycles, wafer.deliver_cycles, wafer.ramp_cycles)
        )
        deliver = max(hop, deliver)
        prepared = round(float(wafer.loop_cycles if setup is None else setup))
        return cls(hop, deliver, ramp, prepared, deliver + 1, max(2, ramp), max(2, ramp))

    def check(self):
        """Raises QueueSizeError where a queue holds nothing."""
        for name, words in (("router's", self.router), ("PE's inward", self.inward), ("PE's outward", self.outward)):
            if words < 1:
                raise QueueSizeError(
                    f"a {name} queue of {words} words: no wavelet could ever move; it holds at least 1"
                )


@dataclass(frozen=True)
class Thread:
    """What a thread's instructions do, on any PE: read, send, load, store; read two colors at once; keep the larger;
    and the address of each instruction, where it is the same on all PEs."""

    reads: bool
    sends: bool
    loads: bool
    stores: bool
    doubles: bool
    largest: bool
    addresses: tuple[int, ...] | None


@dataclass(frozen=True)
class Sizes:
    """What the compiled cycle depends on; programs with equal sizes share it."""

    timing: Timing
    pes: int
    colors: int
    ports_in: tuple[int, ...]  # by which any router takes in any color
    ports_out: tuple[int, ...]
    forks: bool  # a router delivers and passes on
    shared: bool  # colors meet at a port
    positions: int
    instructions: int
    length_bits: int
    repeat_bits: int
    control_bits: int
    values: tuple[str, str] | None  # dtype of what wavelets carry, and how it is combined
    inward: tuple[tuple[int, ...], ...]  # colors of each of a PE's queues, on any PE
    threads: tuple["Thread", ...]
    storing: tuple[int, ...] | None  # columns with PEs that store, where they are few
    watch: bool
    halo: int = 0  # columns at either side that are simulated with those of a strip

    @property
    def neighbours(self) -> tuple[int, ...]:
        """Ports by which wavelets come from other routers."""
        return tuple(p for p in self.ports_in if p != RAMP and OPPOSITE[p] in self.ports_out)

    @property
    def fields(self) -> int:
        """Of an instruction: queues that it reads, colors that it sends, flags."""
        return len(self.inward) + self.colors + len(FLAGS)


class Tables(NamedTuple):
    """Routes [position, port, color, ...], controls [position, bit, color, ...]; instructions
    of each thread [instruction, field and bits of length and repeat, ...], packed; who has them; addresses where they
    differ; colors of each queue inward [queue, color, ...]; how many colors there are."""

    routes_in: Any
    routes_out: Any
    controls: Any
    code: Any
    present: Any
    address: Any
    binding: Any
    colors: Any


def sizes_of(fabric: Fabric, timing: Timing, values: tuple[str, str] | None, watch: bool) -> Sizes:
    """The sizes of a program."""
    used = fabric.rx != NOWHERE
    tx = fabric.tx
    ports_in = tuple(p for p in PORTS if p == RAMP or (fabric.rx == p).any())
    ports_out = tuple(p for p in PORTS if p == RAMP or (tx >> p & 1).any())
    forks = bool(((tx >> RAMP & 1) & ((tx & 15) != 0)).any())
    ever = np.bitwise_or.reduce(tx, axis=1, initial=0)
    met = np.zeros(ever.shape[1:], np.uint8)
    shared = False
    for mask in ever:
        shared |= bool((met & mask).any())
        met |= mask
    code = fabric.code
    binding, colors = bound(fabric), range(fabric.colors)
    inward = tuple(tuple(k for k in colors if (binding[k] == q).any()) for q in range(int(binding.max(initial=-1)) + 1))
    stores = np.flatnonzero((code["flags"] >> 1 & 1).any(axis=(0, 1, 2)))
    threads = [_thread(code, fabric.instructions, i) for i in range(THREADS)]
    used_threads = max((i + 1 for i in range(THREADS) if fabric.instructions[i].any()), default=1)
    positions = max(1, int(used.sum(axis=1).max(initial=0)))
    return Sizes(
        timing, fabric.rows * fabric.columns, fabric.colors, ports_in, ports_out, forks, shared, positions,
        max(1, code["length"].shape[1]),
        max(1, int(code["length"].max(initial=0)).bit_length()),
        max(1, int(code["repeat"].max(initial=0)).bit_length()),
        max(1, int(fabric.controls[:, : positions - 1].max(initial=0)).bit_length()),
        values, inward, tuple(threads[:used_threads]),
        tuple(stores.tolist()) if len(stores) * 4 <= fabric.columns else None, watch,
    )  # fmt: skip


def bound(fabric: Fabric) -> np.ndarray:
    """Which of its queues inward a PE has for a color [color, rows, columns]; -1 where it is not given it."""
    given = ((fabric.rx != NOWHERE) & (fabric.tx >> RAMP & 1 > 0)).any(axis=1)
    return np.where(given, np.cumsum(given, axis=0) - 1, -1)


def _thread(code: dict[str, np.ndarray], instructions: np.ndarray, i: int) -> Thread:
    reads, flags = code["reads"][i].astype(np.int64), code["flags"][i]
    present = np.arange(len(flags))[:, None, None] < instructions[i]
    found = [np.unique(a[p]) for a, p in zip(code["address"][i], present, strict=True)] or [np.zeros(1)]
    same = all(len(a) <= 1 for a in found)
    return Thread(
        reads=bool(reads.any()),
        sends=bool(code["sends"][i].any()),
        loads=bool((flags & 1).any()),
        stores=bool((flags >> 1 & 1).any()),
        doubles=bool((reads & (reads - 1)).any()),
        largest=bool((flags >> FLAGS.index("largest") & 1).any()),
        addresses=tuple(int(a[0]) if len(a) else 0 for a in found) if same else None,
    )
