"""Ops that move elements: shapes, slices, indices known and not, orders along a dimension, windows, random numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tape import COMPLEX, FLOATS, INTS, MOST, Skip, Tape, Value


def reshape(t: Tape) -> Value:
    a = t.pick(where=lambda v: v.rank > 0)
    kind = t.draw.choice(["flat", "merge", "split", "column"])
    if kind == "flat":
        return t.move(a.x.reshape(-1), a)
    if kind == "column":
        return t.move(a.x.reshape((-1, 1)) if a.size else a.x, a)
    d = t.draw.number(0, a.rank - 1)
    if kind == "merge":
        if d + 1 == a.rank:
            raise Skip
        return t.move(a.x.reshape(*a.shape[:d], a.shape[d] * a.shape[d + 1], *a.shape[d + 2 :]), a)
    divisors = [n for n in range(2, a.shape[d]) if a.shape[d] % n == 0]
    if not divisors or a.rank > 3:
        raise Skip
    n = t.draw.choice(divisors)
    return t.move(a.x.reshape(*a.shape[:d], n, a.shape[d] // n, *a.shape[d + 1 :]), a)


def rearrange(t: Tape) -> Value:
    a = t.pick()
    kind = t.draw.choice(["transpose", "expand", "squeeze", "broadcast", "rev", "roll", "tile", "repeat", "tril"])
    if kind == "transpose":
        return t.move(a.x.transpose(t.draw.permutation(a.rank)), a)
    if kind == "expand" and a.rank < 4:
        return t.move(jnp.expand_dims(a.x, t.draw.number(0, a.rank)), a)
    if kind == "squeeze":
        return t.move(jnp.squeeze(a.x, tuple(t.draw.some([d for d in range(a.rank) if a.shape[d] == 1], 1))), a)
    if kind == "broadcast" and a.rank < 4:
        shape = [t.draw.choice(t.dims) if n == 1 and t.draw.chance(2) else n for n in a.shape]
        at = t.draw.number(0, a.rank)
        shape.insert(at, t.draw.choice(t.dims))
        return t.move(lax.broadcast_in_dim(a.x, shape, [d + (d >= at) for d in range(a.rank)]), a)
    if a.rank == 0 or kind in ("expand", "broadcast"):
        raise Skip
    d = t.draw.number(0, a.rank - 1)
    if kind == "rev":
        return t.move(lax.rev(a.x, t.draw.some(range(a.rank), 1)), a)
    if kind == "roll":
        return t.move(jnp.roll(a.x, t.draw.number(-3, 3), axis=d), a)
    if kind == "tile":
        return t.move(jnp.tile(a.x, [t.draw.number(1, 2) for _ in a.shape]), a)
    if kind == "repeat":
        return t.move(jnp.repeat(a.x, t.draw.number(1, 3), axis=d), a)
    if a.rank < 2 or a.dtype == "bool":
        raise Skip
    return t.move((jnp.tril if t.draw.chance(2) else jnp.triu)(a.x, t.draw.number(-1, 1)), a)


def slices(t: Tape) -> Value:
    a = t.pick(where=lambda v: v.rank > 0)
    starts = [t.draw.number(0, n // 2) for n in a.shape]
    limits = [t.draw.number(min(n, s + (n > 0)), n) for s, n in zip(starts, a.shape, strict=True)]
    strides = [t.draw.choice([1, 1, 2, 3]) for _ in a.shape]
    return t.move(lax.slice(a.x, starts, limits, strides), a)


def pad(t: Tape) -> Value:
    a = t.pick((*FLOATS, *INTS, COMPLEX), lambda v: v.rank > 0)
    sizes = []
    for n in a.shape:
        inner = t.draw.choice([0, 0, 0, 1, 2])
        width = n + max(0, n - 1) * inner
        low = t.draw.choice([0, 0, 1, 3, -1])
        low = low if width + low >= 0 else 0
        high = t.draw.choice([0, 0, 2, -1])
        sizes.append((low, high if width + low + high >= 0 else 0, inner))
    return t.move(lax.pad(a.x, jnp.asarray(t.draw.number(0, 2), a.x.dtype), sizes), a, bound=max(a.bound, 2))


def join(t: Tape) -> Value:
    """concatenate, stack and split."""
    a = t.pick(where=lambda v: v.rank > 0)
    d = t.draw.number(0, a.rank - 1)
    kind = t.draw.choice(["concatenate", "stack", "split"])
    if kind == "split":
        n = t.draw.number(0, a.shape[d])
        first, second = jnp.split(a.x, [n], axis=d)
        t.move(first, a)
        return t.move(second, a)

    def suits(v: Value) -> bool:
        others = [v.shape[i] == a.shape[i] for i in range(a.rank) if i != d] if v.rank == a.rank else [False]
        return v.dtype == a.dtype and all(others) and (kind == "concatenate" or v.shape == a.shape)

    others = [t.pick(None, suits) for _ in range(t.draw.number(1, 2))]
    if kind == "stack" and a.rank > 3:
        raise Skip
    return t.move((jnp.stack if kind == "stack" else jnp.concatenate)([v.x for v in (a, *others)], d), a, *others)


def place(t: Tape, n: int) -> Value:
    """One place among n, known only when the program runs."""
    a = t.pick(("int32",), lambda v: v.size > 0)
    x = jnp.abs(a.x.reshape(-1)[0] if a.rank else a.x) % n
    return Value(x, n, t.exact(), False, a.loose)


def indexed(t: Tape) -> Value:
    """Slices, gathers, updates and scatters at places that are known when the program runs, or are constants."""
    a = t.pick((*FLOATS, *INTS, COMPLEX), lambda v: v.rank > 0 and v.size > 0)
    d = t.draw.number(0, a.rank - 1)
    n = a.shape[d]
    kind = t.draw.choice(["slice", "update", "take", "gather", "along", "add", "set", "one_hot"])
    if kind in ("slice", "update"):
        sizes = tuple(t.draw.number(1, m) if i == d or t.draw.chance(3) else m for i, m in enumerate(a.shape))
        places = [place(t, m - s + 1) if m > s else None for m, s in zip(a.shape, sizes, strict=True)]
        at, known = [0 if p is None else p.x for p in places], [p for p in places if p is not None]
        if kind == "slice":
            return t.move(lax.dynamic_slice(a.x, at, sizes), a, *known)
        b = t.pick((a.dtype,), lambda v: v.size > 0)
        update = jnp.resize(b.x, sizes) if b.shape != sizes else b.x
        return t.move(lax.dynamic_update_slice(a.x, update, at), a, b, *known)
    count = t.draw.number(1, 6)
    if t.draw.chance(2):
        where = t.made((count,), "int32", n)
    else:
        i = t.pick(("int32",), lambda v: 0 < v.size <= 40 and v.rank < 3)
        where = Value(jnp.abs(i.x) % n, n, t.exact(), False, i.loose)
    if kind == "take":
        mode = t.draw.choice(["clip", "wrap", "fill"])
        return t.move(jnp.take(a.x, where.x, axis=d, mode=mode), a, where)
    if kind == "gather":
        index: list = [slice(None)] * a.rank
        index[d] = where.x
        return t.move(a.x[tuple(index)], a, where)
    if kind == "along":
        order = jnp.broadcast_to(where.x.reshape(-1).reshape((-1,) + (1,) * (a.rank - 1 - d)),
                                 (*a.shape[:d], where.size, *a.shape[d + 1 :]))  # fmt: skip
        return t.move(jnp.take_along_axis(a.x, order, axis=d), a, where)
    if kind == "one_hot":
        return t.put(jax.nn.one_hot(where.x, n, dtype="float32"), where, bound=1, whole=True, rounds=0)
    if a.dtype == COMPLEX:
        raise Skip
    flat = where.x.reshape(-1)
    shape = (*a.shape[:d], flat.size, *a.shape[d + 1 :])
    b = t.made(shape, a.dtype)
    index = [slice(None)] * a.rank
    index[d] = flat
    if kind == "set":
        index[d] = 0
        return t.move(a.x.at[tuple(index)].set(b.x.take(0, axis=d)), a, b)
    bound = a.bound + flat.size * b.bound
    op = t.draw.choice(["add", "max", "min"])
    x = getattr(a.x.at[tuple(index)], op)(b.x)
    return t.put(x, a, b, where, bound=bound, gains=(1, flat.size, 0), rounds=flat.size)


def ordered(t: Tape) -> Value:
    """Sorts and scans along a dimension."""
    a = t.pick((*FLOATS, *INTS), lambda v: v.rank > 0 and v.size > 0)
    d = t.draw.number(0, a.rank - 1)
    n, back = a.shape[d], t.draw.chance(3)
    if t.smooth or t.draw.chance(2):
        kind = t.draw.choice(["cumsum"] if t.smooth else ["cumsum", "cummax", "cummin", "cumprod", "cumlogsumexp"])
        if kind == "cumprod" and a.floats and a.bound > 1:
            raise Skip
        if kind == "cumlogsumexp":
            if not a.floats:
                raise Skip
            x = lax.cumlogsumexp(a.x, axis=d, reverse=back)
            return t.put(x, a, bound=a.bound + math.log(n) + 1, rounds=4 * n + 8, whole=False)
        x = getattr(lax, kind)(a.x, axis=d, reverse=back)
        if kind in ("cummax", "cummin"):
            return t.move(x, a)
        return t.put(x, a, bound=n * a.bound if kind == "cumsum" else a.bound, gains=n, rounds=n)
    kind = t.draw.choice(["sort", "argsort", "sort_by", "top_k"])
    if kind == "sort":
        return t.move(jnp.sort(a.x, axis=d, descending=back), a)
    if kind == "argsort":
        return t.put(jnp.argsort(a.x, axis=d), a, jump=True)
    if kind == "top_k":
        values, places = lax.top_k(a.x, t.draw.number(1, a.shape[-1]))
        t.put(places, a, jump=True)
        return t.move(values, a)
    b = t.pick((*FLOATS, *INTS), lambda v: v.shape == a.shape and v is not a)
    keys, values = lax.sort((a.x, b.x), dimension=d, num_keys=1)
    t.move(keys, a)
    loose = a.loose or bool(a.error.any())
    return t.move(values, b, Value(b.x, 0, np.zeros(t.loops + 1), True, loose))


def windows(t: Tape) -> Value:
    """Convolutions and pools."""
    a = t.floating(lambda v: v.rank >= 2 and v.size > 0)
    if t.draw.chance(2):
        window = [t.draw.number(1, min(3, n)) for n in a.shape]
        strides = [t.draw.number(1, 2) for _ in a.shape]
        padding = t.draw.choice(["VALID", "SAME"])
        count = math.prod(window)
        if t.smooth or t.draw.chance(2):
            x = lax.reduce_window(a.x, jnp.zeros((), a.x.dtype), lax.add, window, strides, padding)
            return t.put(x, a, bound=count * a.bound, gains=count, rounds=count)
        x = lax.reduce_window(a.x, jnp.asarray(-jnp.inf, a.x.dtype), lax.max, window, strides, padding)
        return t.move(x, a)
    x = a.x.reshape(*(1,) * max(0, 3 - a.rank), *a.shape)
    x = x.reshape(-1, *x.shape[-2:]) if x.ndim > 3 else x
    channels, width = x.shape[1:]
    groups = t.draw.choice([g for g in (1, channels) if channels % g == 0])
    size, outs = t.draw.number(1, min(3, width)), groups * t.draw.number(1, 2)
    w = t.made((outs, channels // groups, size), a.dtype)
    result = lax.conv_general_dilated(
        x, w.x, (t.draw.number(1, 2),), t.draw.choice(["SAME", "VALID"]), feature_group_count=groups,
        rhs_dilation=(t.draw.choice([1, 1, 2]),), dimension_numbers=("NCH", "OIH", "NCH"),
    )  # fmt: skip
    count = w.size // outs
    return t.put(result, a, w, bound=count * a.bound * 2, gains=(count * 2, count * a.bound), rounds=count)


def numbers(t: Tape) -> Value:
    """Random numbers from a raw key, known only when the program runs."""
    seed = t.pick(("uint32",), lambda v: v.size >= 2)
    key = jax.random.wrap_key_data(seed.x.reshape(-1)[:2])
    shape = (t.draw.choice(t.dims), t.draw.choice(t.dims))
    if math.prod(shape) > MOST:
        raise Skip
    kind = t.draw.choice(["uniform", "normal", "bits", "split"])
    if kind == "split":
        return t.put(jax.random.key_data(jax.random.split(key)), seed)
    if kind == "bits":
        return t.put(jax.random.bits(key, shape), seed)
    sample = jax.random.uniform if kind == "uniform" else jax.random.normal
    bound, rounds = (1, 1) if kind == "uniform" else (6, 8)
    return t.put(sample(key, shape), seed, bound=bound, rounds=rounds, whole=False)


def counting(t: Tape) -> Value:
    shape = (t.draw.choice(t.dims), t.draw.choice(t.dims))
    dtype = t.draw.choice(["int32", "float32"])
    d = t.draw.number(0, 1)
    if math.prod(shape) > MOST:
        raise Skip
    return t.put(lax.broadcasted_iota(jnp.dtype(dtype), shape, d), bound=shape[d], whole=True, rounds=0)


FAMILIES = [reshape, reshape, rearrange, rearrange, slices, pad, join, indexed, ordered]
ROUGH = [indexed, ordered, counting]
RARE = [windows, numbers]
