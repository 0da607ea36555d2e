"""Programs that are loops: text generated in one while loop, a beam search, an adaptive solver, a sampler, a filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal
from jax import lax

WIDTH, HEADS, VOCABULARY, LENGTH = 16, 2, 11, 8
HEAD = WIDTH // HEADS
KEY = jax.random.key(0)


def weights(**shapes):
    return {name: normal(*shape, seed=i) * 0.3 for i, (name, shape) in enumerate(shapes.items())}


def normed(x, scale):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * (1 + scale)


def rotated(x, position):
    angle = position / 10000 ** (jnp.arange(0, HEAD, 2) / HEAD)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1)


def generated(p, tokens, prompt):
    """Greedy, from a prompt to an end token, the KV cache carried."""

    def step(i, tokens, keys, values):
        x = p["embed"][tokens[i]]
        y = normed(x, p["before"])
        q, k, v = (jnp.einsum("d,dhk->hk", y, p[name]) for name in "qkv")
        keys = lax.dynamic_update_slice(keys, rotated(k, i)[None], (i, 0, 0))
        values = lax.dynamic_update_slice(values, v[None], (i, 0, 0))
        scores = jnp.einsum("hk,nhk->hn", rotated(q, i), keys) / jnp.sqrt(HEAD)
        scores = jnp.where(jnp.arange(LENGTH) <= i, scores, -1e30)
        x = x + jnp.einsum("hn,nhk,hkd->d", jax.nn.softmax(scores), values, p["out"])
        y = normed(x, p["between"])
        x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        return jnp.argmax(p["embed"] @ x), keys, values

    def body(carry):
        i, tokens, keys, values, _ = carry
        best, keys, values = step(i, tokens, keys, values)
        best = jnp.where(i + 1 < prompt, tokens[i + 1], best.astype(jnp.int32))
        return i + 1, tokens.at[i + 1].set(best), keys, values, best == 0

    cache = jnp.zeros((LENGTH, HEADS, HEAD))
    start = jnp.int32(0), tokens, cache, cache, jnp.bool_(False)
    return lax.while_loop(lambda c: (c[0] < LENGTH - 1) & ~c[4], body, start)[:2]


LLAMA = weights(
    embed=(VOCABULARY, WIDTH), q=(WIDTH, HEADS, HEAD), k=(WIDTH, HEADS, HEAD), v=(WIDTH, HEADS, HEAD),
    out=(HEADS, HEAD, WIDTH), gate=(WIDTH, 32), up=(WIDTH, 32), down=(32, WIDTH), before=(WIDTH,), between=(WIDTH,),
)  # fmt: skip


def test_generation_in_one_loop(equal):
    """Telemetry counts the tokens that were really made."""
    prompt = jnp.zeros(LENGTH, jnp.int32).at[:2].set(jnp.array([3, 4]))
    exe = equal(generated, LLAMA, prompt, jnp.int32(2))
    (steps, _), telemetry = exe(LLAMA, prompt, jnp.int32(2))
    assert 1 < int(steps) < LENGTH and telemetry.counts == (int(steps) + 1, int(steps))
    assert telemetry.total.flops > int(steps) * 2 * sum(LLAMA[k].size for k in ("q", "k", "v", "gate", "up", "down"))


def searched(p, start):
    """The best `beams` continuations, until all of them end."""
    beams = 3

    def body(carry):
        i, beam, scores, h = carry
        h = jnp.tanh(h @ p["hidden"] + p["embed"][beam[:, i]])
        scores, best = lax.top_k((scores[:, None] + jax.nn.log_softmax(h @ p["out"])).reshape(-1), beams)
        parent, token = best // VOCABULARY, best % VOCABULARY
        return i + 1, beam[parent].at[:, i + 1].set(token), scores, h[parent]

    beam = jnp.zeros((beams, 6), jnp.int32).at[:, 0].set(start)
    first = jnp.where(jnp.arange(beams) == 0, 0.0, -1e9)
    go_on = lambda c: (c[0] < 5) & ~jnp.all(c[1][:, c[0]] == 0)  # noqa: E731
    return lax.while_loop(go_on, body, (0, beam, first, jnp.zeros((beams, WIDTH))))


def solved(p, y0):
    """Heun's method with adaptive steps, all members of a batch with steps of their own."""
    f = lambda y: jnp.tanh(y @ p["up"]) @ p["down"]  # noqa: E731

    def body(carry):
        t, h, y, n = carry
        a = f(y)
        b = f(y + h * a)
        error = jnp.sqrt(jnp.mean((h * (b - a) / 2) ** 2)) / 3e-3
        t_next = jnp.where(error <= 1, t + h, t)
        longer = h * jnp.clip(0.9 * jnp.maximum(error, 1e-3) ** -0.5, 0.2, 5.0)
        return t_next, jnp.minimum(longer, 1.0001 - t_next), jnp.where(error <= 1, y + h * (a + b) / 2, y), n + 1

    one = lambda y: lax.while_loop(lambda c: (c[0] < 1.0) & (c[3] < 50), body, (0.0, 0.5, y, 0))[2:]  # noqa: E731
    return jax.vmap(one)(y0)


