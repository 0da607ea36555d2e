"""Plan: which equations form a stage, and which stages are the same.

A transformer layer, told by the index in its weights' path, is a stage; embedding and head too. An equation without
a weight runs where its operands are, or with its users when that moves no more data between stages. Weights,
constants and control are repeated in every stage that uses them. Stages alike in all but their weights share one
`Template`, so that 126 equal layers are planned once.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsc.lowering import jaxapi, loops
from wsc.lowering.jaxapi import Literal
from wsc.lowering.normalize import Normal
from wsc.lowering.roles import Roles, Weight
from wsc.lowering.updates import gradients

SMALL = 0.02  # a stage with less than this share of the largest stage's weights joins its neighbour


@dataclass
class Stage:
    """Equations of one stage: control first, then views of weights, then those on the critical path (`data`)."""

    name: str
    eqns: list[Any] = field(default_factory=list)
    data: list[bool] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)  # activations from earlier stages or the host
    exports: list[Any] = field(default_factory=list)  # activations for later stages
    results: list[Any] = field(default_factory=list)  # activations for the host
    weights: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    visit: list[int] = field(default_factory=list)  # of each equation: the number of the visit that it is part of
    template: tuple = ()
    template_number: int = 0  # equal for equal templates of one program

    @property
    def visits(self) -> list[int]:
        """Times at which data comes to the stage and is worked on, numbered through the whole program: one, or in
        training forward, backward and perhaps an update."""
        return sorted({n for n, data in zip(self.visit, self.data) if data}) or [0]


def plan_stages(normal: Normal, roles: Roles) -> list[Stage]:
    """The stages of a program in the order data flows through them. Weights that are updated have one stage each, which
    is visited again; others are stored again where they are used further on."""
    eqns = normal.jaxpr.eqns
    data = [i for i, e in enumerate(eqns) if not all(roles.flexible(v) for v in e.outvars)]
    views = {v: i for i, e in enumerate(eqns) if all(roles.flexible(o) for o in e.outvars) for v in e.outvars}
    made_for = gradients(eqns, roles)
    used = [_weights_of(eqns[i], eqns, views, roles) for i in data]
    for n, i in enumerate(data):  # a gradient is made where its weight lies
        weight, _ = made_for.get(eqns[i].outvars[0], (None, None))
        used[n] += [weight] if weight is not None and weight not in used[n] else []
    keys = _join_loops(_merge_small(used, roles), [(eqns[i], weights) for i, weights in zip(data, used, strict=True)])
    names, homes, visits = _assign(eqns, data, used, keys, roles)
    _push_later(eqns, data, used, visits, homes, roles)
    order = list(dict.fromkeys(homes[v] for v in sorted(set(visits))))
    renumber = {home: n for n, home in enumerate(order)}
    stages = [Stage(names[home]) for home in order] or [Stage("program")]
    _fill(stages, normal, roles, data, views, visits, [renumber[homes[v]] for v in visits])
    return stages


def stage_key(weight: Weight) -> str:
    """The layer a weight belongs to: its path up to the first index, or its parent.

    >>> stage_key(Weight("m.layers[3].q.kernel", None, (), None)), stage_key(Weight("params.h_3.w", None, (), None))
    ('layers[3]', 'h_3')
    >>> stage_key(Weight("model.embed.embedding", None, (), None)), stage_key(Weight("p.blocks.w", 7, (), None))
    ('embed', 'blocks[7]')
    """
    parts = re.findall(r"[^./\[\]]+|\[\d+\]", weight.path)
    parts = parts[1:] if parts[-1].startswith("[") else parts[1:-1]
    parts = parts[1:] if parts[:1] == ["params"] else parts
    if weight.index is not None:
        return f"{parts[0] if parts else 'layers'}[{weight.index}]"
    for i, part in enumerate(parts):
        if re.fullmatch(r"\[?\d+\]?", part):
            return (".".join(parts[:i]) or "layer") + f"[{part.strip('[]')}]"
        if re.search(r"\d$", part):
            return ".".join(parts[: i + 1])
    return ".".join(parts) or "program"


def _weights_of(eqn, eqns, views, roles: Roles) -> list:
    """The stored weights an equation reads, seen through views."""
    found, todo = [], [a for a in eqn.invars if not isinstance(a, Literal)]
    while todo:
        v = todo.pop()
        v = roles.homes.get(v, v)
        if v in roles.weights and (v not in views or roles.weights[v].index is not None):
            found.append(v)
        elif v in views:
            todo += [a for a in eqns[views[v]].invars if not isinstance(a, Literal)]
    return found


def _merge_small(used: list[list], roles: Roles) -> dict:
    """Stage key by weight; keys with few weights, such as a final norm, join the large one that is used next."""
    keys = {v: stage_key(roles.weights[v]) for weights in used for v in weights}
    sizes = dict.fromkeys(keys.values(), 0)
    for v, key in keys.items():
        sizes[key] += roles.weights[v].nbytes
    large = {key for key, size in sizes.items() if size >= SMALL * max(sizes.values())}
    uses = [keys[v] for weights in used for v in weights]
    renamed: dict[str, str] = {}
    nearest = None
    for key in reversed(uses):  # the large one that comes next after the first use
        nearest = key if key in large else nearest
        if nearest is not None:
            renamed[key] = nearest
    for key in uses:  # at the end, the one before
        nearest = key if key in large else nearest
        renamed.setdefault(key, nearest or key)
    return {v: renamed[key] for v, key in keys.items()}


def _join_loops(keys: dict, uses: list[tuple[Any, list]]) -> dict:
    """What a loop reads lies in one stage, where the loop runs: that of the first of its weights."""
    renamed: dict[str, str] = {}

    def found(key: str) -> str:
        while key in renamed:
            key = renamed[key]
        return key

    for eqn, weights in uses:
        if loops.loop_of(eqn) and weights:
            first, *others = dict.fromkeys(found(keys[v]) for v in weights)
            renamed.update((other, first) for other in others)
    return {v: found(key) for v, key in keys.items()}


def _assign(eqns, data, used, names, roles: Roles) -> tuple[list[str], list[int], list[int]]:
    """By visit, in order: its name, and the visit at which its stage was first met. And the visit of every data
    equation: never before its operands'."""
    labels: list[str] = []
    homes: list[int] = []
    latest: dict[str, int] = {}
    first: dict[str, int] = {}
    trained = {names[v] for v in names if v in roles.trained}
    visit_of: dict = {}
    visits = []
    for i, weights in zip(data, used, strict=True):
        eqn = eqns[i]
        at = max((visit_of[a] for a in eqn.invars if not isinstance(a, Literal) and a in visit_of), default=0)
        for v in weights:
            key = names[v]
            if key not in latest or latest[key] < at:  # first use, or a second use further on
                again = key in latest and key not in trained
                latest[key] = len(labels)
                labels.append(f"{key} (again)" if again else key)
                homes.append(first.setdefault(key, latest[key]) if key in trained else latest[key])
            at = max(at, latest[key])
        visits.append(at)
        visit_of.update((v, at) for v in eqn.outvars)
    return labels or ["program"], homes or [0], visits


