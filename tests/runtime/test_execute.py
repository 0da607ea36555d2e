"""Placed programs compute what JAX computes, whichever way they are cut, in the order in which the wafer adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, most_parts, normal, run_everywhere, small, sums_over_pes
from jax import lax

import wsc
from wsc.runtime.reference import reduce_line


def mlp(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


def mlp_weights(d: int, f: int, m: int, dtype=np.float32):
    return {"a": normal(d, f, dtype=dtype), "b": normal(f, m, seed=1, dtype=dtype)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("d", "f", "m", "batch"), [(37, 41, 19, 2), (7, 5, 3, 1), (130, 33, 1, 5)])
def test_mlp(d, f, m, batch, dtype):
    p, x = mlp_weights(d, f, m, dtype), normal(batch, d, seed=2, dtype=dtype)
    exe = run_everywhere(mlp, p, x, wafer=small(usable=2048))
    assert "dot_general" in sums_over_pes(exe.program)


@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (16, 1), (2, 3), (5, 7), (13, 11)])
def test_shapes_of_the_wafer(rows, columns):
    p, x = mlp_weights(29, 31, 23), normal(3, 29, seed=2)
    exe = run_everywhere(mlp, p, x, wafer=small(rows, columns, usable=8192))
    assert most_parts(exe.program) <= rows * columns


def attention(p, x, k, v, at):
    """One new token over a cache, two queries to a key head."""
    q = (x @ p["q"]).reshape(1, 2, 2, 8)
    k = lax.dynamic_update_slice(k, (x @ p["k"]).reshape(1, 1, 2, 8), (0, at, 0, 0))
    v = lax.dynamic_update_slice(v, (x @ p["v"]).reshape(1, 1, 2, 8), (0, at, 0, 0))
    scores = jnp.einsum("bngh,bsnh->bngs", q, k) / 8**0.5
    seen = jnp.arange(k.shape[1]) <= at
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bngs,bsnh->bngh", weights, v).reshape(1, 32)
    return out @ p["o"], k, v


def attention_arguments(context: int, width: int = 24):
    p = {n: normal(width, m, seed=i) for i, (n, m) in enumerate([("q", 32), ("k", 16), ("v", 16)])}
    p["o"] = normal(32, width, seed=3)
    caches = [normal(1, context, 2, 8, seed=s) for s in (4, 5)]
    return p, normal(1, width, seed=6), *caches


@pytest.mark.parametrize(("context", "at"), [(9, 0), (9, 8), (16, 4), (33, 7)])
def test_attention_with_a_cache(context, at):
    p, x, k, v = attention_arguments(context)
    exe = run_everywhere(attention, p, x, k, v, jnp.int32(at), wafer=small(usable=2048))
    assert most_parts(exe.program) > 1
    assert any(a.kind == "state" for s in exe.program.stages for a in s.memory)


def test_attention_over_many_steps_feeds_its_cache_back():
    p, _, k, v = attention_arguments(12)
    exe = wsc.compile(attention, p, normal(1, 24), k, v, jnp.int32(0), wafer=small(usable=2048))
    other = k, v
    for at in range(12):
        x = normal(1, 24, seed=at + 10)
        (y, k, v), _ = exe(p, x, k, v, jnp.int32(at))
        expected, *other = jax.jit(attention)(p, x, *other, jnp.int32(at))
        assert_close(y, expected, 2e-5)


def test_weight_on_the_left():
    exe = run_everywhere(lambda w, x: w @ x, normal(33, 47), normal(47, 2), weight_argnums=0)
    assert "dot_general" in sums_over_pes(exe.program)
    assert [w.name for s in exe.program.stages for w in s.weights] == ["w"]


def test_weight_on_the_left_contracted_on_its_first_dimension():
    run_everywhere(lambda w, x: jnp.einsum("kn,bk->nb", w, x), normal(33, 47), normal(3, 33), weight_argnums=0)


def test_two_contracted_dimensions():
    exe = run_everywhere(
        lambda w, x: jnp.einsum("bnh,nhd->bd", x, w), normal(5, 7, 31), normal(2, 5, 7), weight_argnums=0
    )
    assert "dot_general" in sums_over_pes(exe.program)


def test_two_contracted_dimensions_in_another_order():
    run_everywhere(lambda w, x: jnp.einsum("hbn,dnh->bd", x, w), normal(31, 5, 7), normal(7, 2, 5), weight_argnums=0)


def test_three_contracted_dimensions():
    run_everywhere(lambda w, x: jnp.einsum("abc,cabd->d", x, w), normal(6, 3, 5, 4), normal(3, 5, 6), weight_argnums=0)


@pytest.mark.parametrize("weights", [0, 1])
def test_batched_dots(weights):
    exe = run_everywhere(
        lambda w, x: jnp.einsum("bij,bjk->bik", w, x), normal(5, 9, 13), normal(5, 13, 3), weight_argnums=weights
    )
    assert most_parts(exe.program) > 1


def test_four_dimensional_weight_on_the_left():
    """As Gemma's KV einsum: [2, heads, width, head] against [batch, time, width]."""
    run_everywhere(
        lambda w, x: jnp.einsum("btd,cndh->cbtnh", x, w), normal(2, 3, 14, 6), normal(1, 4, 14), weight_argnums=0
    )


