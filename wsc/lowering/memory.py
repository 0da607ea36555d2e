"""Memory: an address for every byte a PE of a stage holds. Code first, then weights, state, and buffers by lifetime."""

from collections.abc import Callable
from typing import Any

from wsc.lowering.jaxapi import Literal
from wsc.lowering.loops import Loop, loop_of
from wsc.lowering.plan import Stage, body_stage
from wsc.lowering.roles import Roles
from wsc.lowering.rules.elementwise import VECTOR
from wsc.lowering.rules.flexible import VIEWS
from wsc.lowering.tiled import Stored, TiledStage
from wsc.machine.wafer import Wafer
from wsc.program import Allocation


def lifetimes(stage: Stage, roles: Roles, sizes_of: Callable[[Any], list[int]]) -> list[tuple[int, int, int]]:
    """Bytes a PE of every value computed in the stage, from the op that makes it to the last that reads it. Renames
    share their operand's bytes; state is updated in place, and so is what an element-wise op reads last. `sizes_of`
    gives the bytes of each layout that a value has."""
    root: dict = {}
    last: dict = {}
    first = _arrivals(stage)
    for n, eqn in enumerate(stage.eqns):
        operands = [root.get(a, a) for a in eqn.invars if not isinstance(a, Literal)]
        last.update((a, n) for a in operands)
        for v in eqn.outvars:
            same = eqn.primitive.name in VIEWS or roles.of(v) == "state"
            if same and operands:
                root[v] = operands[eqn.outvars.index(v) if loop_of(eqn) else 0]
            elif (stage.data[n] or roles.of(v) == "control") and not roles.stays(v):
                first[v] = n
            last[root.get(v, v)] = n
    end = len(stage.eqns)
    last.update((root.get(v, v), end) for v in (*stage.exports, *stage.results))
    sizes = {v: sizes_of(v) for v in first}
    home: dict = {}  # value -> the one whose place it takes
    for n, eqn in enumerate(stage.eqns):
        if stage.data[n] and eqn.primitive.name in VECTOR and eqn.outvars[0] in first:
            v, operands = eqn.outvars[0], [root.get(a, a) for a in eqn.invars if not isinstance(a, Literal)]
            for a in operands:
                if last.get(a) == n and sizes.get(a) == sizes[v] and a not in stage.states:
                    home[v] = home.get(a, a)
                    break
    spans: dict = {}
    for v, n in first.items():
        at = home.get(v, v)
        begin, until = spans.get(at, (n, n))
        spans[at] = min(begin, n), max(until, last.get(v, n))
    found = [(nbytes, *spans[v]) for v in first if v in spans for nbytes in sizes[v]]
    for n, eqn in enumerate(stage.eqns):
        if loop := loop_of(eqn):
            found.append((_peak_of_bodies(stage, loop, roles, sizes_of), n, n))
    return found


def _arrivals(stage: Stage) -> dict[Any, int]:
    """When the stage's input comes: at the begin of the visit in which it is first read."""
    begins = {visit: n for n, visit in reversed(list(enumerate(stage.visit)))}
    found = dict.fromkeys(stage.entries, 0)
    if len(begins) > 1:
        for n, eqn in reversed(list(enumerate(stage.eqns))):
            found.update((a, begins[stage.visit[n]]) for a in eqn.invars if not isinstance(a, Literal) and a in found)
    return found


def _peak_of_bodies(stage: Stage, loop: Loop, roles: Roles, sizes_of: Callable[[Any], list[int]]) -> int:
    """Bytes a PE that the bodies of a loop take beside what is carried: that lies where the loop's results will."""
    most = 0
    for body in loop.bodies:
        inner = body_stage(stage.name, body, roles)
        inner.entries = []
        most = max([most, *(o + n for o, n in allocate_buffers(lifetimes(inner, roles, sizes_of)))])
    return most


def stored_bytes(tiled: TiledStage) -> int:
    """Bytes a PE that stay for good: code, weights, state."""
    return tiled.wafer.code_bytes + tiled.kept_bytes


def state_bytes(tiled: TiledStage) -> int:
    """Bytes a PE of state, such as a cache."""
    return sum(s.tile_bytes(tiled.wafer) for s in tiled.states)


def allocate_buffers(buffers: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """(offset, bytes) of each buffer, given as (bytes, first use, last use): lowest place free over its lifetime.

    >>> allocate_buffers([(8, 0, 1), (16, 1, 2), (8, 2, 3)])    # the third takes the place of the first
    [(0, 8), (8, 16), (0, 8)]
    """
    placed: list[tuple[int, int]] = [(0, 0)] * len(buffers)
    live: list[int] = []
    for i in sorted(range(len(buffers)), key=lambda i: buffers[i][1]):
        nbytes, first, _ = buffers[i]
        live = [j for j in live if buffers[j][2] >= first]
        offset = 0
        for begin, length in sorted(placed[j] for j in live):
            if begin - offset >= nbytes:
                break
            offset = max(offset, begin + length)
        placed[i] = (offset, nbytes)
        live.append(i)
    return placed


def buffer_bytes(tiled: TiledStage) -> int:
    """Bytes a PE for values that come and go."""
    if tiled.peak_bytes is None:
        tiled.peak_bytes = max((o + n for o, n in allocate_buffers(tiled.buffers)), default=0)
    return tiled.twin_bytes + tiled.peak_bytes


def memory_map(
    tiled: TiledStage, weights: list[str], states: list[str], shared_buffers: int, twins: int
) -> tuple[Allocation, ...]:
    """The address ranges of one PE. `shared_buffers` is the buffer space of all programs that share the region, `twins`
    of it second accumulators: these come first of all, so that what lies last is in another bank."""
    at = tiled.wafer.code_bytes
    found = [Allocation("code", "program and runtime", 0, at)]
    if twins:
        found.append(Allocation("buffer", "second accumulators", at, twins))
        at += twins
        shared_buffers -= twins

    def add(kind: str, name: str, stored: Stored) -> None:
        nonlocal at
        nbytes = stored.tile_bytes(tiled.wafer)
        if nbytes:  # an array without elements is nowhere
            found.append(Allocation(kind, name, at, nbytes))
        at += nbytes

    for stored in tiled.weights:
        add("weight", weights[stored.position], stored)
    for stored in tiled.states:
        add("state", states[stored.position], stored)
    if shared_buffers:
        if twins and same_bank(found[1].offset, at, tiled.wafer):
            bank = tiled.wafer.sram_bytes // tiled.wafer.sram_banks
            after = -(-(at + 1) // bank) * bank
            at = after if after + shared_buffers <= tiled.wafer.sram_bytes else at
        found.append(Allocation("buffer", "activations and control, by lifetime", at, shared_buffers))
    return tuple(found)


def same_bank(a: int, b: int, wafer: Wafer) -> bool:
    """Reads of two addresses meet: their banks are the same, or four apart (vendor text)."""
    bank = wafer.sram_bytes // wafer.sram_banks
    return (a // bank - b // bank) % 4 == 0


def over_by(used: int, wafer: Wafer) -> int:
    """Bytes by which a PE is over its SRAM, 0 if it fits."""
    return max(0, used - wafer.sram_bytes)
