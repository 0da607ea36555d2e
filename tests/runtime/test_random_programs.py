"""Random straight-line programs over many primitives: the placed program must compute what `jax.jit` computes."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import assert_close, assert_within_sram, normal, small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

import wsc

SMOOTH = [
    jnp.tanh,
    jnp.sin,
    jnp.abs,
    jnp.square,
    jax.nn.relu,
    jax.nn.silu,
    lambda a: -a,
    lambda a: a * 0.5 + 1,
    lambda a: jnp.exp(-jnp.abs(a)),
    lambda a: 1 / (1 + a * a),
    lambda a: jax.nn.softmax(a, axis=-1),
    lambda a: jnp.cumsum(a, axis=0) / 4,
    lambda a: a[::-1],
    lambda a: jnp.sort(a, axis=-1),
    lambda a: a.T,
    lambda a: a.reshape(-1, 1),
    lambda a: a.reshape(1, -1),
    lambda a: a.reshape(a.shape[1], a.shape[0]),
    lambda a: a[:, : max(1, a.shape[1] // 2)],
    lambda a: a[a.shape[0] // 2 :],
    lambda a: jnp.pad(a, ((0, 1), (1, 0))),
    lambda a: jnp.concatenate([a, a * 2], axis=1),
    lambda a: jnp.concatenate([a, a], axis=0),
    lambda a: jnp.roll(a, 1, axis=-1),
    lambda a: a.sum(axis=0, keepdims=True),
    lambda a: a.max(axis=1, keepdims=True),
    lambda a: a.mean(axis=-1, keepdims=True),
    lambda a: a - lax.stop_gradient(a.max()),
    lambda a: jnp.clip(a, -1, 1),
    lambda a: a @ a.T / a.shape[1],
    lambda a: jnp.einsum("ij,ij->i", a, a)[:, None] / a.shape[1],
    lambda a: a**3 / 8,
]
JUMPS = [  # small differences before become large ones after
    jnp.sign,
    jnp.floor,
    lambda a: jnp.where(a > 0, a, 0.1),
    lambda a: a.astype(jnp.float16).astype(jnp.float32),
    lambda a: jnp.argmax(a, axis=1)[:, None].astype(jnp.float32),
]
UNARY = SMOOTH + JUMPS
BINARY = [jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum, lambda a, b: a / (1 + jnp.abs(b))]
MOST = 600  # elements of a value


@st.composite
def programs(draw):
    """(steps, shapes of the weights, shape of the input)."""
    steps = draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("dot"), st.integers(1, 40), st.booleans()),
                st.tuples(
                    st.just("unary"),
                    st.sampled_from([*range(len(SMOOTH))] * 6 + [*range(len(SMOOTH), len(UNARY))]),
                    st.just(0),
                ),
                st.tuples(st.just("binary"), st.integers(0, len(BINARY) - 1), st.integers(0, 8)),
            ),
            min_size=2,
            max_size=8,
        )
    )
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 40)))
    weights: list[tuple[int, int]] = []
    tape: list[tuple[int, int]] = [shape]
    kept = []
    for kind, a, b in steps:
        rows, columns = tape[-1]
        if kind == "dot":
            weights.append((a, columns) if b else (columns, a))
            tape.append((rows, a))
        elif kind == "unary":
            out = jax.eval_shape(UNARY[a], jax.ShapeDtypeStruct(tape[-1], jnp.float32)).shape
            if np.prod(out) > MOST:
                continue
            tape.append(out)
        else:
            b %= len(tape)
            try:
                out = np.broadcast_shapes(tape[-1], tape[b])
            except ValueError:
                continue
            if np.prod(out) > MOST:
                continue
            tape.append(out)
        kept.append((kind, a, b))

    return kept, weights, shape


def as_function(steps):
    """The drawn steps as a function of a list of weights and an input; two of its values are returned."""

    def fn(ws, x):
        values, ws = [x], iter(ws)
        for kind, a, b in steps:
            last = values[-1]
            if kind == "dot":
                w = next(ws)
                values.append((last @ w.T if b else last @ w) / last.shape[1] ** 0.5)
            elif kind == "unary":
                values.append(UNARY[a](last))
            else:
                values.append(BINARY[a](last, values[b]))
        return values[-1], values[len(values) // 2]

    return fn


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs(), st.sampled_from([(5, 9), (24, 24), (36, 25)]), st.sampled_from([4096, 16384]))
def test_random_programs(program, size, usable):
    steps, shapes, shape = program
    fn = as_function(steps)
    ws, x = [normal(*s, seed=i) for i, s in enumerate(shapes)], normal(*shape, seed=99)
    exe = wsc.compile(fn, ws, x, wafer=small(*size, usable=usable), weight_argnums=0)
    found, telemetry = exe(ws, x)
    expected = jax.jit(fn)(ws, x)
    if not any(kind == "unary" and a >= len(SMOOTH) for kind, a, _ in steps):
        assert_close(found, expected, 2e-4)
    assert [a.shape for a in found] == [a.shape for a in expected]
    assert_within_sram(exe.program)
    if telemetry.total.flops:
        assert telemetry.cycles > 0
    for stage in exe.program.stages:
        for op in stage.ops:
            for at in op.outs:
                assert at is None or (at.parts.y <= stage.region.height and at.parts.x <= stage.region.width)
