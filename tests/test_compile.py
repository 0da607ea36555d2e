"""The front door: what can be compiled, what is refused and with what words, and facts about known models."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_close, assert_within_sram, normal, run_everywhere, small
from jax import lax

import wsc
from wsc.errors import ArgumentError, FitError, TraceError, UnsupportedError, WscError
from wsc.lowering.rules import RULES
from wsc.machine.steps import AllReduce
from wsc.models import Llama, LlamaConfig


def test_the_public_names_are_there():
    for name in wsc.__all__:
        assert hasattr(wsc, name)
    assert all(issubclass(getattr(wsc, n), WscError) for n in wsc.__all__ if n.endswith("Error") and n != "WscError")


def dot(w, x):
    return x @ w


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "fast"}, "order is 'fast': it must be one of fabric, xla"),
        ({"wafers": 0}, "wafers is 0: it must be a whole number of at least 1"),
        ({"wafers": 1.5}, "wafers is 1.5: it must be a whole number"),
        ({"context": 0}, "context is 0"),
        ({"context": "long"}, "context is 'long'"),
        ({"batch": -1}, "batch is -1"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"context": 8, "prefill_chunk": 9}, "prefill_chunk is 9, more than the context of 8"),
        ({"weight_argnums": 2}, "weight_argnums has 2, and there are 2 arguments"),
        ({"weight_argnums": (0, -1)}, "weight_argnums has -1"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ArgumentError, match=message):
        wsc.compile(dot, normal(3, 4), normal(1, 3), **options)


@pytest.mark.parametrize("thing", [3, "model", [1, 2], None])
def test_not_something_to_compile(thing):
    with pytest.raises(
        TraceError, match=rf"{type(thing).__name__} is not something to compile: give wsc.compile a JAX"
    ):
        wsc.compile(thing, normal(3))


def test_a_function_that_jax_cannot_trace():
    def branches(x):
        return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match=r"JAX could not trace 'branches'.*TracerBoolConversionError.*jax\.jit"):
        wsc.compile(branches, normal(3))


def test_shapes_that_do_not_go_together():
    with pytest.raises(TraceError, match=r"could not trace 'dot'.*TypeError: dot_general.*"):
        wsc.compile(dot, normal(3, 4), normal(1, 5))


def test_too_few_arguments():
    with pytest.raises(TraceError, match="missing 1 required positional argument"):
        wsc.compile(dot, normal(3, 4))


@pytest.mark.parametrize(
    ("primitive", "fn"),
    [("cholesky", lambda x: jnp.linalg.cholesky(x)), ("fft", lambda x: jnp.abs(jnp.fft.fft(x)))],
)
def test_a_primitive_without_a_rule_is_named_with_shapes_and_line(primitive, fn, monkeypatch):
    monkeypatch.delitem(RULES, primitive)  # as one of a newer JAX
    line = fn.__code__.co_firstlineno
    with pytest.raises(UnsupportedError) as caught:
        wsc.compile(fn, normal(6, 6), wafer=small())
    text = str(caught.value)
    assert f"no rule for primitive '{primitive}" in text
    assert "[6,6]" in text
    assert f"test_compile.py:{line}" in text
    assert "wsc.lowering.rules.rule(" in text


def test_every_error_is_a_wsc_error():
    with pytest.raises(WscError):
        wsc.compile(dot, normal(4000, 4000), normal(1, 4000), wafer=small(), wafers=1, weight_argnums=0)


def test_does_not_fit_says_how_many_wafers():
    """And that number does."""

    def fn(p, x):
        for w in p["layers"]:
            x = x + jnp.tanh(x @ w["w"])
        return x

    p = {"layers": [{"w": normal(80, 80, seed=i)} for i in range(8)]}  # 200 KB; a wafer has 123 KB beside the code
    with pytest.raises(FitError, match=r"small has 120\. .* on 1: give it wafers=\d+\.") as caught:
        wsc.compile(fn, p, normal(1, 80), wafer=small(), wafers=1)
    enough = int(re.findall(r"wafers=(\d+)", str(caught.value))[0])
    assert wsc.compile(fn, p, normal(1, 80), wafer=small(), wafers=enough).program.wafers == enough


def test_abstract_arguments():
    shapes = jax.ShapeDtypeStruct((13, 7), jnp.float32), jax.ShapeDtypeStruct((2, 13), jnp.float32)
    exe = wsc.compile(dot, *shapes, wafer=small(), weight_argnums=0)
    w, x = normal(13, 7), normal(2, 13)
    np.testing.assert_allclose(
        exe(w, x)[0], np.asarray(x, np.float64) @ np.asarray(w, np.float64), rtol=1e-5, atol=1e-5
    )


def weights_of(exe):
    return sorted(w.name for s in exe.program.stages for w in s.weights)


def test_weights_by_default_and_by_request():
    def fn(p, x, y):
        return x @ p["a"] + y @ p["b"]

    p, x, y = {"a": normal(6, 5), "b": normal(4, 5)}, normal(1, 6), normal(1, 4)
    assert weights_of(wsc.compile(fn, p, x, y, wafer=small())) == ["p.a", "p.b"]
    assert weights_of(wsc.compile(fn, p, x, y, wafer=small(), weight_argnums=())) == []
    assert weights_of(wsc.compile(fn, p, x, y, wafer=small(), weight_argnums=[0, 2])) == ["p.a", "p.b", "y"]
    assert weights_of(wsc.compile(lambda a, b: a @ b, x, p["a"], wafer=small())) == []


def test_a_pytree_with_integers_is_no_weight_by_default():
    exe = wsc.compile(
        lambda s, w: s["x"] @ w + s["n"], {"x": normal(1, 6), "n": jnp.arange(5)}, normal(6, 5), wafer=small()
    )
    assert weights_of(exe) == []


def test_equal_inputs_give_equal_programs():
    programs = [wsc.compile(dot, normal(33, 21), normal(1, 33), wafer=small(), weight_argnums=0) for _ in range(2)]
    assert programs[0].as_text() == programs[1].as_text()
    assert programs[0].cost_analysis() == programs[1].cost_analysis()


def test_training_step():
    """A gradient and an update: transposed products, nothing special."""

    def step(p, x, y):
        def loss(p):
            return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - y) ** 2)

        value, grads = jax.value_and_grad(loss)(p)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, p, grads)

    p = {"a": normal(9, 14), "b": normal(14, 5)}
    run_everywhere(step, p, normal(6, 9), normal(6, 5), wafer=small(24, 24, 4096))


@pytest.fixture(scope="module")
def llama8b():
    return wsc.compile(Llama.abstract("llama-3.1-8b"))


def test_llama_8b_fits_one_wafer(llama8b):
    program, m = llama8b.program, llama8b.memory_analysis()
    assert program.wafers == 1
    assert m.weight_bytes == 2 * 8_030_261_248  # parameters of the published checkpoint, two bytes each
    assert_within_sram(program)
    assert_within_sram(llama8b.prefill.program)
    assert sum(s.region.pes for s in program.stages) <= 755 * 1170


def test_llama_8b_is_bound_by_neither_arithmetic_nor_bandwidth(llama8b):
    """But by the fabric, and by software that starts its instructions: no more than 2 % of what SRAM could deliver."""
    found = llama8b.cost_analysis()
    assert found["cycles_arithmetic"] < found["cycles_latency"] + found["cycles_serial"]
    assert found["cycles_arithmetic"] < found["cycles"] / 2
    assert found["sram_utilization"] < 0.02
    attention = 32 * 4 * 4096 * 2048  # scores and values, 32 layers of 32 heads x 128 over 2,048 tokens
    assert found["flops"] == pytest.approx(2 * (8_030_261_248 - 128_256 * 4096) + attention, rel=0.005)


def test_llama_8b_prefill_shares_regions_and_weights(llama8b):
    pairs = list(zip(llama8b.program.stages, llama8b.prefill.program.stages, strict=True))
    for decode, prefill in pairs:
        assert decode.region == prefill.region
        kept = [[a for a in s.memory if a.kind in ("weight", "state")] for s in (decode, prefill)]
        assert kept[0] == kept[1]
    assert len({s.template for s in llama8b.program.stages}) <= 4


def test_prefill_takes_the_weights_where_decode_put_them():
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    exe = wsc.compile(Llama.abstract(config), context=64, prefill_chunk=4, wafer=small(24, 24, 16384))
    layouts = [{w.name: w.layout for s in p.stages for w in s.weights} for p in (exe.program, exe.prefill.program)]
    assert layouts[0] == layouts[1]


def test_llama_405b_needs_19_wafers():
    """810 GB in bfloat16: 883,350 PEs keep 30 GB beside their code."""
    program = wsc.compile(Llama.abstract("llama-3.1-405b"), context=512, prefill_chunk=4).program
    assert program.wafers >= 19
    assert len(program.stages) == 128
    assert_within_sram(program)


def test_source_lines_of_the_users_code():
    exe = wsc.compile(dot, normal(13, 7), normal(2, 13), wafer=small(), weight_argnums=0)
    (op,) = [op for _, op in exe.program.ops() if op.name == "dot_general"]
    assert f"test_compile.py:{dot.__code__.co_firstlineno + 1}" in op.source


def test_a_module_that_changes_its_own_state_is_updated_in_place():
    norm, same = nnx.BatchNorm(6, rngs=nnx.Rngs(0)), nnx.BatchNorm(6, rngs=nnx.Rngs(0))
    exe = wsc.compile(norm, normal(4, 6), wafer=small())
    for seed in (1, 2):
        found, _ = exe(normal(4, 6, seed=seed))
        assert_close(found, same(normal(4, 6, seed=seed)), 1e-5)
    assert_close(norm.mean[...], same.mean[...], 1e-6)
    assert_close(norm.var[...], same.var[...], 1e-6)
    assert jnp.abs(norm.mean[...]).max() > 0


def test_side_effects_are_refused():
    with pytest.raises(UnsupportedError, match=r"'debug_\w+' at .*test_compile.* side effect"):
        wsc.compile(lambda a: (jax.debug.print("{}", a[0, 0]), a * 2)[1], normal(3, 4))


@pytest.mark.parametrize(
    "fn",
    [
        lambda a: jnp.concatenate([a[:0], a]),
        lambda a: lax.associative_scan(jnp.add, a),
        lambda a: a[:, :0] @ jnp.zeros((0, 5)) + 1,
        lambda a: lax.cond(True, jnp.sin, jnp.cos, a),
    ],
)
def test_empty_values_and_known_branches(fn):
    x = normal(8, 6)
    np.testing.assert_allclose(wsc.compile(fn, x, wafer=small())(x)[0], fn(x), rtol=1e-6)


def test_prng_keys_and_deterministic_dropout():
    x, key = normal(8, 6), jax.random.key(0)
    dropout = nnx.Dropout(0.5, deterministic=True, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(wsc.compile(dropout, x, wafer=small())(x)[0], x)
    exe = wsc.compile(lambda k, a: a * 2, key, x, wafer=small())
    np.testing.assert_array_equal(exe(key, x)[0], x * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clock_hz": -1.0}, "clock_hz of a wafer is -1.0 Hz"),
        ({"rows": 1.5}, "whole number"),
        ({"hop_cycles": float("inf")}, "finite"),
        ({"sram_bytes": 100}, "do not hold its 4096 B of code"),
    ],
)
def test_wafers_that_cannot_be(change, message):
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(wsc.WSE3, **change)


def test_a_grid_is_the_size_of_every_region():
    exe = wsc.compile(lambda w, x: x @ w, normal(64, 32), normal(1, 64), wafer=small(), weight_argnums=0, grid=(8, 4))
    assert {(s.region.height, s.region.width) for s in exe.program.stages} == {(8, 4)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grid": 7}, ArgumentError, r"grid is 7: it must be \(rows, columns\)"),
        ({"grid": (0, 4)}, ArgumentError, "it must be"),
        ({"grid": (13, 4)}, ArgumentError, r"grid is \(13, 4\) PEs, and a small has 12 x 10"),
        ({"grid": (1, 2)}, FitError, "does not fit a region of 1 x 2 PEs: its weights and state need 8"),
        ({"strategy": "tea"}, ArgumentError, "strategy is 'tea': it must be one of wsc, waferllm"),
        ({"strategy": "waferllm", "grid": (4, 8)}, ArgumentError, "onto a square of PEs"),
        ({"strategy": "waferllm"}, ArgumentError, "grid is None"),
    ],
)
def test_bad_grids_and_strategies(options, error, message):
    with pytest.raises(error, match=message):
        wsc.compile(lambda w, x: x @ w, normal(64, 32), normal(1, 64), wafer=small(), weight_argnums=0, **options)


def test_a_strategy_maps_any_function_and_computes_the_same():
    w, x = normal(64, 32), normal(1, 64)
    exe = wsc.compile(
        lambda w, x: jnp.tanh(x @ w), w, x, wafer=small(), weight_argnums=0, strategy="waferllm", grid=(8, 8)
    )
    assert_close(exe(w, x)[0], jnp.tanh(x @ w), 1e-5)
    assert {s.algorithm for _, op in exe.program.ops() for s in op.steps if isinstance(s, AllReduce)} == {"k_level"}


def test_colors_that_do_not_suffice_are_said():
    def fn(p, x):
        return jax.nn.softmax(x @ p["a"]) @ p["b"]

    args = {"a": normal(64, 48), "b": normal(48, 32)}, normal(1, 64)
    poor = small(colors=1, switch_positions=1)
    with pytest.raises(FitError, match="colors, and 1 are free"):
        wsc.compile(fn, *args, wafer=poor, weight_argnums=0)
    few = wsc.compile(fn, *args, wafer=small(colors=3, switch_positions=2), weight_argnums=0)
    many = wsc.compile(fn, *args, wafer=small(colors=18), weight_argnums=0)
    assert all(s.colors <= 3 for s in few.program.stages)
    assert many.telemetry.cycles <= few.telemetry.cycles


def test_many_users_share_the_prefill_chunk():
    model = Llama.abstract(LlamaConfig(64, 32, 48, 2, 4, num_key_value_heads=2))
    chunks = {b: wsc.compile(model, batch=b, context=32).prefill.program.tokens for b in (1, 2, 8, 16)}
    assert chunks == {1: 8, 2: 4, 8: 1, 16: 1}
