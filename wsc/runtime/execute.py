"""Execute: a placed program as one function of flat arrays, for `jax.jit`.

With order="xla" every equation runs as JAX runs it. With order="fabric" sums whose operand is cut over PEs are taken
as the wafer takes them: each PE sums its own tile, then the partial sums are added along x and along y in the order
of the reduce that the step names.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from wsc.layout import Layout
from wsc.lowering import jaxapi
from wsc.lowering.jaxapi import Literal
from wsc.lowering.loops import loop_of
from wsc.lowering.loops import run as run_loop
from wsc.machine.steps import AllReduce
from wsc.program import PlacedOp, Program
from wsc.runtime.order import reduce_in_order

ORDERS = ("fabric", "xla")


@dataclass(frozen=True)
class Function:
    """A placed program as two functions of its flat inputs.

    `prepare(*inputs)` cuts weights into the tiles that the PEs hold, where that is not a mere reshape; it needs to be
    done once for a set of weights. `run(tiles, *inputs)` computes the flat outputs, and how often each counted body of
    a loop ran, and other amounts that a run decides, by meter.
    """

    prepare: Callable[..., tuple]
    run: Callable[..., tuple[list, tuple]]

    def __call__(self, *flat) -> tuple[list, tuple]:
        return self.run(self.prepare(*flat), *flat)


def as_function(program: Program, order: str) -> Function:
    """What the placed program computes, adding in the given order."""
    jaxpr, consts = program.jaxpr, program.consts
    if order == "xla" and program.written:
        jaxpr, consts = program.written
    placed = {}
    if order == "fabric":
        placed = {id(op.eqn): op for _, op in program.ops() if op.name in _IN_ORDER and _participants(op)}
    stationary = _stationary(program, placed)
    sized = {body.meter: body.sized for _, op in program.ops() for body in op.bodies if body.sized is not None}

    def evaluate(eqns, env, counts, tiles):
        for eqn in eqns:
            op = placed.get(id(eqn))
            if loop_of(eqn):
                results = run_loop(eqn, env, counts, partial(evaluate, tiles=tiles))
            else:
                values = [_read(a, env) for a in eqn.invars]
                if (meter := eqn.params.get(jaxapi.METER)) in sized:
                    for i, n in enumerate((1, *sized[meter].count(values)), meter):
                        counts[i] = counts.get(i, 0) + n
                results = [_IN_ORDER[op.name](op, values, tiles.get(id(eqn)))] if op else jaxapi.bind(eqn, values)
            env.update(zip(eqn.outvars, results, strict=True))

    def inputs(flat):
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, flat, strict=True))
        return env

    def prepare(*flat):
        env = inputs(flat)
        evaluate([e for e in jaxpr.eqns if any(v in stationary.views for v in e.outvars)], env, {}, {})
        return tuple(_tiles(op, side, env[op.eqn.invars[side]]) for op, side in stationary.dots)

    def run(tiles, *flat):
        env, counts = inputs(flat), {}
        ready = {id(op.eqn): (side, t) for (op, side), t in zip(stationary.dots, tiles, strict=True)}
        evaluate(jaxpr.eqns, env, counts, ready)
        metered = range(max(counts, default=-1) + 1)
        return [_read(a, env) for a in jaxpr.outvars], tuple(counts.get(m, 0) for m in metered)

    return Function(prepare, run)


def _read(atom, env: dict):
    return atom.val if isinstance(atom, Literal) else env[atom]


@dataclass(frozen=True)
class _Stationary:
    """Products whose stationary operand is worth tiling once, with its side, and the views it is seen through."""

    dots: list[tuple[PlacedOp, int]]
    views: set


def _stationary(program: Program, placed: dict[int, PlacedOp]) -> _Stationary:
    """Follow the stored weights through equations that read nothing else."""
    if not placed:
        return _Stationary([], set())
    stored = {v for v in program.jaxpr.invars if v in program.weight_vars}
    views = set()
    for eqn in program.jaxpr.eqns:
        read = [a for a in eqn.invars if not isinstance(a, Literal) and a not in program.jaxpr.constvars]
        row = eqn.outvars[0] in program.weight_vars  # of a stacked weight
        if row or (read and all(a in stored for a in read) and id(eqn) not in placed):
            stored |= set(eqn.outvars)
            views |= set(eqn.outvars)
    dots = [
        (op, side)
        for op in placed.values()
        for side in (0, 1)
        if op.name == "dot_general" and _is_in(op.eqn.invars[side], stored) and not _free(op, side)
    ]
    needed, made = set(), {v: e for e in program.jaxpr.eqns for v in e.outvars if v in views}
    todo = [op.eqn.invars[side] for op, side in dots]
    while todo:
        v = todo.pop()
        if v in made and v not in needed:
            needed.add(v)
            todo += [a for a in made[v].invars if not isinstance(a, Literal)]
    return _Stationary(dots, needed)


def _is_in(atom, variables: set) -> bool:
    return not isinstance(atom, Literal) and atom in variables


def _free(op: PlacedOp, side: int) -> bool:
    """Tiling this operand is a reshape of memory as it is: whole tiles, contracted dimension first."""
    (k_dims, at, shape) = op.eqn.params["dimension_numbers"][0][side], op.ins[side], op.eqn.invars[side].aval.shape
    assert at is not None
    return tuple(k_dims) == (0,) and shape[0] % (at.y[0] * at.x[0]) == 0


def _tiles(op: PlacedOp, side: int, array):
    """The operand cut along its contracted dimensions, parts outermost, then what is contracted within a tile."""
    k_dims, b_dims = op.eqn.params["dimension_numbers"][0][side], op.eqn.params["dimension_numbers"][1][side]
    at = op.ins[side]
    assert at is not None
    array, tile, parts = _cut(array, tuple(k_dims), at)
    front = [parts[d] for d in k_dims if d in parts] + [tile[d] for d in b_dims] + [tile[d] for d in k_dims]
    return array.transpose(*front, *(a for a in range(array.ndim) if a not in front))


def algorithms(op: PlacedOp, at: Layout, dims: tuple[int, ...]) -> dict[str, AllReduce]:
    """The all-reduce along each axis whose PEs add their partial sums: x first, then y."""
    lines = [axis for axis in "xy" if math.prod(at.along(axis)[d] for d in dims) > 1]
    reduces = [s for s in op.steps if isinstance(s, AllReduce)]
    return dict(zip(lines, reduces, strict=True))


def _participants(op: PlacedOp) -> bool:
    return any(isinstance(s, AllReduce) for s in op.steps)


def _cut(array, dims: tuple[int, ...], at: Layout) -> tuple[jax.Array, dict[int, int], dict[int, int]]:
    """Each cut one of `dims` split into [parts, tile], zeros filling the last tile; with the new axis of every
    dimension, and the axis of the parts of those that were cut. A folded one is laid out piece by piece first."""
    for d in dims:
        if (f := at.fold(d)) > 1:
            array = _interleaved(array, d, f, at.y[d] * at.x[d])
    widths, shape, tile_axis, parts_axis = [(0, 0)] * array.ndim, [], {}, {}
    for d, n in enumerate(array.shape):
        parts = at.y[d] * at.x[d] if d in dims else 1
        before = at.margin(d)[0]
        tile = -(-at.frame(d, n) // parts)
        if parts > 1:
            widths[d] = (before, tile * parts - n - before)
            parts_axis[d] = len(shape)
            shape.append(parts)
        tile_axis[d] = len(shape)
        shape.append(tile)
    padded = jnp.pad(array, widths) if any(w != (0, 0) for w in widths) else array
    return padded.reshape(shape), tile_axis, parts_axis


def _interleaved(array, d: int, pieces: int, parts: int) -> jax.Array:
    """A dimension in another order: part p of each of its `pieces`, one after the other, for every p."""
    before, n, after = array.shape[:d], array.shape[d], array.shape[d + 1 :]
    tile = -(-n // (pieces * parts))
    array = array.reshape(*before, pieces, n // pieces, *after)
    filling = [(0, 0)] * (d + 1) + [(0, tile * parts - n // pieces)] + [(0, 0)] * len(after)
    array = jnp.pad(array, filling).reshape(*before, pieces, parts, tile, *after)
    return jnp.swapaxes(array, d, d + 1).reshape(*before, pieces * parts * tile, *after)


def _add_up(partial, lines: dict[str, AllReduce], parts: list[tuple[int, int]]):
    """Sum the leading axes of `partial`, one for each (y, x) in `parts`, along x and then along y."""
    split = [n for y, x in parts for n in (y, x)]
    rest = partial.shape[len(parts) :]
    partial = partial.reshape(*split, *rest)
    count = len(parts)
    order = [2 * i + 1 for i in range(count)] + [2 * i for i in range(count)]
    partial = partial.transpose(*order, *range(2 * count, partial.ndim))
    along_x, along_y = math.prod(x for _, x in parts), math.prod(y for y, _ in parts)
    partial = partial.reshape(along_x, along_y, *rest)
    for axis in "xy":
        step = lines.get(axis)
        partial = reduce_in_order(partial, step.algorithm, step.shape) if step else partial[0]
    return partial


def _dot_in_order(op: PlacedOp, values: list, ready: tuple[int, Any] | None):
    """dot_general with its contracted dimensions cut: one batched product of tiles, then the sum over them.
    `ready` is the side of an operand that was tiled before, and its tiles."""
    (k_lhs, _), (b_lhs, _) = op.eqn.params["dimension_numbers"]
    at = op.ins[0]
    assert at is not None
    tiles = [ready[1] if ready and ready[0] == side else _tiles(op, side, values[side]) for side in (0, 1)]
    cut_dims = [d for d in k_lhs if at.y[d] * at.x[d] > 1]
    outer = list(range(len(cut_dims) + len(b_lhs)))
    inner = [len(outer) + i for i in range(len(k_lhs))]
    if all(tiles[0].shape[i] == 1 for i in inner):
        partial = _products(tiles, len(outer), len(inner), op.eqn.outvars[0].aval.dtype)
    else:
        partial = jax.lax.dot_general(
            tiles[0],
            tiles[1],
            ((inner, inner), (outer, outer)),
            precision=op.eqn.params.get("precision"),
            preferred_element_type=op.eqn.params.get("preferred_element_type"),
        )
    return _add_up(partial, algorithms(op, at, tuple(k_lhs)), [(at.y[d], at.x[d]) for d in cut_dims])


def _products(tiles: list, outer: int, inner: int, dtype):
    """Tiles of one element along what is contracted: plain products, which XLA fuses with the sum that follows."""
    lhs, rhs = (t.astype(dtype).reshape(*t.shape[:outer], *t.shape[outer + inner :]) for t in tiles)
    free = lhs.ndim - outer, rhs.ndim - outer
    return lhs.reshape(*lhs.shape, *(1,) * free[1]) * rhs.reshape(
        *rhs.shape[:outer], *(1,) * free[0], *rhs.shape[outer:]
    )


def _sum_in_order(op: PlacedOp, values: list, ready: None):
    """reduce_sum over cut dimensions: each tile, then the sum over tiles."""
    at, axes = op.ins[0], tuple(op.eqn.params["axes"])
    assert at is not None
    array, tile_axis, parts_axis = _cut(values[0], axes, at)
    cut_dims = sorted(parts_axis)
    array = jnp.moveaxis(array, [parts_axis[d] for d in cut_dims], range(len(cut_dims)))
    moved = [tile_axis[d] + sum(parts_axis[c] > tile_axis[d] for c in cut_dims) for d in axes]
    partial = jnp.sum(array, axis=tuple(moved), dtype=array.dtype)
    return _add_up(partial, algorithms(op, at, axes), [(at.y[d], at.x[d]) for d in cut_dims])


_IN_ORDER: dict[str, Callable] = {"dot_general": _dot_in_order, "reduce_sum": _sum_in_order}
