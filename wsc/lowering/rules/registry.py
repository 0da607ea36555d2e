"""One rule per primitive: given where the operands lie, where they must lie, where the results lie, and the steps.

A rule is a function `(op: Op, where: Where) -> Lowered`, registered under the primitive's name. It never moves
operands itself: it names the layouts it wants, and the tiler adds the steps that bring them there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsc.lowering.frames import Frames
from wsc.lowering.layout import Grid, Layout, lay, whole
from wsc.lowering.strategy import WSC, Strategy
from wsc.machine.steps import Compute, Step
from wsc.machine.wafer import Wafer
from wsc.program import Sized


@dataclass(frozen=True)
class Operand:
    """An input of an op. `layout` is None while it may still lie in any way (weights, constants, control)."""

    shape: tuple[int, ...]
    itemsize: int
    kind: str  # weight, state, activation, constant or control
    layout: Layout | None
    dtype: str = ""  # its name, where it is known
    value: Any = None  # of a number known at compile time

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rank(self) -> int:
        return len(self.shape)

    def laid(self) -> Layout:
        """Its layout; a value that may lie in any way counts as whole."""
        return whole(self.rank) if self.layout is None else self.layout


@dataclass(frozen=True)
class Op:
    """One equation, as a rule sees it."""

    name: str
    params: dict[str, Any]
    ins: tuple[Operand, ...]
    out_shapes: tuple[tuple[int, ...], ...]
    out_itemsizes: tuple[int, ...]
    hint: Layout | None = None  # where the first result will be wanted, if that is known
    out_dtypes: tuple[str, ...] = ()

    @property
    def complexes(self) -> bool:
        """It works on complex numbers. Where dtypes are not known, 8 bytes: JAX has no other such number by default."""
        dtypes = [*(o.dtype for o in self.ins), *self.out_dtypes]
        if any(dtypes):
            return any(d.startswith("complex") for d in dtypes)
        return max([*(o.itemsize for o in self.ins), *self.out_itemsizes], default=0) >= 8


@dataclass(frozen=True)
class Where:
    """The region an op runs on."""

    grid: Grid
    wafer: Wafer
    strategy: Strategy = WSC
    apart: bool = True  # there is room for second accumulators
    frames: Frames | None = None  # how arrays lie, of a program without weights and products


@dataclass(frozen=True)
class Lowered:
    """What a rule decides: the layout wanted of each operand (None: any), those of the results, and the steps;
    `scratch` bytes a PE are in use while it runs, beside operands and results; `sized` are steps, after the others,
    whose amounts a run decides."""

    ins: tuple[Layout | None, ...]
    outs: tuple[Layout, ...]
    steps: tuple[Step, ...]
    scratch: int = 0
    sized: Sized | None = None


Rule = Callable[[Op, Where], Lowered]
RULES: dict[str, Rule] = {}


def rule(*names: str):
    """Register a rule under the names of its primitives."""

    def register(fn: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for '{name}'")
            RULES[name] = fn
        return fn

    return register


def default_layout(shape: tuple[int, ...], where: Where) -> Layout:
    """Where a value lies that nothing else decides: its last dimension along `y`, as a stage's input does. In blocks:
    the blocks of rows along `y`, those of columns (before the last dimension of a matrix) along `x`. Where weights
    stream, the dimensions before the last one lie along `x`. Arrays of a program without weights lie in its frames."""
    if where.frames is not None:
        return where.frames.layout(shape)
    if where.strategy.blocked and len(shape) >= 2:
        at = lay(shape, "y", [0], where.grid.y)
        across = lay(shape, "x", [len(shape) - 2], where.grid.x)
        return at.with_axis("x", across.x) if len(shape) >= 4 else at
    at = lay(shape, "y", [len(shape) - 1], where.grid.y) if shape else whole(0)
    if where.strategy.streams and len(shape) >= 2:
        return at.with_axis("x", lay(shape, "x", range(len(shape) - 1), where.grid.x).x)
    return at


def vector(
    layout: Layout, shape, itemsize: int, where: Where, kind: str = "vector", calls: int = 1, flops: int = 1
) -> Compute:
    """One instruction (or `calls`) over a PE's tile of an array; `flops` useful operations an element. One element
    alone is a scalar in a register: no loop is set up for it."""
    pes = min(where.grid.pes, layout.parts.pes * layout.copies(where.grid))
    length = layout.size(shape)
    return Compute(
        kind, calls, length, itemsize, flops * math.prod(shape), pes, bare=length == 1, straight=where.strategy.compiled
    )
