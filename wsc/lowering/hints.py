"""Hints: where a value will be wanted, told before it is made; and other ways for state to lie.

A weight may be stored so that its product comes out in any layout. A hint is the layout in which the first op that
insists on one will want a value, followed back through the ops that do not care. Hints come from a first tiling.
"""

from collections.abc import Sequence
from typing import Any

from wsc.layout import Layout, strides
from wsc.lowering.jaxapi import Literal
from wsc.lowering.layout import Grid, cut
from wsc.lowering.plan import Stage
from wsc.lowering.roles import UPDATES, Roles
from wsc.lowering.rules.elementwise import DIVIDE, TRANSCENDENTAL, VECTOR, beside
from wsc.lowering.rules.flexible import pull

_INSIST = {"dot_general", "dynamic_update_slice", *DIVIDE, *TRANSCENDENTAL}
_RENAME = {"reshape", "transpose", "squeeze", "expand_dims"}


def find_hints(stage: Stage, roles: Roles, ops: Sequence[Any]) -> dict[Any, Layout]:
    """The layout in which each activation will first be wanted, by variable."""
    hints: dict[Any, Layout] = {}
    for eqn, op, data in reversed(list(zip(stage.eqns, ops, stage.data, strict=True))):
        for i, atom in enumerate(eqn.invars if data else ()):
            if not isinstance(atom, Literal) and roles.of(atom) == "activation":
                found = op.ins[i] if eqn.primitive.name in _INSIST else _through(eqn, i, hints)
                if eqn.primitive.name in VECTOR and found and op.ins[i] and op.ins[i].parts.pes > found.parts.pes:
                    found = op.ins[i]  # it works on shares already
                if found is not None:
                    hints[atom] = found
    return hints


def _through(eqn, i: int, hints: dict[Any, Layout]) -> Layout | None:
    """What an op that does not care wants of operand i."""
    out = next((v for v in eqn.outvars if v in hints), None)
    if out is None:
        return None
    at, name, shape = hints[out], eqn.primitive.name, tuple(out.aval.shape)
    shapes = [tuple(a.aval.shape) for a in eqn.invars]
    if name in VECTOR:
        return beside(at, shape, shapes[i]) if shapes[i] == shape else None
    if name in _RENAME:
        return pull(name, eqn.params, shapes, shape, at)[i]
    if name == "split" and len(set(eqn.params["sizes"])) == 1:
        return at.unfolded().folded(eqn.params["axis"], len(eqn.params["sizes"]))
    if name == "concatenate" and len(set(shapes)) == 1:
        dim = eqn.params["dimension"]
        whole_pieces = at.y[dim] * at.x[dim] <= shapes[i][dim]
        return at.unfolded([dim]) if whole_pieces else None
    return None


def state_layouts(stage: Stage, position: int, at: Layout, grid: Grid) -> dict[int, Layout]:
    """Other ways for a state to lie: the dimension that grows, such as a cache's tokens, is shared among so many of the
    PEs among which another one is cut. 0 stands for all of them."""
    state = stage.states[position]
    update = next((e for e in stage.eqns if e.invars[:1] == [state] and e.primitive.name in UPDATES), None)
    if update is None or len(update.invars) < 2:
        return {}
    shape, piece = state.aval.shape, update.invars[1].aval.shape
    growing = [d for d in range(len(shape)) if len(piece) == len(shape) and piece[d] != shape[d]]
    axis = next((a for a in "yx" if growing and at.along(a)[growing[0]] == 1), None)
    if len(growing) != 1 or axis is None:
        return {}
    parts, pes = at.along(axis), getattr(grid, axis)
    inner = [d for d in range(growing[0] + 1, len(shape)) if parts[d] > 1]
    if len(inner) != 1:
        return {}
    (g,), (d,) = growing, inner
    room = strides(parts, pes)[g]  # PEs that share one index of the dimensions outside
    found: dict[int, Layout] = {}
    for way in (2, 4, 8, 0):
        share = way or room
        if 1 < share <= room:
            now = list(parts)
            now[g] = cut(-(-shape[g] // max(at.y[g], at.x[g])), share)
            now[d] = cut(shape[d] // at.fold(d), max(1, room // now[g]))
            found[way] = at.with_axis(axis, now)
    return found
