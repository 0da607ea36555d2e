"""What every value is: weight, state, activation, constant or control. Told by following the data, not by position."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from wsc.lowering import jaxapi, loops
from wsc.lowering.jaxapi import Literal
from wsc.lowering.normalize import Normal
from wsc.lowering.rules.flexible import THROUGH, VIEWS
from wsc.lowering.updates import is_array

NOTHING: Mapping = MappingProxyType({})
UPDATES = {
    "dynamic_update_slice", "scatter", "scatter-add", "scatter_add", "scatter-sub", "scatter-mul", "scatter-min",
    "scatter-max",
}  # fmt: skip


@dataclass(frozen=True)
class Weight:
    """A stored weight: its path in the user's model, and which slice of a stacked array it is."""

    path: str
    index: int | None
    shape: tuple[int, ...]
    dtype: Any

    @property
    def name(self) -> str:
        return self.path if self.index is None else f"{self.path}[{self.index}]"

    @property
    def nbytes(self) -> int:
        return jaxapi.nbytes(self.shape, self.dtype)


@dataclass(frozen=True)
class Roles:
    """`kind` of every variable; `weights` are the stored ones by variable, `names` of the arguments by variable."""

    kind: dict
    weights: dict
    names: dict
    updates: dict = field(default_factory=dict)  # results that take the place of an argument: new variable -> old
    homes: dict = field(default_factory=dict)  # state that lies as a weight does: variable -> weight

    def of(self, atom) -> str:
        return "constant" if isinstance(atom, Literal) else self.kind[atom]

    @cached_property
    def trained(self) -> frozenset:
        """The weights that are updated."""
        return frozenset(old for new, old in self.updates.items() if old in self.weights and new is not old)

    def stays(self, v) -> bool:
        """A result that takes the place of a weight, or of state: nothing of it goes to the host."""
        return v in self.updates and is_array(v)

    def is_row(self, v) -> bool:
        """Layer i's weight, of a stack of them."""
        return v in self.weights and self.weights[v].index is not None

    def flexible(self, atom) -> bool:
        """May lie in any way: its user decides."""
        return self.of(atom) in ("weight", "constant", "control")


def find_roles(
    normal: Normal,
    names: tuple[str, ...],
    weight_leaves: frozenset[int],
    updates: Mapping[int, int] = NOTHING,
    homes: Mapping = NOTHING,
    closed: Mapping[int, str] = NOTHING,
) -> Roles:
    """Kinds by one forward pass; the argument leaves in `weight_leaves` are weights. `updates` has the results, by
    position, that are new values of arguments, `homes` the state that belongs to a weight, `closed` the paths of arrays
    that the user's function closes over, by id."""
    jaxpr = normal.jaxpr
    kind: dict = dict.fromkeys(jaxpr.constvars, "constant")
    weights: dict = {}
    for i, (v, value) in enumerate(zip(jaxpr.constvars, normal.consts, strict=True)):
        if v in normal.given:
            kind[v] = "weight"
            weights[v] = Weight(closed.get(id(value), f"constants.c{i}"), None, tuple(v.aval.shape), v.aval.dtype)
    states = _states(jaxpr, weight_leaves)
    states |= {i for i in updates.values() if i not in weight_leaves and is_array(jaxpr.invars[i])}
    for i, v in enumerate(jaxpr.invars):
        floating = np.issubdtype(_np_dtype(v.aval), np.inexact)
        if i in weight_leaves and floating:
            kind[v] = "weight"
        elif i in states:
            kind[v] = "state"
        else:
            kind[v] = "activation" if floating and v.aval.shape != () else "control"
        if i in weight_leaves and not floating and v.aval.size > 1:
            kind[v] = "weight"  # quantized
        if kind[v] == "weight":
            weights[v] = Weight(_clean(names[i]), None, tuple(v.aval.shape), v.aval.dtype)
    if not any(k in ("activation", "weight", "state") for k in kind.values()):
        kind.update((v, "activation") for v in jaxpr.invars if v.aval.shape != ())

    trained = {jaxpr.invars[i] for o, i in updates.items() if jaxpr.outvars[o] is not jaxpr.invars[i]}
    _follow(jaxpr.eqns, kind, {v for v in trained if kind[v] == "weight"})
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "slice" and eqn.invars[0] in weights and _is_row(eqn):
            whole, out = weights[eqn.invars[0]], eqn.outvars[0]
            start = eqn.params["start_indices"][0]
            weights[out] = Weight(whole.path, start, tuple(out.aval.shape), whole.dtype)
    kept = {jaxpr.outvars[o]: jaxpr.invars[i] for o, i in updates.items() if not isinstance(jaxpr.outvars[o], Literal)}
    return Roles(kind, weights, dict(zip(jaxpr.invars, names, strict=True)), kept, dict(homes))


