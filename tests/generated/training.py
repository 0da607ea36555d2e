"""Training steps: trees of parameters and moments go in and come out again, updated by the gradient of a drawn loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from nesting import EPS, Sub, draw_sub
from tape import FLOATS, Skip, Tape, Value

RATE, KEPT = 0.125, 0.5


def drawn(t: Tape, grow: Callable) -> tuple[Callable, tuple, list[tuple[float, float, bool]]]:
    """(step(params, moments, *inputs) -> (params, moments, loss), its params and moments, what is told of each result).

    The loss is the mean of the sine of something that every parameter takes part in. Its gradient is no larger than
    what the loss moves when a parameter does; the rounding of it is taken as that of 64 operations on the square."""
    used = [i for i, v in enumerate(t.values) if v.dtype in FLOATS and v.size > 0]
    inputs = [t.values[i] for i in used]
    if not inputs:
        raise Skip
    params: list[Value] = []
    x = inputs[0]
    for _ in range(t.draw.number(1, 3)):
        n = t.draw.choice(t.dims)
        shape = t.draw.choice([(x.shape[-1], n), (x.shape[-1],), (n,)]) if x.rank else (n,)
        params.append(t.made(shape, "float32"))

    def finish(tape: Tape) -> list[Value]:
        last = next(v for v in reversed(tape.values) if v.size > 0)
        values = [last, *tape.values[: len(params)]]
        heads = [tape.put(jnp.mean(jnp.sin(v.x.astype(jnp.float32))), v, bound=1, rounds=v.size + 8, whole=False)
                 for v in values]  # fmt: skip
        total = heads[0]
        for head in heads[1:]:
            total = tape.put(total.x + head.x, total, head, bound=total.bound + 1)
        return [total]

    def first(tape: Tape, count: int) -> None:
        for i, w in enumerate(tape.values[: len(params)]):
            a = tape.values[len(params)]
            if a.rank and w.rank == 2 and w.shape[0] == a.shape[-1] and a.dtype == "float32":
                k = w.shape[0]
                if a.size // k * w.shape[1] <= 600:
                    tape.put(a.x @ w.x, a, w, bound=k * a.bound * w.bound, gains=(k * w.bound, k * a.bound), rounds=k)
            elif i and w.rank == 1 and tape.values[-1].rank and tape.values[-1].shape[-1] == w.shape[0]:
                y = tape.values[-1]
                if y.dtype == "float32":
                    tape.put(y.x + w.x, y, w, bound=y.bound + w.bound)
        grow(tape, count)

    every = [*params, *inputs]
    sub: Sub = draw_sub(t, first, every, [v.x for v in every], finish, carried=len(params), loops=1, smooth=True)
    momentum, clip = t.draw.chance(2), t.draw.chance(3)

    def step(params, moments, *args):
        xs = [args[i] for i in used]
        loss, grads = jax.value_and_grad(lambda p: sub.fn(*p.values(), *xs, *sub.made)[0])(params)
        if clip:
            norm = lax.rsqrt(1 + sum(jnp.sum(g * g) for g in grads.values()))
            grads = {k: g * norm for k, g in grads.items()}
        if momentum:
            moments = {k: KEPT * m + grads[k] for k, m in moments.items()}
        new = {k: p - RATE * (moments if momentum else grads)[k] for k, p in params.items()}
        return new, moments, loss

    names = [f"w{i}" for i in range(len(params))]
    weights = {name: p.x for name, p in zip(names, params, strict=True)}
    moments = {name: jnp.full_like(w, 0.25) for name, w in weights.items()} if momentum else {}
    out = sub.outs[0]
    gain = max(1.0, float(out.error[-1]))
    narrow = max(EPS[v.dtype] for v in every)
    size = sum(p.size for p in params)
    error = 64 * narrow * gain * (1 + gain) * (1 + clip * gain * size)
    if error > 1:
        raise Skip
    told = [(p.bound + gain, error + 2e-7 * (2 + gain), out.loose) for p in params]
    told += [(1 + gain, error + 2e-7 * (1 + gain), out.loose) for _ in moments]
    return step, (weights, moments), [*told, (out.bound, float(out.error[0]), out.loose)]
