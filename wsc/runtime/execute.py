"""Execute: a placed program as one function of flat arrays, for `jax.jit`.

With order="xla" every equation runs as JAX runs it. With order="fabric" sums whose operand is cut over PEs are taken
as the wafer takes them: each PE sums its own tile, then the partial sums are added along x and along y in the order
of the reduce that the step names.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
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
from wsc.runtime.order import apart, exactly, never, reduce_in_order
from wsc.runtime.products import EXACT, MOST, Products

ORDERS = ("fabric", "xla")
NO_SUMS: Mapping = MappingProxyType({})


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


Sums = Callable[[PlacedOp, jax.Array], jax.Array]  # [PEs along x, PEs along y, ...] summed, or the largest of them


def as_function(program: Program, order: str, sums: Mapping[int, Sums] = NO_SUMS, kept: Sequence[Any] = ()) -> Function:
    """What the placed program computes, adding in the given order; equations whose id is in `sums` have what every PE
    has for them summed by that. Behind the outputs come the values of the variables `kept`."""
    jaxpr, consts = program.jaxpr, program.consts
    if order == "xla" and program.written:
        jaxpr, consts = program.written
    placed = {}
    if order == "fabric":
        named = {id(op.eqn): op for _, op in program.ops() if _participants(op)}
        placed = {e: op for e, op in named.items() if e in sums or op.name in _IN_ORDER}
    stationary = _stationary(program, {e: op for e, op in placed.items() if e not in sums})
    sized = {body.meter: body.sized for _, op in program.ops() for body in op.bodies if body.sized is not None}

    def evaluate(eqns, env, counts, tiles, zero):
        for eqn in eqns:
            op = placed.get(id(eqn))
            if loop_of(eqn):
                results = run_loop(eqn, env, counts, partial(evaluate, tiles=tiles, zero=zero))
            else:
                values = [_read(a, env) for a in eqn.invars]
                if (meter := eqn.params.get(jaxapi.METER)) in sized:
                    for i, n in enumerate((1, *sized[meter].count(values)), meter):
                        counts[i] = counts.get(i, 0) + n
                if op and id(eqn) in sums:
                    results = [sums[id(eqn)](op, PARTIALS[op.name](op, values, zero))]
                elif op:
                    results = [_IN_ORDER[op.name](op, values, tiles.get(id(eqn)), zero)]
                else:
                    results = jaxapi.bind(eqn, values)
            env.update(zip(eqn.outvars, results, strict=True))

    def inputs(flat):
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, flat, strict=True))
        return env

    def prepare(*flat):
        env = inputs(flat)
        evaluate([e for e in jaxpr.eqns if any(v in stationary.views for v in e.outvars)], env, {}, {}, 0)
        return tuple(_operand(op, side, env[op.eqn.invars[side]]) for op, side in stationary.dots)

    def run(tiles, *flat):
        env, counts = inputs(flat), {}
        ready = {id(op.eqn): (side, t) for (op, side), t in zip(stationary.dots, tiles, strict=True)}
        evaluate(jaxpr.eqns, env, counts, ready, never(flat) if placed else 0)
        metered = range(max(counts, default=-1) + 1)
        return [_read(a, env) for a in (*jaxpr.outvars, *kept)], tuple(counts.get(m, 0) for m in metered)

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
    """The operand as its product takes it is a reshape of memory: whole tiles, parts first."""
    (k_dims, at, shape) = op.eqn.params["dimension_numbers"][0][side], op.ins[side], op.eqn.invars[side].aval.shape
    assert at is not None
    products = _products(op)
    as_it_is = products is None or products.written_out
    return as_it_is and tuple(k_dims) == (0,) and shape[0] % (at.y[0] * at.x[0]) == 0


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


def _cut(
    array, dims: tuple[int, ...], at: Layout, nothing: float = 0.0
) -> tuple[jax.Array, dict[int, int], dict[int, int]]:
    """Each cut one of `dims` split into [parts, tile], `nothing` filling the last tile; with the new axis of every
    dimension, and the axis of the parts of those that were cut. A folded one is laid out piece by piece first."""
    for d in dims:
        if (f := at.fold(d)) > 1:
            array = _interleaved(array, d, f, at.y[d] * at.x[d], nothing)
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
    padded = jnp.pad(array, widths, constant_values=nothing) if any(w != (0, 0) for w in widths) else array
    return padded.reshape(shape), tile_axis, parts_axis


def _tile(at: Layout, d: int, n: int) -> int:
    """Elements of a dimension in one of its parts, zeros included."""
    parts, f = at.y[d] * at.x[d], at.fold(d)
    return -(-at.frame(d, n if f == 1 else -(-n // (f * parts)) * f * parts) // parts)


def _interleaved(array, d: int, pieces: int, parts: int, nothing: float) -> jax.Array:
    """A dimension in another order: part p of each of its `pieces`, one after the other, for every p."""
    before, n, after = array.shape[:d], array.shape[d], array.shape[d + 1 :]
    tile = -(-n // (pieces * parts))
    array = array.reshape(*before, pieces, n // pieces, *after)
    filling = [(0, 0)] * (d + 1) + [(0, tile * parts - n // pieces)] + [(0, 0)] * len(after)
    array = jnp.pad(array, filling, constant_values=nothing).reshape(*before, pieces, parts, tile, *after)
    return jnp.swapaxes(array, d, d + 1).reshape(*before, pieces * parts * tile, *after)


def _by_line(array, parts: list[tuple[int, int]]):
    """The leading axes, one for each (y, x) in `parts`, as two: the PEs along x, and those along y."""
    split = [n for y, x in parts for n in (y, x)]
    order = [*range(1, len(split), 2), *range(0, len(split), 2)]
    rest = array.shape[len(parts) :]
    array = array.reshape(*split, *rest).transpose(*order, *range(len(split), len(split) + len(rest)))
    return array.reshape(math.prod(x for _, x in parts), math.prod(y for y, _ in parts), *rest)


def _add_up(partial, lines: dict[str, AllReduce]):
    """Sum [PEs along x, PEs along y, ...] along x and then along y."""
    for axis in "xy":
        step = lines.get(axis)
        partial = reduce_in_order(partial, step.algorithm, step.shape) if step else partial[0]
    return partial


def _dot_in_order(op: PlacedOp, values: list, ready: tuple[int, Any] | None, zero):
    """dot_general with its contracted dimensions cut: the products of tiles, and the sum over them.
    `ready` is the side of an operand that was made ready before, and what it is then."""
    (k_lhs, _), _ = op.eqn.params["dimension_numbers"]
    at, out = op.ins[0], op.eqn.outvars[0].aval
    assert at is not None
    lines, parts, products = algorithms(op, at, tuple(k_lhs)), _parts(op), _products(op)
    if products:
        values = [apart(v, zero) if not _free(op, side) else v for side, v in enumerate(values)]
    lhs, rhs = (ready[1] if ready and ready[0] == side else _operand(op, side, values[side]) for side in (0, 1))
    if products:
        total = products.sum(lhs, rhs, zero)
        if len(lines) == 1:
            return total.reshape(out.shape)
        return _add_up(total.reshape(1, math.prod(y for y, _ in parts), *out.shape), {"y": lines["y"]})
    return _add_up(_dot_partials(op, lhs, rhs), lines)


def _dot_partials(op: PlacedOp, lhs, rhs) -> jax.Array:
    """The products of the tiles [PEs along x, PEs along y, ...]."""
    (k_lhs, _), (b_lhs, _) = op.eqn.params["dimension_numbers"]
    parts = _parts(op)
    outer, tile = len(parts) + len(b_lhs), len(k_lhs)
    batch, inner = list(range(outer)), list(range(outer, outer + tile))
    partial = jax.lax.dot_general(
        lhs,
        rhs,
        ((inner, inner), (batch, batch)),
        precision=op.eqn.params.get("precision"),
        preferred_element_type=op.eqn.params.get("preferred_element_type"),
    )
    return _by_line(partial, parts)


def _every_product(op: PlacedOp, values: list, zero) -> jax.Array:
    """The same of operands as they come, where products are multiplied one by one too."""
    products, out = _products(op), op.eqn.outvars[0].aval
    if products is None:
        return _dot_partials(op, *(_tiles(op, side, value) for side, value in enumerate(values)))
    lhs, rhs = (
        _by_line(_tiles(op, side, apart(value, zero).astype(out.dtype)), _parts(op))
        for side, value in enumerate(values)
    )
    pes = lhs.shape[:2]
    lhs = lhs.reshape(*pes, -1, products.tile, products.rows, 1)
    rhs = rhs.reshape(*pes, -1, products.tile, 1, products.columns)
    total = exactly(lhs[:, :, :, 0] * rhs[:, :, :, 0], zero)
    for k in range(1, products.tile):
        total = total + exactly(lhs[:, :, :, k] * rhs[:, :, :, k], zero)
    return total.reshape(*pes, *out.shape)


def _parts(op: PlacedOp) -> list[tuple[int, int]]:
    """(y, x) of each contracted dimension that is cut."""
    at = op.ins[0]
    assert at is not None
    return [(at.y[d], at.x[d]) for d in op.eqn.params["dimension_numbers"][0][0] if at.y[d] * at.x[d] > 1]


def _operand(op: PlacedOp, side: int, array) -> Any:
    """An operand as the product of tiles takes it."""
    tiles, products = _tiles(op, side, array), _products(op)
    if products is None:
        return tiles
    tiles = _by_line(tiles.astype(op.eqn.outvars[0].aval.dtype), _parts(op))
    tiles = jnp.swapaxes(tiles, 0, 1) if len(tiles) == 1 else tiles
    tiles = tiles.reshape(products.pes, products.batch, products.tile, -1)
    return products.right(tiles) if side else products.left(tiles)


def _products(op: PlacedOp) -> Products | None:
    """The sum of products along the first line of PEs that adds, where they are multiplied one by one."""
    (k_dims, _), (b_dims, _) = op.eqn.params["dimension_numbers"]
    at, out = op.ins[0], op.eqn.outvars[0].aval
    assert at is not None
    shapes, parts = [v.aval.shape for v in op.eqn.invars], _parts(op)
    tile = math.prod(_tile(at, d, shapes[0][d]) for d in k_dims)
    x, y = math.prod(x for _, x in parts), math.prod(y for y, _ in parts)
    step = next(iter(algorithms(op, at, tuple(k_dims)).values()))
    batch = math.prod(shapes[0][d] for d in b_dims)
    rows, columns = (
        math.prod(shape) // math.prod(shape[d] for d in (*k, *b))
        for shape, k, b in zip(shapes, *op.eqn.params["dimension_numbers"], strict=True)
    )
    if out.dtype not in EXACT or tile > (MOST if rows >= MOST and out.dtype.itemsize >= 4 else 1):
        return None
    across = y if x > 1 else 1
    return Products(step.algorithm, step.shape, x if x > 1 else y, across * batch, tile, rows, columns)


def _sum_in_order(op: PlacedOp, values: list, ready: None, zero):
    """reduce_sum over cut dimensions: each tile, then the sum over tiles."""
    at, axes = op.ins[0], tuple(op.eqn.params["axes"])
    assert at is not None
    return _add_up(_tile_sums(op, values, zero), algorithms(op, at, axes))


def _tile_sums(op: PlacedOp, values: list, zero) -> jax.Array:
    return _tile_by_tile(op, partial(jnp.sum, dtype=values[0].dtype), values[0], 0.0, zero)


def _tile_maxima(op: PlacedOp, values: list, zero) -> jax.Array:
    return _tile_by_tile(op, jnp.max, values[0], -jnp.inf, zero)


def _tile_by_tile(op: PlacedOp, fold: Callable, array, nothing: float, zero) -> jax.Array:
    """What every PE makes of its tile [PEs along x, PEs along y, ...]."""
    at, axes = op.ins[0], tuple(op.eqn.params["axes"])
    assert at is not None
    array, tile_axis, parts_axis = _cut(apart(array, zero), axes, at, nothing)
    cut_dims = sorted(parts_axis)
    array = jnp.moveaxis(array, [parts_axis[d] for d in cut_dims], range(len(cut_dims)))
    moved = [tile_axis[d] + sum(parts_axis[c] > tile_axis[d] for c in cut_dims) for d in axes]
    partial = fold(array, axis=tuple(moved))
    if partial.dtype in EXACT:
        partial = exactly(partial, zero)
    return _by_line(partial, [(at.y[d], at.x[d]) for d in cut_dims])


_IN_ORDER: dict[str, Callable] = {"dot_general": _dot_in_order, "reduce_sum": _sum_in_order}
PARTIALS: dict[str, Callable] = {"dot_general": _every_product, "reduce_sum": _tile_sums, "reduce_max": _tile_maxima}
