"""Complex numbers: made of two floats, computed with, transformed, and taken apart again. Their errors are those of the
modulus: a product of two rounds three times, a division more often."""

import math

import jax.numpy as jnp
from jax import lax
from tape import COMPLEX, Skip, Tape, Value


def made(t: Tape) -> Value:
    """a + ib of two floats of one shape."""
    a = t.pick(("float32",))
    b = t.pick(("float32",), lambda v: v.shape == a.shape)
    return t.put(lax.complex(a.x, b.x), a, b, bound=a.bound + b.bound, rounds=0)


def taken_apart(t: Tape) -> Value:
    a = t.pick((COMPLEX,))
    kind = t.draw.choice(["real", "imag", "abs"])
    if kind == "abs":
        return t.put(jnp.abs(a.x), a, rounds=4, whole=False)
    return t.move(lax.real(a.x) if kind == "real" else lax.imag(a.x), a)


def computed(t: Tape) -> Value:
    a = t.pick((COMPLEX,))
    kind = t.draw.choice(["add", "sub", "mul", "div", "conj", "neg", "square", "sum", "mean", "where"])
    if kind in ("conj", "neg"):
        return t.move(jnp.conj(a.x) if kind == "conj" else -a.x, a)
    if kind == "square":
        return t.put(jnp.square(a.x), a, bound=a.bound**2, gains=2 * a.bound, rounds=3)
    if kind in ("sum", "mean"):
        if a.rank == 0 or a.size == 0:
            raise Skip
        d = t.draw.number(0, a.rank - 1)
        n = a.shape[d]
        if kind == "sum":
            return t.put(jnp.sum(a.x, axis=d), a, bound=n * a.bound, gains=n, rounds=n)
        return t.put(jnp.mean(a.x, axis=d), a, rounds=n + 1, whole=False)
    b = t.made(a.shape, COMPLEX) if t.draw.chance(3) else t.pick((COMPLEX,), lambda v: v.shape in (a.shape, ()))
    if kind == "where":
        return t.move(jnp.where(t.pick(("bool",), lambda v: v.shape in (a.shape, ())).x, a.x, b.x), a, b)
    if kind == "mul":
        return t.put(a.x * b.x, a, b, bound=a.bound * b.bound, gains=(b.bound, a.bound), rounds=3)
    if kind == "div":
        below = 2 + b.x * jnp.conj(b.x)  # real and at least 2
        return t.put(a.x / below, a, b, bound=a.bound / 2, gains=(0.5, a.bound), rounds=12 * (1 + b.bound), whole=False)
    return t.put(a.x + b.x if kind == "add" else a.x - b.x, a, b, bound=a.bound + b.bound)


def transformed(t: Tape) -> Value:
    """Fourier transforms of one or two last dimensions, real ones and their inverses too. In exact arithmetic the norm
    grows by the square root of n at most; its rounding errors are those of fewer than 8 + lg n sums of n numbers."""
    a = t.pick(("float32", COMPLEX), lambda v: v.rank > 0 and v.size > 0)
    dims = 2 if a.rank > 1 and t.draw.chance(3) else 1
    n = math.prod(a.shape[-dims:])
    gain: dict = {"gains": n, "bound": n * a.bound, "rounds": 8 + 4 * math.log2(2 * n), "whole": False}
    if a.dtype == "float32":
        return t.put((jnp.fft.rfftn if t.draw.chance(2) else jnp.fft.fftn)(a.x, axes=range(-dims, 0)), a, **gain)
    kind = t.draw.choice(["fft", "ifft", "irfft"])
    if kind == "fft":
        return t.put(jnp.fft.fftn(a.x, axes=range(-dims, 0)), a, **gain)
    gain |= {"gains": 2, "bound": 2 * a.bound}
    if kind == "ifft":
        return t.put(jnp.fft.ifftn(a.x, axes=range(-dims, 0)), a, **gain)
    if a.shape[-1] == 1:
        raise Skip
    return t.put(jnp.fft.irfft(a.x), a, **gain)


def multiplied(t: Tape) -> Value:
    """A matrix product with a new complex weight."""
    a = t.pick((COMPLEX,), lambda v: v.rank > 0 and v.size > 0)
    k, n = a.shape[-1], t.draw.choice(t.dims)
    if a.size // k * n > 600:
        raise Skip
    b = t.made((k, n), COMPLEX)
    rounds = 3 * k * math.sqrt(2)
    return t.put(a.x @ b.x, a, b, bound=k * a.bound * b.bound, gains=(k * b.bound, k * a.bound), rounds=rounds)


FAMILIES = [made, made, computed, computed, taken_apart, transformed, multiplied]
