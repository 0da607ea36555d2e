"""Convolutions and windows: edges that travel, work that is charged, counted by hand and by XLA."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal, run_everywhere, small
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from wsc.lowering.layout import Grid, Layout, lay
from wsc.lowering.rules import RULES, Op, Operand, Where
from wsc.lowering.rules.conv import conv_flops
from wsc.lowering.rules.halo import Window, exchange_halo, windowed
from wsc.machine.steps import AllReduce, Compute, Multicast, Shift
from wsc.machine.wafer import WSE3

WHERE = Where(Grid(6, 5), WSE3)


def of(kind, steps):
    return [s for s in steps if isinstance(s, kind)]


def traced_op(fn, *args, kinds=("activation", "weight"), layouts=(None, None)):
    """The last windowed equation of a function, as a rule sees it."""
    eqn = next(e for e in reversed(jax.jit(fn).trace(*args).jaxpr.eqns) if "window_strides" in e.params)
    ins = tuple(
        Operand(a.aval.shape, a.aval.dtype.itemsize, kind, at) for a, kind, at in zip(eqn.invars, kinds, layouts)
    )
    return Op(eqn.primitive.name, eqn.params, ins, tuple(v.aval.shape for v in eqn.outvars), (4,) * len(eqn.outvars))


def pool(x, size=3, stride=1, padding="SAME"):
    return lax.reduce_window(x, 0.0, lax.add, (1, size), (1, stride), padding)


def test_edges_of_a_pooled_line_by_hand():
    """24 elements in 6 tiles of 4, windows of 3 centred: every PE needs one element of each neighbour."""
    op = traced_op(pool, normal(2, 24), kinds=["activation"], layouts=[lay((2, 24), "y", [1], 6)])
    found = RULES[op.name](op, WHERE)
    assert found.ins == found.outs == (Layout((1, 6), (1, 1)),)
    (edge,), (add,) = of(Shift, found.steps), of(Compute, found.steps)
    assert (edge.distance, edge.wavelets, edge.largest) == (1, 2, 2)  # one element of two rows, each way
    assert edge.total_wavelet_hops == 2 * 5 * 2 and edge.instances == 5  # 5 borders, both ways, 2 rows; 5 columns
    assert (add.calls, add.length, add.flops) == (2, 8, 2 * 48)  # two additions to each of 2 x 4 results a PE
    assert found.scratch == 2 * 2 * 4  # two elements of two rows beside the tile, 4 B each


def test_windows_that_do_not_overlap_tiles_need_nothing():
    op = traced_op(
        lambda x: pool(x, 4, 4, "VALID"), normal(2, 24), kinds=["activation"], layouts=[lay((2, 24), "y", [1], 6)]
    )
    found = RULES[op.name](op, WHERE)
    assert not of(Shift, found.steps) and found.outs[0].y == (1, 6)


def test_a_windowed_dimension_with_others_nested_inside_is_put_together():
    at = Layout((3, 2), (1, 1))
    assert windowed(at, (Window(6, 6, 3, 1, 1), Window(4, 4, 1)))[0] == Layout((1, 2), (1, 1))
    assert windowed(at, (Window(6, 6, 1), Window(4, 4, 3, 1, 1)))[0] == at


@settings(max_examples=60, deadline=None)
@example(9, 1, 2, 1, 2, 1, 3)  # windows that all fall into holes
@given(
    st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 6),
)  # fmt: skip
def test_edges_against_brute_force(n, size, stride, low, base, dilation, parts):
    """Every element that a window touches and another PE has travels from that PE; nothing else does."""
    padded, span = (n - 1) * base + 1 + 2 * low, (size - 1) * dilation + 1
    if padded < span:
        return
    out = (padded - span) // stride + 1
    window = Window(n, out, size, stride, low, base, dilation)
    touched = [
        (o, (o * stride - low + t * dilation) // base)
        for o, t in itertools.product(range(out), range(size))
        if (o * stride - low + t * dilation) % base == 0 and 0 <= (o * stride - low + t * dilation) // base < n
    ]
    assert window.pairs() == len(touched)
    at, out_at = windowed(Layout((parts,), (1,)), (window,))
    steps, most = exchange_halo(window, 0, at, 0, out_at, 1, "y", 4, Where(Grid(parts, 1), WSE3))
    tile, out_tile = -(-n // at.y[0]), -(-out // out_at.y[0])
    spacing, out_spacing = parts // at.y[0], parts // out_at.y[0]
    moved = {(i, o // out_tile) for o, i in touched if i // tile * spacing != o // out_tile * out_spacing}
    hops = sum(abs(i // tile * spacing - p * out_spacing) for i, p in moved)
    distance = max((abs(i // tile * spacing - p * out_spacing) for i, p in moved), default=0)
    assert sum(s.total_wavelet_hops for s in of(Shift, steps)) == hops
    assert max((s.distance for s in of(Shift, steps)), default=0) == distance
    counts = np.bincount([p for _, p in moved], minlength=1) if moved and at.y[0] > 1 else np.zeros(1)
    assert most == counts.max()


def test_copies_of_a_part_get_the_edges_too():
    window = Window(8, 8, 3, 1, 1)
    at = Layout((4,), (1,))
    steps, most = exchange_halo(window, 0, at, 0, at, 1, "y", 4, Where(Grid(9, 1), WSE3))  # parts 2 PEs apart
    (send,), (spread,) = of(Shift, steps), of(Multicast, steps)
    assert send.distance == 2 and spread.pes == 2 and most == 2 and spread.wavelets == 2


def test_convolution_over_channels_by_hand():
    """x[1, 12@y, 4, 4], W[10@x, 12@y, 3, 3]: 2 of 12 channels in, 2 of 10 out a PE, sums of 2 x 16 results along y."""
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME")  # noqa: E731
    x = lay((1, 12, 4, 4), "y", [1], 6)
    op = traced_op(conv, normal(1, 12, 4, 4), normal(10, 12, 3, 3), layouts=(x, None))
    small_room = Where(Grid(6, 5), small(6, 5, usable=600))  # the whole kernel, 4,320 B, does not fit a PE
    found = RULES[op.name](op, small_room)
    assert found.ins == (x, Layout((1, 6, 1, 1), (5, 1, 1, 1)))
    assert found.outs == (Layout((1, 1, 1, 1), (1, 5, 1, 1)),)
    (product,), (reduce,) = of(Compute, found.steps), of(AllReduce, found.steps)
    assert product.calls * product.length == (2 * 9) * 16 * 2  # window x channels, places, channels out
    assert (reduce.pes, reduce.wavelets, reduce.instances) == (6, 2 * 16, 5)
    inside = 4 * 3 - 2  # of 4 results and 3 taps a dimension, two pairs fall on padding
    assert product.flops == 2 * 10 * 12 * inside * inside


CONVS = {
    "plain": {},
    "valid": {"padding": "VALID"},
    "strides": {"window_strides": (2, 2)},
    "dilated kernel": {"rhs_dilation": (2, 1)},
    "dilated operand": {"lhs_dilation": (2, 2), "padding": ((1, 1), (2, 1))},
    "groups": {"feature_group_count": 2},
    "depthwise": {"feature_group_count": 4},
    "batch groups": {"batch_group_count": 2},
    "channels last": {"dimension_numbers": ("NHWC", "OIHW", "NHWC")},
}


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_compute_what_jax_does_and_count_what_xla_does(name):
    params = {"window_strides": (1, 1), "padding": "SAME"} | CONVS[name]
    shape = (2, 8, 8, 4) if name == "channels last" else (2, 4, 8, 8)
    x, w = normal(*shape), normal(8, 4 // params.get("feature_group_count", 1), 3, 3)
    conv = lambda x, w: lax.conv_general_dilated(x, w, **params)  # noqa: E731
    exe = run_everywhere(conv, x, w, wafer=small(usable=2048), weight_argnums=1)
    (op,) = [op for _, op in exe.program.ops() if op.name == "conv_general_dilated"]
    assert any(isinstance(s, Shift | AllReduce) for s in op.steps) or "groups" in name or name == "depthwise"
    counted = jax.jit(conv).lower(x, w).compile().cost_analysis()["flops"]
    assert conv_flops(traced_op(conv, x, w)) == counted


def test_gradients_of_a_convolution():
    x, w = normal(2, 4, 8, 8), normal(6, 4, 3, 3)
    loss = lambda x, w: (lax.conv_general_dilated(x, w, (2, 2), "SAME") ** 2).sum()  # noqa: E731
    exe = run_everywhere(jax.grad(loss, (0, 1)), x, w, wafer=small(usable=4096))
    flops = [s.flops for _, op in exe.program.ops() for s in op.steps if getattr(s, "kind", "") == "fmac"]
    assert len(flops) == 3 and max(flops) <= 1.5 * min(flops)  # forward and both gradients: about the same work


def test_a_larger_tile_of_a_wafer_convolves_faster():
    conv = lambda x, w: lax.conv_general_dilated(jnp.tanh(x), w, (1, 1), "SAME")  # noqa: E731
    args = normal(1, 8, 16, 16), normal(16, 8, 3, 3)
    cycles = [
        run_everywhere(conv, *args, wafer=small(n, n, usable=44000), weight_argnums=1).cost_analysis()["cycles"]
        for n in (1, 4, 12)
    ]
    assert cycles[0] > 4 * cycles[1] > 8 * cycles[2]
