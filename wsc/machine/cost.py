"""What a step costs on a wafer: closed forms, read off the steps. One reader of steps among others."""

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache

from wsc.machine import collectives
from wsc.machine.collectives import Costs, Form, Line
from wsc.machine.numbers import Number, ceil, maximum, where
from wsc.machine.steps import (
    AllReduce,
    Compute,
    HostLink,
    Move,
    Multicast,
    Reduce,
    Rounds,
    Shift,
    Step,
    Stream,
    WaferLink,
)
from wsc.machine.wafer import Wafer


@dataclass(frozen=True)
class Cost:
    """Costs add with `+` (one after the other) and scale with `*` (trip count).

    The five cycle fields are disjoint; `cycles` is their sum and lies on the critical path of the step.
    """

    latency: Number = 0.0  # cycles: hops, ramps and relays, whatever the amount of data
    serial: Number = 0.0  # cycles: wavelets waiting for their link, one after the other
    arithmetic: Number = 0.0  # cycles: lanes at work, transcendentals included
    overhead: Number = 0.0  # cycles: instructions issued and prepared, loops, tasks switched
    links: Number = 0.0  # cycles: off-wafer links, to the host or the next wafer
    contention: Number = 0.0  # cycles, part of `serial`: waiting for messages of others on the same link
    flops: Number = 0.0  # operations, all PEs
    wavelets: Number = 0.0  # wavelets sent, all PEs
    hops: Number = 0.0  # hops summed over wavelets
    sram_bytes: Number = 0.0  # bytes read from and written to SRAM, all PEs
    link_bytes: Number = 0.0  # bytes over off-wafer links
    busy: Number = 0.0  # PE-cycles spent computing, all PEs

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def __mul__(self, times: Number) -> "Cost":
        return Cost(*(a * times for a in _values(self)))

    @property
    def cycles(self) -> Number:
        """Cycles with links shared as they are."""
        return self.latency + self.serial + self.arithmetic + self.overhead + self.links

    @property
    def ideal_cycles(self) -> Number:
        """Cycles if every message had its links to itself."""
        return self.cycles - self.contention


_NAMES = [f.name for f in dataclasses.fields(Cost)]
_TIMES = ("latency", "serial", "arithmetic", "overhead", "links", "contention")


def _values(cost: Cost) -> list[Number]:
    return [getattr(cost, name) for name in _NAMES]


def cost(step: Step, wafer: Wafer) -> Cost:
    """The cost of one step on `wafer`, whose numbers may be plain or JAX's.

    >>> from wsc.machine.wafer import WSE3
    >>> found = cost(Multicast(pes=512, span=511, wavelets=1, instances=1), WSE3)
    >>> found.latency, found.serial, found.overhead          # 2 cycles a hop that delivers, 5 for the ramps
    (1027.0, 1.0, 21.0)
    """
    try:
        return _plain_cost(step, wafer)
    except TypeError:  # a wafer of tracers has no hash
        return _cost(step, wafer)


@lru_cache(maxsize=65536)
def _plain_cost(step: Step, wafer: Wafer) -> Cost:
    return _cost(step, wafer)


def _cost(step: Step, wafer: Wafer) -> Cost:
    width = wafer.link_wavelets_per_cycle
    match step:
        case Compute():
            return _compute(step, wafer)
        case Multicast(pes, span, wavelets, instances, straight):
            form = collectives.multicast(Line(pes, wavelets, span), Costs.of(wafer, straight))
            return _fabric(wafer, form, instances, wavelets * pes * instances)
        case Reduce(algorithm, pes, span, wavelets, instances):
            form = collectives.reduce(algorithm, Line(pes, wavelets, span), Costs.of(wafer))
            return _fabric(wafer, form, instances, 2 * form.sent * instances)
        case AllReduce(wavelets=wavelets, after=after):
            whole = _all_reduce(step, after + wavelets, wafer)
            if not after:
                return whole
            more = whole + _all_reduce(step, after, wafer) * -1.0
            return dataclasses.replace(more, latency=0.0, overhead=0.0, serial=more.cycles)
        case Shift(distance, wavelets, total, instances, largest, straight):
            sent = total / max(distance, 1) * instances
            c = Costs.of(wafer, straight)
            latency, messages = distance * c.hop + c.relay, wavelets / max(largest, 1)
            serial = collectives.queued(messages, largest, c)
            return Cost(
                latency=latency,
                serial=serial,
                overhead=collectives.both_ways(latency + serial, largest, c),
                contention=serial - largest / width,
                wavelets=sent,
                hops=total * instances,
                sram_bytes=2 * sent * wafer.wavelet_bytes,
            )
        case Rounds():
            return _rounds(step, wafer)
        case Move(distance, wavelets, links, delivers, straight):
            passing = (distance - delivers) * wafer.hop_cycles
            return Cost(
                latency=passing + delivers * maximum(wafer.hop_cycles, wafer.deliver_cycles) + wafer.relay_cycles,
                serial=math.ceil(wavelets / links) / width,
                overhead=wafer.task_cycles + (wafer.straight_cycles if straight else wafer.loop_cycles),
                wavelets=wavelets,
                hops=wavelets * distance,
                sram_bytes=2 * wavelets * wafer.wavelet_bytes,
            )
        case HostLink(nbytes):
            return Cost(links=nbytes / wafer.host_bytes_per_second * wafer.clock_hz, link_bytes=nbytes)
        case WaferLink(nbytes):
            seconds = nbytes / wafer.link_bytes_per_second + wafer.link_seconds
            return Cost(links=seconds * wafer.clock_hz, link_bytes=nbytes)
        case Stream(inward, outward, levels):  # the link is full duplex; every level forwards as the data comes
            seconds = max(inward, outward) / wafer.link_bytes_per_second + (1 + levels) * wafer.link_seconds
            return Cost(links=seconds * wafer.clock_hz, link_bytes=inward + outward)
    raise TypeError(f"not a step: {step!r}")


