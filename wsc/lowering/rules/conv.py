"""Convolutions: a product over window and input channels on every PE, the kernel staying where it is.

Each axis of the region cuts one thing: batch, input channels, output channels or one dimension of space; the cheapest
of a few such pairs whose tiles fit a PE is taken. Cut input channels end in an all-reduce, as in a matrix product; cut
space needs the rows at the edges of the neighbours. A window larger than the result, as in the gradient of a kernel, is
cut in place of the result. Sums run in the order in which XLA convolves; the fabric's order is not imitated.
"""

import math
from dataclasses import dataclass

from wsc.lowering.layout import Layout, all_reduce, cut, relayout, whole
from wsc.lowering.rules.halo import Window, exchange_halo
from wsc.lowering.rules.registry import Lowered, Op, Where, rule
from wsc.machine import kernels
from wsc.machine.cost import cost
from wsc.machine.steps import Step


@dataclass(frozen=True)
class Conv:
    """The numbers of a convolution: dimensions of lhs, rhs and result are (batch, channels, *space), (output channels,
    input channels of a group, *window), (batch, channels, *space), each a position in the array's own order."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    windows: tuple[Window, ...]
    groups: int
    batch_groups: int

    @property
    def turned(self) -> bool:
        """The window is larger than the result in space."""
        return math.prod(w.size for w in self.windows) > math.prod(w.out for w in self.windows)


def conv_of(op: Op) -> Conv:
    """The numbers of a conv_general_dilated."""
    params, (lhs, rhs) = op.params, op.ins[:2]
    numbers = params["dimension_numbers"]
    windows = tuple(
        Window(lhs.shape[a], op.out_shapes[0][o], rhs.shape[b], *rest)
        for a, b, o, *rest in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], params["window_strides"],
            (low for low, _ in params["padding"]), params["lhs_dilation"], params["rhs_dilation"], strict=True,
        )
    )  # fmt: skip
    return Conv(
        tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec), windows,
        params["feature_group_count"], params["batch_group_count"],
    )  # fmt: skip


def conv_flops(op: Op) -> int:
    """Multiplications and additions that fall on elements of the operand, not on padding or holes, as XLA counts."""
    conv, out, rhs = conv_of(op), op.out_shapes[0], op.ins[1].shape
    return 2 * out[conv.out[0]] * rhs[conv.rhs[0]] * rhs[conv.rhs[1]] * math.prod(w.pairs() for w in conv.windows)


@rule("conv_general_dilated")
def conv_rule(op: Op, where: Where) -> Lowered:
    """A product over window and input channels, the kernel stationary; the cheapest way to cut that fits a PE."""
    conv = conv_of(op)
    room = where.wafer.sram_bytes - where.wafer.code_bytes
    best = None
    for roles in _ways(conv):
        found = _lower(op, conv, dict(zip("yx", roles, strict=True)), where)
        arrays = zip((*op.ins[:2],), found.ins, strict=True)
        nbytes = sum(at.size(o.shape) * o.itemsize for o, at in arrays if at is not None) + found.scratch
        nbytes += found.outs[0].size(op.out_shapes[0]) * op.out_itemsizes[0]
        steps = [*found.steps, *(s for o, at in zip(op.ins, found.ins, strict=True) for s in _brought(o, at, where))]
        rank = (max(0, nbytes - room), sum(cost(s, where.wafer).cycles for s in steps))
        if best is None or rank < best[0]:
            best = rank, found
    assert best is not None
    return best[1]


def _brought(operand, at: Layout | None, where: Where) -> tuple[Step, ...]:
    if operand.layout is None or at is None:
        return ()
    return relayout(operand.shape, operand.itemsize, operand.layout, at, where.grid, where.wafer)


def _ways(conv: Conv) -> list[tuple[str, str]]:
    """What (y, x) cut: "n" batch, "i" input channels, "o" output channels, "0", "1", .. dimensions of space."""
    space = [str(d) for d in range(len(conv.windows))]
    names = (
        {"n", "o", *space} if conv.groups > 1 else {"i", *space} if conv.batch_groups > 1 else {"n", "i", "o", *space}
    )
    pairs = [("i", "o"), ("o", "i"), ("0", "o"), ("o", "0"), ("0", "1"), ("1", "0"), ("n", "0"), ("n", "o"), ("0", "i")]
    return [pair for pair in pairs if names.issuperset(pair)] or [("", "")]


def _lower(op: Op, conv: Conv, roles: dict[str, str], where: Where) -> Lowered:
    lhs, rhs, out_shape = op.ins[0], op.ins[1], op.out_shapes[0]
    ats = {"lhs": whole(lhs.rank), "rhs": whole(rhs.rank), "out": whole(len(out_shape))}

    def set_cut(array: str, dim: int, axis: str, parts: int) -> None:
        row = list(ats[array].along(axis))
        row[dim] = parts
        ats[array] = ats[array].with_axis(axis, row)

    summed: dict[str, tuple[str, int]] = {}  # axis -> (array, dimension) whose parts are partial sums
    turned = conv.turned
    for axis, role in roles.items():
        pes = getattr(where.grid, axis)
        if role == "n":
            parts = cut(out_shape[conv.out[0]], pes)
            set_cut("lhs", conv.lhs[0], axis, parts)
            set_cut("out", conv.out[0], axis, parts)
        elif role == "i":
            parts = cut(rhs.shape[conv.rhs[1]], pes)
            set_cut("lhs", conv.lhs[1], axis, parts)
            set_cut("rhs", conv.rhs[1], axis, parts)
            summed[axis] = "rhs", conv.rhs[1]
        elif role == "o" and conv.groups == 1:
            parts = cut(rhs.shape[conv.rhs[0]], pes)
            set_cut("rhs", conv.rhs[0], axis, parts)
            set_cut("out", conv.out[1], axis, parts)
        elif role == "o":  # whole groups, the same number on every PE
            parts = max(p for p in range(1, min(conv.groups, pes) + 1) if conv.groups % p == 0)
            for array, dim in (("lhs", conv.lhs[1]), ("rhs", conv.rhs[0]), ("out", conv.out[1])):
                set_cut(array, dim, axis, parts)
        elif role:
            d = 2 + int(role)
            array, dim = ("rhs", conv.rhs[d]) if turned else ("out", conv.out[d])
            parts = cut((rhs.shape if turned else out_shape)[dim], pes)
            set_cut(array, dim, axis, parts)
            set_cut("lhs", conv.lhs[d], axis, cut(lhs.shape[conv.lhs[d]], parts))
            if turned:
                summed[axis] = "rhs", dim

    local, steps = list(ats["lhs"].local(lhs.shape)), []
    for axis, role in roles.items():
        if role.isdigit():
            d = 2 + int(role)
            window = conv.windows[int(role)]
            ends = ("rhs", conv.rhs[d]) if turned else ("out", conv.out[d])
            beside = math.prod(n for e, n in enumerate(local) if e != conv.lhs[d])
            found, most = exchange_halo(
                window.transposed() if turned else window, conv.lhs[d], ats["lhs"], ends[1], ats[ends[0]], beside,
                axis, lhs.itemsize, where,
            )  # fmt: skip
            steps += found
            local[conv.lhs[d]] += most
    scratch = (math.prod(local) - ats["lhs"].size(lhs.shape)) * lhs.itemsize
    steps.append(_product(op, conv, ats, where))
    for axis, (array, dim) in summed.items():
        size, itemsize = ats["out"].size(out_shape), op.out_itemsizes[0]
        steps += all_reduce(ats[array], [dim], axis, size, itemsize, where.grid, where.wafer, where.strategy)
    return Lowered((ats["lhs"], ats["rhs"]), (ats["out"],), tuple(steps), scratch)


def _product(op: Op, conv: Conv, ats: dict[str, Layout], where: Where) -> Step:
    """What one PE multiplies: results in space by window and input channels by output channels, a group at a time;
    holes of a dilated operand are left out."""
    out, rhs = ats["out"].local(op.out_shapes[0]), ats["rhs"].local(op.ins[1].shape)
    group_parts = ats["out"].y[conv.out[1]] * ats["out"].x[conv.out[1]] if conv.groups > 1 else 1
    groups = conv.groups // group_parts * conv.batch_groups
    taps = math.prod(-(-rhs[d] // w.base_dilation) for d, w in zip(conv.rhs[2:], conv.windows, strict=True))
    m = math.prod(out[d] for d in (conv.out[0], *conv.out[2:]))
    used = [ats[a].parts for a in ("rhs", "out")]
    pes = min(where.grid.pes, max(p.y for p in used) * max(p.x for p in used))
    itemsize = max(op.ins[0].itemsize, op.ins[1].itemsize)
    n = max(1, rhs[conv.rhs[0]] // groups)
    return kernels.tile_product(m, rhs[conv.rhs[1]] * taps, n, itemsize, where.wafer, pes, conv_flops(op), groups)
