"""Ops that compute: element-wise, comparisons, reductions and products. Each draws its operands from the tape."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tape import FLOATS, INTS, MOST, Skip, Tape, Value

# (function, Lipschitz constant and bound of the result for operands up to b, roundings)
SMOOTH = [
    (lambda a: -a, lambda b: (1, b), 0),
    (jnp.tanh, lambda b: (1, 1), 4),
    (jnp.sin, lambda b: (1, 1), 4),
    (jnp.cos, lambda b: (1, 1), 4),
    (lax.logistic, lambda b: (0.25, 1), 4),
    (jnp.square, lambda b: (2 * b, b * b), 1),
    (lambda a: lax.integer_pow(a, 3), lambda b: (3 * b * b, b**3), 2),
    (lambda a: lax.integer_pow(1 + a * a, -2), lambda b: (1, 1), 6),
    (lambda a: 1 / (1 + a * a), lambda b: (1, 1), 3),
    (lambda a: lax.rsqrt(1 + a * a), lambda b: (1, 1), 4),
    (lambda a: jnp.sqrt(1 + a * a), lambda b: (1, 1 + b), 3),
    (lambda a: jnp.log1p(a * a), lambda b: (1, math.log1p(b * b)), 4),
    (lambda a: jnp.log(2 + jnp.cos(a)), lambda b: (1, 1.1), 8),
    (lambda a: jnp.exp(jnp.sin(a)), lambda b: (2.8, 2.8), 8),
    (lambda a: jnp.exp2(jnp.tanh(a)), lambda b: (1.4, 2), 8),
    (lambda a: jnp.expm1(jnp.tanh(a)), lambda b: (2.8, 1.8), 8),
    (lax.erf, lambda b: (1.13, 1), 4),
    (lambda a: lax.erf_inv(0.5 * jnp.tanh(a)), lambda b: (0.6, 0.5), 8),
    (jnp.arctan, lambda b: (1, 1.6), 4),
    (jnp.arcsinh, lambda b: (1, math.asinh(b)), 8),
    (lambda a: jax.nn.gelu(a), lambda b: (1.2, b), 8),
    (lambda a: jax.nn.softplus(a), lambda b: (1, b + 0.7), 8),
    (jax.nn.silu, lambda b: (1.1, b), 8),
    (lambda a: lax.pow(1 + a * a, jnp.asarray(0.7, a.dtype)), lambda b: (1.4, (1 + b * b) ** 0.7), 8),
    (lambda a: a * 0.5 + 1, lambda b: (0.5, b / 2 + 1), 2),
]
KINKED = [
    (jnp.abs, lambda b: (1, b), 0),
    (jax.nn.relu, lambda b: (1, b), 0),
    (jax.nn.relu6, lambda b: (1, min(b, 6)), 0),
    (lambda a: jnp.clip(a, -1, 1), lambda b: (1, min(b, 1)), 0),
    (jax.nn.leaky_relu, lambda b: (1, b), 1),
    (jax.nn.elu, lambda b: (1, max(b, 1)), 8),
    (lambda a: lax.lgamma(2 + jnp.tanh(a)), lambda b: (1, 0.7), 16),
    (lambda a: lax.digamma(2 + jnp.tanh(a)), lambda b: (1.7, 1), 16),
]
JUMPS = [
    (jnp.sign, lambda b: (1, 1), 0),
    (jnp.floor, lambda b: (1, b + 1), 0),
    (jnp.ceil, lambda b: (1, b + 1), 0),
    (jnp.round, lambda b: (1, b + 1), 0),
]


def unary(t: Tape) -> Value:
    a = t.floating()
    fn, of, rounds = t.draw.choice(SMOOTH if t.smooth else SMOOTH + KINKED)
    gain, bound = of(a.bound)
    exact = a.whole and rounds <= 2 and fn not in (SMOOTH[-1][0], jax.nn.leaky_relu)
    return t.put(fn(a.x), a, bound=bound, gains=gain, rounds=rounds, whole=exact)


def jump(t: Tape) -> Value:
    a = t.floating()
    fn, of, _ = t.draw.choice(JUMPS)
    return t.put(fn(a.x), a, bound=of(a.bound)[1], rounds=0, jump=True, whole=True)


def _pair(t: Tape, dtypes) -> tuple[Value, Value]:
    """Two of one dtype that broadcast against each other; the second may be a new weight."""
    a = t.pick(dtypes)

    def suits(v: Value) -> bool:
        try:
            return v.dtype == a.dtype and math.prod(np.broadcast_shapes(v.shape, a.shape)) <= MOST
        except ValueError:
            return False

    if t.draw.chance(3):
        shape = tuple(1 if t.draw.chance(4) else n for n in a.shape[t.draw.number(0, a.rank) :])
        b = t.made(shape, a.dtype)
    else:
        b = t.pick(None, suits)
    return (b, a) if t.draw.chance(3) else (a, b)


def binary(t: Tape) -> Value:
    a, b = _pair(t, FLOATS)
    names = ["add", "sub", "mul", "div"] + ([] if t.smooth else ["max", "min", "select"])
    name = t.draw.choice(names)
    if name in ("add", "sub"):
        x = a.x + b.x if name == "add" else a.x - b.x
        return t.put(x, a, b, bound=a.bound + b.bound)
    if name == "mul":
        return t.put(a.x * b.x, a, b, bound=a.bound * b.bound, gains=(b.bound, a.bound))
    if name == "div":
        return t.put(a.x / (1 + b.x * b.x), a, b, gains=(1, a.bound), bound=a.bound, rounds=4, whole=False)
    if name == "select":
        mask = t.pick(("bool",), lambda v: v.shape in (a.shape, ()))
        return t.move(jnp.where(mask.x, a.x, b.x if b.shape == a.shape else jnp.asarray(0.5, a.x.dtype)), a, b, mask,
                      whole=a.whole and b.whole and b.shape == a.shape)  # fmt: skip
    return t.move(jnp.maximum(a.x, b.x) if name == "max" else jnp.minimum(a.x, b.x), a, b)


def integer(t: Tape) -> Value:
    """Integers wrap around, so whatever is done to them is exact."""
    a, b = _pair(t, INTS)
    dtype = a.x.dtype
    one, few = jnp.asarray(1, dtype), jnp.asarray(7, dtype)
    ops = [
        lambda: a.x + b.x, lambda: a.x - b.x, lambda: a.x * b.x, lambda: a.x & b.x, lambda: a.x | b.x,
        lambda: a.x ^ b.x, lambda: jnp.maximum(a.x, b.x), lambda: jnp.minimum(a.x, b.x), lambda: ~a.x,
        lambda: lax.shift_left(*jnp.broadcast_arrays(a.x, b.x & few)), lambda: -a.x, lambda: jnp.sign(a.x),
        lambda: lax.shift_right_logical(*jnp.broadcast_arrays(a.x, b.x & few)),
        lambda: lax.shift_right_arithmetic(*jnp.broadcast_arrays(a.x, b.x & few)),
        lambda: lax.population_count(a.x), lambda: lax.clz(a.x), lambda: lax.integer_pow(a.x, 3),
        lambda: lax.div(*jnp.broadcast_arrays(a.x, (b.x & few) | one)),
        lambda: lax.rem(*jnp.broadcast_arrays(a.x, (b.x & few) | one)),
    ]  # fmt: skip
    return t.put(t.draw.choice(ops)(), a, b)


def boolean(t: Tape) -> Value:
    a, b = _pair(t, ("bool",))
    return t.put(t.draw.choice([lambda: a.x & b.x, lambda: a.x | b.x, lambda: a.x ^ b.x, lambda: ~a.x])(), a, b)


def compare(t: Tape) -> Value:
    a, b = _pair(t, (*FLOATS, *INTS))
    op = t.draw.choice([jnp.greater, jnp.less, jnp.greater_equal, jnp.less_equal, jnp.equal, jnp.not_equal])
    return t.put(op(a.x, b.x), a, b, jump=True, bound=1)


def convert(t: Tape) -> Value:
    """Between dtypes; floats are clipped so that an integer holds them."""
    a = t.pick((*FLOATS, *INTS, "bool"))
    dtype = t.draw.choice(FLOATS + (() if t.smooth else (*INTS, "bool")))
    if a.dtype in FLOATS and dtype in FLOATS:
        return t.put(a.x.astype(dtype), a, rounds=1)
    if a.dtype in FLOATS:
        x = jnp.clip(a.x, 0 if dtype == "uint32" else -50, 50).astype(dtype)
        return t.put(x, a, jump=True, bound=50)
    if dtype in FLOATS:
        x = a.x if a.dtype == "bool" else a.x & jnp.asarray(31, a.x.dtype)
        return t.put(x.astype(dtype), a, bound=31, whole=True)
    return t.put(a.x.astype(dtype), a)


_REDUCES = {"sum": jnp.sum, "max": jnp.max, "min": jnp.min, "mean": jnp.mean}


def reduction(t: Tape) -> Value:
    a = t.pick((*FLOATS, *INTS, "bool"), lambda v: v.size > 0)
    axes = tuple(sorted(t.draw.some(range(a.rank))))
    count, keep = math.prod(a.shape[d] for d in axes), t.draw.chance(2)
    if a.dtype == "bool":
        return t.put((jnp.all if t.draw.chance(2) else jnp.any)(a.x, axis=axes, keepdims=keep), a)
    if a.dtype in INTS:
        op = t.draw.choice([lax.add, lax.max, lax.min, lax.mul, lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor])
        first = {lax.mul: 1, lax.bitwise_and: -1 if a.dtype != "uint32" else 2**32 - 1}.get(op, 0)
        if op in (lax.max, lax.min):
            info = jnp.iinfo(a.dtype)
            first = info.min if op is lax.max else info.max
        return t.put(lax.reduce(a.x, np.asarray(first, a.dtype), op, axes), a)
    name = t.draw.choice(["sum", "mean"] if t.smooth else ["sum", "max", "min", "mean", "prod", "argmax", "argmin"])
    if name.startswith("arg"):
        if a.rank == 0:
            raise Skip
        axis = t.draw.number(0, a.rank - 1)
        return t.put((jnp.argmax if name == "argmax" else jnp.argmin)(a.x, axis=axis), a, jump=True)
    if name == "prod":
        if a.bound**count > 1e4:
            raise Skip
        gain = count * max(1, a.bound) ** (count - 1)
        bound = max(1, a.bound) ** count
        return t.put(jnp.prod(a.x, axis=axes, keepdims=keep), a, bound=bound, gains=gain, rounds=count)
    x = _REDUCES[name](a.x, axis=axes, keepdims=keep)
    if name in ("max", "min"):
        return t.move(x, a)
    if name == "mean":
        return t.put(x, a, rounds=count + 1, whole=False)
    return t.put(x, a, bound=count * a.bound, gains=count, rounds=count)


def normalized(t: Tape) -> Value:
    """Softmax, its logarithm, and norms: a factor that is the same along what a product may sum over."""
    a = t.floating(lambda v: v.rank > 0 and v.size > 0)
    axis = t.draw.number(-a.rank, -1)
    n = a.shape[axis]
    name = t.draw.choice(["rms", "layer", "softmax", "log_softmax", "logsumexp", "masked"])
    if t.smooth and name == "masked":
        raise Skip
    if name == "rms":
        x = a.x * lax.rsqrt(jnp.mean(a.x * a.x, axis=axis, keepdims=True) + 1)
        return t.put(x, a, gains=2 + a.bound, rounds=(n + 8) * (1 + a.bound), whole=False)
    if name == "layer":
        centred = a.x - jnp.mean(a.x, axis=axis, keepdims=True)
        x = centred / jnp.sqrt(jnp.mean(centred * centred, axis=axis, keepdims=True) + 1)
        gain = 4 + 2 * a.bound
        return t.put(x, a, gains=gain, bound=2 * a.bound, rounds=(n + 8) * gain, whole=False)
    if name == "logsumexp":
        x = jax.nn.logsumexp(a.x, axis=axis)
        return t.put(x, a, bound=a.bound + math.log(n) + 1, rounds=n + 8, whole=False)
    if name == "log_softmax":
        x = jax.nn.log_softmax(a.x, axis=axis)
        return t.put(x, a, gains=2, bound=2 * a.bound + math.log(n) + 1, rounds=n + 8, whole=False)
    x = a.x
    if name == "masked":
        x = jnp.where(jnp.arange(n).reshape((n,) + (1,) * (-axis - 1)) < t.draw.number(1, n), x, -jnp.inf)
    rounds = (n + 8) * max(1, a.bound)
    return t.put(jax.nn.softmax(x, axis=axis), a, bound=1, gains=2, rounds=rounds, whole=False)


def product(t: Tape) -> Value:
    """dot_general over any dimensions; the other operand is a value that suits, or a new weight."""
    a = t.pick((*FLOATS, *INTS), lambda v: v.size > 0)
    dims = t.draw.some(range(a.rank), 0, 3)
    contracted = t.draw.number(min(1, len(dims)), len(dims))
    k, batch = dims[:contracted], dims[contracted:]
    if t.draw.chance(3):
        b = t.pick((a.dtype,), lambda v: v.rank >= len(dims) and v.size > 0)
        free = list(range(b.rank))
        places = []
        for d in dims:
            same = [f for f in free if b.shape[f] == a.shape[d]]
            if not same:
                raise Skip
            places.append(t.draw.choice(same))
            free.remove(places[-1])
    else:
        shape = [a.shape[d] for d in dims] + [t.draw.choice(t.dims) for _ in range(t.draw.number(0, 2))]
        order = t.draw.permutation(len(shape))
        if math.prod(shape) > 4 * MOST:
            raise Skip
        b, places = t.made(tuple(shape[o] for o in order), a.dtype), [order.index(i) for i in range(len(dims))]
    count = math.prod(a.shape[d] for d in k)
    size = a.size * b.size / count**2 / math.prod(a.shape[d] for d in batch)
    if size > MOST:
        raise Skip
    numbers = ((k, places[:contracted]), (batch, places[contracted:]))
    if t.draw.chance(3):  # the other operand on the left
        a, b, numbers = b, a, tuple(pair[::-1] for pair in numbers)
    wide = t.draw.choice([None, "float32" if a.floats else "int32"])
    wide = None if wide == "int32" and a.dtype == "uint32" else wide
    x = lax.dot_general(a.x, b.x, numbers, preferred_element_type=wide)
    return t.put(x, a, b, bound=count * a.bound * b.bound, gains=(count * b.bound, count * a.bound), rounds=count)


def einsum(t: Tape) -> Value:
    """Letters for dimensions, results in any order, sums over what is not kept."""
    a = t.floating(lambda v: v.size > 0)
    left = "abcdef"[: a.rank]
    right = t.draw.some(left) + list("xy"[: t.draw.number(0, 2)])
    right = "".join(right[i] for i in t.draw.permutation(len(right)))
    sizes = dict(zip(left, a.shape, strict=True)) | {c: t.draw.choice(t.dims) for c in "xy"}
    b = t.made(tuple(sizes[c] for c in right), a.dtype)
    kept = t.draw.some(sorted({*left, *right}))
    out = math.prod(sizes[c] for c in kept)
    count = math.prod(sizes[c] for c in {*left, *right} - set(kept))
    if max(b.size, out) > MOST or count == 0:
        raise Skip
    x = jnp.einsum(f"{left},{right}->{''.join(kept)}", a.x, b.x)
    return t.put(x, a, b, bound=count * a.bound * b.bound, gains=(count * b.bound, count * a.bound), rounds=count)


FAMILIES = [unary, product, unary, binary, binary, product, product, einsum, reduction, normalized, convert]
ROUGH = [jump, integer, boolean, compare]
