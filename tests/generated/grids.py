"""Ops of array programs, such as stencils and solvers: no weights and no products, arrays that differ in size by their
edges. Their arrays lie in frames, and what neighbours need of one another is a halo."""

import arithmetic
import jax.numpy as jnp
import movement
from jax import lax
from tape import FLOATS, INTS, Skip, Tape, Value

KINDS = (*FLOATS, *INTS)


def _inner(t: Tape, v: Value) -> tuple[slice, ...]:
    """A block within an array: up to three elements off each end."""
    found = []
    for n in v.shape:
        low = t.draw.number(0, min(3, n - 1))
        found.append(slice(low, n - t.draw.number(0, min(3, n - 1 - low))))
    return tuple(found)


def neighbours(t: Tape) -> Value:
    """a[i-1] - 2 a[i] + a[i+1] of the inner elements, along one dimension or, with the others cut to fit, several."""
    a = t.pick(FLOATS, lambda v: v.rank > 0 and min(v.shape) > 0)
    reach = t.draw.number(1, 2)
    along = t.draw.some([d for d, n in enumerate(a.shape) if n > 2 * reach], 1)
    if not along:
        raise Skip

    def shifted(d: int, by: int):
        at = [slice(reach, n - reach) if e in along else slice(None) for e, n in enumerate(a.shape)]
        at[d] = slice(reach + by, a.shape[d] - reach + by)
        return a.x[tuple(at)]

    x, count = -2.0 * len(along) * shifted(along[0], 0), 4 * len(along)
    for d in along:
        x = x + shifted(d, reach) + shifted(d, -reach)
    return t.put(x.astype(a.x.dtype), a, bound=count * a.bound, gains=count, rounds=count)


def block(t: Tape) -> Value:
    a = t.pick(where=lambda v: v.rank > 0 and min(v.shape) > 0)
    return t.move(a.x[_inner(t, a)], a)


def padded(t: Tape) -> Value:
    a = t.pick(KINDS, lambda v: v.rank > 0)
    mode = t.draw.choice(["constant", "edge", "wrap", "reflect"])
    width = [(t.draw.number(0, 2), t.draw.number(0, 2)) for _ in a.shape]
    if mode != "constant" and min(a.shape) < 3:
        raise Skip
    return t.move(jnp.pad(a.x, width, mode=mode), a)


def rolled(t: Tape) -> Value:
    a = t.pick(where=lambda v: v.rank > 0)
    d = t.draw.some(range(a.rank), 1)
    return t.move(jnp.roll(a.x, [t.draw.number(-2, 2) for _ in d], axis=d), a)


def written(t: Tape) -> Value:
    """A block written or added into an array of one size with it, at a place that is known or not."""
    a = t.pick(KINDS, lambda v: v.rank > 0 and min(v.shape) > 0)
    at = _inner(t, a)
    shape = tuple(len(range(*s.indices(n))) for s, n in zip(at, a.shape, strict=True))
    b = t.pick((a.dtype,), lambda v: v.shape in (shape, ()))
    kind = t.draw.choice(["set", "add", "multiply", "update"])
    if kind == "set":
        return t.move(a.x.at[at].set(b.x), a, b)
    if kind == "add":
        return t.put(a.x.at[at].add(b.x), a, b, bound=a.bound + b.bound)
    if kind == "multiply":
        return t.put(a.x.at[at].multiply(b.x), a, b, bound=a.bound * max(1, b.bound), gains=(max(1, b.bound), a.bound))
    places = [movement.place(t, n - m + 1) if m < n else None for n, m in zip(a.shape, shape, strict=True)]
    starts = [0 if p is None else p.x for p in places]
    known = [p for p in places if p is not None]
    return t.move(lax.dynamic_update_slice(a.x, jnp.broadcast_to(b.x, shape), starts), a, b, *known)


def beside(t: Tape) -> Value:
    """Arrays of one size or of one less, brought to one size and added."""
    a = t.pick(FLOATS, lambda v: v.rank > 0 and min(v.shape) > 0)
    near = lambda v: v.rank == a.rank and all(0 <= n - m < 4 for n, m in zip(v.shape, a.shape, strict=True))  # noqa: E731
    b = t.pick((a.dtype,), near)
    x = b.x[tuple(slice((m - n) // 2, (m - n) // 2 + n) for n, m in zip(a.shape, b.shape, strict=True))]
    return t.put(a.x + x, a, b, bound=a.bound + b.bound)


FAMILIES = [
    neighbours, neighbours, block, padded, rolled, written, written, beside, movement.join, movement.rearrange,
    movement.slices, movement.pad, arithmetic.unary, arithmetic.binary, arithmetic.binary, arithmetic.reduction,
]  # fmt: skip