def sampled(p, key):
    """Ancestral sampling of a small convolutional network, scanned over time."""
    betas = jnp.linspace(1e-2, 0.2, 4)
    kept = jnp.cumprod(1 - betas)

    def conv(x, w, stride=1):
        return lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def noise_of(x, t):
        h = jax.nn.silu(conv(x, p["in"]) + jnp.sin(t * jnp.arange(4.0)) @ p["time"])
        low = jax.nn.silu(conv(h, p["low"], 2))
        return conv(jnp.concatenate([h, jax.image.resize(low, h.shape, "nearest")], -1), p["out"])

    def step(carry, t):
        x, key = carry
        key, mine = jax.random.split(key)
        mean = (x - betas[t] / jnp.sqrt(1 - kept[t]) * noise_of(x, t.astype(x.dtype))) / jnp.sqrt(1 - betas[t])
        return (mean + jnp.where(t > 0, jnp.sqrt(betas[t]), 0.0) * jax.random.normal(mine, x.shape), key), None

    first, key = jax.random.split(key)
    return lax.scan(step, (jax.random.normal(first, (1, 4, 4, 2)), key), jnp.arange(3, -1, -1))[0][0]


def filtered(p, measured):
    """A Kalman filter: a linear solve in every step."""

    def step(carry, y):
        mean, spread = carry
        mean, spread = p["move"] @ mean, p["move"] @ spread @ p["move"].T + 0.1 * jnp.eye(4)
        seen = p["see"] @ spread @ p["see"].T + 0.2 * jnp.eye(2)
        gain = jnp.linalg.solve(seen, p["see"] @ spread).T
        return (mean + gain @ (y - p["see"] @ mean), spread - gain @ seen @ gain.T), mean

    return lax.scan(step, (jnp.zeros(4), jnp.eye(4)), measured)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fn", "arguments"),
    [
        (searched, (weights(embed=(VOCABULARY, WIDTH), hidden=(WIDTH, WIDTH), out=(WIDTH, VOCABULARY)), jnp.int32(1))),
        (sampled, (weights(**{"in": (3, 3, 2, 4), "low": (3, 3, 4, 4), "out": (3, 3, 8, 2), "time": (4, 4)}), KEY)),
        (filtered, (weights(move=(4, 4), see=(2, 4)), normal(5, 2))),
    ],
    ids=["beam search", "diffusion", "Kalman filter"],
)
def test_loops(equal, fn, arguments):
    equal(fn, *arguments)


def test_members_of_a_batch_take_steps_of_their_own(equal):
    p, y = weights(up=(WIDTH, 24), down=(24, WIDTH)), normal(3, WIDTH) * jnp.array([[0.1], [1], [3]])
    taken = np.asarray(jax.jit(solved)(p, y)[1])
    assert len(set(taken.tolist())) > 1
    exe = equal(solved, p, y)
    assert exe(p, y)[1].counts[-1] == taken.max()
