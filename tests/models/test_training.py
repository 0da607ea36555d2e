"""Training: the loss and the step against numpy in float64, and batches that depend on seed and step alone."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_llama
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsc.errors import ArgumentError, ConfigError
from wsc.models import Llama
from wsc.models.bytes import END, VOCABULARY, byte_tokenizer, tokens_of, topics
from wsc.models.training import Recipe, Text, Trainer, mean_loss, nats

RECIPE = Recipe(layers=1, hidden=16, heads=2, sequence=16, batch=4, learning_rate=0.01, schedule=20)
TEXT = Text(tokens_of(topics()))
DRAWN = Text(np.random.default_rng(0).integers(0, VOCABULARY, 3000).astype(np.int32))


def nats_by_hand(model: Llama, batch: np.ndarray) -> np.ndarray:
    """-ln of the probability of every next token, by the float64 Llama."""
    rows = []
    for row in batch:
        logits = numpy_llama.logits(model, row[:-1].tolist())
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        rows.append(-np.log(chances[np.arange(len(row) - 1), row[1:]]))
    return np.array(rows)


def test_loss_against_float64_numpy() -> None:
    trainer, batch = Trainer(RECIPE, DRAWN), DRAWN.batch(RECIPE, 0)
    got = jax.jit(nats)(trainer.model, jnp.asarray(batch))
    want = nats_by_hand(trainer.model, batch)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert got.dtype == jnp.float32
    assert float(jax.jit(mean_loss)(trainer.model, jnp.asarray(batch))) == pytest.approx(want.mean(), abs=1e-5)


def test_steps_are_adamw_by_hand() -> None:
    """Loshchilov and Hutter's algorithm 2 with clipping, in float64; rates are a tenth of the peak and, halfway up two
    steps of warmup, 55 % of it."""
    trainer, slopes_of = Trainer(RECIPE, DRAWN), jax.jit(jax.grad(mean_loss))
    tree = jax.tree.structure(trainer.model)
    weights = [np.asarray(w, np.float64) for w in jax.tree.leaves(trainer.model)]
    first, second = [[np.zeros_like(w) for w in weights] for _ in range(2)]
    for t, rate in ((1, 0.001), (2, 0.0055)):
        model = jax.tree.unflatten(tree, [jnp.asarray(w, jnp.float32) for w in weights])
        slopes = jax.tree.leaves(slopes_of(model, jnp.asarray(DRAWN.batch(RECIPE, t - 1))))
        slopes = [np.asarray(g, np.float64) for g in slopes]
        norm = math.sqrt(sum((g**2).sum() for g in slopes))
        assert norm > 1  # so that clipping counts
        for i, g in enumerate(g / norm for g in slopes):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.95 * second[i] + 0.05 * g**2
            step = first[i] / (1 - 0.9**t) / (np.sqrt(second[i] / (1 - 0.95**t)) + 1e-8)
            weights[i] = weights[i] - rate * (step + 0.1 * weights[i])
    assert len(list(trainer.run(2))) == 2
    for got, want in zip(jax.tree.leaves(trainer.model), weights, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_loss_falls_on_real_text() -> None:
    trainer = Trainer(RECIPE, TEXT)
    before = trainer.examine()
    losses = list(trainer.run(60))
    assert trainer.step == 60
    assert np.mean(losses[:5]) > 5.3  # nats; a guess among 288 tokens costs 5.66
    assert np.mean(losses[-5:]) < 4
    assert before > 8 and trainer.examine() < 6  # bits; a guess among 256 bytes costs 8


def test_examine_counts_bits_of_bytes() -> None:
    tokens = tokens_of(["wafer " * 20, "scale " * 30])
    trainer = Trainer(dataclasses.replace(RECIPE, sequence=8), Text(tokens))
    rest = tokens[len(tokens) - math.ceil(len(tokens) / 10) :]
    windows = [rest[i : i + 9] for i in range(0, len(rest) - 8, 8)]
    cost = sum(nats_by_hand(trainer.model, w[None]).sum() for w in windows)
    bytes_read = sum((w[1:] != END).sum() for w in windows)
    assert trainer.examine() == pytest.approx(cost / math.log(2) / bytes_read, rel=1e-5)


def test_batches_are_of_seed_and_step_alone() -> None:
    counted = Text(np.arange(2000, dtype=np.int32))
    batches = {(s, n): counted.batch(dataclasses.replace(RECIPE, seed=s), n) for s in (0, 1) for n in range(50)}
    again = Text(np.arange(2000, dtype=np.int32)).batch(dataclasses.replace(RECIPE, seed=1), 33)
    np.testing.assert_array_equal(batches[1, 33], again)
    assert len({b.tobytes() for b in batches.values()}) == 100
    every = np.concatenate(list(batches.values()))
    assert every.shape == (400, 17) and every.dtype == np.int32
    assert (np.diff(every, axis=1) == 1).all()  # whole pieces of the text
    assert every.min() < 50 and 1750 < every.max() < 1800  # the last tenth is never trained on
    held_out = counted.held_out(16)
    np.testing.assert_array_equal(held_out, 1800 + np.arange(12)[:, None] * 16 + np.arange(17))


def test_a_text_too_short_is_refused() -> None:
    Trainer(RECIPE, Text(np.zeros(170, np.int32)))
    with pytest.raises(ArgumentError, match="160 tokens: its last tenth must hold a sequence of 16 and one more"):
        Trainer(RECIPE, Text(np.zeros(160, np.int32)))
    with pytest.raises(ArgumentError, match=r"int32 \[N\] tokens, got float64\[2\]"):
        Text(np.zeros(2))


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    trainer = Trainer(RECIPE, DRAWN)
    trainer.model.norm.scale[...] = jnp.full(16, jnp.nan)
    with pytest.raises(ArgumentError, match="the loss of step 1 is nan; train with a lower learning rate"):
        list(trainer.run(1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": 0}, "recipe.layers must be a positive int, got 0"),
        ({"learning_rate": math.nan}, "recipe.learning_rate must be a positive float, got nan"),
        ({"seed": -1}, "recipe.seed must be a whole number"),
        ({"hidden": 30}, "must be a multiple of num_attention_heads"),
    ],
)
def test_a_recipe_that_none_can_have(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**values)


def test_a_recipe_from_a_mapping() -> None:
    assert Recipe.of(dataclasses.asdict(RECIPE)) == RECIPE
    with pytest.raises(ConfigError, match=r"a recipe has layers, hidden, .*, got layers, colour"):
        Recipe.of({"layers": 2, "colour": "red"})


def test_every_byte_is_its_own_token() -> None:
    tokenizer = byte_tokenizer()
    every = "".join(map(chr, range(128))) + "".join(map(chr, range(0x80, 0x800))) + "\U0001f600\uffff"
    assert tokenizer.encode(every) == list(every.encode())
    assert tokenizer.decode(list(every.encode())) == every
    assert tokenizer.vocab_size == END + 1 and tokenizer.eos_ids == {END}
    assert tokenizer.decode([65, END, VOCABULARY - 1, 66]) == "AB"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
@settings(max_examples=100, deadline=None)
def test_tokens_of_texts(texts: list[str]) -> None:
    found = tokens_of(texts)
    assert found.dtype == np.int32
    ends = [*np.flatnonzero(found == END)]
    pieces = [found[a:b] for a, b in zip([0, *(e + 1 for e in ends)], ends)]
    assert [bytes(p.tolist()).decode() for p in pieces] == texts
