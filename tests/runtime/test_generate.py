"""Generated text is that of the model itself, run without wsc; prompts and stops at every edge."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from helpers import assert_close, small

import wsc
from wsc.errors import ArgumentError
from wsc.models import Llama, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
WAFER = small(24, 24, 16384)
CONTEXT, CHUNK = 24, 4


@pytest.fixture(scope="module")
def model():
    """Norms and logits far from uniform, so that greedy choices differ from token to token."""
    model = Llama(CONFIG, rngs=nnx.Rngs(0))
    leaves, tree = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module", params=["fabric", "xla"])
def exe(request, model):
    return wsc.compile(model, wafer=WAFER, context=CONTEXT, prefill_chunk=CHUNK, order=request.param)


@pytest.fixture(scope="module")
def greedy(model):
    """Greedy ids by the model alone: the whole text again for every token, no cache kept."""
    step = jax.jit(lambda model, ids, n: model(ids, model.init_cache(context=CONTEXT + 8))[0][0, n - 1])

    def ids(prompt, count):
        text = list(prompt)
        for _ in range(count):
            padded = jnp.array([text + [0] * (CONTEXT + 8 - len(text))])
            text.append(int(jnp.argmax(step(model, padded, len(text)))))
        return text[len(prompt) :]

    return ids


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11, 17])
def test_greedy_is_the_models_own(exe, greedy, length):
    """Prompts shorter than a prefill chunk, of a chunk, of several with a rest."""
    prompt = [(7 * i + 3) % 96 for i in range(length)]
    found = list(exe.generate_ids(prompt, 7))
    assert found == greedy(prompt, 7)
    assert len(set(found)) > 1


def test_prompts_to_the_end_of_the_context(exe, greedy):
    """The last chunk has no room: 22 tokens of 24 leave room for 2 and one more after them."""
    for length in (CONTEXT - 3, CONTEXT - 2, CONTEXT - 1, CONTEXT):
        prompt = [(5 * i + 1) % 96 for i in range(length)]
        found = list(exe.generate_ids(prompt, 10))
        assert len(found) == CONTEXT - length + 1
        assert found == greedy(prompt, len(found))


def test_stops_at_a_stop_token(exe, greedy):
    prompt = [3, 10, 17]
    expected = greedy(prompt, 8)
    stop = expected[4]
    assert list(exe.generate_ids(prompt, 8, stop=frozenset([stop]))) == expected[: expected.index(stop)]


def test_a_batch_runs_the_same_text_on_every_row(model, greedy):
    exe = wsc.compile(model, wafer=WAFER, context=CONTEXT, prefill_chunk=CHUNK, batch=3)
    assert list(exe.generate_ids([3, 10, 17, 24, 31], 5)) == greedy([3, 10, 17, 24, 31], 5)
    assert "batch 3" in exe.program.conditions


def test_one_decode_step_is_the_models(exe, model):
    cache = model.init_cache(context=CONTEXT)
    ids = jnp.array([[5]], jnp.int32)
    (logits, after), telemetry = exe(ids, cache)
    expected, expected_after = jax.jit(lambda m, i, c: m(i, c))(model, ids, cache)
    assert_close(logits, expected, 2e-5)
    assert_close(after, expected_after, 2e-5)
    assert telemetry.cycles > 0


def test_sampling_repeats_by_seed(exe):
    options = {"temperature": 1.0, "top_p": 0.95}
    one, same, other = (list(exe.generate_ids([1, 2, 3], 12, seed=s, **options)) for s in (5, 5, 6))
    assert one == same != other


def test_the_only_candidate_is_the_greedy_one(exe, greedy):
    expected = greedy([1, 2, 3], 6)
    assert list(exe.generate_ids([1, 2, 3], 6, temperature=2.0, top_k=1, seed=9)) == expected
    assert list(exe.generate_ids([1, 2, 3], 6, temperature=2.0, top_p=1e-6, seed=9)) == expected


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt has no tokens"),
        (
            [1] * (CONTEXT + 1),
            {"max_new_tokens": 4},
            f"has {CONTEXT + 1} tokens .* context of {CONTEXT}.*context={CONTEXT + 5}",
        ),
        ([1, 96], {}, "token 96 is outside the model's vocabulary of 96"),
        ([-1], {}, "token -1 is outside"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens is 0: it must be a whole number of at least 1"),
        (
            [1],
            {"temprature": 1.0},
            r"unknown sampling option \['temprature'\]: there are seed, temperature, top_k, top_p",
        ),
        ([1], {"temperature": -1.0}, "temperature is -1.0"),
        ([1], {"top_k": -1}, "top_k is -1"),
        ([1], {"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_refusals(exe, prompt, options, message):
    with pytest.raises(ArgumentError, match=message):
        list(exe.generate_ids(prompt, **options))


def test_an_abstract_model_does_not_generate():
    exe = wsc.compile(Llama.abstract(CONFIG), wafer=WAFER, context=CONTEXT, prefill_chunk=CHUNK)
    with pytest.raises(ArgumentError, match="without weights"):
        next(exe.generate_ids([1]))


class Letters:
    """A tokenizer of one letter a token."""

    eos_ids = frozenset([0])

    def encode(self, text):
        return [ord(c) - 32 for c in text]

    def stream(self):
        class Text:
            def push(self, token):
                return chr(token + 32)

            def flush(self):
                return "."

        return Text()


def test_text_is_that_of_the_ids(exe, greedy):
    expected = greedy(Letters().encode("Hi"), 5)
    ends = expected.index(0) if 0 in expected else 5
    text = "".join(chr(t + 32) for t in expected[:ends]) + "."
    assert exe.generate(Letters(), "Hi", 5) == text
    assert "".join(exe.stream(Letters(), "Hi", 5)) == text


def test_nothing_is_compiled_twice(exe, caplog):
    """Ten tokens and a second prompt: decode and prefill are traced by JAX once."""
    list(exe.generate_ids([1, 2, 3, 4, 5], 3))
    with jax.log_compiles():
        caplog.clear()
        list(exe.generate_ids([9, 8, 7, 6, 5, 4], 10))
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert compiled == []


def test_the_model_is_left_as_it_was(exe, model):
    before = jax.tree.map(lambda a: a.copy(), model)
    list(exe.generate_ids([1, 2, 3], 4))
    assert all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(model), strict=True))


def test_half_precision_generates(model):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model)
    exe = wsc.compile(half, wafer=WAFER, context=CONTEXT, prefill_chunk=CHUNK)
    assert "bfloat16" in exe.program.conditions
    assert len(list(exe.generate_ids([1, 2, 3], 4))) == 4


def test_the_cache_type_is_the_models(model):
    assert {f.name for f in dataclasses.fields(model.init_cache())} == {"k", "v", "length"}