def _push_later(eqns, data, used, place: list[int], homes: list[int], roles: Roles) -> None:
    """Move weightless equations to their users' stage where that moves no more bytes between stages; what is computed
    of stored values alone waits for the visit in which it is used. From one visit of a stage to the next nothing moves.

    Tentatively all of them are moved as far as they can be, and `sources` are the fewest bytes of values that would
    then have to go along. From the last one back, those that do not go along anyway are weighed against the result.
    """
    maker = {v: n for n, i in enumerate(data) for v in eqns[i].outvars}
    reads = [[a for a in eqns[i].invars if not isinstance(a, Literal) and not roles.flexible(a)] for i in data]
    users: dict[Any, set[int]] = {}
    for n, operands in enumerate(reads):
        for a in operands:
            users.setdefault(a, set()).add(n)
    after = [{u for v in eqns[i].outvars for u in users.get(v, ())} for i in data]
    first, late = list(place), list(place)
    for n in reversed(range(len(data))):
        fixed = used[n] or not reads[n] or any(roles.of(a) == "state" for a in reads[n])
        if after[n] and not fixed:
            late[n] = max(place[n], min(late[u] for u in after[n]))
        elif after[n] and (all(a in roles.homes for a in reads[n]) or jaxapi.AGAIN in eqns[data[n]].params):
            until, mine = min(late[u] for u in after[n]), homes[place[n]]
            place[n] = first[n] = late[n] = max(v for v in range(until + 1) if homes[v] == mine or v == place[n])

    def goes(used: int, there: int) -> bool:
        """What is used in one visit goes to another one anyway."""
        return used >= there and (not roles.trained or homes[used] == homes[there])

    at = late if roles.trained else first
    sources: list[set] = []
    for n in range(len(data)):
        found: set = set()
        there = homes[late[n]]
        moving = [a for a in reads[n] if not (a in maker and homes[first[maker[a]]] == there)]
        moving = [a for a in moving if not any(goes(at[u], late[n]) for u in users[a])]
        for a in sorted(moving, key=lambda a: -_bytes([a])):
            pushed = a in maker and late[maker[a]] > first[maker[a]] and late[maker[a]] >= late[n]
            options = [sources[maker[a]], {a}] if pushed else [{a}]
            found |= min(options, key=lambda more: _bytes(more - found)) if pushed else options[0]
        sources.append(found)
    going: dict[int, set] = {}  # what goes to a stage because of an equation moved there
    for n in reversed(range(len(data))):
        if late[n] == first[n]:
            continue
        along = sources[n] - going.get(late[n], set())
        along = [a for a in along if not any(goes(place[u], late[n]) for u in users[a] if u != n)]
        if _bytes(along) > _bytes(eqns[data[n]].outvars) * 17 / 16:  # a scalar more, such as a norm's, decides nothing
            continue
        place[n] = max(first[n], min([late[n], *(place[u] for u in after[n])]))
        if place[n] == late[n] > first[n]:
            going.setdefault(late[n], set()).update(sources[n])


