"""A compiled program as its user meets it: calls, refusals, where its bytes are, what it prints."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import CODE, normal, small

import wsc
from wsc.errors import ArgumentError
from wsc.models import Llama, LlamaConfig


@pytest.fixture(scope="module")
def exe():
    return wsc.compile(
        lambda p, x: {"y": x @ p["w"] + p["b"]}, {"w": normal(13, 7), "b": normal(7)}, normal(2, 13), wafer=small()
    )


ARGS = {"w": normal(13, 7), "b": normal(7)}, normal(2, 13)


def test_outputs_have_the_users_structure(exe):
    outputs, telemetry = exe(*ARGS)
    assert set(outputs) == {"y"}
    assert telemetry is exe.telemetry
    assert exe.out_info["y"].shape == (2, 7)
    assert exe.in_tree == jax.tree.structure(ARGS) and exe.out_tree == jax.tree.structure({"y": 0})


def test_wrong_shape_by_name(exe):
    with pytest.raises(
        ArgumentError, match=r"argument 'x' compiled with float32\[2,13\] and called with float32\[3,13\]"
    ):
        exe(ARGS[0], normal(3, 13))


def test_wrong_dtype_by_name(exe):
    with pytest.raises(
        ArgumentError, match=r"argument 'x' compiled with float32\[2,13\] and called with int32\[2,13\]"
    ):
        exe(ARGS[0], jnp.ones((2, 13), jnp.int32))


def test_wrong_leaf_of_a_structure_by_name(exe):
    with pytest.raises(
        ArgumentError, match=r"argument 'p\['b'\]' compiled with float32\[7\] and called with float32\[8\]"
    ):
        exe({"w": normal(13, 7), "b": normal(8)}, normal(2, 13))


@pytest.mark.parametrize("args", [(), ARGS[:1], (*ARGS, 1.0), ({"w": normal(13, 7)}, normal(2, 13))])
def test_wrong_structure(exe, args):
    with pytest.raises(
        ArgumentError, match=r"compiled as .* called as .*: pass the same|takes 2 arguments .* with [013]"
    ):
        exe(*args)


def test_not_an_array(exe):
    with pytest.raises(ArgumentError, match="argument 'x' is a str, not an array"):
        exe(ARGS[0], "hello")


def test_numpy_arguments_count_as_arrays(exe):
    found, _ = exe({k: np.asarray(v) for k, v in ARGS[0].items()}, np.asarray(ARGS[1]))
    np.testing.assert_allclose(found["y"], ARGS[1] @ ARGS[0]["w"] + ARGS[0]["b"], rtol=1e-4, atol=1e-5)


def test_a_bound_module_takes_its_own_arguments_only():
    layer = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    exe = wsc.compile(layer, normal(2, 5), wafer=small())
    np.testing.assert_allclose(exe(normal(2, 5))[0], layer(normal(2, 5)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ArgumentError, match=r"takes 1 arguments .* with 2"):
        exe(layer, normal(2, 5))


def test_an_abstract_model_can_be_asked_and_not_run():
    exe = wsc.compile(nnx.eval_shape(lambda: nnx.Linear(5, 3, rngs=nnx.Rngs(0))), normal(2, 5), wafer=small())
    assert exe.cost_analysis()["flops"] >= 2 * 2 * 5 * 3
    with pytest.raises(ArgumentError, match="compiled from a model without weights"):
        exe(normal(2, 5))


def holders(shape, layout, grid) -> tuple[int, set]:
    """(PEs that hold a tile, how many PEs hold each element), by walking over every PE of the region."""
    count: dict = {}
    pes = 0
    for y, x in itertools.product(range(grid.y), range(grid.x)):
        index = []
        for position, parts, total in ((y, layout.y, grid.y), (x, layout.x, grid.x)):
            digits = []
            for p in parts:
                total //= p
                digits.append(position // total)
                position %= total
            index.append(digits)
        if any(i >= p for digits, parts in zip(index, (layout.y, layout.x)) for i, p in zip(digits, parts)):
            continue
        pes += 1
        ranges = []
        for n, py, px, iy, ix in zip(shape, layout.y, layout.x, *index):
            tile, i = math.ceil(n / (py * px)), iy * px + ix
            ranges.append(range(min(n, i * tile), min(n, (i + 1) * tile)))
        for element in itertools.product(*ranges):
            count[element] = count.get(element, 0) + 1
    assert len(count) == math.prod(shape), "every element is somewhere"
    return pes, set(count.values())


@pytest.mark.parametrize("size", [(12, 10), (7, 5), (24, 24)])
def test_the_account_of_the_weights(size):
    """Tile bytes times the PEs that hold one: parameters times replication, and padding."""

    def fn(p, x):
        x = jnp.tanh(x @ p["up"]["w"] + p["up"]["b"])
        return jnp.einsum("bk,knh->bnh", x, p["heads"]["w"])

    p = {"up": {"w": normal(29, 37), "b": normal(37)}, "heads": {"w": normal(37, 5, 6)}}
    exe = wsc.compile(fn, p, normal(2, 29), wafer=small(*size, usable=4096))
    stored = replicated = 0
    for stage in exe.program.stages:
        for w in stage.weights:
            pes, copies = holders(w.shape, w.layout, stage.region.grid)
            assert copies == {w.copies}
            tile = math.prod(math.ceil(n / (y * x)) for n, y, x in zip(w.shape, w.layout.y, w.layout.x)) * 4
            tile = -(-tile // 8) * 8
            assert w.stored_bytes == tile * pes
            assert w.nbytes == math.prod(w.shape) * 4
            assert w.padding_bytes == w.stored_bytes - w.nbytes * w.copies >= 0
            stored += tile * pes
            replicated += w.nbytes * w.copies
    m = exe.memory_analysis()
    assert (m.stored_weight_bytes, m.replicated_bytes, m.padding_bytes) == (stored, replicated, stored - replicated)
    assert m.weight_bytes == 4 * (29 * 37 + 37 + 37 * 5 * 6)


def test_memory_analysis_of_the_rest(exe):
    m = exe.memory_analysis()
    assert m.argument_size_in_bytes == 4 * (13 * 7 + 7 + 2 * 13)
    assert m.output_size_in_bytes == 4 * 2 * 7
    pes = sum(s.region.height * s.region.width for s in exe.program.stages)
    assert m.generated_code_size_in_bytes == CODE * pes
    assert CODE < m.fullest_pe_bytes <= CODE + 1024
    assert m.temp_size_in_bytes > 0 and m.state_bytes == 0


def test_text_and_reprs(exe):
    text = exe.as_text()
    assert "dot_general <p.w>" in text and "weight p.w" in text and "stage 0" in text
    assert "stages" in repr(exe) and "cycles" in repr(exe) and "small" in repr(exe)
    assert repr(exe.program).startswith("<Program: ") and str(exe.program) == text


def test_report_says_what_cost_analysis_says(exe):
    text = str(exe.report())
    figures = exe.cost_analysis()
    assert f"{figures['cycles']:,.0f}"[:5] in text
    for line in ("fabric latency", "instruction issue", "SRAM, all PEs", "Stages"):
        assert line in text
    assert repr(exe.report()) == text
    html = exe._repr_html_()
    assert html.startswith("<pre") and "fabric latency" in html and "</pre>" in html


@pytest.mark.parametrize(
    "dtype",
    ["float32", "bfloat16"],
)
def test_report_of_a_model_names_its_layers_once(dtype):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=7, num_attention_heads=4
    )
    exe = wsc.compile(Llama.abstract(config, dtype=dtype), context=16, prefill_chunk=2, wafer=small(24, 24, 32768))
    text = str(exe.report())
    assert f"{exe.memory_analysis().weight_bytes:,}" in text
    assert "(and 6 alike)" in text
