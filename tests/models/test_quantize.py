"""Weights as integers and scales: codes by numpy, logits by float64, bytes by hand, and the placed program."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_llama
import pytest
from flax import nnx
from helpers import assert_close, most_parts, small, sums_over_pes
from typer.testing import CliRunner

import wsc
from wsc.cli import app
from wsc.errors import ArgumentError, FitError
from wsc.machine.wafer import WAFERS
from wsc.models import Cache, Llama, LlamaConfig, load, quantize
from wsc.models.quantize import QuantizedLinear
from wsc.runtime.execute import as_function
from wsc.runtime.reference import interpret

TOKENS = np.random.default_rng(0).integers(0, 300, 20).tolist()
WAYS = [(8, None), (8, 16), (4, None), (4, 16)]  # bits and group; 16 divides the 48, 80 and 96 input rows


@jax.jit
def run(model: Llama, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    return model(tokens, cache)


def linears(model: Llama) -> dict:
    """Every linear layer of a model by its path."""
    found = {}
    for i, layer in enumerate(model.layers):
        found |= {f"layers[{i}].attn.{name}": getattr(layer.attn, name) for name in "qkvo"}
        found |= {f"layers[{i}].mlp.{name}": getattr(layer.mlp, name) for name in ("gate", "up", "down")}
    return found | ({} if model.config.tie_word_embeddings else {"lm_head": model.lm_head})


def codes_and_scales(layer: QuantizedLinear) -> tuple[np.ndarray, np.ndarray]:
    """Float64 codes `[in, out]` and the scale of each of them."""
    codes, scale = (np.asarray(v[...]).astype(np.float64) for v in (layer.codes, layer.scale))
    return codes, np.repeat(np.atleast_2d(scale), len(codes) // len(np.atleast_2d(scale)), axis=0)


def dequantized(model: Llama, like: Llama) -> Llama:
    """`like` with the kernels that a quantized model stands for."""
    new = jax.tree.map(lambda leaf: leaf, like)
    for old, layer in zip(linears(new).values(), linears(model).values(), strict=True):
        codes, scales = codes_and_scales(layer)
        old.kernel = nnx.Param(codes * scales)
    return new


@pytest.mark.parametrize(("bits", "group"), WAYS)
def test_codes_and_scales_are_those_of_numpy(tiny: Llama, bits: int, group: int | None) -> None:
    most = 2 ** (bits - 1) - 1
    for was, layer in zip(linears(tiny).values(), linears(quantize(tiny, bits, group)).values(), strict=True):
        kernel = np.asarray(was.kernel[...], np.float64)
        groups = kernel.reshape(-1, group or len(kernel), kernel.shape[1])
        scale = np.abs(groups).max(axis=1) / most
        np.testing.assert_allclose(np.asarray(layer.scale[...]), scale if group else scale[0], rtol=1e-6)
        exact = (groups / scale[:, None]).reshape(kernel.shape)
        codes = np.asarray(layer.codes[...]).astype(np.float64)
        apart = np.abs(np.abs(exact) % 1 - 0.5) > 1e-3  # a tie may fall either way
        np.testing.assert_array_equal(codes[apart], np.rint(exact)[apart])
        assert np.abs(codes).max(axis=0).min() == most and apart.mean() > 0.99
        assert layer.codes.dtype == {8: jnp.int8, 4: jnp.int4}[bits] and layer.scale.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scales_in_half_precision_round_no_further_than_half_a_step(tiny: Llama, dtype: str) -> None:
    half = jax.tree.map(lambda w: w.astype(dtype), tiny)
    for was, layer in zip(linears(half).values(), linears(quantize(half)).values(), strict=True):
        codes, scales = codes_and_scales(layer)
        assert layer.scale.dtype == dtype
        assert (np.abs(codes * scales - np.asarray(was.kernel[...]).astype(np.float64)) <= 0.501 * scales).all()


@pytest.mark.parametrize(("bits", "group"), WAYS)
def test_logits_are_those_of_the_weights_it_stands_for(tiny: Llama, bits: int, group: int | None) -> None:
    model = quantize(tiny, bits, group)
    got, _ = run(model, jnp.array([TOKENS]), model.init_cache(context=20))
    np.testing.assert_allclose(got[0], numpy_llama.logits(dequantized(model, tiny), TOKENS), atol=3e-4)


def test_logits_in_bfloat16(tiny: Llama) -> None:
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), tiny)
    model = quantize(half)
    got, cache = run(model, jnp.array([TOKENS]), model.init_cache(context=20))
    want = numpy_llama.logits(dequantized(model, half), TOKENS)
    assert got.dtype == jnp.float32 and cache.k[0].dtype == jnp.bfloat16
    assert np.abs(got[0] - want).max() < 0.05 * np.abs(want).max()


def test_error_against_the_unquantized_model(tiny: Llama) -> None:
    """A step is 1/127 or 1/7 of a column's largest weight: 8 bits are some 18 times closer than 4."""
    want = numpy_llama.logits(tiny, TOKENS)
    errors = []
    for bits in (8, 4):
        model = quantize(tiny, bits)
        got, _ = run(model, jnp.array([TOKENS]), model.init_cache(context=20))
        errors.append(np.linalg.norm(got[0] - want) / np.linalg.norm(want))
    assert errors[0] < 0.05 and errors[1] < 0.7
    assert 8 < errors[1] / errors[0] < 40


