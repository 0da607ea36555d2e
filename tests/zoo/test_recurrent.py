"""LSTM and GRU cells run over time by flax' own RNN, one way and both ways, and one step with its carry."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

TIME, WIDTH, HIDDEN = 4, 6, 8
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, TIME, WIDTH)), jnp.float32)


@pytest.mark.parametrize(
    "cell", [pytest.param(nn.OptimizedLSTMCell, marks=pytest.mark.slow), nn.GRUCell], ids=["lstm", "gru"]
)
def test_linen(equal, variables, cell):
    model = nn.RNN(cell(HIDDEN))
    equal(model, variables(model, X), X)


class Recurrent(nnx.Module):
    def __init__(self, cell, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(cell(WIDTH, HIDDEN, rngs=rngs))
        self.head = nnx.Linear(HIDDEN, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


@pytest.mark.parametrize("cell", [nnx.OptimizedLSTMCell, nnx.GRUCell], ids=["lstm", "gru"])
def test_nnx(equal, filled, cell):
    equal(filled(lambda rngs: Recurrent(cell, rngs)), X)


def test_both_ways(equal, variables):
    model = nn.Bidirectional(nn.RNN(nn.SimpleCell(HIDDEN)), nn.RNN(nn.SimpleCell(HIDDEN)))
    equal(model, variables(model, X), X)


def test_one_step(equal, variables):
    cell = nn.OptimizedLSTMCell(HIDDEN)
    carry = (jnp.full((2, HIDDEN), 0.1), jnp.full((2, HIDDEN), -0.2))
    weights = variables(cell, carry, X[:, 0])
    exe = equal(cell.apply, weights, carry, X[:, 0], weight_argnums=0)
    (found, _), _ = exe(weights, carry, X[:, 0])
    assert jax.tree.structure(found) == jax.tree.structure(carry)
