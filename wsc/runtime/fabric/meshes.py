"""Published runs of small meshes as programs of the fabric, written as their authors tell that they are."""

from dataclasses import dataclass

import numpy as np

from wsc.layout import Grid
from wsc.machine.published import MEASUREMENTS, SDK
from wsc.machine.wafer import WSE2, WSE3, Wafer
from wsc.runtime.fabric import lines
from wsc.runtime.fabric.phases import EVERYONE, join, work
from wsc.runtime.fabric.program import EAST, NORTH, RAMP, SOUTH, WEST, Fabric, Instruction
from wsc.runtime.fabric.sharing import after
from wsc.runtime.fabric.simulate import simulate
from wsc.runtime.fabric.sizes import Timing

BAR = 0.15  # of the published cycles
AROUND = 5  # PEs of a side from which the published stencil runs as on any larger grid
ITERATIONS = 40


@dataclass(frozen=True)
class Mesh:
    """A published number of cycles and what the simulator says."""

    name: str
    published: float
    simulated: float
    source: str = SDK

    @property
    def error(self) -> float:
        """Of the simulator, in percent."""
        return 100 * (self.simulated / self.published - 1)

    @property
    def within(self) -> bool:
        return abs(self.error) <= 100 * BAR


def meshes() -> tuple[Mesh, ...]:
    """All of them.

    >>> [m.within for m in meshes()]
    [True, True, True, True, True]
    """
    known = {m.setting: m.value for m in MEASUREMENTS}
    first, second = arrivals()
    return (
        Mesh("multicast: arrival at the 2nd PE on", known["arrival", 1156, 1], 1156 + first),
        Mesh("multicast: arrival at the 3rd PE on", known["arrival", 1156, 2], 1156 + second),
        Mesh("SUMMA fp32, 4 x 4 PEs, 14^3 tiles: broadcasts", known["summa", "broadcasts"], summa()),
        Mesh("star stencil, an iteration, WSE-2", known["direct", "wse2"], stencil(WSE2)),
        Mesh("star stencil, an iteration, WSE-3", known["direct", "wse3"], stencil(WSE3)),
    )


def arrivals() -> tuple[int, int]:
    """Cycles after which a multicast's first wavelet comes to the PE one and two further on."""
    run = simulate(lines.multicast(6, 1), Timing.of(WSE2, 0.0))
    assert run.ended is not None
    came = run.ended[0, 0, 0]
    return int(came[3] - came[2]), int(came[4] - came[2])


def summa(pes: int = 4, tile: int = 14, wafer: Wafer = WSE2) -> int:
    """Cycles of a matrix product that go into its broadcasts. In round k column k of PEs sends its tiles along the rows
    and row k its tiles along the columns; all come in through the one ramp in the background, one tile after the other;
    then tiles are multiplied."""
    words = tile * tile
    products = round(words * (tile + float(wafer.issue_cycles) + float(wafer.nest_cycles)))
    each = Instruction(words, slow=True, thread=1)
    whole = Fabric(pes, pes)
    for k in range(pes):
        line = Fabric(1, pes)
        lines.add_multicast(line, range(pes), k, each, line.color())
        whole = after(after(whole, line.across(pes)), line.across(pes, "y"))
        join(whole, EVERYONE, 0, 1)
        whole = after(whole, work(Grid(pes, pes), products))
        join(whole, EVERYONE, 0, 1)
    return simulate(whole, Timing.of(wafer)).cycles - pes * products


def stencil(wafer: Wafer, pes: int = AROUND, iterations: int = ITERATIONS) -> float:
    """Cycles of an iteration of a five-point stencil with one value a PE. A PE sends to its four neighbours at once, on
    one of five colors, so that the four it hears of are different ones, takes in one or two at a time, adds what is
    left to add, and scales. Each instruction is issued, none stands in a loop."""
    grid = Fabric(pes, pes)
    colors = [grid.color() for _ in range(5)]
    ways = {NORTH: (-1, 0), SOUTH: (1, 0), WEST: (0, -1), EAST: (0, 1)}
    for y, x in np.ndindex(pes, pes):
        near = {w: (y + a, x + b) for w, (a, b) in ways.items() if 0 <= y + a < pes and 0 <= x + b < pes}
        color = {w: colors[(i + 2 * j) % 5] for w, (j, i) in near.items()}
        mine = colors[(x + 2 * y) % 5]
        grid.route(mine, (y, x), RAMP, list(near))
        for way, c in color.items():
            grid.route(c, (y, x), way, [RAMP])
        at_once = 2 if wafer.fabric_inputs >= 2 else 1
        come = list(color.values())
        takes = [tuple(come[i : i + at_once]) for i in range(0, len(come), at_once)]
        sums = (4 + at_once - 1) // at_once - 1
        for _ in range(iterations):
            grid.instruct((y, x), Instruction(1, sends=mine, load=True))
            for reads in takes:
                grid.instruct((y, x), Instruction(1, reads=reads, store=True, address=1))
            for _ in range(sums + 1):
                grid.instruct((y, x), Instruction(1))
    one = simulate(grid, Timing.of(wafer, float(wafer.issue_cycles))).cycles
    return one / iterations