def test_sums_of_codes_may_pass_float16() -> None:
    layer = QuantizedLinear(jnp.full((1024, 3), 127, jnp.int8), jnp.full((3,), 2.0**-8, jnp.float16))
    got = layer(jnp.ones((1, 1024), jnp.float16))
    assert got.dtype == jnp.float16
    np.testing.assert_array_equal(got, 508.0)  # 1,024 x 127 / 256, exact; the sum alone is 130,048


def test_the_given_model_stays_as_it_is(tiny: Llama) -> None:
    before = jax.tree.leaves(tiny)
    model = quantize(tiny)
    assert type(model) is Llama and model.config is tiny.config
    assert all(a is b for a, b in zip(before, jax.tree.leaves(tiny), strict=True))
    assert model.embed.embedding[...] is tiny.embed.embedding[...]
    assert model.layers[1].mlp_norm.scale[...] is tiny.layers[1].mlp_norm.scale[...]


def test_a_tied_head_stays(tiny_config: LlamaConfig) -> None:
    tied = Llama(dataclasses.replace(tiny_config, tie_word_embeddings=True), rngs=nnx.Rngs(3))
    model = quantize(tied)
    assert not hasattr(model, "lm_head") and model.embed.embedding.dtype == jnp.float32
    got, _ = run(model, jnp.array([TOKENS]), model.init_cache(context=20))
    np.testing.assert_allclose(got[0], numpy_llama.logits(dequantized(model, tied), TOKENS), atol=3e-4)


def test_a_column_of_zeros() -> None:
    model = Llama.abstract(LlamaConfig(8, 4, 4, 1, 1))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(quantize(zeros)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 16}, "bits is 16: it must be 8 or 4"),
        ({"group": 0}, "group is 0: it must be a whole number of at least 1"),
        ({"group": 2.5}, "group is 2.5"),
        ({"group": 32}, r"group is 32, and layers\[0\].attn.q has 48 input rows"),
    ],
)
def test_bad_arguments(tiny: Llama, change: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        quantize(tiny, **change)


def test_what_is_no_llama_or_quantized_already(tiny: Llama) -> None:
    with pytest.raises(ArgumentError, match=r"layers\[0\].attn.q is quantized"):
        quantize(quantize(tiny))
    with pytest.raises(ArgumentError, match="dict is no wsc"):
        quantize({"w": jnp.ones((3, 4))})  # type: ignore[arg-type]


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 16)])
def test_a_placed_program_computes_what_jit_does(tiny_config: LlamaConfig, bits: int, group: int | None) -> None:
    """In the wafer's order, in XLA's, and PE by PE."""
    model = quantize(Llama(dataclasses.replace(tiny_config, num_hidden_layers=1), rngs=nnx.Rngs(3)), bits, group)
    exe = wsc.compile(model, wafer=small(24, 24, 8192), context=8, prefill_chunk=2)
    assert most_parts(exe.program) > 1 and "dot_general" in sums_over_pes(exe.program)
    cache = run(model, jnp.array([TOKENS[:3]]), model.init_cache(context=8))[1]
    args = jnp.array([[TOKENS[3]]]), cache
    expected = run(model, *args)
    assert_close(exe(*args)[0], expected, 2e-5)
    flat = jax.tree.leaves((model, *args))
    for outputs in (as_function(exe.program, "xla")(*flat)[0], interpret(exe.program, *flat)):
        assert_close(jax.tree.unflatten(exe.out_tree, map(jnp.asarray, outputs)), expected, 2e-5)


