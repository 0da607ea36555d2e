import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy_llama
import pytest
from flax import nnx

from wsc.errors import ArgumentError, ConfigError
from wsc.models import Cache, Llama, LlamaConfig, Tokenizer, load
from wsc.models.rope import RopeScaling, inverse_frequencies

TOKENS = np.random.default_rng(0).integers(0, 300, 20).tolist()


@jax.jit
def run(model: Llama, tokens: jax.Array, cache: Cache | None) -> tuple[jax.Array, Cache]:
    return model(tokens, cache)


def greedy(model: Llama, prompt: list[int], count: int) -> list[int]:
    """`prompt` and `count` tokens after it, by prefill and then one at a time."""
    ids = list(prompt)
    logits, cache = run(model, jnp.array([prompt]), model.init_cache(context=len(prompt) + count))
    for _ in range(count):
        ids.append(int(logits[0, -1].argmax()))
        logits, cache = run(model, jnp.array([ids[-1:]]), cache)
    return ids


def variants(c: LlamaConfig) -> dict[str, LlamaConfig]:
    return {
        "llama3": c,
        "tied": dataclasses.replace(c, tie_word_embeddings=True),
        "linear": dataclasses.replace(c, rope_scaling=RopeScaling("linear", 3.0)),
        "plain": dataclasses.replace(c, rope_scaling=None),
        "all heads": dataclasses.replace(c, num_key_value_heads=6),
        "one kv head": dataclasses.replace(c, num_key_value_heads=1),
    }


@pytest.mark.parametrize("name", ["llama3", "tied", "linear", "plain", "all heads", "one kv head"])
def test_against_float64_numpy(tiny_config: LlamaConfig, name: str) -> None:
    model = Llama(variants(tiny_config)[name], rngs=nnx.Rngs(3))
    got, cache = run(model, jnp.array([TOKENS]), model.init_cache(context=32))
    np.testing.assert_allclose(got[0], numpy_llama.logits(model, TOKENS), atol=2e-5)
    assert got.dtype == jnp.float32 and int(cache.length) == len(TOKENS)


def test_without_a_cache_the_logits_are_those_of_an_empty_one(tiny: Llama) -> None:
    rows = [TOKENS, TOKENS[::-1]]
    got, cache = run(tiny, jnp.array(rows), None)
    for logits, row in zip(got, rows):
        np.testing.assert_allclose(logits, numpy_llama.logits(tiny, row), atol=2e-4)
    _, want = run(tiny, jnp.array(rows), tiny.init_cache(batch=2, context=len(TOKENS)))
    assert int(cache.length) == int(want.length) == len(TOKENS)
    for a, b in zip((*cache.k, *cache.v), (*want.k, *want.v), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_norm_scales_count(tiny: Llama) -> None:
    got, _ = run(tiny, jnp.array([TOKENS]), tiny.init_cache(context=20))
    np.testing.assert_allclose(got[0], numpy_llama.logits(tiny, TOKENS), atol=2e-4)


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 12]])
def test_any_split_of_the_prompt_gives_the_same_logits(tiny: Llama, pieces: list[int]) -> None:
    whole = numpy_llama.logits(tiny, TOKENS)
    cache, at = tiny.init_cache(context=24), 0
    for n in pieces:
        got, cache = run(tiny, jnp.array([TOKENS[at : at + n]]), cache)
        np.testing.assert_allclose(got[0], whole[at : at + n], atol=2e-4)
        at += n


def test_rows_of_a_batch_are_independent(tiny: Llama) -> None:
    rows = [TOKENS, TOKENS[::-1]]
    got, _ = run(tiny, jnp.array(rows), tiny.init_cache(batch=2, context=32))
    for logits, row in zip(got, rows):
        np.testing.assert_allclose(logits, numpy_llama.logits(tiny, row), atol=2e-4)


def test_bfloat16_is_close_and_stays_bfloat16(tiny: Llama) -> None:
    model = jax.tree.map(lambda w: w.astype(jnp.bfloat16), tiny)
    got, cache = run(model, jnp.array([TOKENS]), model.init_cache(context=20))
    assert got.dtype == jnp.float32 and cache.k[0].dtype == jnp.bfloat16
    want = numpy_llama.logits(tiny, TOKENS)
    assert np.abs(got[0] - want).max() < 0.05 * np.abs(want).max()


def test_equal_shapes_with_other_statics_do_not_share_a_trace(tiny_config: LlamaConfig) -> None:
    """The block has its own jit: what is not a weight must be part of its key."""
    for change in ({"rms_norm_eps": 0.1}, {"rope_theta": 50.0}, {"num_attention_heads": 12, "head_dim": 8}):
        heads = {"num_key_value_heads": 4} if "head_dim" in change else {}
        model = Llama(dataclasses.replace(tiny_config, **change, **heads), rngs=nnx.Rngs(3))
        got, _ = run(model, jnp.array([TOKENS]), model.init_cache(context=32))
        np.testing.assert_allclose(got[0], numpy_llama.logits(model, TOKENS), atol=2e-5)


