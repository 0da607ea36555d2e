"""Tile loops: a body is tiled once, on the region of its loop. What is carried lies at the end of a trip as it lay at
its start; what a body reads of the program around it is brought before the first trip."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsc.lowering import loops
from wsc.lowering.fuse import fuse
from wsc.lowering.jaxapi import Literal, bits_of
from wsc.lowering.layout import Layout, relayout, whole
from wsc.lowering.loops import Loop
from wsc.lowering.plan import Stage, body_stage
from wsc.lowering.rules.registry import default_layout, vector
from wsc.lowering.tiled import TiledOp
from wsc.machine.cost import cost
from wsc.machine.steps import Step
from wsc.program import Body

if TYPE_CHECKING:
    from wsc.lowering.tile import Tiler


@dataclass
class TiledLoop:
    """A loop whose bodies are tiled but for what lies as its users want it."""

    loop: Loop
    stages: list[Stage]
    ops: list[list[TiledOp | None]]
    tails: list[list[Step]]
    starts: list[Layout | None]  # of what is carried; None: as users want it
    ends: list[Layout | None]
    outs: tuple[Layout, ...]
    before: list[Step]  # taken once, ahead of the first trip


def tile_loop(tiler: "Tiler", eqn: Any, loop: Loop) -> TiledLoop:
    """Carried values lie as they come, or as the body leaves them if that takes less."""
    saved = tiler.snapshot()
    found = _tile(tiler, eqn, loop, [None] * loop.carried)
    if any(a is not None and b is not None and a != b for a, b in zip(found.starts, found.ends)):
        after = tiler.snapshot()
        tiler.restore(saved)
        again = _tile(tiler, eqn, loop, found.ends)
        if _trip(again, tiler) < _trip(found, tiler):
            return again
        tiler.restore(after)
    return found


def _trip(found: TiledLoop, tiler: "Tiler") -> float:
    steps = [s for ops in found.ops for op in ops if op is not None for s in op.steps]
    return sum(float(cost(s, tiler.where.wafer).cycles) for s in [*steps, *(s for tail in found.tails for s in tail)])


def _tile(tiler: "Tiler", eqn: Any, loop: Loop, asked: list[Layout | None]) -> TiledLoop:
    operands = loops.operands_of(eqn)
    starts = [_start(tiler, body_var, a, want) for body_var, a, want in zip(_own(loop), operands, asked)]
    before: list[Step] = []
    stacked = operands[loop.carried :] if loop.kind != "cond" else []
    rows = [None if tiler.roles.flexible(a) else _row(tiler, a) for a in stacked]
    for a, want in zip(operands, [*starts, *(None if at is None else _stacked(at) for at in rows)]):
        if want is not None:
            before += [step for _, step in tiler.bring(a, want)]
    if loop.kind == "cond" and not tiler.roles.flexible(operands[0]):
        before += [step for _, step in tiler.bring(operands[0], whole(0))]
    found = TiledLoop(loop, [], [], [], starts, [], (), before)
    for i, body in enumerate(loop.bodies):
        tiler.at.update((v, at) for v, at in zip(body.invars, [*starts, *rows]) if at is not None)
        if i:  # of a while loop: what is carried as state lies as its condition had it
            tiler.at.update((v, tiler.at[w]) for v, w in zip(body.invars, loop.bodies[0].invars) if w in tiler.at)
        stage = body_stage(tiler.stage.name, body, tiler.roles)
        tiler.scopes.append((_variables(body), before))
        found.stages.append(stage)
        found.ops.append(tiler.forward(stage))
        tiler.scopes.pop()
    _lay_ends(tiler, eqn, found)
    return found


def _own(loop: Loop) -> list:
    return loop.bodies[-1].invars[: loop.carried]


def _start(tiler: "Tiler", v, atom, asked: Layout | None) -> Layout | None:
    kind = tiler.roles.of(v)
    if kind == "control":
        return None
    if asked is not None:
        return asked
    laid = None if isinstance(atom, Literal) else tiler.at.get(atom)
    return laid if laid is not None or kind == "state" else default_layout(v.aval.shape, tiler.where)


def _row(tiler: "Tiler", atom) -> Layout:
    """One step's part of a stacked value: all steps of it lie on the same PEs."""
    at = tiler.at.get(atom) or default_layout(atom.aval.shape, tiler.where)
    return at.take(range(1, atom.aval.ndim))


