"""What a step costs on a wafer: closed forms, read off the steps. One reader of steps among others."""

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache

from wsc.machine import collectives
from wsc.machine.steps import AllReduce, Compute, HostLink, Move, Multicast, Reduce, Shift, Step, WaferLink
from wsc.machine.wafer import Wafer


@dataclass(frozen=True)
class Cost:
    """Costs add with `+` (one after the other) and scale with `*` (trip count).

    The five cycle fields are disjoint; `cycles` is their sum and lies on the critical path of the step.
    """

    latency: float = 0.0  # cycles: hops, ramps, relays and the task that an arrival starts, whatever the amount of data
    serial: float = 0.0  # cycles: wavelets waiting for their link, one a cycle
    arithmetic: float = 0.0  # cycles: lanes at work, transcendentals included
    overhead: float = 0.0  # cycles: instruction issue and loops
    links: float = 0.0  # cycles: off-wafer links, to the host or the next wafer
    flops: float = 0.0  # operations, all PEs
    wavelets: float = 0.0  # wavelets sent, all PEs
    hops: float = 0.0  # hops summed over wavelets
    sram_bytes: float = 0.0  # bytes read from and written to SRAM, all PEs
    link_bytes: float = 0.0  # bytes over off-wafer links
    busy: float = 0.0  # PE-cycles spent computing, all PEs

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def __mul__(self, times: float) -> "Cost":
        return Cost(*(a * times for a in _values(self)))

    @property
    def cycles(self) -> float:
        return self.latency + self.serial + self.arithmetic + self.overhead + self.links


_NAMES = [f.name for f in dataclasses.fields(Cost)]


def _values(cost: Cost) -> list[float]:
    return [getattr(cost, name) for name in _NAMES]


@lru_cache(maxsize=65536)
def cost(step: Step, wafer: Wafer) -> Cost:
    """The cost of one step on `wafer`.

    >>> from wsc.machine.wafer import WSE3
    >>> cost(Multicast(pes=512, span=511, wavelets=1, instances=1), WSE3).cycles   # 517 published, + a task switch
    527.0
    """
    relay = (2 * wafer.ramp_cycles + 1) * 1.0
    match step:
        case Compute():
            return _compute(step, wafer)
        case Multicast(pes, span, wavelets, instances):
            latency, serial = collectives.multicast(pes, wavelets, span * wafer.hop_cycles, relay)
            hops = wavelets * span * instances
            return _fabric(wafer, latency, serial, wavelets * instances, hops, wavelets * pes * instances)
        case Reduce(algorithm, pes, span, wavelets, instances):
            latency, serial = collectives.reduce(algorithm, pes, wavelets, span * wafer.hop_cycles, relay)
            hops = collectives.reduce_wavelet_hops(algorithm, pes, wavelets, span) * instances
            sent = wavelets * (pes - 1) * instances
            return _fabric(wafer, latency, serial, sent, hops, 2 * sent)
        case AllReduce(algorithm, pes, span, wavelets, instances):
            first = cost(Reduce(algorithm, pes, span, wavelets, instances), wafer)
            return first + cost(Multicast(pes, span, wavelets, instances), wafer)
        case Shift(distance, wavelets, total, instances):
            latency = distance * wafer.hop_cycles + relay
            sent = total / max(distance, 1) * instances
            return _fabric(wafer, latency, wavelets, sent, total * instances, 2 * sent)
        case Move(distance, wavelets, links):
            latency = distance * wafer.hop_cycles + relay
            return _fabric(wafer, latency, math.ceil(wavelets / links), wavelets, wavelets * distance, 2 * wavelets)
        case HostLink(nbytes):
            return Cost(links=nbytes / wafer.host_bytes_per_second * wafer.clock_hz, link_bytes=nbytes)
        case WaferLink(nbytes):
            seconds = nbytes / wafer.link_bytes_per_second + wafer.link_seconds
            return Cost(links=seconds * wafer.clock_hz, link_bytes=nbytes)
    raise TypeError(f"not a step: {step!r}")


def _fabric(wafer: Wafer, latency, serial, wavelets, hops, touched) -> Cost:
    """`touched` wavelets are read from or written to SRAM at the ends."""
    return Cost(
        latency=latency + wafer.task_cycles,
        serial=serial,
        wavelets=wavelets,
        hops=hops,
        sram_bytes=touched * wafer.wavelet_bytes,
    )


def _compute(step: Compute, wafer: Wafer) -> Cost:
    elements = step.calls * step.length
    overhead = step.calls * wafer.call_cycles
    if step.kind == "transcendental":
        arithmetic, overhead = elements * wafer.transcendental_cycles, 0.0
    elif step.kind == "divide":
        arithmetic, overhead = elements * wafer.division_cycles, 0.0
    elif step.kind == "fmac":
        arithmetic = step.calls * math.ceil(step.length / wafer.fmac_per_cycle(step.itemsize))
    else:
        arithmetic = step.calls * math.ceil(step.length / wafer.vector_per_cycle(step.itemsize))
    return Cost(
        arithmetic=arithmetic,
        overhead=overhead,
        flops=step.flops,
        sram_bytes=3 * elements * step.itemsize * step.instances,  # two operands read, one result written
        busy=(arithmetic + overhead) * step.instances,
    )


def energy_joules(total: Cost, wafer: Wafer, wafers: int = 1) -> dict[str, float]:
    """Energy of `total` by cause: idle power of the systems over its time, busy cores, and wavelets in flight."""
    return {
        "idle": wafer.idle_watts * wafers * total.cycles / wafer.clock_hz,
        "cores": total.busy * wafer.pe_joules_per_cycle,
        "fabric": total.hops * wafer.wavelet_bytes * 8 * wafer.hop_joules_per_bit,
    }