def _all_reduce(step: AllReduce, wavelets: int, wafer: Wafer) -> Cost:
    costs = Costs.of(wafer, step.straight)
    form = collectives.all_reduce(step.algorithm, Line(step.pes, wavelets, step.span), costs, step.shape)
    return _fabric(wafer, form, step.instances, (2 * form.sent + wavelets * step.pes) * step.instances)


def _fabric(wafer: Wafer, form: Form, instances: int, touched: float) -> Cost:
    """`touched` wavelets are read from or written to SRAM at the ends."""
    return Cost(
        latency=form.latency,
        serial=form.serial,
        overhead=form.setup,
        wavelets=form.sent * instances,
        hops=form.hops * instances,
        sram_bytes=touched * wafer.wavelet_bytes,
    )


def _compute(step: Compute, wafer: Wafer) -> Cost:
    """Issue + ceil(length / lanes) an instruction, lanes by dtype and generation; both reads from one bank of SRAM take
    further passes. Around it a loop, or a hardware map for many calls; scalar functions run in a map."""
    if step.after:
        ahead = dataclasses.replace(step, length=step.after, after=0)
        both = dataclasses.replace(step, length=step.after + step.length, after=0)
        added = _compute(both, wafer) + _compute(ahead, wafer) * -1.0
        return dataclasses.replace(added, flops=step.flops)
    elements = step.calls * step.length
    around = wafer.straight_cycles if step.straight else wafer.loop_cycles
    if step.kind in ("transcendental", "divide"):
        one = wafer.transcendental_cycles if step.kind == "transcendental" else wafer.division_cycles
        arithmetic, overhead = elements * one, 0.0 if step.bare else around
    else:
        passes = 1 + step.conflict * wafer.conflict(step.itemsize)
        arithmetic = step.calls * ceil(step.length / wafer.lanes(step.kind, step.itemsize) * passes)
        overhead = step.calls * wafer.issue_cycles
        if step.maps:
            overhead = overhead + step.calls * wafer.map_cycles + step.maps * wafer.nest_cycles
        elif not step.bare:
            overhead = overhead + step.calls * around
    return Cost(
        arithmetic=arithmetic,
        overhead=overhead,
        flops=step.flops,
        sram_bytes=3 * elements * step.itemsize * step.instances,  # two operands read, one result written
        busy=(arithmetic + overhead) * step.instances,
    )


def _rounds(step: Rounds, wafer: Wafer) -> Cost:
    """The longer of computing and passing on counts; work, traffic and bytes are those of both."""
    compute = sum((cost(s, wafer) for s in step.compute), Cost())
    width = -maximum(-wafer.link_wavelets_per_cycle, -wafer.background_wavelets_per_cycle)
    behind = dataclasses.replace(wafer, link_wavelets_per_cycle=width)  # passing on happens in the background
    fabric = dataclasses.replace(sum((cost(s, behind) for s in step.fabric), Cost()), overhead=0.0)
    computes = compute.cycles >= fabric.cycles
    times = {name: where(computes, getattr(compute, name), getattr(fabric, name)) for name in _TIMES}
    starting = step.transfers * wafer.loop_cycles + step.tasks * wafer.task_cycles
    times["overhead"] = times["overhead"] + starting
    return dataclasses.replace(compute + fabric, **times) * step.times


def energy_joules(total: Cost, wafer: Wafer, wafers: int = 1) -> dict[str, Number]:
    """Energy of `total` by cause: idle power of the systems over its time, busy cores, and wavelets in flight."""
    return {
        "idle": wafer.idle_watts * wafers * total.cycles / wafer.clock_hz,
        "cores": total.busy * wafer.pe_joules_per_cycle,
        "fabric": total.hops * wafer.wavelet_bytes * 8 * wafer.hop_joules_per_bit,
    }
