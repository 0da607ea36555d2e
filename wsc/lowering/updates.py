"""Updates: which results of a program are new values of its arguments, such as weights and optimizer state after a
training step. They take the place of the old ones, on the same PEs; nothing of them goes to the host."""

from collections.abc import Sequence
from typing import Any, cast

import jax

from wsc.lowering import jaxapi, loops
from wsc.lowering.jaxapi import Literal, Traced
from wsc.lowering.normalize import Normal
from wsc.lowering.rules.elementwise import DIVIDE, TRANSCENDENTAL, VECTOR

IN_PLACE = {*VECTOR, *DIVIDE, *TRANSCENDENTAL, "integer_pow", "dynamic_update_slice", "scatter", "scatter-add"}
RENAMES = {"transpose", "reshape", "squeeze", "expand_dims"}


def find_updates(traced: Traced, normal: Normal, in_place: bool = False) -> dict[int, int]:
    """Positions of results -> of the arguments that they are new values of: a tree of results is like that of an
    argument, and each leaf of it is computed from the argument's element by element, or is such a new value in another
    precision. Bare arrays are no trees. Of a function that works `in_place`, the second result has them by number."""
    found: dict[int, int] = {}
    jaxpr = normal.jaxpr
    makers = {v: e for e in jaxpr.eqns for v in e.outvars}
    outputs = jax.tree.unflatten(traced.out_tree, range(len(jaxpr.outvars)))
    if in_place:
        outputs, changed = outputs
        found = {out: i for i, out in changed.items()}
    arguments = [jax.tree.flatten(a) for a in jax.tree.unflatten(traced.in_tree, range(len(traced.args)))]
    trees = [(leaves, t) for leaves, t in arguments if t.num_leaves and not jax.tree_util.treedef_is_leaf(t)]
    for told in (_updates, _copies):
        for leaves, tree in trees:
            if any(i in found.values() for i in leaves) and told is _copies:
                continue
            fresh = {jaxpr.outvars[o] for o in found if not isinstance(jaxpr.outvars[o], Literal)}
            for node in _alike(outputs, tree):
                pairs = [(o, i) for o, i in zip(jax.tree.leaves(node), leaves, strict=True) if o not in found]
                pairs = [(o, i) for o, i in pairs if told(jaxpr.outvars[o], jaxpr.invars[i], makers, fresh)]
                if any(jaxpr.outvars[o].aval.shape for o, _ in pairs):
                    found.update(pairs)
                    break
    return found


def updated_weights(normal: Normal, updates: dict[int, int], weights: frozenset[int]) -> frozenset[int]:
    """The arguments that are weights, given those that look like it: of those that are updated, the ones that are read
    for more than the updates. The others are state, such as the moments of a gradient."""
    jaxpr = normal.jaxpr
    makers: dict[Any, Any] = {v: e for e in jaxpr.eqns for v in e.outvars}
    inside: set[int] = set()  # equations of updates
    todo: list[Any] = [jaxpr.outvars[o] for o in updates]
    while todo:
        at: Any = todo.pop()
        eqn = None if isinstance(at, Literal) else makers.get(at)
        if eqn is not None and id(eqn) not in inside and eqn.primitive.name in IN_PLACE:
            inside.add(id(eqn))
            todo += [a for a in cast(list, eqn.invars) if a.aval.shape == at.aval.shape]
    read = {a for e in jaxpr.eqns if id(e) not in inside for a in e.invars if not isinstance(a, Literal)}
    old = set(updates.values())
    kept = {i for i in old if jaxpr.invars[i] in read and is_array(jaxpr.invars[i])}
    return frozenset((weights - old) | kept | (weights & {updates[o] for o in unchanged(jaxpr, updates)}))


def is_array(v: Any) -> bool:
    """Not a scalar, and of floats."""
    return v.aval.shape != () and jax.numpy.issubdtype(v.aval.dtype, jax.numpy.inexact)


