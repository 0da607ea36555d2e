"""Lower bounds: below the cost of every algorithm, layout and placed op; worked out by hand; the gap adds up."""

import dataclasses
import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small
from hypothesis import given, settings
from hypothesis import strategies as st

import wsc
from wsc.machine import bounds, kernels
from wsc.machine.collectives import Costs, Line, ways
from wsc.machine.collectives import all_reduce as form
from wsc.machine.cost import cost
from wsc.machine.steps import AllReduce, HostLink
from wsc.machine.wafer import WSE2, WSE3
from wsc.models import LlamaConfig

WAFERS = (WSE3, WSE2)
TINY = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def tiny(**changes) -> wsc.models.Llama:
    return wsc.models.Llama.abstract(LlamaConfig(**(TINY | changes)))


def assert_sound(found: wsc.Bound, exe: wsc.Executable) -> None:
    """Below the charge as a whole and op by op, and the causes add up to the gap."""
    assert found.charged == exe.telemetry.cycles
    assert 0 < found.cycles <= found.charged * (1 + 1e-12)
    for row in found.ops:
        assert row.bound <= row.cycles * (1 + 1e-12), row
    assert sum(found.causes.values()) == pytest.approx(found.charged - found.cycles, rel=1e-9, abs=1e-6)
    assert found.path.cycles == found.cycles


# All-reduces


def test_all_reduce_by_hand():
    """Three PEs: from either side a wavelet goes one hop and is relayed (6), is added (1), and goes back (1 + 5) as one
    wavelet (1). Two: halves of it go both ways. On 128 half the line is 64 hops: 64 + 5 + 1, there and back."""
    assert bounds.all_reduce(1, 7.0, WSE3) == 0
    assert bounds.all_reduce(3, 1.0, WSE3) == 14
    assert bounds.all_reduce(2, 1.0, WSE3) == 2 * (0.5 + 1 + 5)
    assert bounds.all_reduce(128, 1.0, WSE3) == 140
    assert bounds.all_reduce(2, 100.0, WSE3) == 2 * (50 + 1 + 5)  # a ring: halves of the data, both ways
    assert bounds.all_reduce(5, 10.0, WSE3) == (10 + 2 + 2 * 5) + (10 + 2 + 5)  # a chain of two hops is a pipeline


@pytest.mark.parametrize("wafer", WAFERS, ids=lambda w: w.name)
def test_all_reduce_is_below_every_algorithm(wafer):
    """With the cycles of setting up and delivering, and without."""
    charged = Costs.of(wafer, straight=True)
    for pes, words in itertools.product([*range(2, 40), 64, 127, 187, 420, 750], (1, 3, 16, 100, 2000, 10**6)):
        least = float(bounds.all_reduce(pes, words, wafer))
        for c in (charged, charged._replace(setup=0.0, deliver=charged.hop)):
            for name, shape in [*ways(pes, words), ("ring", ())]:
                cycles = form(name, Line(pes, words, pes - 1), c, shape).cycles
                assert least <= cycles * (1 + 1e-12), (pes, words, name)


@functools.cache
def trees(pes: int) -> frozenset[tuple[int, int, int]]:
    """(hops a wavelet, depth, most messages taken in) of every reduce to the first of `pes` PEs in a row, in order: its
    last s PEs send their sum on after all others have."""
    if pes == 1:
        return frozenset({(0, 0, 0)})
    found = set()
    for s in range(1, pes):
        for (e1, d1, c1), (e2, d2, c2) in itertools.product(trees(pes - s), trees(s)):
            found.add((e1 + e2 + pes - s, max(d1, d2 + 1), max(c1 + 1, c2)))
    return frozenset(found)


