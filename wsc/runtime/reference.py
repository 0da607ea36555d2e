"""The reference interpreter: what a placed program means, PE by PE, in plain numpy loops. Slow and obvious.

For every matrix product and sum, operands are cut into the tiles that the layouts say, each PE works on its own
tiles only, and partial sums hop from PE to PE in the order that the reduce names. All other ops are element-wise or
renames, which no placement changes; they run as JAX runs them. `wsc.runtime.execute` is tested against this.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wsc.layout import Layout
from wsc.lowering import jaxapi
from wsc.lowering.jaxapi import Literal
from wsc.lowering.loops import Loop, loop_of
from wsc.machine.collectives import group_size, k_levels
from wsc.machine.reduce_tree import children
from wsc.machine.steps import AllReduce
from wsc.program import PlacedOp, Program


def interpret(program: Program, *flat) -> list[np.ndarray]:
    """Run a placed program on flat inputs; returns flat outputs."""
    env = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    env.update(zip(program.jaxpr.invars, flat, strict=True))
    _interpret(program.jaxpr.eqns, env, {id(op.eqn): op for _, op in program.ops()})
    return [_read(a, env) for a in program.jaxpr.outvars]


def _interpret(eqns: Sequence, env: dict, placed: dict) -> None:
    for eqn in eqns:
        op = placed[id(eqn)]
        values = [_read(a, env) for a in eqn.invars]
        if loop := loop_of(eqn):
            results = _loop(loop, values, env, placed)
        elif eqn.primitive.name == "dot_general" and not op.control:
            results = [_dot(op, *values)]
        elif eqn.primitive.name == "reduce_sum" and not op.control:
            results = [_sum(op, values[0])]
        else:
            results = jaxapi.bind(eqn, values)
        env.update(zip(eqn.outvars, results, strict=True))


def _read(atom: Any, env: dict) -> Any:
    dtype, value = atom.aval.dtype, atom.val if isinstance(atom, Literal) else env[atom]
    return value if jaxapi.is_extended(dtype) else np.asarray(value)


def _loop(loop: Loop, values: list, env: dict, placed: dict) -> list:
    """Trip by trip, in plain Python."""

    def body(i: int, own: list) -> list:
        inside = {**env, **dict(zip(loop.bodies[i].invars, own, strict=True))}
        _interpret(loop.bodies[i].eqns, inside, placed)
        return [_read(a, inside) for a in loop.bodies[i].outvars]

    n = loop.carried
    if loop.kind == "cond":
        return body(int(np.clip(values[0], 0, len(loop.bodies) - 1)), [])
    if loop.kind == "while":
        carried = values[:n]
        while body(0, carried)[0]:
            carried = body(1, carried)
        return carried
    carried, stacked, rows = values[:n], values[n : len(loop.bodies[0].invars)], {}
    for t in reversed(range(loop.length)) if loop.reverse else range(loop.length):
        results = body(0, [*carried, *(s[t] for s in stacked)])
        carried, rows[t] = results[:n], results[n:]
    return [*carried, *(np.stack([rows[t][i] for t in range(loop.length)]) for i in range(len(rows[0])))]


def reduce_line(values: list[np.ndarray], algorithm: str, shape: tuple[int, ...] = ()) -> np.ndarray:
    """The sum that reaches the root of a line, hop by hop."""
    held = list(values)
    if algorithm.startswith("centre_"):
        name, middle = algorithm.removeprefix("centre_"), len(held) // 2
        held[middle] = reduce_line(held[middle:], name, shape)
        return reduce_line(held[middle::-1], name, shape)
    if algorithm == "k_level":
        for size in k_levels(len(held), shape):
            held = [reduce_line(held[i : i + size], "centre_chain") for i in range(0, len(held), size)]
    elif algorithm == "chain":
        for pe in range(len(held) - 1, 0, -1):
            held[pe - 1] = held[pe - 1] + held[pe]
    elif algorithm == "star":
        for pe in range(1, len(held)):
            held[0] = held[0] + held[pe]
    elif algorithm == "generated":
        for pe, senders in reversed(list(enumerate(children(len(held), shape[0])))):
            for sender in senders:
                held[pe] = held[pe] + held[sender]
    elif algorithm == "tree":
        distance = 1
        while distance < len(held):
            for pe in range(0, len(held) - distance, 2 * distance):
                held[pe] = held[pe] + held[pe + distance]
            distance *= 2
    elif algorithm == "two_phase":
        size = group_size(len(held))
        firsts = [reduce_line(held[i : i + size], "chain") for i in range(0, len(held), size)]
        return reduce_line(firsts, "chain")
    return held[0]


def _tiles(layout: Layout, shape: tuple[int, ...], dims: tuple[int, ...], axis: str) -> list[tuple[int, ...]]:
    """Part numbers of `dims` on every PE of a line, in the order in which the PEs stand."""
    return list(itertools.product(*(range(layout.along(axis)[d]) for d in dims)))


def _piece(n: int, layout: Layout, d: int, y: int, x: int) -> slice | list[int]:
    """The indices of part (y, x) of a dimension of n elements; of a folded one, of every piece of it."""
    f = layout.fold(d)
    tile = -(-layout.frame(d, n) // (f * layout.y[d] * layout.x[d]))
    start = min(n // f, (y * layout.x[d] + x) * tile)
    if f == 1:
        before = layout.margin(d)[0]
        return slice(max(0, start - before), max(0, min(n, start + tile - before)))
    return [p * (n // f) + i for p in range(f) for i in range(start, min(n // f, start + tile))]


def _reduces(op: PlacedOp, layout: Layout, dims: tuple[int, ...]) -> dict[str, AllReduce]:
    lines = [axis for axis in "xy" if math.prod(layout.along(axis)[d] for d in dims) > 1]
    steps = [s for s in op.steps if isinstance(s, AllReduce)]
    return dict(zip(lines, steps, strict=True))


def _over_pes(op: PlacedOp, layout: Layout, shape, dims, work) -> np.ndarray:
    """`work(pieces)` on every PE along both axes, summed along x, then along y."""
    reduces = _reduces(op, layout, dims)
    rows = []
    for ys in _tiles(layout, shape, dims, "y"):
        columns = []
        for xs in _tiles(layout, shape, dims, "x"):
            pieces = {d: _piece(shape[d], layout, d, y, x) for d, y, x in zip(dims, ys, xs, strict=True)}
            columns.append(work(pieces))
        rows.append(_line(columns, reduces.get("x")))
    return _line(rows, reduces.get("y"))


def _line(values: list[np.ndarray], step: AllReduce | None) -> np.ndarray:
    return reduce_line(values, step.algorithm, step.shape) if step else values[0]


def _dot(op: PlacedOp, lhs: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    (k_lhs, k_rhs), (b_lhs, b_rhs) = op.eqn.params["dimension_numbers"]
    at = op.ins[0]
    assert at is not None
    dtype = op.eqn.outvars[0].aval.dtype
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left, right = [""] * lhs.ndim, [""] * rhs.ndim
    for a, b in [*zip(b_lhs, b_rhs, strict=True), *zip(k_lhs, k_rhs, strict=True)]:
        left[a] = right[b] = next(letters)
    for names in (left, right):
        names[:] = [c or next(letters) for c in names]
    batch = [left[d] for d in b_lhs]
    shared = {*batch, *(left[d] for d in k_lhs)}
    out = batch + [c for c in left if c not in shared] + [c for c in right if c not in shared]
    formula = f"{''.join(left)},{''.join(right)}->{''.join(out)}"

    def work(pieces: dict[int, slice]) -> np.ndarray:
        mine = lhs[tuple(pieces.get(d, slice(None)) for d in range(lhs.ndim))]
        other = {b: pieces[a] for a, b in zip(k_lhs, k_rhs, strict=True)}
        theirs = rhs[tuple(other.get(d, slice(None)) for d in range(rhs.ndim))]
        exact = np.promote_types(dtype, np.float32) if dtype.itemsize < 4 else dtype  # numpy has no bfloat16 products
        return np.einsum(formula, mine.astype(exact), theirs.astype(exact)).astype(dtype)

    return _over_pes(op, at, lhs.shape, tuple(k_lhs), work).astype(dtype)


def _sum(op: PlacedOp, array: np.ndarray) -> np.ndarray:
    at, axes = op.ins[0], tuple(op.eqn.params["axes"])
    assert at is not None

    def work(pieces: dict[int, slice]) -> np.ndarray:
        mine = array[tuple(pieces.get(d, slice(None)) for d in range(array.ndim))]
        return mine.sum(axis=axes, dtype=array.dtype)

    return _over_pes(op, at, array.shape, axes, work)
