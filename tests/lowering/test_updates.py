"""Updates are told from other results; which of them are weights, which state, and where the state belongs."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from helpers import normal, traced

from wsc.errors import UnsupportedError
from wsc.lowering.entry import entry_of, weight_leaves
from wsc.lowering.normalize import normalize
from wsc.lowering.roles import find_roles
from wsc.lowering.updates import behind, find_updates, gradients, homes, unchanged, updated_weights

P = {"a": normal(4, 6), "b": normal(6)}
X = normal(3, 4)


def loss(p, x):
    return jnp.mean(jnp.tanh(x @ p["a"] + p["b"]) ** 2)


def found(fn, *args, weights=None):
    """(normalized program, updates, weights among the leaves) of a function of `args`."""
    entry = entry_of(fn, args, None)
    t = traced(entry.fn, *entry.args)
    weights = weight_leaves(entry) if weights is None else frozenset(weights)
    n = normalize(t, weights)
    updates = find_updates(t, n, entry.in_place)
    return n, updates, updated_weights(n, updates, weights)


def updates_of(fn, *args):
    return found(fn, *args)[1]


def sgd(p, x):
    value, g = jax.value_and_grad(loss)(p, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, p, g), value


def momentum(p, m, x):
    g = jax.grad(loss)(p, x)
    m = jax.tree.map(lambda m, g: 0.9 * m + g, m, g)
    return jax.tree.map(lambda p, m: p - 0.1 * m, p, m), m


def test_a_tree_that_comes_back_changed_is_an_update():
    assert updates_of(sgd, P, X) == {0: 0, 1: 1}
    assert updates_of(momentum, P, P, X) == {0: 0, 1: 1, 2: 2, 3: 3}


def test_results_in_another_order_are_paired_by_what_they_are_computed_from():
    assert updates_of(lambda p, m, x: momentum(p, m, x)[::-1], P, P, X) == {0: 2, 1: 3, 2: 0, 3: 1}


def test_bare_arrays_are_no_trees():
    assert updates_of(lambda w, x: w - 0.1 * jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w), P["a"], X) == {}


def test_gradients_alone_are_no_updates():
    """Of the weights' shapes, and not computed from them element by element."""

    def linear(p, x):
        return jnp.sum(x @ p["a"]) + jnp.sum(p["b"])

    assert updates_of(lambda p, x: jax.grad(linear)(p, x), P, X) == {}
    assert updates_of(lambda p, x: jax.tree.map(lambda a: a.astype(jnp.bfloat16), sgd(p, x)[0]), P, X) == {}


def test_a_sum_over_elements_is_no_update():
    assert (
        updates_of(lambda p, x: {"a": p["a"] @ jnp.ones((6, 6)) + x.sum(), "b": jnp.sum(p["b"]) * P["b"]}, P, X) == {}
    )


def test_other_dtypes_are_no_updates():
    assert updates_of(lambda p, x: {"a": (p["a"] + 1).astype(jnp.bfloat16), "b": p["b"] * 2}, P, X) == {1: 1}


def test_leaves_that_come_as_they_went_are_unchanged():
    n, updates, weights = found(lambda p, x: ({**p, "b": p["b"] - loss(p, x)}, x), P, X)
    assert updates == {0: 0, 1: 1}
    assert unchanged(n.jaxpr, updates) == {0}
    assert weights == {0, 1}


def test_step_counts_are_paired_with_their_tree():
    def step(p, s, x):
        return *momentum(p, s["m"], x)[:1], {"m": momentum(p, s["m"], x)[1], "count": s["count"] + 1}

    n, updates, weights = found(step, P, {"m": P, "count": jnp.int32(0)}, X)
    shapes = sorted((n.jaxpr.outvars[o].aval.shape, n.jaxpr.invars[i].aval.shape) for o, i in updates.items())
    assert shapes == [((), ())] + [((4, 6), (4, 6))] * 2 + [((6,), (6,))] * 2
    assert weights == {0, 1}


def test_copies_in_another_precision_follow_their_masters():
    """Weights in bfloat16 are computed from float32 ones: both stay; the masters are state of the weights."""
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), P)

    def step(low, p, x):
        g = jax.grad(loss)(low, x)
        p = jax.tree.map(lambda p, g: p - 0.1 * g.astype(jnp.float32), p, g)
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16), p), p

    n, updates, weights = found(step, low, P, X.astype(jnp.bfloat16))
    assert updates == {0: 0, 1: 1, 2: 2, 3: 3}
    assert weights == {0, 1}
    at = homes(n, updates, weights)
    assert {n.jaxpr.invars.index(a): n.jaxpr.invars.index(b) for a, b in at.items() if a is not b} == {2: 0, 3: 1}


