"""Gathers, updates, and ops that run along a dimension."""

from wsc.lowering.layout import Layout, cut, strides, wavelets, whole
from wsc.lowering.rules.registry import Lowered, Op, Operand, Where, rule, vector
from wsc.machine.steps import Multicast, Step


def _send(layout: Layout, shape, itemsize: int, axis: str, segment: int, where: Where) -> Multicast:
    """The PE that holds what was asked for sends its tile to the others of its segment."""
    words = wavelets(layout.size(shape), itemsize, where.wafer)
    return Multicast(segment, segment - 1, words, max(1, where.grid.pes // segment))


@rule("gather")
def gather_rule(op: Op, where: Where) -> Lowered:
    """Rows of a table, such as an embedding: rows along `x`, features along `y`; the PE with the row multicasts it."""
    table, indices, shape = op.ins[0], op.ins[1], op.out_shapes[0]
    numbers = op.params["dimension_numbers"]
    looked_up = set(numbers.start_index_map) | set(getattr(numbers, "operand_batching_dims", ()))
    whole_dims = [d for d in range(table.rank) if d not in looked_up]
    at = table.layout
    if at is None:
        rows = [d for d in range(table.rank) if d in looked_up]
        at = whole(table.rank)
        for axis, dims in (("x", rows), ("y", whole_dims)):
            parts, pes = [1] * table.rank, getattr(where.grid, axis)
            for d in dims[:1] if axis == "x" else dims[-1:]:
                parts[d] = cut(table.shape[d], pes)
            at = at.with_axis(axis, parts)
    gone = set(numbers.collapsed_slice_dims) | set(getattr(numbers, "operand_batching_dims", ()))
    windows = iter(d for d in range(table.rank) if d not in gone)
    source = [next(windows) if d in numbers.offset_dims else None for d in range(len(shape))]
    source = [d if d is not None and d not in looked_up else None for d in source]
    out_at = at.take(source)
    steps: list[Step] = [vector(out_at, shape, table.itemsize, where, flops=0)]
    for axis in "xy":
        parts, pes = at.along(axis), getattr(where.grid, axis)
        if any(parts[d] > 1 for d in looked_up):
            segment = pes if all(parts[d] == 1 for d in whole_dims) else strides(out_at.along(axis), pes)[-1]
            steps.append(_send(out_at, shape, table.itemsize, axis, segment, where))
    return Lowered((at, whole(indices.rank)), (out_at,), tuple(steps))


@rule("dynamic_slice")
def dynamic_slice_rule(op: Op, where: Where) -> Lowered:
    operand, shape = op.ins[0], op.out_shapes[0]
    at = operand.laid()
    changed = [d for d in range(operand.rank) if shape[d] != operand.shape[d]]
    out_at = at.uncut(changed)
    steps: list[Step] = [vector(out_at, shape, operand.itemsize, where, flops=0)]
    for axis in "xy":
        if any(at.along(axis)[d] > 1 for d in changed):
            segment = strides(out_at.along(axis), getattr(where.grid, axis))[-1]
            steps.append(_send(out_at, shape, operand.itemsize, axis, segment, where))
    return Lowered((at, *(whole(0) for _ in op.ins[1:])), (out_at,), tuple(steps))


def _state_layout(state: Operand, update: Operand, where: Where) -> Layout:
    """State that an update is written into lies as the update does; the dimension that grows takes the free axis."""
    at = update.laid()
    growing = max(
        (d for d in range(state.rank) if state.shape[d] != update.shape[d]), key=lambda d: state.shape[d], default=None
    )
    if growing is None:
        return at
    at = at.uncut([growing])
    axis = next((a for a in "yx" if max(at.along(a)) == 1), None)
    if axis is None:
        return at
    parts = [1] * state.rank
    parts[growing] = cut(state.shape[growing], getattr(where.grid, axis))
    return at.with_axis(axis, parts)


@rule("dynamic_update_slice")
def dynamic_update_slice_rule(op: Op, where: Where) -> Lowered:
    """The PEs that own the rows write them; the update lies along the other dimensions as the operand does."""
    operand, update = op.ins[0], op.ins[1]
    at = operand.layout or _state_layout(operand, update, where)
    wanted = at.uncut(d for d in range(operand.rank) if operand.shape[d] != update.shape[d])
    write = vector(wanted, update.shape, update.itemsize, where, flops=0)
    return Lowered((at, wanted, *(whole(0) for _ in op.ins[2:])), (at,), (write,))


@rule("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter-min", "scatter-max")
def scatter_rule(op: Op, where: Where) -> Lowered:
    """Every PE sees all updates and applies those it owns."""
    operand, indices, updates = op.ins
    at = operand.layout or op.hint or operand.laid()
    write = vector(whole(updates.rank), updates.shape, updates.itemsize, where)
    return Lowered((at, whole(indices.rank), whole(updates.rank)), (at,), (write,))


_ALONG = {"cumsum": "axis", "cumprod": "axis", "cummax": "axis", "cummin": "axis", "cumlogsumexp": "axis"}


@rule(*_ALONG)
def scan_rule(op: Op, where: Where) -> Lowered:
    """Scans along a dimension put it together first, then run on each PE."""
    at = op.ins[0].laid().uncut([op.params["axis"]])
    return Lowered((at,), (at,), (vector(at, op.out_shapes[0], op.out_itemsizes[0], where),))


@rule("rev")
def rev_rule(op: Op, where: Where) -> Lowered:
    at = op.ins[0].laid().uncut(op.params["dimensions"])
    return Lowered((at,), (at,), (vector(at, op.out_shapes[0], op.out_itemsizes[0], where, flops=0),))


@rule("pad")
def pad_rule(op: Op, where: Where) -> Lowered:
    operand, shape = op.ins[0], op.out_shapes[0]
    at = operand.laid().uncut(d for d in range(operand.rank) if shape[d] != operand.shape[d])
    return Lowered((at, whole(0)), (at,), (vector(at, shape, operand.itemsize, where, flops=0),))


@rule("sort", "top_k")
def sort_rule(op: Op, where: Where) -> Lowered:
    """The dimension is put together on each PE and sorted there, n lg n compares."""
    rank = op.ins[0].rank
    dim = op.params.get("dimension", rank - 1)
    at = op.ins[0].laid().uncut([dim])
    n = op.ins[0].shape[dim]
    compares = max(1, n - 1).bit_length()
    step = vector(at, op.ins[0].shape, op.ins[0].itemsize, where, calls=compares * len(op.ins), flops=compares)
    return Lowered((at,) * len(op.ins), (at,) * len(op.out_shapes), (step,))


@rule("iota")
def iota_rule(op: Op, where: Where) -> Lowered:
    at = whole(len(op.out_shapes[0]))
    return Lowered((), (at,), (vector(at, op.out_shapes[0], op.out_itemsizes[0], where, flops=0),))
