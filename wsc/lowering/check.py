"""The rules of a placed program, as a program: run after every compile, and in tests after every pass."""

import itertools

import numpy as np

from wsc.layout import Grid, Layout
from wsc.program import PlacedStage, Program


class BrokenRule(AssertionError):
    """A compiler bug: a placed program breaks a rule of the IR."""


def check(programs: list[Program]) -> None:
    """Every rule on every program; what programs share must agree. Raises BrokenRule, which no user should meet."""
    for program in programs:
        for i, stage in enumerate(program.stages):
            _inside(program, stage)
            if any(source is not None and source >= i for _, source, _ in stage.arrivals):
                raise BrokenRule(f"stage {stage.name} waits for a later one")
            if stage.home is not None and stage.region != program.stages[stage.home].region:
                raise BrokenRule(f"stage {stage.name} is not where its first visit was")
        for a, b in itertools.pairwise(program.regions):
            if not a.region.touches(b.region):
                raise BrokenRule(f"stage {b.name} does not touch the one before it")
        _apart(program)
        _alive(program)
        for stage in program.stages:
            if stage.colors > program.wafer.colors:
                raise BrokenRule(f"stage {stage.name} takes {stage.colors} colors of {program.wafer.colors}")
        done: set[tuple[int, Grid]] = set()
        for stage in program.stages:
            if (stage.template, stage.region.grid) not in done:
                done.add((stage.template, stage.region.grid))
                _memory(program, stage)
                _layouts(stage)
    first = programs[0]
    for other in programs[1:]:
        for a, b in zip(first.stages, other.stages, strict=True):
            if a.region != b.region or [w.name for w in a.weights] != [w.name for w in b.weights]:
                raise BrokenRule(f"stage {a.name}: programs that share weights placed them apart")
            for v, w in zip(a.weights, b.weights, strict=True):
                if v.layout != w.layout:
                    raise BrokenRule(f"{v.name} would have to move between programs: {v.layout} and {w.layout}")


def _inside(program: Program, stage: PlacedStage) -> None:
    region, wafer = stage.region, program.wafer
    if region.y < 0 or region.x < 0 or region.y + region.height > wafer.rows or region.x + region.width > wafer.columns:
        raise BrokenRule(f"stage {stage.name} lies outside the wafer: {region}")
    if not 0 <= region.wafer < program.wafers:
        raise BrokenRule(f"stage {stage.name} is on wafer {region.wafer} of {program.wafers}")


def _apart(program: Program) -> None:
    """No two regions overlap."""
    regions = sorted((s.region for s in program.regions), key=lambda r: (r.wafer, r.y, r.x))
    for i, a in enumerate(regions):
        for b in regions[i + 1 :]:
            if b.wafer > a.wafer or b.y >= a.y + a.height:
                break
            if a.overlaps(b):
                raise BrokenRule(f"regions overlap: {a} and {b}")


def _alive(program: Program) -> None:
    """No PE of any region is dead, and no two are the same one. All wafers of a program have the same dead PEs."""
    defects = program.wafer.defects
    if defects is None:
        return
    on_wafer: dict[int, set[tuple[int, int, int, int]]] = {}
    for r in {s.region for s in program.stages}:
        on_wafer.setdefault(r.wafer, set()).add((r.y, r.x, r.height, r.width))
    for rectangles in {frozenset(found) for found in on_wafer.values()}:
        used = np.zeros((defects.rows, defects.columns), bool)
        for y, x, height, width in rectangles:
            used[defects.physical(np.arange(y, y + height)[:, None], np.arange(x, x + width))] = True
        if (used & defects.dead).any():
            raise BrokenRule(f"dead PEs are in use on a {program.wafer.name}")
        if np.count_nonzero(used) != sum(height * width for *_, height, width in rectangles):
            raise BrokenRule(f"two PEs of a program are the same one on a {program.wafer.name}")


def _memory(program: Program, stage: PlacedStage) -> None:
    """Address ranges follow one another without overlap and end within SRAM; code comes first."""
    at = 0
    for a in sorted(stage.memory, key=lambda a: a.offset):
        if a.offset < at or a.nbytes < 0:
            raise BrokenRule(f"stage {stage.name}: {a} overlaps what ends at {at}")
        at = a.end
    if stage.memory[0].kind != "code" or stage.memory[0].nbytes < program.wafer.code_bytes:
        raise BrokenRule(f"stage {stage.name} reserves no code")
    if at > program.wafer.sram_bytes:
        raise BrokenRule(f"stage {stage.name} uses {at} of {program.wafer.sram_bytes} bytes")


def _layouts(stage: PlacedStage) -> None:
    """Every layout has the rank of its value and no more parts than the region has PEs; data ops have layouts."""
    for op in stage.ops:
        values = [*zip(op.eqn.invars, op.ins, strict=True), *zip(op.eqn.outvars, op.outs, strict=True)]
        for value, layout in values:
            if layout is not None:
                _layout(stage, op.name, value.aval.shape, layout)
        if not op.control and not op.weights and any(layout is None for layout in op.outs):
            raise BrokenRule(f"stage {stage.name}: {op.name} has a result that lies nowhere")


def _layout(stage: PlacedStage, name: str, shape: tuple[int, ...], layout: Layout) -> None:
    if len(layout.y) != len(shape):
        raise BrokenRule(f"stage {stage.name}: {name} has layout {layout} for shape {shape}")
    if not layout.fits(stage.region.grid):
        raise BrokenRule(f"stage {stage.name}: {name} cut into {layout.parts} parts on {stage.region.grid}")
    frames = [layout.frame(d, n) for d, n in enumerate(shape)]
    if any(y * x > max(1, n) * 2 for n, y, x in zip(frames, layout.y, layout.x, strict=True)):
        raise BrokenRule(f"stage {stage.name}: {name} of shape {shape} cut finer than its elements: {layout}")
