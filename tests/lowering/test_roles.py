"""Weights, state, activations and control are told by following the data."""

import jax
import jax.numpy as jnp
import pytest
from helpers import normal, traced
from jax import lax

from wsc.lowering.normalize import normalize
from wsc.lowering.roles import find_roles


def roles_of(fn, *args, weights=()):
    """Roles, normalized jaxpr; `weights` are flat indices of the leaves that are weights."""
    t = traced(fn, *args)
    n = normalize(t, frozenset(weights))
    return find_roles(n, t.arg_names, frozenset(weights)), n.jaxpr


def kinds(fn, *args, weights=()):
    roles, jaxpr = roles_of(fn, *args, weights=weights)
    return [roles.of(v) for v in jaxpr.invars]


def test_arguments():
    def fn(w, x, cache, position, mask):
        cache = lax.dynamic_update_slice(cache, x, (position, 0))
        return jnp.where(mask, cache @ w, 0.0), cache

    found = kinds(fn, normal(4, 5), normal(1, 4), normal(6, 4), jnp.int32(2), jnp.ones((6, 5), bool), weights=[0])
    assert found == ["weight", "activation", "state", "control", "control"]


def test_state_through_several_updates_and_scatter():
    def fn(x, cache):
        cache = cache.at[1].set(x)
        return lax.dynamic_update_slice(cache, x[None] * 2, (0, 0))

    assert kinds(fn, normal(4), normal(3, 4)) == ["activation", "state"]


def test_what_is_written_but_not_returned_is_no_state():
    assert kinds(lambda x, c: c.at[1].set(x).sum(), normal(4), normal(3, 4)) == ["activation", "activation"]


def test_what_is_returned_but_not_written_is_no_state():
    assert kinds(lambda x, c: (x.sum(), c), normal(4), normal(3, 4)) == ["activation", "activation"]


def test_a_weight_that_is_written_into_stays_a_weight():
    assert kinds(lambda w, x: w.at[0].set(x), normal(3, 4), normal(4), weights=[0])[0] == "weight"


def test_control_spreads_and_meets_data():
    def fn(x, position):
        angle = jnp.cos(position.astype(jnp.float32) * 2)
        return x * angle

    roles, jaxpr = roles_of(fn, normal(4), jnp.int32(3))
    by_name = {e.primitive.name: roles.of(e.outvars[0]) for e in jaxpr.eqns}
    assert by_name["cos"] == "control"
    assert roles.of(jaxpr.outvars[0]) == "activation"


def test_a_weight_seen_through_renames_is_a_weight():
    def fn(w, x):
        return x @ w.T.reshape(4, 6).astype(jnp.float32)

    roles, jaxpr = roles_of(fn, normal(6, 4), normal(1, 4), weights=[0])
    (dot,) = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert [roles.of(a) for a in dot.invars] == ["activation", "weight"]
    assert [w.name for w in roles.weights.values()] == ["w"]


def test_weight_on_the_left_and_tied_embedding():
    def fn(p, ids):
        x = jnp.take(p["e"], ids, axis=0, mode="clip")
        return p["w"] @ x, x @ p["e"].T

    roles, jaxpr = roles_of(fn, {"e": normal(9, 4), "w": normal(5, 2)}, jnp.array([1, 2]), weights=[0, 1])
    dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert sorted([[roles.of(a) for a in e.invars] for e in dots]) == [
        ["activation", "weight"],
        ["weight", "activation"],
    ]
    assert sorted(w.path for w in roles.weights.values()) == ["p.e", "p.w"]


def test_a_product_of_weights_is_an_activation():
    roles, jaxpr = roles_of(lambda a, b, x: x @ (a @ b), normal(3, 4), normal(4, 5), normal(1, 3), weights=[0, 1])
    assert [roles.of(e.outvars[0]) for e in jaxpr.eqns] == ["activation", "activation"]


def test_slices_of_stacked_weights_are_weights_of_their_own():
    def fn(p, x):
        return lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0]

    roles, _ = roles_of(fn, {"w": normal(3, 4, 4)}, normal(1, 4), weights=[0])
    rows = [w for w in roles.weights.values() if w.index is not None]
    assert [(w.name, w.nbytes) for w in rows] == [(f"p.w[{i}]", 64) for i in range(3)]


def test_quantized_weights():
    def fn(q, scale, x):
        return x @ (q.astype(jnp.float32) * scale)

    assert kinds(fn, jnp.ones((4, 5), jnp.int8), normal(5), normal(1, 4), weights=[0, 1])[0] == "weight"
    roles, _ = roles_of(fn, jnp.ones((4, 5), jnp.int8), normal(5), normal(1, 4), weights=[0, 1])
    assert {w.name: w.nbytes for w in roles.weights.values()} == {"q": 20, "scale": 20}
    roles, jaxpr = roles_of(fn, jnp.ones((3, 5), jnp.int4), normal(5), normal(1, 3), weights=[0, 1])
    assert {w.name: w.nbytes for w in roles.weights.values()} == {"q": 8, "scale": 20}  # 15 half bytes
    (dot,) = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert roles.of(dot.invars[1]) == "weight"  # dequantized where it is used


def test_a_program_on_integers_alone_has_activations():
    assert kinds(lambda a, b: a + b, jnp.arange(4), jnp.arange(4)) == ["activation", "activation"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_floats_of_every_width(dtype):
    assert kinds(lambda w, x: x @ w, normal(3, 4, dtype=dtype), normal(1, 3, dtype=dtype), weights=[0]) == [
        "weight",
        "activation",
    ]


def test_names_follow_the_users_structure():
    class_ = jax.tree_util.Partial(lambda x: x)  # a pytree without leaves does not disturb the names
    roles, _ = roles_of(
        lambda f, p, x: f(x) @ p["layers"][0]["w"], class_, {"layers": [{"w": normal(3, 4)}]}, normal(1, 3), weights=[0]
    )
    assert [w.path for w in roles.weights.values()] == ["p.layers[0].w"]