def _alike(outputs: Any, tree: Any) -> list:
    """The parts of the outputs whose structure is `tree`."""
    nodes = jax.tree.leaves(outputs, is_leaf=lambda n: jax.tree.structure(n) == tree)
    return [n for n in nodes if jax.tree.structure(n) == tree]


def _updates(new: Any, old: Any, makers: dict, fresh: set) -> bool:
    """It is the argument itself, or computed from it element by element."""
    return new is old or (_like(new, old) and (new.aval.shape == () or old in behind(new, makers)))


def _copies(new: Any, old: Any, makers: dict, fresh: set) -> bool:
    """It is a new value that was found, in another precision: weights in 16 bits, of which the optimizer keeps those in
    32 bits."""
    eqn = None if isinstance(new, Literal) else makers.get(new)
    converted = eqn is not None and eqn.primitive.name == "convert_element_type" and eqn.invars[0] in fresh
    return converted and _like(new, old)


def _like(new: Any, old: Any) -> bool:
    return new.aval.shape == old.aval.shape and new.aval.dtype == old.aval.dtype


def behind(v: Any, makers: dict) -> set:
    """The arguments from which a value is computed element by element."""
    found, seen, todo = set(), set(), [v]
    while todo:
        at = todo.pop()
        if isinstance(at, Literal) or at in seen:
            continue
        seen.add(at)
        eqn = makers.get(at)
        if eqn is None:
            found.add(at)
        elif eqn.primitive.name in IN_PLACE or loops.loop_of(eqn):
            todo += [a for a in eqn.invars if a.aval.shape == at.aval.shape]
    return found


def homes(normal: Normal, updates: dict[int, int], weights: frozenset[int]) -> dict[Any, Any]:
    """State that belongs to a weight, such as the moments of its gradient: variable -> weight. Either is updated with
    the other, element by element."""
    jaxpr, found = normal.jaxpr, {}
    makers: dict[Any, Any] = {v: e for e in jaxpr.eqns for v in e.outvars}
    position = {v: i for i, v in enumerate(jaxpr.invars)}
    for out, old in updates.items():
        if jaxpr.outvars[out] is jaxpr.invars[old] or jaxpr.invars[old].aval.shape == ():
            continue
        near = sorted(position[v] for v in behind(jaxpr.outvars[out], makers) if v in position)
        weight = old if old in weights else next((i for i in near if i in weights), None)
        states = [i for i in (old, *near) if i in updates.values() and i not in weights]
        if weight is not None:
            found.update((jaxpr.invars[i], jaxpr.invars[weight]) for i in states if jaxpr.invars[i] not in found)
    return found


def gradients(eqns: Sequence[Any], roles: Any) -> dict[Any, tuple[Any, Any]]:
    """What ends up, element by element or renamed, in the new value of a trained weight or of its state, back to the
    equation that is none of this kind: value -> (weight, None, or the rename that it goes through next)."""
    makers = {v: e for e in eqns for v in e.outvars}
    found: dict[Any, tuple[Any, Any]] = {}
    for new, old in roles.updates.items() if roles.trained else ():
        weight = roles.homes.get(old, old)
        todo: list[tuple[Any, Any]] = [(new, None)] if new in makers and weight in roles.trained else []
        while todo:
            v, through = todo.pop()
            if isinstance(v, Literal) or v in found or v not in makers or v.aval.size != weight.aval.size:
                continue
            found[v] = weight, through
            eqn = makers[v]
            if eqn.primitive.name in RENAMES:
                todo.append((eqn.invars[0], eqn))
            elif eqn.primitive.name in IN_PLACE:
                todo += [(a, through) for a in eqn.invars if a.aval.shape == v.aval.shape]
    return found


def unchanged(jaxpr: jaxapi.Jaxpr, updates: dict[int, int]) -> set[int]:
    """Positions of results that are the argument as it came."""
    return {o for o, i in updates.items() if jaxpr.outvars[o] is jaxpr.invars[i]}
