"""Gathers, updates, and ops that run along a dimension."""

from wsc.lowering.layout import Layout, all_reduce, cut, strides, wavelets, whole
from wsc.lowering.rules.inset import written
from wsc.lowering.rules.reduce import equations, innermost
from wsc.lowering.rules.registry import Lowered, Op, Operand, Where, rule, vector
from wsc.machine.steps import Multicast, Step


def _send(layout: Layout, shape, itemsize: int, axis: str, segment: int, where: Where) -> Multicast:
    """The PE that holds what was asked for sends its tile to the others of its segment."""
    words = wavelets(layout.size(shape), itemsize, where.wafer)
    return Multicast(segment, segment - 1, words, max(1, where.grid.pes // segment))


def _table(shape: tuple[int, ...], looked_up: set[int], where: Where) -> Layout:
    """How a table lies that nothing else decides: rows along `x`, features along `y`."""
    at = whole(len(shape))
    rows, features = ([d for d in range(len(shape)) if (d in looked_up) == up] for up in (True, False))
    for axis, dims in (("x", rows[:1]), ("y", features[-1:])):
        pes = getattr(where.grid, axis)
        at = at.with_axis(axis, [cut(n, pes) if d in dims else 1 for d, n in enumerate(shape)])
    return at


@rule("gather")
def gather_rule(op: Op, where: Where) -> Lowered:
    """Rows of a table, such as an embedding: rows along `x`, features along `y`; the PE with the row multicasts it."""
    table, indices, shape = op.ins[0], op.ins[1], op.out_shapes[0]
    numbers = op.params["dimension_numbers"]
    looked_up = set(numbers.start_index_map) | set(getattr(numbers, "operand_batching_dims", ()))
    looked_up |= {d for d, n in enumerate(op.params["slice_sizes"]) if n != table.shape[d]}
    whole_dims = [d for d in range(table.rank) if d not in looked_up]
    at = table.layout or _table(table.shape, looked_up, where)
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
    if where.frames is not None:
        return written(op, where)
    at = operand.layout or _state_layout(operand, update, where)
    wanted = at.uncut(d for d in range(operand.rank) if operand.shape[d] != update.shape[d])
    write = vector(wanted, update.shape, update.itemsize, where, flops=0)
    return Lowered((at, wanted, *(whole(0) for _ in op.ins[2:])), (at,), (write,))


@rule("scatter", "scatter-add", "scatter_add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def scatter_rule(op: Op, where: Where) -> Lowered:
    """Updates travel to the PEs that own the features they change, along the lines that the rows are cut over; each PE
    looks through all indices and applies the updates it owns. Counted as if one PE owned all of a line's."""
    operand, indices, updates = op.ins
    numbers = op.params["dimension_numbers"]
    gone = {*numbers.inserted_window_dims, *getattr(numbers, "operand_batching_dims", ())}
    windows = [d for d in range(operand.rank) if d not in gone]
    source = dict(zip(sorted(numbers.update_window_dims), windows, strict=True))
    partial = {d for u, d in source.items() if updates.shape[u] != operand.shape[d]}
    looked_up = {*numbers.scatter_dims_to_operand_dims, *gone, *partial}
    at = (
        operand.layout
        or op.hint
        or (
            _state_layout(operand, updates, where)
            if operand.kind == "state" and operand.rank == updates.rank
            else _table(operand.shape, looked_up, where)
        )
    )
    at = at.unfolded(looked_up)
    wanted = at.take(source[u] if u in source and source[u] not in looked_up else None for u in range(updates.rank))
    applied = 0 if op.name == "scatter" else 1
    body = op.params.get("update_jaxpr")
    applied = equations(op.params) if op.name == "scatter" and body is not None and body.eqns else applied
    steps = [vector(wanted, updates.shape, updates.itemsize, where, calls=max(1, applied), flops=applied)]
    if indices.size > 1:
        steps.insert(0, vector(whole(indices.rank), indices.shape, indices.itemsize, where, calls=2, flops=0))
    return Lowered((at, whole(indices.rank), wanted), (at,), tuple(steps))


@rule("sort")
def sort_rule(op: Op, where: Where) -> Lowered:
    """The dimension is put together on a PE, whose lines are shared out, and sorted there: lg n passes of a comparison
    a key and a move an operand, one element at a time."""
    first, dim = op.ins[0], op.params["dimension"]
    laid = [o.layout for o in op.ins if o.layout is not None]
    at = put_together(max(laid, key=lambda a: a.parts.pes, default=whole(first.rank)), first.shape, [dim], where)
    passes, keys = max(1, max(1, first.shape[dim]) - 1).bit_length(), op.params.get("num_keys", 1)
    words = max(o.itemsize for o in op.ins)
    calls = passes * (keys + len(op.ins))
    step = vector(at, first.shape, words, where, "sum", calls=calls, flops=passes * keys)
    return Lowered((at,) * len(op.ins), (at,) * len(op.out_shapes), (step,))


@rule("top_k", "approx_top_k")
def top_k_rule(op: Op, where: Where) -> Lowered:
    """Each PE keeps the k best of its tile, lg k comparisons an element; values and indices of the best are then merged
    along the lines of PEs, where the dimension is cut, and every PE gets them."""
    operand, shape = op.ins[0], op.out_shapes[0]
    dim = op.params.get("reduction_dimension", op.params.get("axis", operand.rank - 1)) % operand.rank
    at = innermost(operand.laid().unfolded([dim]), (dim,))
    out_at, k = at.uncut([dim]), op.params["k"]
    calls = 1 + max(1, k - 1).bit_length()
    steps: list[Step] = [vector(at, operand.shape, operand.itemsize, where, "sum", calls=calls, flops=calls)]
    for axis in "xy":
        size = 2 * out_at.size(shape)  # a value and an index
        steps += all_reduce(at, [dim], axis, size, operand.itemsize, where.grid, where.wafer, where.strategy)
    return Lowered((at,), (out_at,) * len(op.out_shapes), tuple(steps))


def put_together(at: Layout, shape: tuple[int, ...], dims, where: Where) -> Layout:
    """The layout with `dims` whole on a PE; along an axis that this frees, the largest other dimension is cut."""
    freed = [a for a in "yx" if any(at.along(a)[d] > 1 for d in dims)]
    at = at.unfolded().uncut(dims)
    for axis in freed:
        left = at.local(shape)
        free = [d for d in range(len(shape)) if d not in dims and at.y[d] * at.x[d] == 1]
        d = max(free, key=lambda d: left[d], default=None)
        if d is not None and left[d] > 1 and max(at.along(axis)) == 1:
            at = at.with_axis(
                axis, [cut(left[d], getattr(where.grid, axis)) if e == d else 1 for e in range(len(shape))]
            )
    return at


@rule("iota")
def iota_rule(op: Op, where: Where) -> Lowered:
    at = whole(len(op.out_shapes[0]))
    return Lowered((), (at,), (vector(at, op.out_shapes[0], op.out_itemsizes[0], where, flops=0),))