def test_outer_product_has_nothing_contracted():
    run_everywhere(lambda p, x: jnp.outer(x, p), normal(9), normal(7), weight_argnums=0)


def test_tied_embedding():
    def tied(p, ids):
        x = jnp.take(p["e"], ids, axis=0, mode="clip")
        return jnp.tanh(x @ p["w"]) @ p["e"].T

    p = {"e": normal(50, 24), "w": normal(24, 24, seed=1)}
    exe = run_everywhere(tied, p, jnp.array([[3, 49, 0]], jnp.int32), wafer=small(usable=2048))
    assert most_parts(exe.program) > 1


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_over_stacked_layers(reverse):
    def stacked(p, x):
        def layer(x, w):
            x = x + jnp.tanh(x @ w["a"]) @ w["b"]
            return x, x.sum()

        return lax.scan(layer, x, p, reverse=reverse)

    p = {"a": normal(4, 17, 25) / 5, "b": normal(4, 25, 17, seed=1) / 5}
    exe = run_everywhere(stacked, p, normal(2, 17), wafer=small(usable=2048))
    assert len(exe.program.stages) == 4


def test_several_outputs_scalars_unused_and_passed_through():
    def fn(p, x, unused, factor, passed):
        y = x @ p["w"]
        return {
            "y": y * factor,
            "mean": y.mean(),
            "passed": passed,
            "twice": (passed, passed + 1),
            "const": jnp.arange(3),
        }

    exe = run_everywhere(fn, {"w": normal(21, 9)}, normal(2, 21), normal(4), jnp.float32(3), normal(5))
    assert most_parts(exe.program) > 1


def test_constants_closed_over():
    table = normal(19, 23)
    run_everywhere(lambda x: x @ table + table.sum(axis=0), normal(2, 19))


def test_output_that_is_a_literal_and_argument_that_is_python():
    exe = wsc.compile(lambda x: (x * 2, 1.5), jnp.float32(4), wafer=small())
    (y, one_and_a_half), _ = exe(jnp.float32(4))
    assert (float(y), float(one_and_a_half)) == (8.0, 1.5)


def test_no_work_at_all():
    (y,), telemetry = wsc.compile(lambda x: (x,), normal(4), wafer=small())(normal(4))
    np.testing.assert_array_equal(y, normal(4))
    assert telemetry.total.flops == 0


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        *(("sum", axis) for axis in (0, 1, 2, (0, 2), (0, 1, 2))),
        ("max", 1),
        ("max", 2),
        ("min", 2),
        ("mean", 2),
        ("prod", 2),
    ],
)
def test_reductions_after_a_dot(axis, name):
    def fn(w, x):
        return getattr(jnp, name)((x @ w).reshape(2, 5, 7) / 9, axis=axis)

    run_everywhere(fn, normal(21, 35), normal(2, 21), weight_argnums=0)


def test_sum_over_pes_is_in_the_wafers_order():
    exe = run_everywhere(lambda w, x: (x @ w).sum(axis=-1), normal(21, 64), normal(2, 21), weight_argnums=0)
    assert "reduce_sum" in sums_over_pes(exe.program)


