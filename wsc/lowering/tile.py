"""Tile: every op of a stage gets operand layouts, result layouts and the steps that run it, for one region size.

Data flows forward: each rule is asked where its operands must lie, and steps are added that bring them there.
Weights, constants and control lie as their users want them: their layouts are pulled backwards afterwards.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from wsc.errors import UnsupportedError
from wsc.lowering import jaxapi, loops
from wsc.lowering.frames import Frames, without_margins
from wsc.lowering.fuse import fuse
from wsc.lowering.halo import Halos, together
from wsc.lowering.jaxapi import Literal
from wsc.lowering.layout import Grid, Layout, relayout, whole
from wsc.lowering.memory import lifetimes
from wsc.lowering.multiply_add import multiply_adds
from wsc.lowering.plan import Stage
from wsc.lowering.roles import Roles
from wsc.lowering.rules import RULES, Op, Operand, Where
from wsc.lowering.rules.coverage import no_rule
from wsc.lowering.rules.elementwise import DIVIDE, TRANSCENDENTAL, VECTOR
from wsc.lowering.rules.flexible import VIEWS, made, pull
from wsc.lowering.rules.registry import default_layout, vector
from wsc.lowering.strategy import WSC, Strategy
from wsc.lowering.tile_loops import TiledLoop, finish_loop, tile_loop
from wsc.lowering.tiled import Stored, TiledOp, TiledStage, rounded, tile_bytes
from wsc.lowering.updates import gradients
from wsc.machine.steps import Compute, Multicast, Shift, Step
from wsc.machine.wafer import Wafer
from wsc.program import Body

NOTHING: Mapping = MappingProxyType({})
_IN_FRAMES = {  # operations that take arrays as they lie in a frame
    *VECTOR, *DIVIDE, *TRANSCENDENTAL, "integer_pow", "slice", "split", "pad", "concatenate", "dynamic_update_slice",
    "broadcast_in_dim", "expand_dims", "squeeze", "transpose", "reduce_sum", "reduce_max", "reduce_min",
}  # fmt: skip
_INTO_NEW = ("pad", "concatenate")  # what comes from neighbours lands in the array that they make
_KEEP = ("dot_general", "gather", "conv_general_dilated", "ragged_dot_general")  # what decides how a weight lies
TRAINED = 3  # colors that one collective may take where a stage has those of all of a training step


def tile_stage(
    stage: Stage, roles: Roles, grid: Grid, wafer: Wafer, strategy: Strategy = WSC,
    states: Mapping[int, Layout] = NOTHING, hints: Mapping[Any, Layout] = NOTHING, uses: Mapping = NOTHING,
    apart: bool = True,
) -> TiledStage:  # fmt: skip
    """Tile a stage onto a region of `grid` PEs. Its collectives are the cheapest that the wafer's colors allow all
    together: while they take too many, each is chosen under a smaller budget of its own.

    `states` says how state lies, by position, where that is decided, `uses` how weights do; `hints` where values will
    be wanted; `apart`, that products may keep second accumulators."""
    budget, frames = int(wafer.colors), _frames(stage, roles, grid, strategy)
    if roles.trained:
        budget = min(budget, TRAINED)
    while True:
        numbers = wafer if budget == wafer.colors else replace(wafer, colors=budget)
        tiled = Tiler(stage, roles, Where(grid, numbers, strategy, apart, frames), states, hints, uses).run()
        tiled.wafer = wafer
        if tiled.colors <= wafer.colors or budget == 1:
            return tiled
        budget -= 1


class Tiler:
    def __init__(self, stage: Stage, roles: Roles, where: Where, states, hints, uses):
        self.stage, self.roles, self.where, self.hints = stage, roles, where, hints
        self.at: dict[Any, Layout] = {
            stage.states[p]: at for p, at in states.items()
        }  # where activations and state lie
        self.wanted: dict[Any, dict[Layout, None]] = {}  # the layouts that users want of flexible values
        self.came: dict[tuple, tuple[int, int, int]] = {}  # (value, layout) brought about: its bytes, first and last op
        self.decided, self.uses = uses, {}
        self.halos = Halos(where) if where.frames is not None else None
        self.seen = _seen_through(stage)
        self.kept: dict[Any, Layout] = {}  # how weights that are trained are stored
        self.views = {e.outvars[0]: e for e, data in zip(stage.eqns, stage.data, strict=True) if not data}
        self.gradients = gradients(stage.eqns, roles)
        self.loops: dict[int, TiledLoop] = {}  # by the id of their equation
        self.scratch: list[tuple[int, int, int]] = []  # buffers of single ops
        self.position = 0  # of the op of the stage that is being tiled
        self.scopes: list[tuple[set, list[Step]]] = []  # bodies we are in: their variables, and what is done before
        self.spreads = {
            e.outvars[0]: e
            for e, data in zip(stage.eqns, stage.data, strict=True)
            if data and e.primitive.name == "broadcast_in_dim"
        }

    def run(self) -> TiledStage:
        for v in (*self.stage.entries, *(self.stage.states if self.halos else ())):
            self.at[v] = default_layout(v.aval.shape, self.where)
        ops = self.backward(self.stage, self.forward(self.stage))
        ops = fuse(self.stage, self.roles, ops, self.where.wafer, self.where.strategy)
        ops = multiply_adds(self.stage, ops, self.where.wafer) if self.halos else ops
        self._lay_exports(ops)
        weights = [s for p, v in enumerate(self.stage.weights) for s in self._stored(p, v)]
        states = [
            Stored(p, self.at.get(v) or default_layout(v.aval.shape, self.where), v.aval.shape, v.aval.dtype)
            for p, v in enumerate(self.stage.states)
        ]
        tiled = TiledStage(
            self.where.grid,
            self.where.wafer,
            ops,
            weights,
            states,
            apart=self.where.apart,
            hinted=bool(self.hints),
            uses=self.uses,
        )
        tiled.buffers = lifetimes(self.stage, self.roles, self._sizes)
        tiled.buffers += [*self.came.values(), *self.scratch, *(self.halos.held if self.halos else ())]
        return tiled

    def forward(self, stage: Stage) -> list[TiledOp | None]:
        """Data ops in order; None for those that lie as their users want them."""
        found: list[TiledOp | None] = []
        for n, (eqn, data) in enumerate(zip(stage.eqns, stage.data, strict=True)):
            if not self.scopes:
                self.position = n
            found.append(self._data_op(eqn) if data else None)
        return found

    def backward(self, stage: Stage, ops: list[TiledOp | None]) -> list[TiledOp]:
        """The others, last one first: all their users are known."""
        found = []
        for eqn, op in zip(reversed(stage.eqns), reversed(ops), strict=True):
            if id(eqn) in self.loops:
                op = finish_loop(self, eqn, self.loops[id(eqn)])
            found.append(op or self._flexible_op(eqn))
        return found[::-1]

    def snapshot(self) -> tuple:
        """What was decided so far."""
        wanted = {v: dict(found) for v, found in self.wanted.items()}
        halos = self.halos.copy() if self.halos else None
        return dict(self.at), wanted, dict(self.came), dict(self.uses), dict(self.loops), dict(self.kept), halos

    def restore(self, saved: tuple) -> None:
        self.at, self.wanted, self.came, self.uses, self.loops, self.kept, self.halos = saved

    def _data_op(self, eqn) -> TiledOp:
        if loop := loops.loop_of(eqn):
            found = self.loops[id(eqn)] = tile_loop(self, eqn, loop)
            self.at.update(zip(eqn.outvars, found.outs, strict=True))
            return TiledOp((None,) * len(eqn.invars), found.outs, ())
        op = self._as_op(eqn)
        if op.name not in RULES:
            raise UnsupportedError(no_rule(eqn, self.stage.name))
        lowered = RULES[op.name](op, self.where)
        if lowered.scratch:
            self.scratch.append((rounded(lowered.scratch, self.where.wafer), self.position, self.position))
        steps: list[Step] = []
        halo: list[tuple[str, Step]] = []  # what comes along an axis of arrays in frames
        for atom, want in zip(eqn.invars, lowered.ins, strict=True):
            if not isinstance(atom, Literal) and want is not None:
                now = self.at.get(atom, want)
                came = self.bring(atom, want, keeps=op.name in _KEEP)
                halo += came
                if self.halos and op.name in _INTO_NEW and not came and now != want:  # it is here: for another op
                    shape, itemsize = tuple(atom.aval.shape), _itemsize(atom.aval)
                    steps.append(vector(want, shape, itemsize, self.where, flops=0))
        steps += together(halo) if self.halos and op.name == "concatenate" else [s for _, s in halo]
        if self.halos and op.name in ("slice", "split"):
            self.halos.see_through(eqn, self.at)
        steps += lowered.steps
        for v, layout in zip(eqn.outvars, lowered.outs, strict=True):
            self.at[v] = layout
            if self.roles.stays(v):
                steps += self._put_back(v, layout)
        sized = lowered.sized
        bodies = () if sized is None else (Body((), self.prepared(sized.worst), None, sized=sized),)
        return TiledOp(lowered.ins, lowered.outs, self.prepared(steps), bodies=bodies)

    def _put_back(self, v, now: Layout) -> tuple[Step, ...]:
        """A new value takes the place of the old one."""
        old = self.roles.updates[v]
        there = self.kept.get(old) or self.at.get(old) or now
        return relayout(tuple(v.aval.shape), _itemsize(v.aval), now, there, self.where.grid, self.where.wafer)

    def _trained(self, atom) -> Any:
        """The trained weight that a value is a view of, or None."""
        position = None if isinstance(atom, Literal) or not self.roles.trained else self.seen.get(atom)
        weight = None if position is None else self.stage.weights[position]
        return weight if weight in self.roles.trained else None

    def _as_kept(self, atom, weight) -> Layout:
        """How a view of a trained weight lies, that being stored as it is."""
        if atom is weight:
            return self.kept[weight]
        eqn = self.views[atom]
        op = self._as_op(eqn)
        source = replace(op.ins[0], layout=self._as_kept(eqn.invars[0], weight))
        return RULES[op.name](replace(op, ins=(source, *op.ins[1:])), self.where).outs[0]

    def _as_weight(self, v) -> Layout | None:
        """How a gradient lies best: as its weight is kept."""
        weight, through = self.gradients.get(v, (None, None))
        if through is None:
            return self.kept.get(weight)
        at = self._as_weight(through.outvars[0])
        shapes = [tuple(a.aval.shape) for a in through.invars]
        out = tuple(through.outvars[0].aval.shape)
        return None if at is None else pull(through.primitive.name, through.params, shapes, out, at)[0]

    def _keep(self, atom, weight, want: Layout) -> None:
        """A trained weight is stored as its first use wants it."""
        while atom is not weight:
            eqn = self.views[atom]
            shapes = [tuple(a.aval.shape) for a in eqn.invars]
            want = pull(eqn.primitive.name, eqn.params, shapes, tuple(atom.aval.shape), want)[0]
            atom = eqn.invars[0]
        self.kept[weight] = want

    def bring(self, atom, want: Layout, keeps: bool = False) -> list[tuple[str, Step]]:
        """The steps that lay a value as an op wants it, each with its axis where it is the halo of an array; `keeps`
        says that the op decides how a weight is kept."""
        if isinstance(atom, Literal):
            return []
        shape, grid, wafer = tuple(atom.aval.shape), self.where.grid, self.where.wafer
        moved: tuple[Step, ...] = ()
        halo: list[tuple[str, Step]] = []
        asked = want
        if (weight := self._trained(atom)) is not None:
            if weight not in self.kept:
                self._keep(atom, weight, want)
            kept = self._as_kept(atom, weight)
            if kept != want and (atom, want) not in self.came:
                moved = relayout(shape, _itemsize(atom.aval), kept, want, grid, wafer)
                self._copied((atom, want), self._bytes(atom, want) if moved else 0)
            self.wanted.setdefault(atom, {})[kept] = None
        elif self.roles.flexible(atom):
            key = self.seen.get(atom), shape
            if not keeps and key[0] is not None:  # such as a scale: it comes from where it is kept
                kept = self.decided.get(key, want)
                if (atom, want) not in self.came:
                    moved = relayout(shape, _itemsize(atom.aval), kept, want, grid, wafer)
                if moved:
                    self._copied((atom, want), self._bytes(atom, want))
                want = kept
            if key[0] is not None or keeps:
                self.uses.setdefault(key, want)
            self.wanted.setdefault(atom, {})[want] = None
        elif atom not in self.at:
            self.at[atom] = want  # state, at its first use
        elif self.at[atom] != want and (atom, want) not in self.came:
            source, there = self._source(atom, want)
            self._copied((atom, want), self._bytes(source, there))
            itemsize, now = _itemsize(source.aval), self.at[source]
            if self.halos:
                halo = self.halos.bring(source, itemsize, now, there, self.position)
            else:
                moved = relayout(tuple(source.aval.shape), itemsize, now, there, grid, wafer)
        halo = halo or [("", step) for step in moved]
        if (atom, asked) in self.came:
            nbytes, first, _ = self.came[atom, asked]
            self.came[atom, asked] = nbytes, first, self.position
        before = None
        for own, ahead in reversed(self.scopes):
            if atom in own:
                break
            before = ahead  # what changes from trip to trip is inside; the rest is brought once
        if before is None:
            return halo
        before += [step for _, step in halo]
        return []

    def _copied(self, what: tuple, nbytes: int) -> None:
        """A value is brought into another layout; it is kept there until the last op that wants it so."""
        self.came[what] = nbytes, self.position, self.position

    def _source(self, atom, want: Layout) -> tuple[Any, Layout]:
        """What is brought to lay a value as `want`, and how: of a repeated value, what it repeats."""
        spread = self.spreads.get(atom)
        while spread is not None:
            (atom, out), params = (spread.invars[0], spread.outvars[0]), spread.params
            (want,) = pull("broadcast_in_dim", params, [tuple(atom.aval.shape)], tuple(out.aval.shape), want)[:1]
            spread = self.spreads.get(atom)
        return atom, want

    def prepared(self, steps) -> tuple[Step, ...]:
        """What a compiler emits is straight-line code."""
        straight = self.where.strategy.compiled
        return tuple(replace(s, straight=straight) if isinstance(s, Shift | Multicast) else s for s in steps)

    def _as_op(self, eqn) -> Op:
        ins = []
        for a in eqn.invars:
            aval: Any = a.aval
            shape, itemsize = tuple(aval.shape), _itemsize(aval)
            layout = None if isinstance(a, Literal) else self.at.get(a)
            if (weight := self._trained(a)) in self.kept and eqn.primitive.name not in VIEWS:
                layout = self._as_kept(a, weight)
            elif layout is None and not isinstance(a, Literal) and self.roles.homes.get(a) in self.kept:
                layout = self.at[a] = self.kept[self.roles.homes[a]]
            elif layout is None and not isinstance(a, Literal):
                layout = self.decided.get((self.seen.get(a), shape)) if eqn.primitive.name in _KEEP else None
            if layout is not None and eqn.primitive.name not in _IN_FRAMES:
                layout = without_margins(layout, shape)
            value = a.val if isinstance(a, Literal) else None
            ins.append(Operand(shape, itemsize, self.roles.of(a), layout, jaxapi.dtype_name(aval.dtype), value))
        outs = [v.aval for v in eqn.outvars]
        return Op(
            eqn.primitive.name,
            eqn.params,
            tuple(ins),
            tuple(tuple(o.shape) for o in outs),
            tuple(map(_itemsize, outs)),
            self.hints.get(eqn.outvars[0]) or self._as_weight(eqn.outvars[0]),
            tuple(jaxapi.dtype_name(o.dtype) for o in outs),
        )

    def _flexible_op(self, eqn) -> TiledOp:
        """A view of a weight, or control: laid as its users want it, worked out once for each such layout."""
        name = eqn.primitive.name
        stored = eqn.outvars[0] in self.roles.weights  # a row of a stacked weight is stored as it is used
        steps: list[Step] = []
        in_shapes = [tuple(a.aval.shape) for a in eqn.invars]
        for v in eqn.outvars:
            shape = tuple(v.aval.shape)
            for layout in self.wanted.get(v, {whole(len(shape)): None}):
                for a, want in zip(eqn.invars, pull(name, eqn.params, in_shapes, shape, layout), strict=True):
                    if not isinstance(a, Literal) and not stored:
                        self.wanted.setdefault(a, {})[want] = None
                if not stored:
                    made_of = made(self._as_op(eqn), layout, shape, _itemsize(v.aval), self.where)
                    weight = self.roles.of(v) == "weight"
                    steps += [_by_rows(step, layout.local(shape)) if weight else step for step in made_of]
        control = self.roles.of(eqn.outvars[0]) != "weight"
        outs = tuple(next(iter(self.wanted.get(v, {None: None}))) for v in eqn.outvars)
        return TiledOp(tuple(None for _ in eqn.invars), outs, tuple(steps), control)

    def _lay_exports(self, ops: list[TiledOp]) -> None:
        """What leaves the stage is brought into the layout in which the next one expects it."""
        maker = {v: n for n, e in enumerate(self.stage.eqns) for v in e.outvars}
        for v in self.stage.exports:
            shape, n = tuple(v.aval.shape), maker[v]
            want = default_layout(shape, self.where)
            steps = relayout(shape, _itemsize(v.aval), self.at[v], want, self.where.grid, self.where.wafer)
            op = ops[n]
            ops[n] = replace(op, steps=(*op.steps, *self.prepared(steps)))

    def _stored(self, position: int, v) -> list[Stored]:
        shape = tuple(v.aval.shape)
        layouts = self.wanted.get(v) or {default_layout(shape, self.where): None}
        return [Stored(position, layout, shape, v.aval.dtype) for layout in layouts]

    def _bytes(self, v, at: Layout) -> int:
        return tile_bytes(at, tuple(v.aval.shape), v.aval.dtype, self.where.wafer)

    def _sizes(self, v) -> list[int]:
        """Bytes of each layout that a value has."""
        return [self._bytes(v, at) for at in ([self.at[v]] if v in self.at else self.wanted.get(v, ()))]


def _frames(stage: Stage, roles: Roles, grid: Grid, strategy: Strategy) -> Frames | None:
    """How the arrays of a program without weights and products lie; None where there are any."""
    arrays = [tuple(v.aval.shape) for v in (*stage.entries, *stage.states) if v.aval.ndim]
    products = any(e.primitive.name in ("dot_general", "conv_general_dilated") for e in loops.with_inner(stage.eqns))
    if roles.weights or products or not strategy.compiled or max(map(len, arrays), default=0) < 2:
        return None
    return Frames.of(arrays, grid)


def _by_rows(step: Compute, tile: tuple[int, ...]) -> Compute:
    """What is made of a weight, such as its dequantized values, is made where it is used, a row of the tile at a time
    in a hardware map: no second tile is ever kept."""
    if len(tile) < 2 or tile[0] == 1:
        return step
    return replace(step, calls=step.calls * tile[0], length=step.length // tile[0], maps=1, bare=False)


def _seen_through(stage: Stage) -> dict[Any, int]:
    """The weight, by position, that each variable is a view of."""
    found = {v: p for p, v in enumerate(stage.weights)}
    for eqn, data in zip(stage.eqns, stage.data, strict=True):
        if not data and eqn.invars and not isinstance(eqn.invars[0], Literal) and eqn.invars[0] in found:
            found.setdefault(eqn.outvars[0], found[eqn.invars[0]])
    return found


def _itemsize(aval) -> int:
    return 8 if jaxapi.is_extended(aval.dtype) else np.dtype(aval.dtype).itemsize