def _bytes(values) -> int:
    return sum(jaxapi.nbytes(v.aval.shape, v.aval.dtype) for v in values)


def _fill(stages: list[Stage], normal: Normal, roles: Roles, data, views, visits: list[int], place: list[int]) -> None:
    eqns = normal.jaxpr.eqns
    visit_of = dict(zip(data, visits, strict=True))
    stage_of = {v: p for i, p in zip(data, place, strict=True) for v in eqns[i].outvars}
    outputs = {v for v in normal.jaxpr.outvars if not isinstance(v, Literal)}
    members: list[set[int]] = [set() for _ in stages]
    for i, p in zip(data, place, strict=True):
        members[p].add(i)
    loose = [views[v] for v in normal.jaxpr.outvars if not isinstance(v, Literal) and v in views]
    for s, indices in enumerate(members):
        todo = [a for i in indices for a in eqns[i].invars]
        todo += [v for i in (loose if s == 0 else []) for v in eqns[i].outvars]
        while todo:
            a = todo.pop()
            if not isinstance(a, Literal) and a in views and views[a] not in indices:
                indices.add(views[a])
                todo += eqns[views[a]].invars
    exported: list[dict] = [{} for _ in stages]
    in_data = set(data)
    for s, (stage, indices) in enumerate(zip(stages, members, strict=True)):
        key = {i: (i in in_data, roles.of(eqns[i].outvars[0]) == "weight", visit_of.get(i, -1), i) for i in indices}
        order = sorted(indices, key=key.__getitem__)
        stage.eqns = [eqns[i] for i in order]  # control first, as on the wafer; so equal layers read the same
        stage.data = [i in in_data for i in order]
        begin = min((visit_of[i] for i in order if i in in_data), default=0)
        stage.visit = [visit_of.get(i, begin) for i in order]
        seen: dict = {}
        for eqn in stage.eqns:
            for a in eqn.invars if not roles.is_row(eqn.outvars[0]) else ():  # of a stack: the row alone is stored
                if isinstance(a, Literal) or a in seen:
                    continue
                kind = seen[a] = roles.of(a)
                if a in roles.weights and not (a in views and roles.weights[a].index is None):
                    stage.weights.append(a)
                elif kind == "activation" and stage_of.get(a, -1) != s:
                    stage.entries.append(a)
                    if a in stage_of:
                        exported[stage_of[a]][a] = None
                elif kind == "state" and a not in stage_of:
                    stage.states.append(a)
        made = (v for e, d in zip(stage.eqns, stage.data, strict=True) if d for v in e.outvars)
        stage.results = [v for v in made if v in outputs and roles.of(v) != "state" and not roles.stays(v)]
    known: dict[tuple, int] = {}
    params: dict[tuple, tuple] = {}
    for stage, found in zip(stages, exported, strict=True):
        stage.exports = list(found)
        template = _signature(stage, roles, params)
        stage.template_number = known.setdefault(template, len(known))
        stage.template = template