def _stacked(at: Layout) -> Layout:
    """Values of all steps, each laid like that of one."""
    return at.take([None, *range(len(at.y))])


def _variables(body) -> set:
    return {*body.invars, *(v for e in body.eqns for v in e.outvars)}


def _lay_ends(tiler: "Tiler", eqn: Any, found: TiledLoop) -> None:
    """Where results lie, and what brings the ends of each body there."""
    loop = found.loop
    wanted: list[Layout] = []
    for i, v in enumerate(eqn.outvars):
        shape = tuple(v.aval.shape)
        results = [body.outvars[i] for body in (loop.bodies[-1:] if loop.kind != "cond" else loop.bodies)]
        laid = [tiler.at[a] for a in results if not isinstance(a, Literal) and a in tiler.at]
        if i < loop.carried:
            inside = tiler.at.get(_own(loop)[i])
            if inside is None and tiler.roles.of(_own(loop)[i]) == "state":  # no trip looks at it
                inside = tiler.at[_own(loop)[i]] = default_layout(shape, tiler.where)
            first = loops.operands_of(eqn)[i]
            if inside is not None and not isinstance(first, Literal) and tiler.roles.of(first) == "state":
                tiler.at.setdefault(first, inside)
            found.starts[i] = found.starts[i] or inside
            found.ends.append(laid[0] if laid else None)
            control = tiler.roles.of(_own(loop)[i]) == "control"
            wanted.append(inside or (laid[0] if laid and not control else whole(len(shape))))
        elif loop.kind == "cond":
            wanted.append(max(laid, key=lambda at: at.parts.pes, default=whole(len(shape))))
        else:
            wanted.append(laid[0] if laid else default_layout(shape[1:], tiler.where))
    for k, body in enumerate(loop.bodies):
        tail: list[Step] = [vector(whole(0), (), 4, tiler.where, flops=0)]  # on with it, or out
        ends: list[Any] = body.outvars if loop.kind != "while" or k else []
        for i, a in enumerate(ends):
            shape, itemsize = tuple(a.aval.shape), -(-bits_of(a.aval.dtype) // 8)
            if isinstance(a, Literal) or tiler.roles.flexible(a):
                if not isinstance(a, Literal):
                    tiler.wanted.setdefault(a, {})[wanted[i]] = None
            elif tiler.at.setdefault(a, wanted[i]) != wanted[i]:  # state that nothing has looked at lies so
                tail += relayout(shape, itemsize, tiler.at[a], wanted[i], tiler.where.grid, tiler.where.wafer)
            if i >= loop.carried and 0 not in shape:  # kept for good, or given out
                tail.append(vector(wanted[i], shape, itemsize, tiler.where, flops=0))
        found.tails.append(list(tiler.prepared(tail)))
    stacks = loop.kind == "scan"
    found.outs = tuple(_stacked(at) if stacks and i >= loop.carried else at for i, at in enumerate(wanted))


def finish_loop(tiler: "Tiler", eqn: Any, found: TiledLoop) -> TiledOp:
    """The loop with all its ops: what users want is known now."""
    loop, bodies = found.loop, []
    for stage, ops, tail in zip(found.stages, found.ops, found.tails, strict=True):
        done = tiler.backward(stage, ops)
        fused = fuse(stage, tiler.roles, done, tiler.where.wafer, tiler.where.strategy)
        bodies.append(Body(tuple(fused), tuple(tail), loop.length if loop.kind == "scan" else None))
    operands = loops.operands_of(eqn)
    for i, a in enumerate(operands):
        own = loop.bodies[-1].invars[i : i + 1]
        if isinstance(a, Literal) or not tiler.roles.flexible(a):
            continue
        wants = [*tiler.wanted.get(own[0], ())] if own and tiler.roles.flexible(own[0]) else []
        if own and i >= loop.carried:
            wants = [_stacked(at) for at in wants]
        for at in wants or ([] if tiler.wanted.get(a) else [whole(a.aval.ndim)]):
            tiler.wanted.setdefault(a, {})[at] = None
    ins: list[Layout | None] = [None] * len(eqn.invars)
    return TiledOp(tuple(ins), found.outs, tiler.prepared(found.before), bodies=tuple(bodies))