@pytest.mark.parametrize("pes", range(2, 10))
@pytest.mark.parametrize("words", [1, 2, 7, 50])
def test_all_reduce_is_below_every_tree_at_every_root(pes, words):
    """Brute force: the published form max(C, E/N + L) + 5 D of every tree of either side of every root, then back."""

    def side(n: int) -> float:
        if n == 1:
            return 0.0
        return min(max(c * words, e * words / (n - 1) + n - 1) + 5 * d for e, d, c in trees(n))

    at = [max(side(r + 1), side(pes - r)) + max(r, pes - 1 - r) + 5 + words for r in range(pes)]
    ring = 2 * (pes - 1) * (words / pes + 5) + 4 * pes - 6
    assert bounds.all_reduce(pes, words, WSE3) <= min(*at, ring) + 1e-9
    assert bounds.all_reduce(pes, words, WSE3) >= 0.7 * min(*at, ring)  # and not far


def test_more_pes_never_bound_less():
    """Intervals of sizes rely on it."""
    for words in (1.0, 12.0, 200.0, 5000.0):
        found = [float(bounds.all_reduce(n, words, WSE3)) for n in range(1, 1171)]
        assert (np.diff(found) >= -1e-9).all()


# Products and reductions


def test_a_product_on_one_pe_by_hand():
    """[1, 64] x [64, 32] in 16 bits: 64 instructions of 32 elements, 6 cycles to issue each in straight-line code, and
    64 * 32 / 8 cycles in the lanes."""
    found = bounds.product(64, 32, 32, 2, 2, 1, WSE3)
    assert found == bounds.Parts(64 * 6, 256)
    assert bounds.product(64, 32, 32, 4, 4, 1, WSE2) == bounds.Parts(64, 64 * 32)  # maps are free there, one lane


def test_a_product_on_two_pes_by_hand():
    """The outputs are halved, so that instructions are half as long; or the sums: 32 instructions and an all-reduce of
    32 x 16 bits, 8 wavelets each way."""
    by_outputs, by_sums = 64 * 6 + 128, 32 * 6 + 128 + 2 * (8 + 1 + 5)
    assert bounds.product(64, 32, 32, 2, 2, 2, WSE3).cycles == min(by_outputs, by_sums) == by_sums


