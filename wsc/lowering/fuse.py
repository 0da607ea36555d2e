"""Fuse: sums that share a collective, and products that share their instructions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wsc.lowering.jaxapi import Literal
from wsc.lowering.layout import choose_all_reduce
from wsc.lowering.plan import Stage
from wsc.lowering.roles import Roles
from wsc.lowering.strategy import Strategy
from wsc.machine.steps import AllReduce, Compute, Step
from wsc.machine.wafer import Wafer

SUMS = ("dot_general", "reduce_sum")


def fuse(stage: Stage, roles: Roles, ops: Sequence[Any], wafer: Wafer, strategy: Strategy) -> list[Any]:
    """Sums over the same lines of PEs that do not wait for one another go together, one behind the other, such as those
    of Q, K and V and of the norm before them. Products of one operand with several weights are one product: every
    instruction works through the rows of all of them."""
    steps: list[list[Step]] = [list(op.steps) for op in ops]
    for members in together(stage.eqns, ops, stage.data):
        sums = {(n, i): s for n, i in members if isinstance(s := steps[n][i], AllReduce)}
        first, total = next(iter(sums.values())), sum(s.wavelets for s in sums.values())
        algorithm, shape = choose_all_reduce(first.pes, total, first.span, wafer, strategy)
        ahead = 0
        for (n, i), s in sums.items():
            steps[n][i] = replace(s, algorithm=algorithm, shape=shape, after=ahead)
            ahead += s.wavelets
    worked: dict[tuple, int] = {}
    for eqn, op, mine in zip(stage.eqns, ops, steps, strict=True):
        for i, s in enumerate(mine if strategy.compiled else ()):
            if isinstance(s, Compute) and (key := _shared_operand(eqn, op, s, roles)) is not None:
                mine[i] = replace(s, after=worked.get(key, 0))
                worked[key] = worked.get(key, 0) + s.length
    return [replace(op, steps=tuple(mine)) for op, mine in zip(ops, steps, strict=True)]


def _shared_operand(eqn, op: Any, step: Compute, roles: Roles) -> tuple | None:
    """What products must have in common to be worked through by the same instructions: these run along a weight, once
    for every element of the moving operand."""
    if eqn.primitive.name != "dot_general" or not step.maps:
        return None
    moving = [(a, at) for a, at in zip(eqn.invars, op.ins, strict=True) if not roles.flexible(a)]
    if len(moving) != 1 or moving[0][1] is None:
        return None
    ((atom, at),) = moving
    return (atom, at, step.calls, step.maps, step.conflict) if step.calls == at.size(atom.aval.shape) else None


def together(eqns: Sequence[Any], ops: Sequence[Any], data: Sequence[bool]) -> list[list[tuple[int, int]]]:
    """Groups of two or more collectives, each given as (position of its op, of its step), that can be one.

    They are looked at in order; one joins the first group with the same lines unless it waits for that group, be it
    through others: what is put together is one collective, and waits for what any of its members waits for."""
    groups: list[tuple[tuple, list[tuple[int, int]]]] = []
    needs: list[int] = []  # groups that a group waits for, as bits
    behind: dict[Any, int] = {}  # groups that a value waits for
    for n, (eqn, op) in enumerate(zip(eqns, ops, strict=True)):
        before = 0
        for a in eqn.invars:
            if not isinstance(a, Literal):
                before |= behind.get(a, 0)
        for i, step in enumerate(op.steps if data[n] and eqn.primitive.name in SUMS else ()):
            if isinstance(step, AllReduce):
                before = _closed(before, needs)
                key = step.pes, step.span, step.instances
                fits = (g for g, (other, _) in enumerate(groups) if other == key and not before >> g & 1)
                g = next(fits, len(groups))
                if g == len(groups):
                    groups.append((key, []))
                    needs.append(0)
                groups[g][1].append((n, i))
                needs[g] |= before
                before |= 1 << g
        for v in eqn.outvars:
            behind[v] = before
    return [members for _, members in groups if len(members) > 1]


def _closed(bits: int, needs: list[int]) -> int:
    """The groups in `bits` and all that they wait for."""
    todo = bits
    while todo:
        low = (todo & -todo).bit_length() - 1
        todo &= todo - 1
        more = needs[low] & ~bits
        bits |= more
        todo |= more
    return bits