@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("softmax", lambda y: jax.nn.softmax(y, axis=-1)),
        ("rmsnorm", lambda y: y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-5)),
        ("layernorm", lambda y: (y - y.mean(-1, keepdims=True)) / (y.std(-1, keepdims=True) + 1e-3)),
        ("transpose", lambda y: y.reshape(3, 4, 12).transpose(1, 2, 0)),
        ("reshape", lambda y: y.reshape(6, 24)),
        ("slice", lambda y: y[:, 5:31:3]),
        ("concatenate", lambda y: jnp.concatenate([y[:, 24:], y[:, :24], y], axis=-1)),
        ("rotate", lambda y: jnp.concatenate([-y[:, 24:], y[:, :24]], axis=-1)),
        ("split", lambda y: jnp.split(y, 3, axis=-1)),
        ("stack", lambda y: jnp.stack([y, y * 2], axis=1)),
        ("tile", lambda y: jnp.tile(y, (2, 3))),
        ("repeat", lambda y: jnp.repeat(y, 2, axis=1)),
        ("pad", lambda y: jnp.pad(y, ((1, 2), (3, 0)))),
        ("flip", lambda y: y[:, ::-1]),
        ("roll", lambda y: jnp.roll(y, 5, axis=-1)),
        ("cumsum", lambda y: jnp.cumsum(y, axis=-1)),
        ("sort", lambda y: jnp.sort(y, axis=-1)),
        ("argsort", lambda y: jnp.argsort(y, axis=-1)),
        ("top_k", lambda y: lax.top_k(y, 4)),
        ("argmax", lambda y: jnp.argmax(y, axis=-1)),
        ("one_hot", lambda y: jax.nn.one_hot(jnp.argmax(y, axis=-1), 7)),
        ("take", lambda y: jnp.take(y, jnp.array([5, 1, 40]), axis=1)),
        ("take_along_axis", lambda y: jnp.take_along_axis(y, jnp.argsort(y, axis=-1), axis=-1)),
        ("dynamic_slice", lambda y: lax.dynamic_slice(y, (jnp.argmax(y[:, 0]), 2), (1, 5))),
        ("set", lambda y: y.at[:, 7].set(0)),
        ("scatter_add", lambda y: jnp.zeros((3, 9)).at[:, jnp.arange(48) % 9].add(y)),
        ("where", lambda y: jnp.where(y > 0, y, 0.1 * y)),
        ("clip", lambda y: jnp.clip(y, -1, 1)),
        ("gelu", jax.nn.gelu),
        ("silu", jax.nn.silu),
        ("relu", jax.nn.relu),
        ("logsumexp", lambda y: jax.nn.logsumexp(y, axis=0)),
        ("remainder", lambda y: y % 0.7),
        ("power", lambda y: jnp.abs(y) ** 1.5 + y**3 + (jnp.abs(y) + 1) ** -2),
        ("integers", lambda y: (y * 10).astype(jnp.int32) // 3 + (y > 0)),
        ("norm", lambda y: jnp.linalg.norm(y, axis=-1)),
        ("self product", lambda y: y @ y.T),
        ("iota", lambda y: y * jnp.arange(48)),
        ("expand", lambda y: y[:, None, :, None] * jnp.ones((1, 2, 1, 3))),
        ("triangle", lambda y: jnp.tril(y @ y.T)),
    ],
)  # fmt: skip
def test_ops_on_a_cut_value(name, fn):
    """Each op gets a value that a matrix product has left cut over PEs."""
    exe = run_everywhere(
        lambda w, x: fn(x @ w), normal(21, 48), normal(3, 21), weight_argnums=0, wafer=small(usable=4096)
    )
    assert most_parts(exe.program) > 1


def test_equal_sums_bit_for_bit_where_tiles_are_exact():
    """One element a tile is not zero, so partial sums are exact, and only the order between PEs decides the bits."""
    wafer = small(rows=16, columns=1, usable=256)
    exe = wsc.compile(lambda w, x: x @ w, jnp.ones((64, 3)), jnp.ones((1, 64)), wafer=wafer, weight_argnums=0)
    (op,) = [op for _, op in exe.program.ops() if op.name == "dot_general"]
    parts, (reduce,) = op.ins[0].y[1], [s for s in op.steps if hasattr(s, "algorithm")]
    assert parts > 4
    tile = -(-64 // parts)
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = (rng.normal(size=parts) * 10.0 ** rng.integers(-6, 7, parts)).astype(np.float32)
        x = np.zeros((1, 64), np.float32)
        x[0, ::tile] = values[: len(range(0, 64, tile))]
        held = list(x[0, ::tile])
        held += [np.float32(0)] * (parts - len(held))
        y, _ = exe(jnp.ones((64, 3)), x)
        np.testing.assert_array_equal(np.asarray(y)[0], np.full(3, reduce_line(held, reduce.algorithm, reduce.shape)))