def test_weights_are_what_is_read_for_more_than_updates():
    assert found(sgd, P, X)[2] == {0, 1}
    assert found(momentum, P, P, X)[2] == {0, 1}
    assert found(lambda p, m, x: momentum(p, m, x)[::-1], P, P, X)[2] == {0, 1}
    averaged = found(lambda p, x: jax.tree.map(lambda p: 0.5 * p + x.sum(), p), P, X)
    assert averaged[1] == {0: 0, 1: 1} and averaged[2] == frozenset()


def test_weights_that_are_not_updated_stay_weights():
    """A frozen part, in a tree of its own."""

    def step(frozen, p, x):
        g = jax.grad(lambda p: loss(p, jnp.tanh(x @ frozen["c"])))(p)
        return jax.tree.map(lambda p, g: p - 0.1 * g, p, g)

    n, updates, weights = found(step, {"c": normal(4, 4)}, P, X)
    assert updates == {0: 1, 1: 2} and weights == {0, 1, 2}
    assert {n.jaxpr.invars.index(w) for w in homes(n, updates, weights).values()} <= {1, 2}


def test_moments_belong_to_their_weights():
    tx = optax.adam(0.1)

    def step(s, p, x):
        u, s = tx.update(jax.grad(loss)(p, x), s, p)
        return s, optax.apply_updates(p, u)

    n, updates, weights = found(step, tx.init(P), P, X)
    assert weights == {5, 6}
    assert updates == {i: i for i in range(7)}
    at = {n.jaxpr.invars.index(a): n.jaxpr.invars.index(b) for a, b in homes(n, updates, weights).items()}
    assert {1: 5, 2: 6, 3: 5, 4: 6}.items() <= at.items() and 0 not in at


def test_behind_stops_at_products_and_other_shapes():
    n = found(lambda a, b, c: jnp.exp(a) * b + (a @ c) + jnp.sum(b), *[normal(4, 4, seed=i) for i in range(3)])[0]
    makers = {v: e for e in n.jaxpr.eqns for v in e.outvars}
    inputs = [v for v in behind(n.jaxpr.outvars[0], makers) if v in n.jaxpr.invars]
    assert sorted(map(n.jaxpr.invars.index, inputs)) == [0, 1]


def test_gradients_are_followed_back_to_what_makes_them():
    """Through the update and the transposition behind a product: each to its own weight."""
    n, updates, weights = found(momentum, P, P, X)
    roles = find_roles(n, tuple("abcde"), weights, updates, homes(n, updates, weights))
    made = gradients(n.jaxpr.eqns, roles)
    makers = {v: e for e in n.jaxpr.eqns for v in e.outvars}
    dots = [(v, w, t) for v, (w, t) in made.items() if makers[v].primitive.name == "dot_general"]
    assert [n.jaxpr.invars.index(w) for _, w, _ in dots] == [0]
    assert [t.primitive.name if t else None for *_, t in dots] == ["transpose"]
    sums = [w for v, (w, _) in made.items() if makers[v].primitive.name == "reduce_sum"]
    assert [n.jaxpr.invars.index(w) for w in sums] == [1]
    assert all(v.aval.size == w.aval.size for v, (w, _) in made.items())


def test_without_trained_weights_there_are_no_gradients():
    n, updates, weights = found(lambda p, x: loss(p, x), P, X)
    assert updates == {}
    assert gradients(n.jaxpr.eqns, find_roles(n, tuple("abc"), weights)) == {}


class Counter(nnx.Module):
    def __init__(self):
        self.w, self.seen = nnx.Param(P["a"]), nnx.Variable(jnp.zeros(4))

    def __call__(self, x):
        self.seen[...] = self.seen[...] + x.sum(0)
        return x @ self.w[...]


def test_objects_changed_in_place():
    """Read from the object before and after; what is not set is not in it."""
    n, updates, weights = found(lambda m, x: m(x), Counter(), X)
    (out, old), *others = updates.items()
    assert not others and out == 1
    assert n.jaxpr.invars[old].aval.shape == n.jaxpr.outvars[out].aval.shape == (4,)
    assert weights == {1 - old}


def test_objects_that_gain_a_variable_are_refused():
    def step(m, x):
        m.extra = nnx.Variable(x)
        return m(x)

    entry = entry_of(step, (Counter(), X), None)
    with pytest.raises(UnsupportedError, match="gives its arguments another structure"):
        traced(entry.fn, *entry.args)
