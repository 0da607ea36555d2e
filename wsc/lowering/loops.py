"""Loops: scans over time, while loops and branches, each one equation of the flat jaxpr with its bodies inside.

A body is a `Jaxpr` of its own: its invars are what changes from trip to trip, and every other variable it reads is one
of the program around it, so that a weight in a loop is the same weight outside. The equation keeps JAX's primitive;
its operands are first values, stacked values, then the outer variables that its bodies read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from wsc.lowering import jaxapi
from wsc.lowering.jaxapi import Eqn, Jaxpr, Literal, Var
from wsc.program import COUNTED

NAMES = ("scan", "while", "cond")
SIZED = ("ragged_dot_general",)  # equations whose amounts of work a run counts


@dataclass(frozen=True, eq=False)
class Loop:
    """`kind` is "scan", "while" (bodies: condition, body) or "cond" (bodies: its branches; no invars). The first
    `carried` invars of a body come back as its first results; a scan has `length` trips and stacks the other results.
    `meter` is the first of the numbers under which a run counts how often each body ran; a scan's trips are known."""

    kind: str
    bodies: tuple[Jaxpr, ...]
    carried: int
    length: int = 1
    reverse: bool = False
    meter: int = 0

    @property
    def counted(self) -> int:
        """Bodies whose runs are counted."""
        return 0 if self.kind == "scan" else len(self.bodies)


def loop_of(eqn: Eqn) -> Loop | None:
    """The loop that an equation is, if it is one."""
    return eqn.params.get("loop") if eqn.primitive.name in NAMES else None


def with_inner(eqns: Iterable[Eqn]) -> Iterator[Eqn]:
    """Equations and those in the bodies of loops."""
    for eqn in eqns:
        yield eqn
        for body in loop.bodies if (loop := loop_of(eqn)) else ():
            yield from with_inner(body.eqns)


def outer_variables(bodies: Iterable[Jaxpr]) -> list[Var]:
    """What bodies read of the program around them."""
    found: dict[Any, None] = {}
    for body in bodies:
        own = {*body.invars, *(v for e in body.eqns for v in e.outvars)}
        read = [*(a for e in body.eqns for a in e.invars), *body.outvars]
        found.update((a, None) for a in read if not isinstance(a, Literal) and a not in own)
    return list(found)


def make(like: Eqn, caller: Eqn | None, loop: Loop, operands: list, outvars: list) -> Eqn:
    """The equation of a loop in the place of JAX's own."""
    atoms = [*operands, *outer_variables(loop.bodies)]
    return jaxapi.rescope(like.replace(params={"loop": loop}), caller, atoms, outvars)


def replaced(eqn: Eqn, env: Mapping) -> Eqn:
    """A loop over other outer variables, its results kept."""
    loop = eqn.params["loop"]
    bodies = tuple(_body_replaced(body, env) for body in loop.bodies)
    operands = [_found(a, env) for a in operands_of(eqn)]
    return make(eqn, None, replace(loop, bodies=bodies), operands, eqn.outvars)


def operands_of(eqn: Eqn) -> list:
    """First and stacked values, or the index of a branch."""
    loop = eqn.params["loop"]
    return list(eqn.invars[: 1 if loop.kind == "cond" else len(loop.bodies[-1].invars)])


def _body_replaced(body: Jaxpr, env: Mapping) -> Jaxpr:
    eqns = []
    for e in body.eqns:
        invars = [_found(a, env) for a in e.invars]
        eqns.append(replaced(e, env) if loop_of(e) else e.replace(invars=invars))
    return Jaxpr([], body.invars, [_found(a, env) for a in body.outvars], eqns)


def _found(atom, env: Mapping):
    return atom if isinstance(atom, Literal) else env.get(atom, atom)


Evaluate = Callable[[list, dict, dict], None]  # equations, values by variable, runs by meter: both are updated


def run(eqn: Eqn, env: dict, runs: dict, evaluate: Evaluate) -> list:
    """Run a loop as JAX runs it; `evaluate` runs the equations of a body. Returns its results, and adds to `runs` how
    often each counted body ran, those inside of others too."""
    loop = eqn.params["loop"]
    values = [_read(a, env) for a in operands_of(eqn)]
    meters = sorted(meters_in(loop))

    def body(i: int, own: list, counts: list) -> tuple[list, list]:
        inside, counted = {**env, **dict(zip(loop.bodies[i].invars, own, strict=True))}, dict(zip(meters, counts))
        if loop.counted:
            counted[loop.meter + i] = counted[loop.meter + i] + 1
        evaluate(loop.bodies[i].eqns, inside, counted)
        found = [_read(a, inside) for a in loop.bodies[i].outvars]
        like = [a.aval for a in loop.bodies[i].outvars]
        found = [jnp.asarray(v, a.dtype) if not jaxapi.is_extended(a.dtype) else v for v, a in zip(found, like)]
        return found, [counted[m] for m in meters]

    counts = [jnp.int32(0) for _ in meters]
    n = loop.carried
    if loop.kind == "cond":
        branches = [lambda counts, i=i: body(i, [], counts) for i in range(len(loop.bodies))]
        index = jnp.clip(jnp.asarray(values[0]).astype(jnp.int32), 0, len(branches) - 1)
        results, counts = jax.lax.switch(index, branches, counts)
    elif loop.kind == "scan":

        def step(carry, stacked):
            found, counts = body(0, [*carry[0], *stacked], carry[1])
            return (found[:n], counts), found[n:]

        (carry, counts), stacked = jax.lax.scan(
            step, (values[:n], counts), values[n:], length=loop.length, reverse=loop.reverse
        )
        results = [*carry, *stacked]
    else:

        def go_on(carry):
            found, counts = body(0, carry[0], carry[1])
            return found[0], counts

        def while_body(carry):
            values, counts, _ = carry
            values, counts = body(1, values, counts)
            again, counts = go_on((values, counts))
            return values, counts, again

        again, counts = go_on((values, counts))
        results, counts, _ = jax.lax.while_loop(lambda carry: carry[2], while_body, (values, counts, again))
    for meter, count in zip(meters, counts, strict=True):
        runs[meter] = runs.get(meter, 0) + count
    return list(results)


def _read(atom, env: dict):
    return atom.val if isinstance(atom, Literal) else env[atom]


def meters_in(loop: Loop) -> set[int]:
    """The meters of a loop and of what is inside it."""
    found = set(range(loop.meter, loop.meter + loop.counted))
    for body in loop.bodies:
        for eqn in body.eqns:
            if inner := loop_of(eqn):
                found |= meters_in(inner)
            if (first := eqn.params.get(jaxapi.METER)) is not None:
                found |= set(range(first, first + COUNTED))
    return found
