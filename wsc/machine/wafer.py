"""The hardware as numbers: one frozen value per wafer, every number with its unit, kind and source.

Time is counted in cycles; seconds are cycles / `clock_hz`. The axes of the mesh are `y` (rows) and `x` (columns).
Kinds of number: *published* (vendor or author text), *measured*, *derived* (arithmetic on those), *fitted*
(the source says to what), *assumed* (no source known; the text says why the value was taken).
"""

import math
from dataclasses import dataclass, field, fields

import jax

from wsc.errors import ArgumentError

KINDS = ("published", "measured", "derived", "fitted", "assumed")


def _number(default, unit: str, kind: str, source: str):
    if kind not in KINDS:
        raise ValueError(kind)
    return field(default=default, metadata={"unit": unit, "kind": kind, "source": source})


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
    columns: int = _number(755, "PEs", "published", "usable program rectangle, vendor SDK: 762 x 1172 less the border")
    rows: int = _number(1170, "PEs", "published", "usable program rectangle, vendor SDK: 762 x 1172 less the border")
    clock_hz: float = _number(0.875e9, "Hz", "published", "vendor SDK default for WSE-3")
    sram_bytes: int = _number(49152, "B/PE", "published", "48 KB a PE, 8 banks x 6 KB")
    sram_bytes_per_cycle: float = _number(24.0, "B/PE/cycle", "published", "two 64-bit reads and one 64-bit write")
    code_bytes: int = _number(14848, "B/PE", "measured", "a decode program's code and runtime, about 14.5 KB a PE")
    align_bytes: int = _number(8, "B", "derived", "the 64-bit SRAM port: tiles start and end on it")
    fmac16_per_cycle: float = _number(4.0, "1/cycle", "measured", "fp16 FMAC in a map, WSE-3: +2 cycles per 8 elements")
    fmac32_per_cycle: float = _number(1.0, "1/cycle", "measured", "fp32 FMAC of 14 elements: 15 cycles")
    vector16_per_cycle: float = _number(8.0, "1/cycle", "published", "fp16 lanes of WSE-3")
    vector32_per_cycle: float = _number(2.0, "1/cycle", "published", "fp32 add, multiply, move")
    call_cycles: float = _number(
        6.3, "cycles", "fitted", "one vector instruction inside a map: WaferLLM, 9 decode rows"
    )
    transcendental_cycles: float = _number(115.0, "cycles", "fitted", "scalar exp or silu: WaferLLM, 9 decode rows")
    division_cycles: float = _number(50.0, "cycles", "measured", "software float division")
    task_cycles: float = _number(
        10.0, "cycles", "measured", "one task switch, charged once a fabric step: what arrives starts a task"
    )
    hop_cycles: float = _number(1.0, "cycles", "published", "router to router")
    ramp_cycles: float = _number(2.0, "cycles", "measured", "T_R of the HPDC 2024 reduce model, each way")
    wavelet_bytes: int = _number(4, "B", "published", "32-bit payload: two fp16 or one fp32")
    host_bytes_per_second: float = _number(150e9, "B/s", "published", "12 x 100 GbE")
    link_bytes_per_second: float = _number(150e9, "B/s", "published", "wafer to wafer over the same 12 x 100 GbE")
    link_seconds: float = _number(2e-6, "s", "assumed", "one way through an Ethernet switch; none is published")
    idle_watts: float = _number(16100.0, "W", "measured", "a CS-2 system, idle; taken for WSE-3 too")
    pe_joules_per_cycle: float = _number(27e-12, "J", "derived", "30 mW peak a core at 1.1 GHz")
    hop_joules_per_bit: float = _number(0.1e-12, "J", "published", "die-to-die on the wafer; taken for every hop")

    def __post_init__(self):
        """Refuse plain numbers that no wafer has; tracers and the like pass, so that JAX can work over hardware."""
        counts = ("columns", "rows", "sram_bytes", "code_bytes", "align_bytes", "wavelet_bytes")
        may_be_zero = ("_cycles", "_joules", "code_bytes", "link_seconds", "idle_watts", "hop_joules_per_bit")
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "name" or not isinstance(value, int | float):
                continue
            low = 0 if any(part in f.name for part in may_be_zero) and "per_cycle" not in f.name else 1e-300
            whole = f.name not in counts or value == int(value) if math.isfinite(value) else False
            if not whole or value < low:
                what = "a whole number" if f.name in counts else "a finite number"
                raise ArgumentError(f"{f.name} of a wafer is {value!r} {f.metadata['unit']}: it must be {what} above 0")
        if isinstance(self.code_bytes, int) and isinstance(self.sram_bytes, int) and self.code_bytes >= self.sram_bytes:
            raise ArgumentError(
                f"a PE's {self.sram_bytes} B of SRAM do not hold its {self.code_bytes} B of code: set both with replace"
            )

    @property
    def pes(self) -> int:
        """PEs a program may use."""
        return self.columns * self.rows

    @property
    def peak_sram_bytes_per_second(self) -> float:
        """What all SRAM ports of the wafer can move, reads and writes together."""
        return self.pes * self.sram_bytes_per_cycle * self.clock_hz

    def fmac_per_cycle(self, itemsize: int) -> float:
        """Multiply-accumulates a PE retires per cycle on elements of `itemsize` bytes."""
        return self.fmac16_per_cycle if itemsize <= 2 else self.fmac32_per_cycle

    def vector_per_cycle(self, itemsize: int) -> float:
        """Adds, multiplies or moves a PE retires per cycle on elements of `itemsize` bytes."""
        return self.vector16_per_cycle if itemsize <= 2 else self.vector32_per_cycle

    def sources(self) -> list[dict]:
        """Every number with its unit, kind and source, one dict a row."""
        return [
            {"name": f.name, "value": getattr(self, f.name), **f.metadata} for f in fields(self) if f.name != "name"
        ]


WSE3 = Wafer(name="WSE-3")
WSE2 = Wafer(name="WSE-2", columns=750, rows=994, clock_hz=0.85e9, vector16_per_cycle=4.0)
WAFERS = {"wse2": WSE2, "wse3": WSE3}
