"""Execute: a placed program as one function of flat arrays, for `jax.jit`.

With order="xla" every equation runs as JAX runs it. With order="fabric" sums whose operand is cut over PEs are taken
as the wafer takes them: each PE sums its own tile, then the partial sums are added along x and along y in the order
of the reduce that the step names.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from wsc.lowering import jaxapi
from wsc.lowering.jaxapi import Literal
from wsc.lowering.layout import Layout
from wsc.machine.steps import AllReduce
from wsc.program import PlacedOp, Program
from wsc.runtime.order import reduce_in_order

ORDERS = ("fabric", "xla")


def as_function(program: Program, order: str) -> Callable[..., list]:
    """`f(*flat inputs) -> flat outputs`, computing what the placed program computes."""
    if order == "xla":
        return jaxapi.as_function(program.jaxpr, program.consts)
    placed = {id(op.eqn): op for _, op in program.ops() if op.name in _IN_ORDER and _participants(op)}
    jaxpr = program.jaxpr

    def run(*flat):
        env = dict(zip(jaxpr.constvars, program.consts, strict=True))
        env.update(zip(jaxpr.invars, flat, strict=True))
        for eqn in jaxpr.eqns:
            values = [a.val if isinstance(a, Literal) else env[a] for a in eqn.invars]
            op = placed.get(id(eqn))
            results = jaxapi.bind(eqn, values) if op is None else [_IN_ORDER[op.name](op, values)]
            env.update(zip(eqn.outvars, results, strict=True))
        return [a.val if isinstance(a, Literal) else env[a] for a in jaxpr.outvars]

    return run


def algorithms(op: PlacedOp, at: Layout, dims: tuple[int, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    """(axis, reduce, parts of `dims` along it) of each line of PEs that adds its partial sums: x first, then y."""
    lines = [(axis, tuple(at.along(axis)[d] for d in dims)) for axis in "xy"]
    lines = [(axis, parts) for axis, parts in lines if math.prod(parts) > 1]
    reduces = [s for s in op.steps if isinstance(s, AllReduce)]
    return [(axis, step.algorithm, parts) for (axis, parts), step in zip(lines, reduces, strict=True)]


def _participants(op: PlacedOp) -> bool:
    return any(isinstance(s, AllReduce) for s in op.steps)


def _cut(array, dims: tuple[int, ...], at: Layout) -> tuple[jax.Array, dict[int, int], dict[int, int]]:
    """Each cut one of `dims` split into [parts, tile], zeros filling the last tile; with the new axis of every
    dimension, and the axis of the parts of those that were cut."""
    widths, shape, tile_axis, parts_axis = [(0, 0)] * array.ndim, [], {}, {}
    for d, n in enumerate(array.shape):
        parts = at.y[d] * at.x[d] if d in dims else 1
        tile = -(-n // parts)
        if parts > 1:
            widths[d] = (0, tile * parts - n)
            parts_axis[d] = len(shape)
            shape.append(parts)
        tile_axis[d] = len(shape)
        shape.append(tile)
    padded = jnp.pad(array, widths) if any(w != (0, 0) for w in widths) else array
    return padded.reshape(shape), tile_axis, parts_axis


def _add_up(partial, lines, parts: list[tuple[int, int]]):
    """Sum the leading axes of `partial`, one for each (y, x) in `parts`, along x and then along y."""
    split = [n for y, x in parts for n in (y, x)]
    rest = partial.shape[len(parts) :]
    partial = partial.reshape(*split, *rest)
    count = len(parts)
    order = [2 * i + 1 for i in range(count)] + [2 * i for i in range(count)]
    partial = partial.transpose(*order, *range(2 * count, partial.ndim))
    along_x, along_y = math.prod(x for _, x in parts), math.prod(y for y, _ in parts)
    partial = partial.reshape(along_x, along_y, *rest)
    names = {axis: algorithm for axis, algorithm, _ in lines}
    return reduce_in_order(reduce_in_order(partial, names.get("x", "chain")), names.get("y", "chain"))


def _dot_in_order(op: PlacedOp, values: list):
    """dot_general with its contracted dimensions cut: one batched product of tiles, then the sum over them."""
    (k_lhs, k_rhs), (b_lhs, b_rhs) = op.eqn.params["dimension_numbers"]
    at_lhs, at_rhs = op.ins
    assert at_lhs is not None and at_rhs is not None
    lhs, tile_lhs, parts_lhs = _cut(values[0], tuple(k_lhs), at_lhs)
    rhs, tile_rhs, parts_rhs = _cut(values[1], tuple(k_rhs), at_rhs)
    cut_pairs = [(a, b) for a, b in zip(k_lhs, k_rhs, strict=True) if a in parts_lhs]
    contract = [tile_lhs[d] for d in k_lhs], [tile_rhs[d] for d in k_rhs]
    batch_lhs = [parts_lhs[a] for a, _ in cut_pairs] + [tile_lhs[d] for d in b_lhs]
    batch_rhs = [parts_rhs[b] for _, b in cut_pairs] + [tile_rhs[d] for d in b_rhs]
    partial = jax.lax.dot_general(
        lhs,
        rhs,
        (contract, (batch_lhs, batch_rhs)),
        precision=op.eqn.params.get("precision"),
        preferred_element_type=op.eqn.params.get("preferred_element_type"),
    )
    parts = [(at_lhs.y[a], at_lhs.x[a]) for a, _ in cut_pairs]
    return _add_up(partial, algorithms(op, at_lhs, tuple(k_lhs)), parts)


def _sum_in_order(op: PlacedOp, values: list):
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
