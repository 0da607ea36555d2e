"""Ops that hold a program of their own, drawn by the same rules: calls, transformations, loops and branches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from tape import COMPLEX, EPS, FLOATS, INTS, RANK, Skip, Tape, Value

DEPTH = 2


@dataclass(frozen=True)
class Sub:
    """A drawn sub-program: `fn` of its inputs and of the arrays it made (`made`), a tuple of results like `outs`."""

    fn: Callable
    made: tuple
    outs: tuple[Value, ...]


Grow = Callable[[Tape, int], None]


def draw_sub(t: Tape, grow: Grow, inputs: Sequence[Value], xs: Sequence, finish=None, carried=0, loops=0, smooth=None):
    """A sub-program of arrays like `xs`, which stand for `inputs`; the first `carried` go round a loop. `finish(tape)`
    says what it returns, one or two of its last values unless told."""
    kept: list[Value] = []

    def trace(*args):
        tape = t.inside(loops, smooth)
        for i, (value, x) in enumerate(zip(inputs, args, strict=True)):
            tape.enter(value, x, i < carried)
        begin = len(tape.values)
        grow(tape, t.draw.number(1, 3))
        kept[:] = finish(tape) if finish else tape.values[max(begin, len(tape.values) - t.draw.number(1, 2)) :]
        if not kept:
            raise Skip
        return [v.x for v in kept]

    before = len(t.store.arrays)
    closed = jax.make_jaxpr(trace)(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in xs))
    made = [(i, c) for i, c in enumerate(closed.consts) if any(c is a for a, _ in t.store.arrays[before:])]
    n = len(xs)

    def fn(*args):
        consts = list(closed.consts)
        for (i, _), array in zip(made, args[n:], strict=True):
            consts[i] = array
        return tuple(jex.jaxpr_as_fun(jex.ClosedJaxpr(closed.jaxpr, consts))(*args[:n]))

    return Sub(fn, tuple(c for _, c in made), tuple(kept))


def _like(v: Value, like: Value) -> Value:
    """`v` itself if it is of the shape and dtype of `like`; otherwise `like` with the mean or any of `v` in it."""
    if v.dtype == COMPLEX and (v.shape, v.dtype) != (like.shape, like.dtype):
        v = replace(v, x=jnp.real(v.x))
    if (v.shape, v.dtype) == (like.shape, like.dtype) or v.size == 0:
        return v if v.shape == like.shape and v.dtype == like.dtype else like
    loose, error = v.loose or like.loose, like.error
    if v.floats and like.floats:
        x = like.x + jnp.mean(v.x.astype(jnp.float32)).astype(like.x.dtype)
        bound = v.bound + like.bound
        own = np.eye(1, len(error))[0] * bound * (v.size * EPS["float32"] + 2 * EPS[like.dtype])
        return Value(x, bound, v.error + error + own, False, loose)
    if v.floats:
        return like
    some = (v.x != 0).any()
    x = (like.x ^ some) if like.dtype == "bool" else like.x + some.astype(like.x.dtype)
    return Value(x, like.bound + 1, error, False, loose)


def _tamed(v: Value, bound: float) -> Value:
    """What a loop carries on: a float is brought back within its bound."""
    if not v.floats:
        return v
    scale = jnp.asarray(bound, v.x.dtype)
    error = v.error + np.eye(1, len(v.error))[0] * 8 * EPS[v.dtype] * bound
    return Value(scale * jnp.tanh(v.x / scale), bound, error, False, v.loose)


def _several(t: Tape, least: int = 1, most: int = 3) -> list[Value]:
    found: list[Value] = []
    for _ in range(t.draw.number(least, most)):
        v = t.pick(FLOATS if t.smooth else None)
        if all(v is not f for f in found):
            found.append(v)
    return found


def _record(t: Tape, results: Sequence, metas: Sequence[Value]) -> Value:
    last = None
    for x, meta in zip(results, metas, strict=True):
        last = t._keep(replace(meta, x=x, error=meta.error[: t.loops + 1]), True)
    assert last is not None
    return last


def call(t: Tape, grow: Grow) -> Value:
    """jit, remat, custom_jvp and custom_vjp: the same function, called."""
    inputs = _several(t)
    xs = [v.x for v in inputs]
    sub = draw_sub(t, grow, inputs, xs)
    kind = t.draw.choice(["jit", "remat", "custom_jvp", "custom_vjp"])
    fn = sub.fn
    if kind == "jit":
        fn = jax.jit(sub.fn)
    elif kind == "remat":
        fn = jax.checkpoint(sub.fn)  # type: ignore[attr-defined]
    elif kind == "custom_jvp":
        fn = jax.custom_jvp(sub.fn)
        fn.defjvp(lambda primals, tangents: jax.jvp(sub.fn, primals, tangents))
    else:
        fn = jax.custom_vjp(sub.fn)
        fn.defvjp(lambda *a: jax.vjp(sub.fn, *a), lambda back, g: back(g))
    return _record(t, fn(*xs, *sub.made), sub.outs)


def vmapped(t: Tape, grow: Grow) -> Value:
    """A sub-program of rows of the first value, over all of them."""
    first = t.pick(FLOATS if t.smooth else None, lambda v: v.rank > 0 and v.shape[0] > 0)
    others = [v for v in _several(t, 0, 2) if v is not first]
    at = t.draw.number(0, first.rank - 1)
    if first.shape[at] == 0:
        raise Skip
    sub = draw_sub(t, grow, [first, *others], [first.x.take(0, at), *(v.x for v in others)])
    axes = (at, *(None for _ in (*others, *sub.made)))
    results = jax.vmap(sub.fn, in_axes=axes)(first.x, *(v.x for v in others), *sub.made)
    if any(r.size > 2000 or r.ndim > RANK for r in results):
        raise Skip
    return _record(t, results, sub.outs)


def gradient(t: Tape, grow: Grow) -> Value:
    """The gradient of the mean of a smooth sub-program with respect to one value. It is no larger than what the result
    moves when the value does; its rounding is taken as that of 64 operations on the square of that."""
    wrt = t.floating(lambda v: v.size > 0)
    others = [v for v in _several(t, 0, 2) if v is not wrt and v.dtype in FLOATS]

    def finish(tape: Tape) -> list[Value]:
        out = tape.pick(FLOATS, lambda v: v.size > 0)
        return [tape.put(jnp.mean(jnp.sin(out.x.astype(jnp.float32))), out, bound=1, rounds=out.size + 8, whole=False)]

    xs = [wrt.x, *(v.x for v in others)]
    sub = draw_sub(t, grow, [wrt, *others], xs, finish, carried=1, loops=1, smooth=True)
    grads = jax.grad(lambda *a: sub.fn(*a)[0])(*xs, *sub.made)
    gain = max(1.0, float(sub.outs[0].error[-1]))
    narrow = max([EPS[v.dtype] for v in (wrt, *others)] + [EPS[c.dtype.name] for c in sub.made if c.dtype.name in EPS])
    error = sum((v.error for v in (wrt, *others)), t.exact()) * gain * (1 + gain)
    error[0] += 64 * narrow * gain * (1 + gain)
    return t._keep(Value(grads, gain, error, False, any(v.loose for v in (wrt, *others))), True)


def _round_error(out: Value, starts: np.ndarray, steps: int, base: int) -> tuple[np.ndarray, np.ndarray]:
    """How far what a loop carries differs after its steps, and the most it ever did."""
    error, most = starts, starts
    for _ in range(steps):
        error = out.error[:base] + out.error[base] * error
        most = np.maximum(most, error)
    return error, most


def loop(t: Tape, grow: Grow) -> Value:
    """scan over values or stacked weights, fori_loop, and while_loop with a count from the data."""
    kind = t.draw.choice(["scan", "scan", "layers", "fori", "while", "while"])
    if t.smooth and kind == "while":
        raise Skip
    kinds = FLOATS if t.smooth or kind == "layers" else (*FLOATS, *INTS, "bool")
    start = _tamed(t.pick(kinds, lambda v: v.size > 0), 2.0)
    steps, base = t.draw.number(1, 4), t.loops + 1
    consts = [] if t.draw.chance(2) else _several(t, 1, 1)
    stacked: list[Value] = []
    if kind == "layers":
        d = start.shape[-1] if start.rank else 1
        if d > 16:
            raise Skip
        stacked = [t.made((steps, d, d), start.dtype)]
    elif kind == "scan" and t.draw.chance(2):
        stacked = [t.pick(FLOATS if t.smooth else None, lambda v: v.rank > 0 and 0 < v.shape[0] <= 8)]
        steps = stacked[0].shape[0]
    elif kind in ("fori", "while"):
        stacked = [Value(jnp.int32(0), 8, t.exact())]
    inputs = [start, *stacked, *consts]
    xs = [start.x, *(v.x if v.rank == 0 else v.x[0] for v in stacked), *(v.x for v in consts)]
    ys = kind in ("scan", "layers") and t.draw.chance(2)

    def finish(tape: Tape) -> list[Value]:
        carry = tape.values[0]
        if kind == "layers" and carry.rank:
            w = tape.values[1]
            count = carry.shape[-1]
            out = tape.put(carry.x @ w.x, carry, w, bound=2 * count * carry.bound,
                           gains=(2 * count, count * carry.bound), rounds=count)  # fmt: skip
            last = _like(tape.values[-2], out) if len(tape.values) > 3 else out
        else:
            last = tape.values[-1]
        return [_tamed(_like(last, carry), 2.0), *([tape.pick(FLOATS if t.smooth else None)] if ys else [])]

    sub = draw_sub(t, grow, inputs, xs, finish, carried=1, loops=1)
    rest = [v.x for v in consts]
    if kind in ("scan", "layers"):

        def body(carry, x):
            new, *out = sub.fn(carry, *([] if x is None else [x]), *rest, *sub.made)
            return new, out

        turned, unroll = t.draw.chance(2), t.draw.choice([1, 1, 2])
        over = stacked[0].x if stacked else None
        final, rows = lax.scan(body, start.x, over, length=steps, reverse=turned, unroll=unroll)
    elif kind == "fori":
        final, rows = lax.fori_loop(0, steps, lambda i, c: sub.fn(c, i, *rest, *sub.made)[0], start.x), []
    else:
        count = t.pick(("int32", *FLOATS), lambda v: v.size > 0)
        times, steps = jnp.abs(count.x.reshape(-1)[0]).astype("int32") % 5, 4
        count = replace(count, loose=count.loose or bool(count.error.any()))
        final, _ = lax.while_loop(
            lambda s: s[1] < times,
            lambda s: (sub.fn(s[0], s[1], *rest, *sub.made)[0], s[1] + 1),
            (start.x, jnp.int32(0)),
        )
        start = replace(start, loose=start.loose or count.loose)
        rows = []
    carried = sub.outs[0]
    error, most = _round_error(carried, start.error, steps, base)
    loose = start.loose or any(v.loose for v in sub.outs)
    for x, out in zip(rows, sub.outs[1:], strict=False):
        if x.size > 2000 or x.ndim > RANK:
            raise Skip
        spread = out.error[:base] + out.error[base] * most
        t._keep(Value(x, out.bound, spread, False, loose), True)
    return t._keep(Value(final, max(start.bound, carried.bound), error, False, loose), True)


def branch(t: Tape, grow: Grow) -> Value:
    """cond and switch, by a value of the program."""
    if t.smooth:
        raise Skip
    inputs = _several(t)
    xs = [v.x for v in inputs]
    which = t.pick(("bool", "int32", *FLOATS), lambda v: v.size > 0)
    index = which.x.reshape(-1)[0]
    if which.floats:
        index, which = index > 0, replace(which, x=which.x > 0, loose=which.loose or bool(which.error.any()))
    count = 2 if which.dtype == "bool" else t.draw.number(2, 3)
    subs = [draw_sub(t, grow, inputs, xs, lambda tape: [_like(tape.values[-1], tape.values[0])]) for _ in range(count)]
    made = [c for s in subs for c in s.made]

    def of(n: int):
        begin = sum(len(s.made) for s in subs[:n])
        return lambda *a: subs[n].fn(*a[: len(xs)], *a[len(xs) + begin : len(xs) + begin + len(subs[n].made)])

    fns = [of(n) for n in range(count)]
    if which.dtype == "bool":
        (x,) = lax.cond(index, fns[1], fns[0], *xs, *made)
    else:
        (x,) = lax.switch(jnp.abs(index) % count, fns, *xs, *made)
    outs = [s.outs[0] for s in subs]
    loose = which.loose or any(o.loose for o in outs)
    error = np.max([o.error for o in outs], axis=0)
    whole = all(o.whole for o in outs)
    return t._keep(Value(x, max(o.bound for o in outs), error, whole, loose), True)


FAMILIES = [call, loop, branch, call, vmapped, gradient, loop, loop, branch]