def test_a_reduction_by_hand():
    """64 values on 4 PEs: 16 each, 2 lanes; the best is a square of 2 x 2 (13 cycles an axis) or a line of 4 (2 hops
    and a wavelet, twice): 1 + 8 + 2 * (2 + 5 + 1)."""
    assert bounds.reduction(64, 1, 4, 1, 4, WSE3).cycles == 1 + 8 + 2 * (2 + 5 + 1)
    assert bounds.reduction(64, 64, 4, 1, 64, WSE3).collectives == 0  # nothing to add


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 6), k=st.integers(1, 300), n=st.integers(1, 300), batch=st.integers(1, 4),
    rows=st.integers(1, 24), columns=st.integers(1, 24), itemsize=st.sampled_from([2, 4]),
    wafer=st.sampled_from(WAFERS),
)  # fmt: skip
def test_a_product_is_below_every_layout(m, k, n, batch, rows, columns, itemsize, wafer):
    """Brute force over whole tiles: k cut over ky * kx PEs, outputs over the rest, with the steps of the cost model."""
    rows, columns = min(rows, wafer.rows), min(columns, wafer.columns)
    least = bounds.product(k, batch * m * n, max(m, n), itemsize, itemsize, rows * columns, wafer).cycles
    for ky, kx in itertools.product({1, 2, rows // 2 or 1, rows}, {1, 2, columns // 2 or 1, columns}):
        if ky > rows or kx > columns or ky * kx > k:
            continue
        left = (rows // ky) * (columns // kx)
        for mp, bp in itertools.product({1, m}, {1, batch}):
            if mp * bp > left:
                continue
            np_ = min(n, left // (mp * bp))
            mt, nt, bt, kt = m // mp, math.ceil(n / np_), batch // bp, math.ceil(k / (ky * kx))
            steps = [kernels.tile_product(mt, kt, nt, itemsize, wafer, batch=bt, apart=True)]
            words = bt * mt * nt
            for pes in (ky, kx):
                if pes > 1:
                    s = kernels.all_reduce(pes, words, itemsize, wafer)
                    steps.append(dataclasses.replace(s, straight=True))
                    words = math.ceil(words / pes)  # shared out
            assert least <= sum(cost(s, wafer).cycles for s in steps) * (1 + 1e-12)


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(1, 2000), outputs=st.integers(1, 5000), pes=st.integers(1, 3000),
    more=st.sampled_from(["hop_cycles", "ramp_cycles", "issue_cycles", "straight_cycles", "lanes16"]),
)  # fmt: skip
def test_monotone_in_the_hardware(k, outputs, pes, more):
    """Longer hops, ramps and instructions never bound less, more lanes never more."""
    other = dataclasses.replace(WSE3, **{more: getattr(WSE3, more) * 2})
    before, after = (bounds.product(k, outputs, outputs, 2, 2, pes, w).cycles for w in (WSE3, other))
    assert before >= after if more == "lanes16" else before <= after
    before, after = (bounds.reduction(k * outputs, outputs, 2, 1, pes, w).cycles for w in (WSE3, other))
    assert before >= after if more == "lanes16" else before <= after


def test_elementwise_by_hand():
    vector = bounds.elementwise("vector", 4096, 4, 64, WSE3)
    assert vector.cycles == 1 + 64 / 2
    assert bounds.elementwise("transcendental", 1, 4, 100, WSE3).cycles == WSE3.transcendental_cycles  # one at least
    assert bounds.elementwise("divide", 300, 4, 100, WSE3).cycles == 150


# Placed programs


@settings(max_examples=20, deadline=None)
@given(
    k=st.integers(1, 200), n=st.integers(1, 200), m=st.integers(1, 3), rows=st.integers(1, 12),
    columns=st.integers(1, 10), dtype=st.sampled_from(["bfloat16", "float32"]),
    kind=st.sampled_from(["product", "sum", "softmax", "mlp"]),
)  # fmt: skip
def test_placed_ops_are_charged_no_less(k, n, m, rows, columns, dtype, kind):
    w, x = jax.ShapeDtypeStruct((k, n), dtype), jax.ShapeDtypeStruct((m, k), dtype)
    fn = {
        "product": lambda w, x: x @ w,
        "sum": lambda w, x: jnp.sum(x * x, axis=-1) + jnp.argmax(x @ w),
        "softmax": lambda w, x: jax.nn.softmax(x @ w),
        "mlp": lambda w, x: jax.nn.silu(x @ w) * (x @ (2 * w)) @ w.T,
    }[kind]
    exe = wsc.compile(fn, w, x, weight_argnums=0, wafer=small(usable=1 << 19), grid=(rows, columns))
    assert_sound(wsc.lower_bound(exe), exe)


@pytest.mark.parametrize(("grid", "batch"), [((6, 8), 1), ((12, 3), 2), ((24, 16), 1)])
def test_a_tiny_llama(grid, batch):
    exe = wsc.compile(tiny(), context=64, batch=batch, grid=grid, wafer=small(96, 96, 1 << 16))
    for program in (exe, exe.prefill):
        found = wsc.lower_bound(program)
        assert_sound(found, program)
        layer = [row for row in found.ops if row.stage == "layers[0]"]
        assert {row.alike for row in layer} == {3}
        together = [row for row in layer if row.op.count("dot_general") == 3]
        assert len(together) == 1 and len(together[0].weights) == 3  # q, k and v


def test_stages_one_after_another_and_wafers_apart():
    """Weights that a wafer does not hold alone: the link between wafers is in the bound as it is charged."""
    wafer = small(16, 16, 2048)
    fn = lambda p, x: functools.reduce(lambda x, w: jnp.tanh(x @ w), p["layers"], x)  # noqa: E731
    params = {"layers": [jax.ShapeDtypeStruct((256, 256), "float32")] * 4}
    exe = wsc.compile(fn, params, jax.ShapeDtypeStruct((1, 256), "float32"), weight_argnums=0, wafer=wafer)
    assert exe.program.wafers > 1
    found = wsc.lower_bound(exe)
    assert_sound(found, exe)
    links = (exe.program.wafers - 1) * (wafer.link_seconds + 1024 / wafer.link_bytes_per_second) * wafer.clock_hz
    assert links <= found.path.stages <= links + 2 * cost(HostLink(1024), wafer).cycles + 6 * len(exe.program.stages)
    for c in found.capacity:
        assert c.least == 256 * 256 * 4 / 2048 and c.least <= c.pes


def test_the_longer_of_two_ways_counts_not_both():
    """Two branches that do not wait for each other, then their product; both ends by hand."""
    x = jax.ShapeDtypeStruct((1, 120), "float32")
    wafer = small(usable=1 << 16, transcendental_cycles=1000.0)

    def bound(fn):
        return wsc.lower_bound(wsc.compile(fn, x, wafer=wafer, grid=(1, 1))).cycles

    links = 2 * cost(HostLink(480), wafer).cycles
    assert bound(jnp.exp) == pytest.approx(120 * 1000 + links)
    assert bound(lambda x: jnp.exp(x) * (x + x)) == pytest.approx(120 * 1000 + 61 + links)
    assert bound(lambda x: jnp.exp(x) * jnp.sin(x)) == pytest.approx(120 * 1000 + 61 + links)
    assert bound(lambda x: jnp.exp(jnp.sin(x))) == pytest.approx(2 * 120 * 1000 + links)


def test_products_of_one_operand_are_one_product():
    w, x = jax.ShapeDtypeStruct((64, 48), "float32"), jax.ShapeDtypeStruct((1, 64), "float32")
    wafer = small(usable=4096)
    fn = lambda p, x: (x @ p["q"], x @ p["k"])  # noqa: E731
    exe = wsc.compile(fn, {"q": w, "k": w}, x, weight_argnums=0, wafer=wafer, grid=(4, 4))
    (row,) = wsc.lower_bound(exe).ops
    assert row.op == "dot_general + dot_general"
    assert row.bound == bounds.product(64, 96, 96, 4, 4, 16, wafer).cycles


def test_the_gap_of_a_single_op_by_cause():
    """On one PE there is no fabric: what is left is loops, and tiles that do not fill the lanes."""
    x = jax.ShapeDtypeStruct((33,), "float32")
    exe = wsc.compile(lambda x: x * x, x, wafer=small(), grid=(1, 1))
    found = wsc.lower_bound(exe)
    gaps = {name.split(":")[0]: cycles for name, cycles in found.causes.items()}
    assert gaps == pytest.approx(
        {"instructions": 5.0, "arithmetic": 0.5, "collectives": 0, "operands moved": 0, "between stages": 0}
    )


def test_it_prints_with_its_conditions_and_as_json():
    exe = wsc.compile(tiny(), context=64, grid=(6, 8), wafer=small(96, 96, 1 << 16))
    found = wsc.lower_bound(exe)
    assert "batch 1, context 64" in " ".join(str(found).split()) and "lower bound" in found._repr_html_()
    flat = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert flat["ratio"] == pytest.approx(flat["cycles"] / flat["bound_cycles"])
    assert len(flat["ops"]) == len(found.ops) and flat["conditions"].startswith("1 x small, decode of 1 token")


def test_what_is_not_compiled_is_refused():
    with pytest.raises(wsc.ArgumentError, match="function is no compiled program: give what wsc"):
        wsc.lower_bound(lambda x: x)  # type: ignore[arg-type]


@pytest.mark.slow
def test_llama_8b():
    """The figure that is reported: no op below its bound, and the all-reduces counted where they are."""
    exe = wsc.compile(wsc.models.Llama.abstract("llama-3.1-8b"), context=8192)
    found = wsc.lower_bound(exe)
    assert_sound(found, exe)
    assert 1 < found.ratio < 4
    assert any(isinstance(s, AllReduce) for _, op in exe.program.ops() for s in op.steps)
    print(found)
