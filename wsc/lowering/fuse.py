"""Which collectives of a stage may go together: the same lines of PEs, and none waits for another."""

from collections.abc import Sequence
from typing import Any

from wsc.lowering.jaxapi import Literal
from wsc.machine.steps import AllReduce

SUMS = ("dot_general", "reduce_sum")


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
