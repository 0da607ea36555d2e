"""Do values lie where they are used? A brute-force look at who holds what: where an op wants an operand otherwise than
its maker left it, and some PE wants elements that it does not have, something must travel."""

import numpy as np

import wsc
from wsc.layout import Grid, Layout
from wsc.lowering.loops import loop_of
from wsc.machine import steps

FABRIC = (steps.Shift, steps.Multicast, steps.Reduce, steps.AllReduce, steps.Rounds, steps.Move)


def assert_laid(program: wsc.Program) -> None:
    """Raises AssertionError where a value would have to be somewhere that it is not, loops included."""
    for stage in program.stages:
        _ops(stage.ops, stage.region.grid, {}, set(), {})


def _ops(ops, grid: Grid, at: dict, come: set, base: dict) -> None:
    """`at`: how values lie; `come`: (value, layout) that were brought, and arrays of which something was; `base`: the
    array that a slice was cut out of, whose halo is that of all its slices."""
    at, come, base = dict(at), set(come), dict(base)
    for op in ops:
        moves = any(isinstance(s, FABRIC) for s in op.steps)
        for a, want in zip(op.eqn.invars, op.ins, strict=True):
            if type(a).__name__ == "Literal" or a not in at or want is None or op.control:
                continue
            if lacks(at[a], want, a.aval.shape, grid) and (a, want) not in come:
                halo = bool(at[a].margins or want.margins) and (base.get(a, a), _large(a, base)) in come
                told = f"{op.name} wants {a.aval.str_short()} as {want}, but it lies as {at[a]}: {op}"
                assert moves or halo, told
                come |= {(a, want), (base.get(a, a), _large(a, base))}
        for body, inner in zip(op.bodies, loop_of(op.eqn).bodies if op.bodies else (), strict=True):
            _ops(body.ops, grid, {v: x for v, x in at.items() if not moves}, come, base)
            _ends(op, body, inner, grid)
        if op.name in ("slice", "split"):
            base.update((v, base.get(op.eqn.invars[0], op.eqn.invars[0])) for v in op.eqn.outvars)
        if not op.control and not op.weights:
            at.update((v, x) for v, x in zip(op.eqn.outvars, op.outs, strict=True) if x is not None)


def _large(a, base: dict) -> bool:
    """More than half of what it was cut out of: its halo is not that of an edge alone."""
    return 2 * a.aval.size > base.get(a, a).aval.size


def _ends(op, body, inner, grid: Grid) -> None:
    """What a trip leaves is brought to where the next one, or the user of the result, has it."""
    loop = loop_of(op.eqn)
    ends = {v: x for o in body.ops if not o.control for v, x in zip(o.eqn.outvars, o.outs, strict=True)}
    if loop.kind == "while" and inner is loop.bodies[0]:
        return
    for i, (v, there) in enumerate(zip(inner.outvars, op.outs, strict=True)):
        if type(v).__name__ == "Literal" or ends.get(v) is None or there is None:
            continue
        there = there if loop.kind != "scan" or i < loop.carried else there.take(range(1, len(there.y)))
        if lacks(ends[v], there, v.aval.shape, grid):
            moves = any(isinstance(s, FABRIC) for s in body.tail)
            assert moves, f"{op.name} leaves {v.aval.str_short()} as {ends[v]}, and goes on with {there}: {body.tail}"


def lacks(now: Layout, want: Layout, shape: tuple[int, ...], grid: Grid) -> bool:
    """Whether some PE wants an element that it does not hold. A dimension that is cut along both axes is not looked at:
    a layout does not say which of them is outer."""
    if now == want or not shape or 0 in shape:
        return False
    if any(at.y[d] > 1 and at.x[d] > 1 for at in (now, want) for d in range(len(shape))):
        return False
    bad, active = {}, {}
    for axis in "yx":
        have, need = (_held(at, shape, axis, getattr(grid, axis)) for at in (now, want))
        bad[axis] = np.any([(n & ~h).any(1) for h, n in zip(have, need, strict=True)], axis=0)
        active[axis] = np.all([n.any(1) for n in need], axis=0)
    return any((bad[a] & active[a]).any() and active[b].any() for a, b in ("yx", "xy"))


def _held(at: Layout, shape: tuple[int, ...], axis: str, pes: int) -> list[np.ndarray]:
    """[PE, element]: what each PE of an axis holds, a dimension."""
    found, place, segment = [], np.arange(pes), pes
    for d, n in enumerate(shape):
        parts, fold, (before, after) = at.along(axis)[d], at.fold(d), at.margin(d)
        segment //= parts
        digit, place = place // segment, place % segment
        frame, i = n, np.arange(n)
        if parts > 1:
            frame, i = n + before + after, np.clip(i + before, 0, n + before + after - 1)
        part = i % -(-frame // fold) // -(-frame // (fold * parts)) if parts > 1 else np.zeros(n, int)
        found.append(part[None] == digit[:, None] if parts > 1 else np.ones((pes, n), bool) & (digit == 0)[:, None])
    return found