def test_tracing_405b_takes_no_memory_and_under_a_second() -> None:
    start = time.perf_counter()
    model = Llama.abstract("llama-3.1-405b")
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    traced = jax.jit(lambda m, t, c: m(t, c)).trace(model, tokens, model.abstract_cache())
    seconds = time.perf_counter() - start
    blocks = [e.params["jaxpr"] for e in traced.jaxpr.eqns if e.params.get("name") == "block"]
    assert len(blocks) == 126 and len({id(b) for b in blocks}) == 1, "every layer must reuse one trace"
    assert seconds < 3  # 0.4 s alone on a laptop
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == model.config.parameters


def test_arguments_are_named_by_path(tiny: Llama) -> None:
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tiny)]
    names = {p.removesuffix(".value").lstrip(".") for p in paths}
    per_layer = ["attn_norm.scale", "mlp_norm.scale", *(f"attn.{n}.kernel" for n in "qkvo")]
    per_layer += [f"mlp.{n}.kernel" for n in ("gate", "up", "down")]
    assert names == {
        "embed.embedding",
        "norm.scale",
        "lm_head.kernel",
        *(f"layers[{i}].{n}" for i in range(3) for n in per_layer),
    }


def test_abstract_has_the_shapes_of_the_real_one(tiny: Llama, tiny_config: LlamaConfig) -> None:
    shapes = jax.eval_shape(lambda: tiny)
    assert jax.tree.structure(shapes) == jax.tree.structure(Llama.abstract(tiny_config))
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, shapes, Llama.abstract(tiny_config))
    assert all(jax.tree.leaves(same))
    assert Llama.abstract("llama-3.1-8b").embed.embedding.dtype == jnp.bfloat16
    assert Llama.abstract("llama-3.1-8b", jnp.float32).init_cache(context=2).k[0].dtype == jnp.float32
    with pytest.raises(ConfigError, match="did you mean"):
        Llama.abstract("llama-3.1-8")


def test_linear_and_llama3_frequencies() -> None:
    base = inverse_frequencies(128, 5e5)
    np.testing.assert_allclose(inverse_frequencies(128, 5e5, RopeScaling("linear", 4.0)), base / 4, rtol=1e-6)
    scaled = inverse_frequencies(128, 5e5, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    assert scaled[0] == base[0] and scaled[-1] == pytest.approx(base[-1] / 8)
    assert scaled.dtype == np.float32


def test_wrong_arguments_are_named(tiny: Llama) -> None:
    cache = tiny.init_cache(context=4)
    with pytest.raises(ArgumentError, match=r"integers \[batch, time\], got float32\[1, 2\]"):
        tiny(jnp.ones((1, 2)), cache)
    with pytest.raises(ArgumentError, match=r"got int32\[2\]"):
        tiny(jnp.ones(2, jnp.int32), cache)
    with pytest.raises(ArgumentError, match="5 tokens do not fit a cache of 4"):
        tiny(jnp.ones((1, 5), jnp.int32), cache)
    with pytest.raises(ArgumentError, match=r"must be \(2, 2, 4, 16\)"):
        tiny(jnp.ones((2, 1), jnp.int32), cache)
    with pytest.raises(ArgumentError, match="the cache has 1 layers, the model 3"):
        tiny(jnp.ones((1, 1), jnp.int32), Cache(cache.k[:1], cache.v[:1], cache.length))


def test_stories260k(stories: Path) -> None:
    model, tokenizer = load(stories / "stories260K.bin", progress=False)
    golden = np.load(stories / "golden_f64.npz")
    prompt = golden["prompt"].tolist()
    got, _ = run(model, jnp.array([prompt]), model.init_cache(context=len(prompt)))
    np.testing.assert_allclose(got[0], golden["prompt_logits"], atol=1e-4)
    ids = golden["greedy_from_bos"].tolist()
    assert greedy(model, [1], len(ids) - 1) == ids
    assert tokenizer is not None
    text = tokenizer.decode(ids)
    assert text.startswith("Once upon a time") and tokenizer.encode(text, special=True) == ids


def test_smollm2_logits_against_transformers(smollm2: tuple[Llama, Tokenizer]) -> None:
    golden = np.load(Path(__file__).with_name("data") / "smollm2_golden.npz")
    model, _ = smollm2
    got, _ = run(model, jnp.array(golden["ids"][None]), model.init_cache(context=len(golden["ids"])))
    logits = np.asarray(got[0], np.float64)
    np.testing.assert_allclose(logits[:, golden["columns"]], golden["logits"], atol=2e-3)
    top = logits.max(axis=1)
    np.testing.assert_allclose(top + np.log(np.exp(logits - top[:, None]).sum(1)), golden["sums"], atol=2e-3)


def test_smollm2_says_what_transformers_says(smollm2: tuple[Llama, Tokenizer]) -> None:
    ids = np.load(Path(__file__).with_name("data") / "smollm2_golden.npz")["ids"].tolist()
    model, tokenizer = smollm2
    assert greedy(model, tokenizer.encode("The capital of France is"), 30) == ids
    assert tokenizer.decode(ids).startswith("The capital of France is Paris.")


def test_importing_models_imports_no_reader() -> None:
    code = (
        "import sys, wsc.models; "
        "print(*{'gguf', 'tokenizers', 'huggingface_hub', 'safetensors', 'jinja2'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
