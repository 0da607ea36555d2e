"""What tiling makes: values that say how a stage lies on a region of one size, and what it takes there."""

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from wsc.layout import Grid, Layout
from wsc.lowering import jaxapi
from wsc.machine.colors import colors_needed
from wsc.machine.cost import Cost, cost
from wsc.machine.steps import Compute, Step
from wsc.machine.wafer import Wafer
from wsc.program import Body, with_bodies, work


def tile_bytes(layout: Layout, shape: tuple[int, ...], dtype: Any, wafer: Wafer) -> int:
    """What the fullest PE's tile of an array takes in SRAM."""
    return rounded(jaxapi.nbytes(layout.local(shape), dtype), wafer)


def rounded(nbytes: int, wafer: Wafer) -> int:
    """Up to where the next array may begin."""
    return -(-nbytes // wafer.align_bytes) * wafer.align_bytes


@dataclass(frozen=True)
class TiledOp:
    """One equation on a region. `control` ops depend on no activation and run before the stage's input arrives."""

    ins: tuple[Layout | None, ...]
    outs: tuple[Layout | None, ...]
    steps: tuple[Step, ...]
    control: bool = False
    bodies: tuple[Body, ...] = ()


@dataclass(frozen=True)
class Stored:
    """One array kept on the PEs of a region: `nbytes` of it on each PE that holds any."""

    position: int  # in the stage's list of weights or states
    layout: Layout
    shape: tuple[int, ...]
    dtype: Any

    def tile_bytes(self, wafer: Wafer) -> int:
        return tile_bytes(self.layout, self.shape, self.dtype, wafer)


@dataclass
class TiledStage:
    """A stage tiled for one region size; shared by all stages of the same template."""

    grid: Grid
    wafer: Wafer
    ops: list[TiledOp]
    weights: list[Stored]
    states: list[Stored]
    buffers: list[tuple[int, int, int]] = field(default_factory=list)  # (bytes, first use, last use) by op position
    apart: bool = True  # products keep second accumulators
    hinted: bool = False  # values were laid where they will be wanted
    peak_bytes: int | None = None  # that the buffers take together, once it is known
    uses: dict = field(default_factory=dict)  # (weight by position, shape it is seen in) -> layout in a product

    @cached_property
    def colors(self) -> int:
        """Colors that the communication of the stage takes."""
        return colors_needed((s for op in self.ops for s, _ in work(op)), self.wafer)

    @cached_property
    def kept_bytes(self) -> int:
        """Weights and state, a PE."""
        return sum(s.tile_bytes(self.wafer) for s in (*self.weights, *self.states))

    @cached_property
    def twin_bytes(self) -> int:
        """The second accumulators that products keep in another bank, a PE: those of the largest."""
        twins = [
            b.length * b.itemsize
            for op in with_bodies(self.ops)
            for a, b in itertools.pairwise(op.steps)
            if isinstance(a, Compute) and isinstance(b, Compute) and a.kind == "fmac" and a.maps and not a.conflict
        ]
        return rounded(max(twins, default=0), self.wafer)

    @cached_property
    def control_cycles(self) -> float:
        """What depends on no activation, and is worked out before the stage's input arrives."""
        return float(sum(cost(s, self.wafer).cycles for op in self.ops if op.control for s in op.steps))

    @cached_property
    def data_cost(self) -> Cost:
        """On the critical path: from the stage's input to its output."""
        steps = (found for op in self.ops if not op.control for found in work(op))
        return sum((cost(s, self.wafer) if n == 1 else cost(s, self.wafer) * n for s, n in steps), Cost())