def by_kind(exe) -> dict[str, int]:
    """Bytes of the weights of a program by the last word of their names, each weight once."""
    found: dict[str, int] = {}
    for name, nbytes in {w.name: w.nbytes for s in exe.program.stages for w in s.weights}.items():
        word = name.rsplit(".", 1)[-1]
        found[word] = found.get(word, 0) + nbytes
    return found


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 16)])
def test_bytes_by_hand(tiny_config: LlamaConfig, bits: int, group: int | None) -> None:
    model = quantize(Llama.abstract(tiny_config, dtype="bfloat16"), bits, group)
    exe = wsc.compile(model, wafer=small(24, 24, 8192), context=24, prefill_chunk=2)
    layer = 48 * (96 + 32 + 32) + 96 * 48 + 3 * 48 * 80
    codes, columns = 3 * layer + 48 * 300, 3 * (96 + 32 + 32 + 48 + 80 + 80 + 48) + 300
    embedding, norms = 300 * 48, 48 * (2 * 3 + 1)
    scales = columns if group is None else codes // group
    expected = {"codes": codes * bits // 8, "scale": 2 * (scales + norms), "embedding": 2 * embedding}
    assert by_kind(exe) == expected
    memory = exe.memory_analysis()
    assert memory.weight_bytes == sum(expected.values())
    cache = 2 * 3 * 24 * 2 * 16 * 2 + 4
    assert memory.argument_size_in_bytes == memory.weight_bytes + cache + 4
    for stage in exe.program.stages:
        stored = {w.name: w for w in stage.weights}
        for a in stage.memory:
            if a.kind == "weight" and a.name.endswith("codes"):
                at = stored[a.name].layout
                rows, width = (-(-n // (y * x)) for n, y, x in zip(stored[a.name].shape, at.y, at.x, strict=True))
                assert a.nbytes == 8 * math.ceil(math.ceil(rows * width * bits / 8) / 8)  # whole bytes, the port's 8


@pytest.mark.parametrize("group", [None, 16])
def test_dequantizing_costs(tiny_config: LlamaConfig, group: int | None) -> None:
    """A conversion of every weight at each use, and its scaling: of the result, or of every weight of a group."""
    config = dataclasses.replace(tiny_config, num_hidden_layers=1)
    model = quantize(Llama.abstract(config, dtype="bfloat16"), 8, group)
    exe = wsc.compile(model, wafer=small(24, 24, 8192), context=8, prefill_chunk=2)
    layers = linears(model)
    rows = {
        (op, path): [r for r in exe.telemetry.ops() if r["op"] == op and f"model.{path}.{what}" in r["weights"]]
        for path in layers
        for op, what in (("convert_element_type", "codes"), ("mul", "scale"))
    }
    for (op, path), found in rows.items():
        assert len(found) == 1 and found[0]["cycles"] > 0 and not found[0]["control"], (op, path)
        elements = layers[path].codes.shape[0] * layers[path].codes.shape[1]
        by_weight = op == "convert_element_type" or group is not None
        assert (found[0]["flops"] >= elements) == by_weight


def test_no_buffer_for_dequantized_weights() -> None:
    """On one PE: codes of 64 x 64 take 4 KB; dequantized they would take another 16 KB."""

    def fn(p, x):
        return (x @ p["codes"].astype(jnp.float32)) * p["scale"]

    p = {"codes": jnp.ones((64, 64), jnp.int8), "scale": jnp.ones(64)}
    wafer = small(1, 1, 64 * 64 + 4 * 64 * 6)
    exe = wsc.compile(fn, p, jnp.ones((1, 64)), wafer=wafer, weight_argnums=0)
    assert exe.program.stages[0].region.pes == 1
    assert exe.memory_analysis().stored_weight_bytes == 64 * 64 + 4 * 64
    outputs, _ = exe(p, jnp.ones((1, 64)))
    np.testing.assert_array_equal(outputs, 64.0)


@pytest.mark.slow
def test_llama_8b_takes_fewer_pes() -> None:
    """A wafer with less SRAM than the 16.1 GB of bfloat16 holds the 8.6 GB of 8 bits; one with less than these, 4.8 GB
    of 4 bits."""
    model = Llama.abstract("llama-3.1-8b")
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336) + 4096 * 128_256
    rest = 2 * (8_030_261_248 - linear)
    scales = 2 * (32 * (3 * 4096 + 2 * 1024 + 2 * 14_336) + 128_256)
    row = wsc.WSE3.columns * (wsc.WSE3.sram_bytes - wsc.WSE3.code_bytes)
    expected = {16: 2 * linear + rest, 8: linear + rest + scales, 4: linear // 2 + rest + scales}
    for more, bits in ((16, 8), (8, 4)):
        wafer = dataclasses.replace(wsc.WSE3, rows=int(0.98 * expected[more] / row))
        with pytest.raises(FitError, match="does not fit"):
            wsc.compile(model if more == 16 else quantize(model, more), wafer=wafer, wafers=1)
        memory = wsc.compile(quantize(model, bits), wafer=wafer, wafers=1).memory_analysis()
        assert memory.weight_bytes == expected[bits]
        assert memory.padding_bytes < 0.1 * memory.replicated_bytes


def test_a_trained_model_still_tells_a_story(stories) -> None:
    network, tokenizer = load(stories / "stories260K.bin", progress=False)
    model = quantize(network)
    exe = wsc.compile(model, wafer=small(64, 64, 16384), context=32)
    prompt = tokenizer.encode("Once upon a time")
    ids = list(prompt)
    logits, cache = run(model, jnp.array([ids]), model.init_cache(context=32))
    for _ in range(16):
        ids.append(int(logits[0, -1].argmax()))
        logits, cache = run(model, jnp.array([ids[-1:]]), cache)
    assert list(exe.generate_ids(prompt, 16)) == ids[len(prompt) :]
    assert tokenizer.decode(ids).strip().startswith("Once upon a time, there was a little girl")


def test_the_command_stores_weights_as_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(WAFERS, "small", small(24, 24, 16384))
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"num_attention_heads": 4, "torch_dtype": "bfloat16"}))
    args = ["compile", str(tmp_path), "--context", "16", "--wafer", "small", "--json"]
    found = {}
    for stored in ("model", "int8", "int4"):
        result = CliRunner().invoke(app, [*args, "--weights", stored])
        assert result.exit_code == 0, result.output
        found[stored] = json.loads(result.stdout)["weight_bytes"]
    linear, scales = 4 * 32 * 32 + 3 * 32 * 48 + 32 * 64, 2 * (5 * 32 + 2 * 48 + 64)
    assert found["model"] - found["int8"] == linear - scales
    assert found["int8"] - found["int4"] == linear // 2
    wrong = CliRunner().invoke(app, [*args, "--weights", "int2"])
    assert wrong.exit_code == 1 and "weights is 'int2'" in str(wrong.exception)
