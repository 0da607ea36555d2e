"""The hardware as numbers: one frozen value per wafer, every number with its unit, kind and source.

Time is counted in cycles; seconds are cycles / `clock_hz`. The axes of the mesh are `y` (rows) and `x` (columns).
Kinds of number: *published* (vendor or author text), *measured*, *derived* (arithmetic on those), *fitted*
(the source says to what; `wsc validate --refit` fits again), *assumed* (no source known; the text says why).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any

import jax

from wsc.errors import ArgumentError
from wsc.machine.defects import Defects, dead_pes

KINDS = ("published", "measured", "derived", "fitted", "assumed")


def number(default, unit: str, kind: str, source: str, seen: tuple[float, float] | None = None):
    """A field of hardware that carries its unit, kind and source, and the range `seen` where sources differ."""
    if kind not in KINDS:
        raise ValueError(kind)
    return field(default=default, metadata={"unit": unit, "kind": kind, "source": source, "range": seen})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Wafer:
    """One wafer-scale chip. Make another with `dataclasses.replace(WSE3, clock_hz=1.1e9)`.

    >>> WSE3.pes, WSE3.sram_bytes
    (883350, 49152)
    >>> round(WSE3.peak_sram_bytes_per_second / 1e15, 1)   # PB/s; the datasheet says 21 at a higher clock
    18.6
    """

    name: str = field(default="custom", metadata={"static": True})
    columns: int = number(755, "PEs", "published", "usable program rectangle, vendor SDK: 762 x 1172 less the border")
    rows: int = number(1170, "PEs", "published", "usable program rectangle, vendor SDK: 762 x 1172 less the border")
    clock_hz: float = number(0.875e9, "Hz", "published", "vendor SDK default for WSE-3", (0.85e9, 1.1e9))

    sram_bytes: int = number(49152, "B/PE", "published", "48 KB a PE, 8 banks x 6 KB")
    sram_banks: int = number(8, "1", "published", "single-ported banks, one after the other in the address space")
    sram_bytes_per_cycle: float = number(24.0, "B/PE/cycle", "published", "two 64-bit reads and one 64-bit write")
    code_bytes: int = number(
        4096,
        "B/PE",
        "fitted",
        "code and runtime: the most whole KB beside which Llama 3.1-70B in 16 bits fits four wafers, as it is served; "
        "its weights leave 9.2 KB for all else. A decode program written by hand takes about 14.5 KB on WSE-2",
        (4096, 14848),
    )
    align_bytes: int = number(8, "B", "derived", "the 64-bit SRAM port: tiles start and end on it")

    lanes16: float = number(8.0, "1/cycle", "published", "16-bit lanes of WSE-3")
    lanes32: float = number(2.0, "1/cycle", "published", "32-bit adds, multiplies or moves")
    fmac32_lanes: float = number(1.0, "1/cycle", "measured", "32-bit multiply-accumulates: 14 elements in 15 cycles")
    conflict16: float = number(
        1.0,
        "pass/pass",
        "measured",
        "more passes when both reads meet one bank: 16-bit FMAC in a map, +2 per 8 elements",
    )
    conflict32: float = number(0.0, "pass/pass", "measured", "as conflict16 in 32 bits; WSE-3 shows none")
    issue_cycles: float = number(1.0, "cycles", "measured", "vector instruction: 1 + ceil(length / lanes)")
    map_cycles: float = number(
        5.4, "cycles", "measured", "a call in a hardware map: 16-bit FMAC of 8 elements in 8.4 to 8.7", (0.0, 6.4)
    )
    loop_cycles: float = number(21.0, "cycles", "measured", "around one vector instruction outside a map, local GEMM")
    straight_cycles: float = number(
        5.0, "cycles", "measured", "around one in straight-line code: 5,124 elements in 5,130 cycles, one to issue"
    )
    nest_cycles: float = number(43.0, "cycles", "measured", "around a loop or map within a loop, stock SUMMA")
    task_cycles: float = number(10.0, "cycles", "measured", "one task switch", (10.0, 30.0))
    transcendental_cycles: float = number(
        44.8,
        "cycles",
        "fitted",
        "scalar exp, one element: WaferLLM, 9 decode rows, whose exp is a short polynomial; silu is exp and division",
        (44.8, 115.0),
    )
    division_cycles: float = number(50.0, "cycles", "measured", "software float division, one element")

    hop_cycles: float = number(1.0, "cycles", "published", "router to router", (1.0, 2.0))
    deliver_cycles: float = number(
        2.0,
        "cycles",
        "measured",
        "a hop into a router that forwards and delivers: a simulator log shows 2 between neighbours of a multicast, "
        "and WaferLLM's decode rows need it; the HPDC 2024 model takes 1",
        (1.0, 2.0),
    )
    ramp_cycles: float = number(
        2.0, "cycles", "measured", "T_R of the HPDC 2024 reduce model, each way; 7 in older texts", (2.0, 7.0)
    )
    link_wavelets_per_cycle: float = number(1.0, "1/cycle", "published", "width of a link, each way, in wavelets")
    background_wavelets_per_cycle: float = number(
        0.5, "1/cycle", "measured", "stock SUMMA: 392 words received in the background in 765 cycles"
    )
    fabric_inputs: float = number(1.0, "1", "published", "fabric operands one instruction may read")
    colors: int = number(18, "1", "published", "24 routable, about 18 beside the runtime's own")
    switch_positions: int = number(4, "1", "published", "routes a color may switch between at a router")
    wavelet_bytes: int = number(4, "B", "published", "32-bit payload: two fp16 or one fp32")

    host_bytes_per_second: float = number(150e9, "B/s", "published", "12 x 100 GbE")
    link_bytes_per_second: float = number(150e9, "B/s", "published", "wafer to wafer over the same 12 x 100 GbE")
    link_seconds: float = number(2e-6, "s", "assumed", "one way through an Ethernet switch; none is published")

    memcpy_in_cycles: float = number(1.0, "cycles/word", "published", "the SDK's copy to PEs: a link, one word a cycle")
    memcpy_out_cycles: float = number(
        3.36, "cycles/word", "measured", "the SDK's copy from PEs: 10,522 cycles for SUMMA's 3,136 words"
    )

    idle_watts: float = number(16100.0, "W", "measured", "a CS-2 system, idle; taken for WSE-3 too")
    busy_watts: float = number(23000.0, "W", "published", "a CS-3 system; a CS-2 measured 22.8 kW", (15e3, 25e3))
    pe_joules_per_cycle: float = number(27e-12, "J", "derived", "30 mW peak a core at 1.1 GHz")
    hop_joules_per_bit: float = number(0.1e-12, "J", "published", "die-to-die on the wafer; taken for every hop")
    dollars_per_hour: float = number(42.0, "$/h", "assumed", "a rent that one cost model takes; none is published")

    defects: Defects | None = field(default=None, metadata={"static": True})

    def __post_init__(self):
        """Refuse plain numbers that no wafer has; tracers and the like pass, so that JAX can work over hardware."""
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in _WORDS or not isinstance(value, Real | str | bytes | list | tuple | dict | set | complex):
                continue
            what = f"a whole number, at most {MOST:,}," if f.name in _COUNTS else "a finite number"
            amount = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
            good = math.isfinite(amount) and amount >= (0 if may_be_zero(f.name) else 1e-300)
            if f.name in _COUNTS:
                good = good and amount == int(amount) and amount <= MOST
            if not good:
                raise ArgumentError(f"{f.name} of a wafer is {value!r} {f.metadata['unit']}: it must be {what} above 0")
        if isinstance(self.code_bytes, int) and isinstance(self.sram_bytes, int) and self.code_bytes >= self.sram_bytes:
            raise ArgumentError(
                f"a PE's {self.sram_bytes} B of SRAM do not hold its {self.code_bytes} B of code: set both with replace"
            )
        if self.defects is not None:
            self._check_defects(self.defects)

    def _check_defects(self, defects: Any) -> None:
        if not isinstance(defects, Defects):
            raise ArgumentError(f"defects of a wafer is {defects!r}: make a wafer with dead PEs by with_defects")
        size = self.rows, self.columns
        if all(isinstance(n, int) for n in size) and size != defects.shape:
            raise ArgumentError(
                f"a wafer of {size[0]} x {size[1]} PEs, and its dead ones leave {defects.shape[0]} x "
                f"{defects.shape[1]}: set rows and columns first, then with_defects"
            )

    def with_defects(self, mask_or_rate: Any, seed: int = 0, dead_rows: Sequence[int] = ()) -> "Wafer":
        """This wafer with dead PEs, as software sees it: a smaller mesh of live ones, whose hops are longer.

        mask_or_rate: bool [rows, columns], True where a PE is dead, or a rate from 0 to 0.2 of PEs that die at random
        by `seed`; every PE of `dead_rows` is dead too. `defects.physical` tells where a logical PE is. The sizes of
        WSE2 and WSE3 are what remapping has left already: these dead PEs come on top. Raises ArgumentError.

        >>> worn = WSE3.with_defects(0.015)
        >>> worn.name
        'WSE-3 with 13,250 dead PEs (4.8 % of PEs lost, hops x 1.24)'
        >>> worn.rows, worn.columns, round(worn.hop_cycles, 2)
        (1170, 719, 1.24)
        """
        if self.defects is not None:
            raise ArgumentError(f"{self.name}: give the whole wafer all dead PEs at once, in one mask")
        defects = Defects.of(dead_pes(mask_or_rate, int(self.rows), int(self.columns), seed, dead_rows))
        rows, columns = defects.shape
        return replace(
            self,
            name=f"{self.name} with {defects}",
            rows=rows,
            columns=columns,
            hop_cycles=self.hop_cycles * defects.stretch,
            deliver_cycles=self.deliver_cycles + self.hop_cycles * (defects.stretch - 1),  # idle PEs only forward
            hop_joules_per_bit=self.hop_joules_per_bit * defects.stretch,
            defects=defects,
        )

    @property
    def pes(self) -> int:
        """PEs a program may use."""
        return self.columns * self.rows

    @property
    def relay_cycles(self) -> float:
        """What one PE that takes part in a collective adds on the way: down the ramp, one instruction, up the ramp."""
        return 2 * self.ramp_cycles + 1

    @property
    def peak_sram_bytes_per_second(self) -> float:
        """What all SRAM ports of the wafer can move, reads and writes together."""
        return self.pes * self.sram_bytes_per_cycle * self.clock_hz

    def lanes(self, kind: str, itemsize: int) -> float:
        """Elements of `itemsize` bytes a PE retires per cycle: "fmac", "vector", or "sum" into one accumulator."""
        if kind == "sum":
            return 1.0
        if itemsize <= 2:
            return self.lanes16
        return self.fmac32_lanes if kind == "fmac" else self.lanes32

    def conflict(self, itemsize: int) -> float:
        """Extra passes of an instruction both of whose reads always meet one bank."""
        return self.conflict16 if itemsize <= 2 else self.conflict32

    def sources(self) -> list[dict]:
        """Every number with its unit, kind and source, one dict a row."""
        rows = []
        whole = self.name.removesuffix(f" with {self.defects}")
        for f in fields(self):
            if f.name not in _WORDS:
                own = _OWN_SOURCES.get((whole, f.name), {})
                row = {"name": f.name, "value": getattr(self, f.name), **f.metadata, **own}
                if self.defects is not None and f.name in _BY_DEFECTS:
                    row |= {"kind": "derived", "source": f"{row['source']}; here around dead PEs"}
                rows.append(row)
        return rows


MOST = 1_000_000  # of anything that is counted
_WORDS = ("name", "defects")  # no numbers
_BY_DEFECTS = ("rows", "columns", "hop_cycles", "deliver_cycles", "hop_joules_per_bit")  # which dead PEs change
_COUNTS = (
    "columns", "rows", "sram_bytes", "sram_banks", "code_bytes", "align_bytes", "wavelet_bytes", "colors",
    "switch_positions",
)  # fmt: skip


def may_be_zero(name: str) -> bool:
    """Whether a wafer may have 0 of this number: times, watts and prices may vanish, sizes, rates and clocks not."""
    if "per_cycle" in name and "joules" not in name:
        return False
    return any(
        part in name for part in ("_cycles", "_joules", "conflict", "code_bytes", "link_seconds", "_watts", "_per_hour")
    )


WSE3 = Wafer(name="WSE-3")
WSE2 = Wafer(
    name="WSE-2",
    columns=750,
    rows=994,
    clock_hz=0.85e9,
    code_bytes=14848,
    lanes16=4.0,
    conflict32=1.0,
    map_cycles=0.0,
    fabric_inputs=2.0,
    busy_watts=22800.0,
)
WAFERS = {"wse2": WSE2, "wse3": WSE3}

# Where a wafer's number has a source of its own, not that of the field's default.
_OWN_SOURCES = {
    ("WSE-2", "columns"): {"source": "usable program rectangle, vendor SDK: 757 x 996 less the border"},
    ("WSE-2", "rows"): {"source": "usable program rectangle, vendor SDK: 757 x 996 less the border"},
    ("WSE-2", "clock_hz"): {"source": "vendor SDK default for WSE-2"},
    ("WSE-2", "code_bytes"): {
        "kind": "measured",
        "source": "a decode program's code and runtime, about 14.5 KB a PE",
    },
    ("WSE-2", "lanes16"): {"source": "16-bit lanes of WSE-2"},
    ("WSE-2", "conflict32"): {"source": "local GEMM: 2.03 cycles an element, 1 without a bank conflict"},
    ("WSE-2", "conflict16"): {"source": "two reads of one bank take two passes, as in 32 bits"},
    ("WSE-2", "map_cycles"): {"source": "a call in a hardware map costs no loop; WaferLLM's prefill rows agree"},
    ("WSE-2", "busy_watts"): {"kind": "measured", "source": "a CS-2 system, busy"},
}
