"""Steps as programs of a fabric: what `wsc.machine.steps` says of a line of PEs, laid on the lines of a region.

A step tells how many lines do it at once, not where: `lines_of` lays them side by side. Off-wafer links are waited for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from wsc.errors import ArgumentError
from wsc.layout import Grid
from wsc.machine.cost import cost
from wsc.machine.steps import AllReduce, Compute, Move, Multicast, Reduce, Rounds, Shift, Step
from wsc.machine.wafer import Wafer
from wsc.runtime.fabric import lines
from wsc.runtime.fabric.program import THREADS, Fabric, Instruction, Where
from wsc.runtime.fabric.sharing import after

EVERYONE = slice(None), slice(None)


@dataclass(frozen=True)
class Lines:
    """Where a step's lines lie along `axis`, each with the coordinates of its participants, in order, and of all PEs
    that hear of a result; the same on every line across."""

    axis: str
    places: tuple[tuple[int, ...], ...]
    heard: tuple[tuple[int, ...], ...]

    @property
    def interleaved(self) -> bool:
        """Some lines lie within one another, and cannot have the same colors."""
        spans = sorted((min(h), max(h)) for h in self.heard)
        return any(later[0] <= before[1] for before, later in pairwise(spans))


def lines_of(step: AllReduce | Reduce | Multicast, grid: Grid) -> Lines:
    """Lines side by side: along x where so many fit on every row, else along y; evenly apart.

    >>> lines_of(Multicast(pes=3, span=4, wavelets=1, instances=8), Grid(4, 12)).places
    ((0, 2, 4), (6, 8, 10))
    """
    fits = [axis for axis in "xy" if step.span < getattr(grid, axis)]
    if not fits:
        raise ArgumentError(f"{step} does not fit a region of {grid.y} x {grid.x} PEs")
    whole = [axis for axis in fits if step.instances % getattr(grid, _across(axis)) == 0]
    axis = (whole or fits)[0]
    pes, spacing = getattr(grid, axis), max(1, step.span // max(1, step.pes - 1))
    blocks = max(1, min(step.instances // getattr(grid, _across(axis)), pes // (step.span + 1)))
    apart = pes // blocks
    places = tuple(tuple(b * apart + i * spacing for i in range(step.pes)) for b in range(blocks))
    return Lines(axis, places, places)


def _across(axis: str) -> str:
    return "x" if axis == "y" else "y"


def phase(step: Step, grid: Grid, wafer: Wafer, each: Instruction, at: Lines | None = None) -> Fabric:
    """The program of one step on a region of `grid` PEs; `each` has the address, thread and pace of its instructions,
    `at` where its lines lie, if that is known. Raises ArgumentError where it does not fit."""
    match step:
        case AllReduce() | Reduce() | Multicast():
            at = at or lines_of(step, grid)
            each = replace(each, length=step.wavelets + getattr(step, "after", 0))
            line = Fabric(1, getattr(grid, at.axis))
            colors: list[int] | None = None
            for places, heard in zip(at.places, at.heard, strict=True):
                if colors is None or at.interleaved:
                    colors = _colors(line, step)
                if len(places) > 1 and each.length:
                    _add(line, step, places, heard, each, colors)
            return line.tidy().across(getattr(grid, _across(at.axis)), at.axis)
        case Shift():
            return _shift(step, grid, each)
        case Move(distance, wavelets, links, delivers):
            rows = max(1, min(links, grid.y))
            across = min(grid.x, distance + 1)
            waits = round(wafer.task_cycles + max(0, distance - grid.x) * wafer.hop_cycles)
            moved = Multicast(across, across - 1, -(-wavelets // links), rows)
            heard = range(max(0, across - max(1, delivers)), across)
            at = Lines("x", (tuple(range(across)),), (tuple(heard),))
            return after(work(grid, waits), phase(moved, grid, wafer, each, at))
        case Rounds():
            return _rounds(step, grid, wafer, each)
    return work(grid, round(float(cost(step, wafer).cycles)))


def work(grid: Grid, cycles: int) -> Fabric:
    """All PEs are busy for so many cycles."""
    fabric = Fabric(*grid)
    fabric.instruct(EVERYONE, Instruction(cycles, bare=True))
    return fabric


def _colors(line: Fabric, step: AllReduce | Reduce | Multicast) -> list[int]:
    if isinstance(step, AllReduce):
        return lines.all_reduce_colors(line, step.algorithm, step.pes, step.shape)
    return [line.color(), line.color()]


def _add(line: Fabric, step, places: Sequence[int], heard: Sequence[int], each: Instruction, colors: list[int]):
    match step:
        case AllReduce(algorithm, shape=shape):
            lines.add_all_reduce(line, places, algorithm, each, shape, colors, heard)
        case Reduce(algorithm):
            lines.add_reduce(
                line, places, algorithm, each, lines.shape_of(algorithm, len(places), each.length, ()), colors
            )
        case Multicast():
            lines.add_multicast(line, heard, places[0], each, colors[0])


def _shift(step: Shift, grid: Grid, each: Instruction) -> Fabric:
    """As many messages as share the fullest link, from PEs side by side to those `distance` further east or south, on
    as many places of a line as the hops in all are for. What is taken in meanwhile is in the thread after."""
    fits = [a for a in "xy" if step.distance < getattr(grid, a)]
    if not fits:
        raise ArgumentError(f"{step} does not fit a region of {grid.y} x {grid.x} PEs")
    axis = next((a for a in fits if step.instances == getattr(grid, _across(a))), fits[0])
    pes = getattr(grid, axis)
    messages = max(1, min(round(step.wavelets / max(1, step.largest)), step.distance, pes - step.distance))
    width = step.distance + messages
    blocks = round(step.total_wavelet_hops / max(1, step.wavelets * step.distance))
    blocks = max(1, min(blocks, pes // width))
    line = Fabric(1, pes)
    color = line.color()
    for start in range(0, blocks * (pes // blocks), pes // blocks):
        for i in reversed(range(messages)):
            source = start + i
            words = step.wavelets // messages + (i < step.wavelets % messages)
            target = 0, source + step.distance
            lines.add_message(line, color, source, source + step.distance)
            line.instruct((0, source), replace(each, length=words, sends=color, load=True))
            if not each.slow:
                join(line, target, each.thread, each.thread + 1)
            taking = replace(each, length=words, reads=(color,), store=True, thread=each.thread + 1)
            line.instruct(target, taking)
            if not each.slow:
                join(line, target, each.thread, each.thread + 1)
    return line.tidy().across(getattr(grid, _across(axis)), axis)


def join(fabric: Fabric, where: Where, *threads: int):
    """Threads that wait for one another: none takes what another is still to have of a color."""
    for thread in threads:
        fabric.instruct(where, Instruction(1, joins=True, bare=True, thread=thread))


def _rounds(step: Rounds, grid: Grid, wafer: Wafer, each: Instruction) -> Fabric:
    """Every round starts, computes in thread 0 and passes on in the others, and ends when all of that has."""
    one = work(grid, round(step.transfers * wafer.loop_cycles + step.tasks * wafer.task_cycles))
    one = after(one, work(grid, round(sum(float(cost(s, wafer).cycles) for s in step.compute))))
    for inner in step.fabric:
        one = after(one, phase(inner, grid, wafer, replace(each, slow=True, bare=True, thread=1)))
    join(one, EVERYONE, *range(THREADS))
    whole = one
    for _ in range(step.times - 1):
        whole = after(whole, one)
    return whole


def scaled(step: Step, scale: float) -> Step:
    """The step on a cut-out of its region: fewer PEs a line and fewer lines, as much data of each."""

    def few(n: int, least: int = 1) -> int:
        return max(min(n, least), math.ceil(n * scale))

    match step:
        case (
            AllReduce(pes=pes, span=span, instances=lines)
            | Reduce(_, pes, span, _, lines)
            | Multicast(pes, span, _, lines)
        ):
            fewer = few(pes, 2)
            return replace(step, pes=fewer, span=max(fewer - 1, int(span * scale)), instances=few(lines))
        case Shift(distance, _, total, lines):
            nearer = max(1, int(distance * scale))
            hops = round(total * nearer / max(1, distance))
            return replace(step, distance=nearer, total_wavelet_hops=hops, instances=few(lines))
        case Rounds(times, compute, fabric):
            inner = {
                "compute": tuple(scaled(s, scale) for s in compute),
                "fabric": tuple(scaled(s, scale) for s in fabric),
            }
            return replace(step, times=few(times), **inner)
        case Move(distance, wavelets, links, delivers):
            nearer = few(distance)
            return replace(
                step, distance=nearer, wavelets=few(wavelets), links=few(links), delivers=min(nearer, few(delivers))
            )
        case Compute(instances=pes):
            return replace(step, instances=few(pes))
    return step
