"""Rewrite: the same function in equations that suit a wafer better; sums are taken in another order, no more.

- A factor that is the same along what a product sums over is applied to the result: x/rms(x) W becomes (x W)/rms(x),
  and softmax's division follows the product with the values. The sum behind the factor then needs no collective of
  its own: it travels with the product's. Not in float16, whose range the plain product may leave.
- A division by one value for many elements becomes a multiplication by its inverse.
- An update at a known place is one block; a slice of a padded array is a padded slice.
- A reshape of a product's result, or of what it sums over, becomes one of the weight, which lies as it is needed:
  heads come out of a product, and go into one, without moving.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from wsc.lowering import jaxapi, loops, windows
from wsc.lowering.jaxapi import Literal
from wsc.lowering.normalize import Builder, Normal, finish
from wsc.lowering.rules.shape import groups

FAR = 12  # equations back from a factor within which the sum behind it is looked for
FEWER = 4  # a division is worth an inverse when it serves so many elements


class _Factor(NamedTuple):
    """One value for many elements: `value` over the dimensions `dims` of the operand, and whether it divides."""

    value: Any
    dims: tuple[int, ...]
    divides: bool


def rewrite(normal: Normal, weight_leaves: frozenset[int]) -> Normal:
    """The same function, its results equal up to rounding."""
    return _Rewriter(normal, weight_leaves).run()


class _Rewriter:
    def __init__(self, normal: Normal, weight_leaves: frozenset[int]):
        self.normal = normal
        self.builder = Builder()
        self.maker: dict = {}  # the equation that makes a new variable
        self.free = {v for i, v in enumerate(normal.jaxpr.invars) if i in weight_leaves}  # reached by weights alone
        self.scaled: dict = {}  # a scaled result -> the product as it was, and its factors
        self.uses: dict = {}
        for eqn in normal.jaxpr.eqns:
            for a in eqn.invars:
                if not isinstance(a, Literal):
                    self.uses[a] = self.uses.get(a, 0) + 1
        for a in normal.jaxpr.outvars:
            if not isinstance(a, Literal):
                self.uses[a] = self.uses.get(a, 0) + 2

    def run(self) -> Normal:
        jaxpr = self.normal.jaxpr
        constants = dict(zip(jaxpr.constvars, self.normal.consts, strict=True))
        self.builder.consts.update(constants)
        self.builder.given |= self.normal.given
        self.free |= set(constants)
        env: dict = {v: v for v in (*jaxpr.invars, *jaxpr.constvars)}
        old: dict = {}  # new variable -> how often the one it stands for is used
        for eqn in jaxpr.eqns:
            if loops.loop_of(eqn):
                self.builder.eqns.append(loops.replaced(eqn, env))
                env.update((v, v) for v in eqn.outvars)
                continue
            atoms = [a if isinstance(a, Literal) else env[a] for a in eqn.invars]
            found = self._better(eqn, atoms, old)
            if found is None:
                found = self._append(eqn, atoms)
            for v, new in zip(eqn.outvars, found, strict=True):
                env[v] = new
                old[new] = self.uses.get(v, 0)
        outs = [a if isinstance(a, Literal) else env[a] for a in jaxpr.outvars]
        return finish(self.builder, jaxpr.invars, outs)

    def _append(self, eqn, atoms) -> list:
        known = len(self.builder.eqns)
        results = self.builder.append(eqn, atoms, None)
        for new in self.builder.eqns[known:]:
            self.maker.update((v, new) for v in new.outvars)
        if all(isinstance(a, Literal) or a in self.free for a in atoms):
            self.free |= set(results)
        return results

    def _emit(self, like, fn, atoms, *static) -> Any:
        """`fn(*atoms, *static)` in the place of the equation `like`."""
        jaxpr = _helper(fn, static, tuple((tuple(a.aval.shape), a.aval.dtype) for a in atoms))
        env = dict(zip(jaxpr.invars, atoms, strict=True))
        for eqn in jaxpr.eqns:
            operands = [a if isinstance(a, Literal) else env[a] for a in eqn.invars]
            made = self._append(eqn.replace(source_info=like.source_info), operands)
            env.update(zip(eqn.outvars, made, strict=True))
        (out,) = jaxpr.outvars
        return env[out]

    def _made_by(self, atom, *names: str):
        eqn = None if isinstance(atom, Literal) else self.maker.get(atom)
        return eqn if eqn is not None and eqn.primitive.name in names else None

    def _better(self, eqn, atoms, old) -> list | None:
        match eqn.primitive.name:
            case "dot_general":
                return self._inner(eqn, atoms) or self._product(eqn, atoms)
            case "reshape":
                return self._split_product(eqn, atoms[0], old)
            case "div":
                return self._inverse(eqn, atoms)
            case "scatter":
                start = windows.update_start(eqn, self._value(atoms[1]))
                return None if start is None else [self._emit(eqn, windows.write, [atoms[0], atoms[2]], start)]
            case "slice":
                pad = self._made_by(atoms[0], "pad")
                found = windows.padded_slice(pad, eqn) if pad is not None else None
                return [self._emit(eqn, windows.slice_and_pad, pad.invars, *found)] if pad and found else None
        return None

    def _inner(self, eqn, atoms) -> list | None:
        """The inner product of two arrays: a sum over their elements where these lie."""
        if eqn.outvars[0].aval.shape != () or any(isinstance(a, Literal) or a in self.free for a in atoms):
            return None
        if any(not _floats(a) or a.aval.dtype != eqn.outvars[0].aval.dtype or a.aval.dtype.itemsize < 4 for a in atoms):
            return None
        (lhs, rhs), _ = eqn.params["dimension_numbers"]
        plain = [v.invars[0] for v in (self._made_by(a, "reshape") for a in atoms) if v is not None]
        if len(plain) == 2 and plain[0].aval.shape == plain[1].aval.shape and len(lhs) == 1:
            atoms = plain
        elif tuple(lhs) != tuple(rhs):
            return None
        return [self._emit(eqn, _inner, atoms)]

    def _value(self, atom) -> Any:
        """What is known of a value when it is compiled."""
        return atom.val if isinstance(atom, Literal) else self.builder.consts.get(atom)

    def _inverse(self, eqn, atoms) -> list | None:
        value, by = atoms
        found = self._few(by)
        if found is None or not _floats(by) or found[0].aval.size * FEWER > eqn.outvars[0].aval.size:
            return None
        inverse = self._emit(eqn, _one_over, [found[0]])
        return [self._emit(eqn, _spread_times, [value, inverse], tuple(eqn.outvars[0].aval.shape), found[1])]

    def _split_product(self, eqn, value, old) -> list | None:
        """reshape(x W) -> x reshape(W), where W's own dimensions are split."""
        if old.get(value, 0) > 1:
            return None
        made, factors = self.scaled.get(value, (value, []))
        dot = self._made_by(made, "dot_general")
        if dot is None:
            return None
        (contract, batch), shape = dot.params["dimension_numbers"], eqn.outvars[0].aval.shape
        for side in (0, 1):
            weight = dot.invars[side]
            if isinstance(weight, Literal) or weight not in self.free:
                continue
            other = dot.invars[1 - side]
            mine = [d for d in range(weight.aval.ndim) if d not in (*contract[side], *batch[side])]
            first = len(batch[0]) + (0 if side == 0 else other.aval.ndim - len(contract[1]) - len(batch[1]))
            at = {first + i: d for i, d in enumerate(mine)}  # dimension of the result -> of the weight
            pieces: dict[int, tuple[int, ...]] = {}
            kept: dict[int, int] = {}
            for before, after in groups(value.aval.shape, shape):
                if len(before) == len(after) == 1:
                    kept[before[0]] = after[0]
                    continue
                if len(before) != 1 or before[0] not in at:
                    break
                pieces[at[before[0]]] = tuple(shape[d] for d in after)
            else:
                if all(d in kept for f in factors for d in f.dims):
                    (cut,) = self._with_weight(dot, side, other, contract[1 - side], weight, pieces)
                    moved = [f._replace(dims=tuple(kept[d] for d in f.dims)) for f in factors]
                    return [self._scaled(eqn, cut, moved)]
        return None

    def _with_weight(self, dot, side: int, other, other_contract, weight, pieces: dict[int, tuple[int, ...]]) -> list:
        """The product `dot` with dimensions of its operand `side` split into `pieces`, the other one being `other`."""
        (contract, batch), new = dot.params["dimension_numbers"], []
        place = {}
        for d, n in enumerate(weight.aval.shape):
            place[d] = list(range(len(new), len(new) + len(pieces.get(d, (n,)))))
            new += pieces.get(d, (n,))
        cut = self._emit(dot, lax.reshape, [weight], tuple(new)) if pieces else weight
        mine = tuple(p for d in contract[side] for p in place[d])
        numbers = [(mine, tuple(other_contract)), (tuple(place[d][0] for d in batch[side]), tuple(batch[1 - side]))]
        if side == 1:
            numbers = [pair[::-1] for pair in numbers]
        operands = (cut, other) if side == 0 else (other, cut)
        params = {k: v for k, v in dot.params.items() if k in ("precision", "preferred_element_type")}
        return [self._emit(dot, _dot, operands, tuple(numbers), tuple(params.items()))]

    def _product(self, eqn, atoms) -> list | None:
        """A product whose moving operand loses its factors, and takes what it sums over as it lies."""
        contract, _ = eqn.params["dimension_numbers"]
        for side in (0, 1):
            other = atoms[1 - side]
            if isinstance(atoms[side], Literal) or atoms[side] in self.free:
                continue
            factors: list[_Factor] = []
            plain = self._peel(eqn, atoms[side], set(contract[side]), factors) if _floats(atoms[side]) else None
            if plain is not None and factors:
                pair = [plain, other] if side == 0 else [other, plain]
                (made,) = self._product(eqn, pair) or self._append(eqn, pair)
                return [self._scaled(eqn, made, self._over_result(eqn, factors, side))]
            merged = self._merged(eqn, atoms[side], other, side)
            if merged is not None:
                return merged
        return None

    def _merged(self, eqn, value, other, side: int) -> list | None:
        """reshape(x) W -> x reshape(W), where the reshape puts together what the product sums over."""
        contract, batch = eqn.params["dimension_numbers"]
        view = self._made_by(value, "reshape")
        if view is None or other not in self.free or len(contract[side]) != 1 or batch[side]:
            return None
        inner, (k,) = view.invars[0], contract[side]
        pairs = groups(inner.aval.shape, value.aval.shape)
        if any(len(a) != 1 or len(b) != 1 for a, b in pairs if b != [k]):
            return None
        summed = next(a for a, b in pairs if b == [k])
        turned = self._made_by(inner, "transpose")
        order = tuple(turned.params["permutation"]) if turned else tuple(range(inner.aval.ndim))
        free = [order[d] for d in range(inner.aval.ndim) if d not in summed]
        if turned and free == sorted(free):
            inner = turned.invars[0]
        else:
            order = tuple(range(inner.aval.ndim))
        pieces = {contract[1 - side][0]: tuple(view.invars[0].aval.shape[d] for d in summed)}
        return self._with_weight(eqn, 1 - side, inner, tuple(order[d] for d in summed), other, pieces)

    def _peel(self, eqn, atom, summed: set[int], factors: list[_Factor]) -> Any:
        """`atom` without the factors that are the same along `summed`, which are added to `factors`; None when there
        are none."""
        if wider := self._made_by(atom, "convert_element_type"):
            if not _floats(wider.invars[0]):
                return None
            inner = self._peel(eqn, wider.invars[0], summed, factors)
            if inner is None:
                return None
            was = self._made_by(inner, "convert_element_type")
            if was is not None and was.invars[0].aval.dtype == atom.aval.dtype == _narrower(inner, atom):
                return was.invars[0]  # there and back
            return self._append(wider, [inner])[0]
        scaled = self._made_by(atom, "mul", "div")
        if scaled is None:
            return None
        for i in (0, 1) if scaled.primitive.name == "mul" else (1,):
            value, factor = scaled.invars[1 - i], scaled.invars[i]
            if isinstance(value, Literal) or isinstance(factor, Literal):
                continue
            found = self._factor(factor, summed, scaled.primitive.name == "div")
            if found is not None and self._behind_a_sum(found.value):
                factors.append(found)
                return self._peel(eqn, value, summed, factors) or value
            if factor in self.free:
                inner = self._peel(eqn, value, summed, factors)
                if inner is not None:
                    pair = [inner, factor] if i == 1 else [factor, inner]
                    return self._append(scaled, pair)[0]
        return None

    def _few(self, atom) -> tuple[Any, tuple[int, ...]] | None:
        """The value that `atom` repeats, and the dimensions it has of it; None for a weight or an argument."""
        if isinstance(atom, Literal) or atom in self.free or atom not in self.maker:
            return None
        spread = self._made_by(atom, "broadcast_in_dim")
        if spread is None:
            return atom, tuple(range(atom.aval.ndim))
        if isinstance(spread.invars[0], Literal):
            return None
        return spread.invars[0], tuple(spread.params["broadcast_dimensions"])

    def _factor(self, atom, summed: set[int], divides: bool) -> _Factor | None:
        few = self._few(atom)
        if few is None:
            return None
        value, dims = few
        shape = value.aval.shape
        if any(d in summed and n != 1 for d, n in zip(dims, shape, strict=True)):
            return None
        kept = [i for i, d in enumerate(dims) if d not in summed]
        if len(kept) < len(dims):
            value = self._emit(self.maker[atom], lax.reshape, [value], tuple(shape[i] for i in kept))
        return _Factor(value, tuple(dims[i] for i in kept), divides)

    def _behind_a_sum(self, atom) -> bool:
        """A sum made the value not far back: only then is there a collective to save."""
        near = [atom]
        for _ in range(FAR):
            eqns = [e for a in near if (e := self.maker.get(a) if not isinstance(a, Literal) else None)]
            if any(e.primitive.name == "reduce_sum" for e in eqns):
                return True
            near = [a for e in eqns for a in e.invars if a.aval.size <= atom.aval.size]
        return False

    def _over_result(self, eqn, factors: list[_Factor], side: int) -> list[_Factor]:
        """Factors of a product's operand as factors of its result."""
        contract, batch = eqn.params["dimension_numbers"]
        rank = eqn.invars[side].aval.ndim
        free = [d for d in range(rank) if d not in (*contract[side], *batch[side])]
        other = eqn.invars[1 - side].aval.ndim - len(contract[0]) - len(batch[0])
        first = len(batch[0]) + (0 if side == 0 else other)
        to = {d: i for i, d in enumerate(batch[side])} | {d: first + i for i, d in enumerate(free)}
        return [
            _Factor(
                self._emit(eqn, _one_over, [f.value]) if f.divides else f.value, tuple(to[d] for d in f.dims), False
            )
            for f in factors
        ]

    def _scaled(self, eqn, made, factors: list[_Factor]) -> Any:
        """The product's result times its factors, in the factors' precision."""
        found = made
        for f in factors:
            found = self._emit(eqn, _times, [found, f.value], tuple(made.aval.shape), f.dims)
        if factors:
            self.scaled[found] = made, factors
        return found


