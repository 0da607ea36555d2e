"""Arrays put into larger ones, of programs whose arrays lie in frames: every element goes where it will lie."""

from wsc.layout import Layout
from wsc.lowering.frames import around, cut_out, without_margins
from wsc.lowering.rules.registry import Lowered, Op, Operand, Where, vector
from wsc.machine.steps import Compute


def padded(op: Op, where: Where) -> Lowered:
    """What comes from neighbours lands in its place, else it is copied there; the PEs at the ends write the rest."""
    operand, shape, config = op.ins[0], op.out_shapes[0], op.params["padding_config"]
    rank = operand.rank
    between = any(i for _, _, i in config)
    at = operand.laid().uncut(d for d in range(rank) if config[d][2])
    low = tuple(int(lo) for lo, _, _ in config)
    out_at = around(at, operand.shape, low, shape)
    if between or any(lo < 0 or hi < 0 for lo, hi, _ in config):
        at = without_margins(at, operand.shape).uncut(d for d in range(rank) if shape[d] != operand.shape[d])
        return Lowered((at, Layout((), ())), (at,), (vector(at, shape, operand.itemsize, where, flops=0),))
    want = cut_out(out_at, shape, low, operand.shape)
    return Lowered((want, Layout((), ())), (out_at,), tuple(_copies([operand], [want], where)))


def joined(op: Op, where: Where) -> Lowered:
    """The pieces of a concatenation in the frame of the largest."""
    dim, shape = op.params["dimension"], op.out_shapes[0]
    largest = max(range(len(op.ins)), key=lambda i: (op.ins[i].layout is not None, op.ins[i].size))
    begins = [sum(o.shape[dim] for o in op.ins[:i]) for i in range(len(op.ins))]
    starts = [tuple(b if d == dim else 0 for d in range(len(shape))) for b in begins]
    big = op.ins[largest]
    out_at = around(big.laid(), big.shape, starts[largest], shape)
    wanted = [cut_out(out_at, shape, s, o.shape) for o, s in zip(op.ins, starts, strict=True)]
    return Lowered(tuple(wanted), (out_at,), tuple(_copies(op.ins, wanted, where)))


def written(op: Op, where: Where) -> Lowered:
    """An update at a place that is known comes to it; one at another place is seen by all PEs along what it fills."""
    operand, update = op.ins[0], op.ins[1]
    at, starts = operand.laid(), [o.value for o in op.ins[2:]]
    if any(s is None for s in starts):
        wanted = without_margins(at, operand.shape).uncut(
            d for d in range(operand.rank) if operand.shape[d] != update.shape[d]
        )
    else:
        room = [n - k for n, k in zip(operand.shape, update.shape, strict=True)]
        begins = tuple(min(max(0, int(s)), r) for s, r in zip(starts, room, strict=True))
        wanted = cut_out(at, operand.shape, begins, update.shape)
    write = vector(wanted, update.shape, update.itemsize, where, flops=0)
    return Lowered((at, wanted, *(Layout((), ()) for _ in starts)), (at,), (write,))


def _copies(operands, wanted, where: Where) -> list[Compute]:
    """Pieces that lie in their places already, in an array of their own, are copied into the new one."""
    return [
        vector(want, o.shape, o.itemsize, where, flops=0)
        for o, want in zip(operands, wanted, strict=True)
        if isinstance(o, Operand) and (o.layout is None or o.layout == want)
    ]
