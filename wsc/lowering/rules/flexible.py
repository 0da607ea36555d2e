"""Values that may lie in any way: weights seen through renames, constants, and the control plane (masks, indices,
positions). They lie as their user wants them, so layouts are pulled from the results back to the operands."""

import math

from wsc.lowering.layout import Layout, nest, whole
from wsc.lowering.rules.elementwise import DIVIDE, TRANSCENDENTAL, VECTOR, beside, work_of, worked
from wsc.lowering.rules.random import random_work
from wsc.lowering.rules.registry import Op, Where, vector
from wsc.lowering.rules.shape import IDENTITIES, groups
from wsc.machine.steps import Compute

_ELEMENTWISE = {*VECTOR, *DIVIDE, *TRANSCENDENTAL, "integer_pow"}
VIEWS = {
    "reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "slice", "bitcast_convert_type",
    "random_clone", "random_unwrap", "random_wrap", *IDENTITIES,
}  # fmt: skip
# What a weight may go through and still be a stored weight; the arithmetic is done where it is used.
THROUGH = VIEWS | _ELEMENTWISE


def pull(
    name: str, params: dict, in_shapes: list[tuple[int, ...]], out_shape: tuple[int, ...], at: Layout
) -> list[Layout]:
    """The layouts of the operands of an op whose result is wanted as `at`."""
    first = in_shapes[0] if in_shapes else ()
    rest = [whole(len(s)) for s in in_shapes[1:]]
    if name in _ELEMENTWISE:
        return [beside(at, out_shape, s) for s in in_shapes]
    if name == "transpose":
        order = params["permutation"]
        return [at.take(order.index(d) for d in range(len(order))), *rest]
    if name == "squeeze":
        kept = iter(range(len(out_shape)))
        return [at.take(None if d in params["dimensions"] else next(kept) for d in range(len(first))), *rest]
    if name == "expand_dims":
        return [at.take(d for d in range(len(out_shape)) if d not in params["dimensions"]), *rest]
    if name == "broadcast_in_dim":
        dims = params["broadcast_dimensions"]
        return [at.take(d if first[i] == out_shape[d] else None for i, d in enumerate(dims)), *rest]
    if name == "reshape":
        return [_pull_reshape(first, out_shape, at), *rest]
    if name == "bitcast_convert_type" and len(first) < len(out_shape):  # the words of an element are the last dimension
        return [at.take(range(len(first)))]
    if name == "bitcast_convert_type" and len(first) > len(out_shape):
        return [at.take([*range(len(out_shape)), None])]
    if len(first) == len(out_shape):  # slices, pads, scans: dimensions of unchanged size keep their cut
        return [at.uncut(d for d in range(len(first)) if first[d] != out_shape[d]), *rest]
    return [whole(len(s)) for s in in_shapes]


def made(op: Op, at: Layout, shape: tuple[int, ...], itemsize: int, where: Where) -> tuple[Compute, ...]:
    """What it takes to make a result of `shape`, elements of `itemsize` bytes, laid as `at`, where its operands are
    there: nothing for a view, the operations of its function for an element-wise op, one instruction for others."""
    if op.name in VIEWS:
        return ()
    done = random_work(op) or (work_of(op) if op.name in _ELEMENTWISE else None)
    if done is not None:
        return worked(done, at, shape, min(4, itemsize) if op.complexes else itemsize, where)
    return (vector(at, shape, itemsize, where, flops=0),)


def _pull_reshape(shape, out_shape, at: Layout) -> Layout:
    parts = {"y": [1] * len(shape), "x": [1] * len(shape)}
    if 0 in shape:
        return whole(len(shape))
    for old, new in groups(shape, out_shape):
        for axis in "yx":
            total = math.prod(at.along(axis)[d] for d in new)
            if total > 1:  # no smaller a tile than the one wanted, rounded up as it is
                tile = math.prod(at.local(out_shape)[d] for d in new)
                total = min(total, -(-math.prod(out_shape[d] for d in new) // tile))
            left = tuple(-(-shape[d] // parts["y"][d]) for d in old)  # what the other axis has not cut
            for d, p in zip(old, nest(left, total), strict=True):
                parts[axis][d] = p
    return Layout(tuple(parts["y"]), tuple(parts["x"]))
