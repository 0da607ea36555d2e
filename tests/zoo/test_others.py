"""Models of other kinds: a graph network, a time-mixing recurrence, a codebook, windows that are shifted, equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal
from jax import lax

WIDTH, NODES, EDGES = 16, 7, 15


def attention_over_edges(weight, score, nodes, senders, receivers):
    """A graph attention layer: softmax and sums over the edges that reach a node."""
    h = nodes @ weight
    logits = jax.nn.leaky_relu((jnp.concatenate([h[senders], h[receivers]], -1) @ score)[:, 0])
    largest = jax.ops.segment_max(logits, receivers, NODES)
    each = jnp.exp(logits - largest[receivers])
    total = jax.ops.segment_sum(each, receivers, NODES)
    return jax.ops.segment_sum((each / total[receivers])[:, None] * h[senders], receivers, NODES)


def time_mixing(p, x):
    """RWKV's: weighted sums that decay, their logarithms kept apart so that nothing overflows."""
    mixed = lambda m: x * m + jnp.pad(x, ((1, 0), (0, 0)))[:-1] * (1 - m)  # noqa: E731
    gate, keys, values = (mixed(p[f"mix_{name}"]) @ p[name] for name in "rkv")
    decay, bonus = -jnp.exp(p["decay"]), p["bonus"]

    def step(carry, now):
        above, below, log = carry
        key, value = now
        top = jnp.maximum(log, bonus + key)
        old, new = jnp.exp(log - top), jnp.exp(bonus + key - top)
        out = (old * above + new * value) / (old * below + new)
        top = jnp.maximum(log + decay, key)
        old, new = jnp.exp(log + decay - top), jnp.exp(key - top)
        return (old * above + new * value, old * below + new, top), out

    zero = jnp.zeros(WIDTH)
    _, out = lax.scan(step, (zero, zero, jnp.full(WIDTH, -1e38)), (keys, values))
    return x + (jax.nn.sigmoid(gate) * out) @ p["o"]


def quantized(p, x):
    """A codebook's nearest vectors, the index and the loss, with the gradient passed straight through."""
    z = x @ p["encode"]
    distance = (z**2).sum(-1, keepdims=True) - 2 * z @ p["book"].T + (p["book"] ** 2).sum(-1)
    index = jnp.argmin(distance, -1)
    code = p["book"][index]
    return (z + lax.stop_gradient(code - z)) @ p["decode"], index, jnp.mean((code - z) ** 2)


def shifted_windows(p, x):
    """Swin's: attention within 2 x 2 windows of an image that was rolled, masked where it was not one piece before."""

    def windows(a):
        return a.reshape(2, 2, 2, 2, -1).transpose(0, 2, 1, 3, 4).reshape(4, 4, -1)

    q, k, v = jnp.split(windows(jnp.roll(x, (-1, -1), (0, 1))) @ p["qkv"], 3, -1)
    rows, columns = np.arange(4)[:, None] == 3, np.arange(4) == 3
    piece = windows((rows + 2 * columns)[..., None])[..., 0]
    scores = jnp.einsum("wtd,wsd->wts", q, k) / 4 + jnp.where(piece[:, :, None] == piece[:, None], 0.0, -100.0)
    out = jax.nn.softmax(scores) @ v @ p["out"]
    back = out.reshape(2, 2, 2, 2, WIDTH).transpose(0, 2, 1, 3, 4).reshape(4, 4, WIDTH)
    return x + jnp.roll(back, (1, 1), (0, 1))


def residual_of_an_equation(p, points):
    """A network that solves u_t - 0.1 u_xx + u = 0: its Hessian at every point, and the loss."""

    def u(x):
        return (jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"])[0]

    hessian, slope = jax.vmap(jax.hessian(u))(points), jax.vmap(jax.grad(u))(points)
    return jnp.mean((slope[:, 0] - 0.1 * hessian[:, 1, 1] + jax.vmap(u)(points)) ** 2), hessian


def long_convolution(p, x):
    """Hyena's: a filter as long as the sequence, by transforms, gated."""
    u, v, gate = jnp.split(x @ p["in"], 3, -1)
    n = 2 * x.shape[0]
    product = jnp.fft.rfft(u * v, n, axis=0) * jnp.fft.rfft(p["filter"], n, axis=0)
    return (jnp.fft.irfft(product, n, axis=0)[: x.shape[0]] * gate) @ p["out"]


def weights(**shapes):
    return {name: normal(*shape, seed=i) * 0.3 for i, (name, shape) in enumerate(shapes.items())}


MIXING = weights(
    **dict.fromkeys("rkvo", (WIDTH, WIDTH)), **dict.fromkeys(("mix_r", "mix_k", "mix_v", "decay", "bonus"), (WIDTH,))
)
ENDS = [jnp.asarray(np.random.default_rng(i).integers(0, NODES, EDGES)) for i in range(2)]


@pytest.mark.parametrize(
    ("fn", "arguments"),
    [
        (attention_over_edges, (normal(WIDTH, WIDTH), normal(2 * WIDTH, 1), normal(NODES, WIDTH), *ENDS)),
        (time_mixing, (MIXING, normal(6, WIDTH))),
        pytest.param(
            quantized,
            (weights(encode=(12, WIDTH), book=(10, WIDTH), decode=(WIDTH, 12)), normal(5, 12)),
            marks=pytest.mark.slow,
        ),
        (shifted_windows, (weights(qkv=(WIDTH, 3 * WIDTH), out=(WIDTH, WIDTH)), normal(4, 4, WIDTH))),
        pytest.param(
            residual_of_an_equation, (weights(a=(2, 8), b=(8, 8), c=(8, 1)), normal(6, 2)), marks=pytest.mark.slow
        ),
        (
            long_convolution,
            (
                weights(**{"in": (WIDTH, 3 * WIDTH), "filter": (8, WIDTH), "out": (WIDTH, WIDTH)}),
                normal(8, WIDTH),
            ),
        ),
    ],
)
def test_models(equal, fn, arguments):
    equal(fn, *arguments)
