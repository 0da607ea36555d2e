"""Build: planned stages on their regions become a Program, every op with its steps, every byte with its address."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wsc.errors import FitError
from wsc.lowering import jaxapi
from wsc.lowering.jaxapi import Literal
from wsc.lowering.layout import wavelets
from wsc.lowering.loops import loop_of
from wsc.lowering.memory import buffer_bytes, memory_map, over_by
from wsc.lowering.normalize import Normal
from wsc.lowering.plan import Stage, body_stage
from wsc.lowering.roles import Roles
from wsc.lowering.search import Planned
from wsc.lowering.tiled import Stored, TiledOp, TiledStage
from wsc.machine.steps import HostLink, Move, Step, WaferLink
from wsc.machine.wafer import Wafer
from wsc.program import Body, PlacedOp, PlacedStage, PlacedWeight, Program, Region


@dataclass(frozen=True)
class Conditions:
    """What the figures of a program hold for: in words, and the tokens that so many passes of it yield."""

    text: str
    tokens: int = 1
    passes: int = 1


def build_programs(
    normals: list[Normal], programs: list[Planned], regions: list[Region], wafer: Wafer, entries: list[Conditions]
) -> list[Program]:
    """One Program for each of `programs`; they share the regions, the addresses of weights and state, and buffers."""
    buffers = []
    for i, region in enumerate(regions):
        tiled = [p.tile(i, region.grid, wafer) for p in programs]
        buffers.append((max(map(buffer_bytes, tiled)), max(t.twin_bytes for t in tiled)))
    return [
        _build(normal, planned, regions, wafer, buffers, entry)
        for normal, planned, entry in zip(normals, programs, entries, strict=True)
    ]


def _build(
    normal: Normal, planned: Planned, regions, wafer: Wafer, buffers: list[tuple[int, int]], entry: Conditions
) -> Program:
    stages, roles = planned.stages, planned.roles
    visits = sorted((visit, i) for i, stage in enumerate(stages) for visit in stage.visits)
    number = {visit: n for n, visit in enumerate(visits)}
    makers = {v: number[visit, i] for i, s in enumerate(stages) for v, visit in _made(s).items()}
    templates: dict = {}
    placed: list[PlacedStage] = []
    tops = [
        _placed_ops(stage, planned.tile(i, r.grid, wafer), roles) for i, (stage, r) in enumerate(zip(stages, regions))
    ]
    for n, (visit, i) in enumerate(visits):
        stage, region, tiled = stages[i], regions[i], planned.tile(i, regions[i].grid, wafer)
        ordinal = stage.visits.index(visit)
        home = None if ordinal == 0 else number[stage.visits[0], i]
        template = templates.setdefault((stage.template, region.grid, ordinal), len(templates))
        weights = [roles.weights[v].name for v in stage.weights]
        if home is None:
            states = [roles.names.get(v, f"state {p}") for p, v in enumerate(stage.states)]
            memory = memory_map(tiled, weights, states, *buffers[i])
            over = over_by(max(a.end for a in memory), wafer)
            if over:
                raise FitError(
                    f"stage '{stage.name}' on {region} is over its SRAM by {over:,} B a PE: a larger region would fit; "
                    f"give more wafers, a shorter context or a smaller batch."
                )
        else:
            memory = placed[home].memory
        straight = planned.strategy.compiled
        came = [v for v in stage.entries if _first_read(stage, v) == visit]
        arrivals = []
        for v in came:
            source = makers.get(v)
            steps = _bring(v, None if source is None else placed[source].region, region, wafer, straight)
            arrivals.append((v, source, steps))
        if n == 0:
            arrivals += [(None, None, (HostLink(size),)) for size in [_control_bytes(normal, roles)] if size]
        mine = [op for op, at in zip(tops[i], stage.visit, strict=True) if at == visit]
        departures = tuple(HostLink(_nbytes(v.aval)) for v in stage.results if makers[v] == n)
        sizes = [roles.weights[v].nbytes for v in stage.weights]
        placed.append(
            PlacedStage(
                stage.name if home is None else f"{stage.name}, visit {ordinal + 1}",
                region,
                tuple(mine),
                tuple(_weights(tiled, weights, sizes)) if home is None else (),
                memory,
                tuple(arrivals),
                departures,
                template,
                tiled.colors,
                home,
            )
        )
    wafers = 1 + max(r.wafer for r in regions)
    weight_vars = frozenset(v for s in stages for v in s.weights)
    return Program(
        normal.jaxpr, normal.consts, wafer, wafers, tuple(placed), entry.text, weight_vars, entry.tokens, entry.passes
    )


def _made(stage: Stage) -> dict:
    """The visit in which each value that leaves the stage is made."""
    leaves = {*stage.exports, *stage.results}
    return {v: at for e, at in zip(stage.eqns, stage.visit, strict=True) for v in e.outvars if v in leaves}


def _first_read(stage: Stage, v: Any) -> int:
    return min(at for e, at in zip(stage.eqns, stage.visit, strict=True) if v in e.invars)


def _placed_ops(stage: Stage, tiled: TiledStage, roles: Roles) -> list[PlacedOp]:
    sources = [jaxapi.source_line(e) for e in stage.eqns]
    return list(_ops(stage, tiled.ops, {v: (roles.weights[v].name,) for v in stage.weights}, roles, sources))


def _ops(stage: Stage, ops: Sequence[TiledOp], through: dict, roles: Roles, sources: list[str]) -> Iterator[PlacedOp]:
    """The ops of a stage as placed; `through` has the weights that each variable is made of."""
    for eqn, op, source in zip(stage.eqns, ops, sources, strict=True):
        named = tuple(dict.fromkeys(n for a in eqn.invars if not isinstance(a, Literal) for n in through.get(a, ())))
        if named and all(roles.of(v) == "weight" for v in eqn.outvars):
            through.update((v, through.get(v, named)) for v in eqn.outvars)
        bodies = tuple(_bodies(stage, eqn, op, through, roles)) if op.bodies else ()
        yield PlacedOp(eqn, op.ins, op.outs, op.steps, op.control, named, source, bodies)


def _bodies(stage: Stage, eqn, op: TiledOp, through: dict, roles: Roles) -> Iterator[Body]:
    loop = loop_of(eqn)
    if loop is None:
        yield from (replace(body, meter=eqn.params[jaxapi.METER]) for body in op.bodies)
        return
    for i, (jaxpr, body) in enumerate(zip(loop.bodies, op.bodies, strict=True)):
        inner = body_stage(stage.name, jaxpr, roles)
        sources = [jaxapi.source_line(e) for e in inner.eqns]
        yield Body(tuple(_ops(inner, body.ops, through, roles, sources)), body.tail, body.times, loop.meter + i)


def _weights(tiled: TiledStage, names: list[str], sizes: list[int]):
    for stored in tiled.weights:
        yield _placed_weight(stored, names[stored.position], sizes[stored.position], tiled)


def _placed_weight(stored: Stored, name: str, nbytes: int, tiled: TiledStage) -> PlacedWeight:
    copies, parts = stored.layout.copies(tiled.grid), stored.layout.parts.pes
    tile = stored.tile_bytes(tiled.wafer)
    return PlacedWeight(name, stored.layout, stored.shape, nbytes, copies, tile * parts * copies)


def _bring(v: Any, a: Region | None, b: Region, wafer: Wafer, straight: bool) -> tuple[Step, ...]:
    """The steps that bring an activation to a region, from another or the host, laid along `y` as stages expect it.

    Side by side, every row sends its piece on, right across the new region. Otherwise the pieces travel down the
    columns, each column with its share, and then across."""
    nbytes = _nbytes(v.aval)
    if a is None:
        return (HostLink(nbytes),)
    if a.wafer != b.wafer:
        return (WaferLink(nbytes),)
    words = wavelets(nbytes, 1, wafer)
    if a.y == b.y:
        gap = max(a.x, b.x) - min(a.x + a.width, b.x + b.width)
        return (Move(max(0, gap) + b.width, words, b.height, b.width, straight),)
    across = abs((a.x + a.width // 2) - (b.x + b.width // 2)) if not a.touches(b) else 0
    return (Move(abs(a.y - b.y) + across + b.width, words, min(a.width, b.width), b.width, straight),)


def _nbytes(aval) -> int:
    return jaxapi.nbytes(aval.shape, aval.dtype)


def _control_bytes(normal: Normal, roles: Roles) -> int:
    """Tokens, positions and the like, sent by the host at the start."""
    return sum(_nbytes(v.aval) for v in normal.jaxpr.invars if roles.of(v) == "control")