def _signature(stage: Stage, roles: Roles, params: dict[tuple, tuple]) -> tuple:
    """Equal for stages that differ only in which weights and state they use."""
    local: dict = {}
    rows = _rows(stage.eqns, local, roles, params)
    ends = tuple(tuple(local[v][0] for v in vs) for vs in (stage.exports, stage.results))
    if len(stage.visits) == 1:
        return rows, ends
    order = {v: n for n, v in enumerate(stage.visits)}
    return rows, ends, tuple(order[v] for v in stage.visit)


def _rows(eqns, local: dict, roles: Roles, params: dict[tuple, tuple]) -> tuple:
    rows = []
    for eqn in eqns:
        refs = []
        for a in eqn.invars:
            if isinstance(a, Literal):
                refs.append(("literal", a.aval.str_short(), np.asarray(a.val).tobytes()))  # a scalar, all of them
            else:
                refs.append(
                    local.setdefault(a, (len(local), roles.of(a), a.aval.shape, jaxapi.dtype_name(a.aval.dtype)))
                )
        for v in eqn.outvars:
            local[v] = (len(local), roles.of(v), v.aval.shape, jaxapi.dtype_name(v.aval.dtype))
        row = roles.is_row(eqn.outvars[0])
        key = eqn.primitive.name, id(eqn.params), row  # equations of one traced function share theirs
        if loop := loops.loop_of(eqn):
            rows.append((_loop(loop, local, roles, params), tuple(refs)))
            continue
        if key not in params:
            params[key] = _params(eqn, row)
        rows.append((eqn.primitive.name, params[key], tuple(refs)))
    return tuple(rows)


def _loop(loop: loops.Loop, local: dict, roles: Roles, params: dict[tuple, tuple]) -> tuple:
    """A loop but for the meters of its bodies."""
    found = []
    for body in loop.bodies:
        for v in body.invars:
            local[v] = (len(local), roles.of(v), v.aval.shape, jaxapi.dtype_name(v.aval.dtype))
        rows = _rows(body.eqns, local, roles, params)
        ends = tuple(repr(a.val) if isinstance(a, Literal) else local[a][0] for a in body.outvars)
        found.append((rows, ends))
    return loop.kind, loop.carried, loop.length, loop.reverse, tuple(found)


def body_stage(name: str, body: jaxapi.Jaxpr, roles: Roles) -> Stage:
    """The body of a loop as a stage of its own; what it reads of the stage around it is not an entry."""
    data = {id(e) for e in body.eqns if not all(roles.flexible(v) for v in e.outvars)}
    eqns = sorted(body.eqns, key=lambda e: (id(e) in data, roles.of(e.outvars[0]) == "weight"))
    own = [v for e in eqns for v in e.outvars]
    ends = [v for v in dict.fromkeys(a for a in body.outvars if not isinstance(a, Literal)) if v in {*own}]
    states = [v for v in body.invars if roles.of(v) == "state"]
    entries = [v for v in body.invars if roles.of(v) == "activation"]
    return Stage(name, eqns, [id(e) in data for e in eqns], entries, [], ends, [], states)


def _params(eqn, row: bool) -> tuple:
    items = tuple(
        sorted((kv for kv in eqn.params.items() if kv[0] not in (jaxapi.AGAIN, jaxapi.METER)), key=lambda kv: kv[0])
    )
    if row:  # which one of a stacked weight it is does not change the plan
        items = tuple((k, v) for k, v in items if k not in ("start_indices", "limit_indices"))
    try:
        hash(items)
    except TypeError:
        return (repr(items),)
    return items