def _dot(a, b, numbers, params):
    return lax.dot_general(a, b, numbers, **dict(params))


def _inner(a, b):
    return lax.reduce(a * b, a.dtype.type(0), lax.add, tuple(range(a.ndim)))


def _spread_times(value, factor, shape, dims):
    return value * lax.broadcast_in_dim(factor, shape, dims)


def _times(value, factor, shape, dims):
    wide = lax.broadcast_in_dim(factor, shape, dims)
    return lax.convert_element_type(lax.convert_element_type(value, factor.dtype) * wide, value.dtype)


@lru_cache(maxsize=4096)
def _helper(fn, static: tuple, avals: tuple):
    """The equations of a small function; traced once for each shape."""
    return jaxapi.make_jaxpr(lambda *a: fn(*a, *static), *(jax.ShapeDtypeStruct(s, d) for s, d in avals))[0]


def _one_over(a):
    return 1 / a


def _narrower(inner, outer):
    return min((inner.aval.dtype, outer.aval.dtype), key=lambda d: d.itemsize)


def _floats(atom) -> bool:
    """Numbers whose range is that of float32."""
    dtype = atom.aval.dtype
    return not jaxapi.is_extended(dtype) and jax.numpy.issubdtype(dtype, np.floating) and dtype.name != "float16"
