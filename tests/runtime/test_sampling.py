"""Which tokens can be chosen, and how often, against probabilities worked out by hand."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from wsc.errors import ArgumentError
from wsc.runtime.sampling import Sampling

LOGITS = jnp.log(jnp.array([0.05, 0.5, 0.15, 0.3]))


def counts(sampling, steps=400):
    return collections.Counter(sampling.choose(LOGITS, step) for step in range(steps))


def test_greedy():
    assert counts(Sampling(), 3) == {1: 3}
    assert Sampling().choose(LOGITS.astype(jnp.bfloat16), 0) == 1


def test_frequencies_are_the_softmax():
    found = counts(Sampling(temperature=1.0), 1000)
    for token, p in enumerate([0.05, 0.5, 0.15, 0.3]):
        assert abs(found[token] / 1000 - p) < 5 * (p * (1 - p) / 1000) ** 0.5


def test_temperature_sharpens():
    """At half the temperature probabilities are squared: 0.25 of 0.365."""
    found = counts(Sampling(temperature=0.5), 1000)
    assert abs(found[1] / 1000 - 0.25 / 0.365) < 0.08


@pytest.mark.parametrize(("k", "allowed"), [(1, {1}), (2, {1, 3}), (3, {1, 2, 3}), (99, {0, 1, 2, 3})])
def test_top_k(k, allowed):
    assert set(counts(Sampling(temperature=1.0, top_k=k))) == allowed


@pytest.mark.parametrize(
    ("p", "allowed"), [(0.01, {1}), (0.49, {1}), (0.6, {1, 3}), (0.9, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p(p, allowed):
    """The smallest set of likeliest tokens whose probabilities reach p."""
    assert set(counts(Sampling(temperature=1.0, top_p=p))) == allowed


def test_seed_and_step_decide():
    a, b = Sampling(temperature=1.0, seed=1), Sampling(temperature=1.0, seed=2)
    sequences = [[s.choose(LOGITS, i) for i in range(50)] for s in (a, a, b)]
    assert sequences[0] == sequences[1] != sequences[2]
    assert len(set(sequences[0])) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1: it must be 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": np.inf}, "temperature is inf"),
        ({"top_k": -2}, "top_k is -2"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.01}, "top_p is 1.01: it must be above 0 and at most 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ArgumentError, match=message):
        Sampling(**options)