def _follow(eqns, kind: dict, trained: set) -> None:
    """The kinds of what equations make, bodies of loops included. What is computed of `trained` weights is no weight,
    unless it is a view of them, or their values in another precision."""
    for eqn in eqns:
        if loop := loops.loop_of(eqn):
            _follow_loop(eqn, loop, kind, trained)
            continue
        found = {_kind_of(a, kind) for a in eqn.invars}
        result = _result_kind(eqn, found, kind)
        if result == "weight" and any(not isinstance(a, Literal) and a in trained for a in eqn.invars):
            if eqn.primitive.name in VIEWS or eqn.primitive.name == "convert_element_type":
                trained.update(eqn.outvars)
            else:
                result = "activation"
        kind.update((v, result) for v in eqn.outvars)


def _follow_loop(eqn, loop: loops.Loop, kind: dict, trained: set) -> None:
    """What is carried is state when it begins as a weight or state, control as long as nothing else flows into it."""
    operands = loops.operands_of(eqn)
    carried = [_kind_of(a, kind) for a in operands[: loop.carried]]
    carried = ["state" if k in ("weight", "state") else "control" if k == "constant" else k for k in carried]
    while True:
        for body in loop.bodies:
            own = [*carried, *(_kind_of(a, kind) for a in operands[loop.carried :])] if body.invars else []
            kind.update(zip(body.invars, own, strict=True))
            _follow(body.eqns, kind, trained)
        if loop.kind == "cond":
            break
        ends = [_kind_of(a, kind) for a in loop.bodies[-1].outvars[: loop.carried]]
        joined = [
            "activation" if b == "control" and e in ("activation", "state", "weight") else b
            for b, e in zip(carried, ends, strict=True)
        ]
        if joined == carried:
            break
        carried = joined
    kept = [k if k == "state" else "activation" for k in carried]
    kind.update(zip(eqn.outvars, [*kept, *["activation"] * (len(eqn.outvars) - len(kept))], strict=True))


def _kind_of(atom, kind: dict) -> str:
    return "constant" if isinstance(atom, Literal) else kind[atom]


def _result_kind(eqn, found: set[str], kind: dict) -> str:
    first = eqn.invars[0] if eqn.invars and not isinstance(eqn.invars[0], Literal) else None
    if eqn.primitive.name in UPDATES and first is not None and kind[first] == "state":
        return "state"
    if found & {"activation", "state"}:
        return "activation"
    if "weight" in found:
        return "weight" if eqn.primitive.name in THROUGH and "control" not in found else "activation"
    return "control" if "control" in found else "constant"


def _states(jaxpr, weight_leaves) -> set[int]:
    """Arguments that come back as results after being written into, such as a KV cache."""
    written = {v: i for i, v in enumerate(jaxpr.invars) if i not in weight_leaves and v.aval.shape != ()}
    origin = dict(written)
    _follow_updates(jaxpr.eqns, origin)
    results = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    return {i for v, i in origin.items() if v in results and v not in written}


def _follow_updates(eqns, origin: dict) -> None:
    """What is written into stays what it was; a loop that carries it may do so too."""
    for eqn in eqns:
        if eqn.primitive.name in UPDATES and not isinstance(eqn.invars[0], Literal) and eqn.invars[0] in origin:
            origin[eqn.outvars[0]] = origin[eqn.invars[0]]
        if (loop := loops.loop_of(eqn)) and loop.carried:
            carried = loops.operands_of(eqn)[: loop.carried]
            body = loop.bodies[-1]
            known = [(v, a) for v, a in zip(body.invars, carried) if not isinstance(a, Literal) and a in origin]
            origin.update((v, origin[a]) for v, a in known)
            _follow_updates(body.eqns, origin)
            for v, end, out in zip(body.invars, body.outvars, eqn.outvars):
                if not isinstance(end, Literal) and end is not v and origin.get(end, -1) == origin.get(v):
                    origin[out] = origin[v]


def _is_row(eqn) -> bool:
    """A slice that takes one index of the first dimension and all of the others."""
    (source, out) = (eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape)
    return len(source) > 1 and out[0] == 1 and source[1:] == out[1:]


def _np_dtype(aval):
    dtype = aval.dtype
    if jaxapi.is_extended(dtype):
        return np.dtype(np.uint32)
    return np.float32 if str(dtype).startswith(("bfloat", "float")) else dtype


def _clean(name: str) -> str:
    """`model.layers[0].q.kernel.value` -> `model.layers[0].q.kernel`, `p['a']['b']` -> `p.a.b`."""
    name = re.sub(r"\[<flat index \d+>\]|\.(value|raw_value|get_value\(\))$|\[\.\.\.\]$", "", name)
    return re.sub(r"\['([^']+)'\]", r".\1", name)
