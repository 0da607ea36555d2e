"""Normalize: one flat jaxpr of first-order equations, each doing work that an output needs.

Calls (jit, custom_jvp, custom_vjp, remat) are inlined; a scan over stacked weights is unrolled and so seen as layers,
slice i of `W[L, ...]` being layer i's weight; other loops stay equations, see `wsc.lowering.loops`; identities go;
equations that no argument reaches are computed now; equal equations become one; what no output needs is dropped.
Source lines and name stacks survive.
"""

import itertools
from collections import ChainMap
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from wsc.errors import UnsupportedError
from wsc.lowering import jaxapi, loops
from wsc.lowering.jaxapi import Literal, Traced
from wsc.lowering.loops import Loop
from wsc.lowering.rules.flexible import VIEWS
from wsc.lowering.rules.shape import IDENTITIES
from wsc.program import COUNTED

MAX_FOLD = 1 << 16  # elements of a constant computed at compile time; larger ones stay equations

GIVEN = 256  # elements from which on an array that was traced as a constant is a weight
_IDENTITIES = {*IDENTITIES, "device_put", "optimization_barrier"}
_INDEXING = {"dynamic_slice", "gather"}


@dataclass(frozen=True)
class Normal:
    """A normalized program: `jaxpr` has no calls, and `consts` are the values of its constvars. Those that are `given`
    were closed over by the user's function, and are stored like weights."""

    jaxpr: jaxapi.Jaxpr
    consts: tuple
    given: frozenset = frozenset()


def normalize(
    traced: Traced, weight_leaves: frozenset[int] = frozenset(), closed: Container[int] = frozenset()
) -> Normal:
    """The same function, flat. Its invars are those of the trace, in order, used or not; those in `weight_leaves` are
    weights. `closed` has the ids of arrays that the user's function closes over."""
    builder = Builder()
    builder.closed = closed
    invars = [jaxapi.new_var(v.aval) for v in traced.jaxpr.invars]
    builder.stored |= {v for i, v in enumerate(invars) if i in weight_leaves}
    outs = builder.inline(traced.jaxpr, traced.consts, invars, None)
    return finish(builder, invars, [builder.as_atom(o) for o in outs])


def finish(builder: "Builder", invars: list, outvars: list) -> Normal:
    """What was built, without what no output needs."""
    eqns = _live(builder.eqns, outvars)
    used = {v for e in eqns for v in e.invars if not isinstance(v, Literal)} | set(outvars_of(outvars))
    constvars = [v for v in builder.consts if v in used]
    jaxpr = jaxapi.Jaxpr(constvars, invars, outvars, eqns)
    return Normal(jaxpr, tuple(builder.consts[v] for v in constvars), frozenset(builder.given & set(constvars)))


def outvars_of(outvars) -> list:
    return [v for v in outvars if not isinstance(v, Literal)]


class _Known:
    """A value that no argument reaches, known at compile time."""

    def __init__(self, value, given: bool = False):
        self.value, self.given = value, given
        self.atom: Any = None


class Builder:
    """Equations in the making; those of a loop's body in a builder of its own `inside` the one around it."""

    def __init__(self, inside: "Builder | None" = None):
        self.eqns: list = []
        self.consts: dict = inside.consts if inside else {}  # constvar -> value
        self.seen: Any = ChainMap({}, inside.seen) if inside else {}  # (what it does, operands) -> results
        self.arrays: dict = inside.arrays if inside else {}  # id of a value -> its constvar
        self.given: set = inside.given if inside else set()  # constvars that the user's function closes over
        self.closed: Container[int] = inside.closed if inside else frozenset()  # ids of what it does
        self.kinds: dict = inside.kinds if inside else {}  # what an equation does -> its number
        self.whats: dict = inside.whats if inside else {}  # id of parameters -> (them, that number)
        self.stored: set = inside.stored if inside else set()  # weights, and renames of them
        self.rounds: Iterator[int] = inside.rounds if inside else itertools.count(1)
        self.again: int = inside.again if inside else 0  # the round of recomputation that we are in
        self.meters: list[int] = inside.meters if inside else []  # numbers that a run counts of each

    def inline(self, jaxpr, consts, args, caller) -> list:
        """Emit the equations of `jaxpr` applied to `args` (Vars or `_Known`s); returns its results likewise."""
        env: dict = dict(zip(jaxpr.invars, args, strict=True))
        env.update((v, _Known(c, given=True)) for v, c in zip(jaxpr.constvars, consts, strict=True))

        def read(atom):
            return _Known(atom.val) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            operands = [read(a) for a in eqn.invars]
            results = self.emit(eqn, operands, caller)
            env.update((v, r) for v, r in zip(eqn.outvars, results, strict=True) if not jaxapi.is_dropped(v))
        return [read(a) for a in jaxpr.outvars]

    def emit(self, eqn, operands, caller) -> list:
        name = eqn.primitive.name
        if name in jaxapi.CALLS:
            inner, consts, operands = jaxapi.open_call(eqn, operands)
            around = self.again
            if eqn.params.get("differentiated"):  # of jax.checkpoint, on the way back: what was not kept is made again
                self.again = next(self.rounds)
            found = self.inline(inner, consts, operands, self._scoped(eqn, caller))
            self.again = around
            return found
        if name in loops.NAMES and not self._foldable(eqn, operands):
            return self._control_flow(eqn, operands, self._scoped(eqn, caller))
        if eqn.effects:
            raise UnsupportedError(
                f"'{name}' at {jaxapi.source_line(self._scoped(eqn, caller))} has a side effect on the host, which a "
                f"wafer has not: take it out, such as jax.debug.print and callbacks"
            )
        if name in _IDENTITIES or _is_same_type(eqn) or _is_max_with_minus_inf(eqn, operands):
            if _is_max_with_minus_inf(eqn, operands) and isinstance(operands[0], _Known):
                return [operands[1]]
            return list(operands)[: len(eqn.outvars)]
        if self._foldable(eqn, operands):
            return self._fold(eqn, operands)
        if name == "dynamic_slice" and all(isinstance(o, _Known) for o in operands[1:]):
            starts, sizes = tuple(int(o.value) for o in operands[1:]), tuple(eqn.params["slice_sizes"])
            return [self.helper(partial(_piece, starts, sizes), operands[:1], self._scoped(eqn, caller))]
        return self.append(eqn, [self.as_atom(o) for o in operands], caller)

    def as_atom(self, value):
        """A `_Known` as a Literal (scalars) or a constvar (arrays); a Var as itself."""
        if not isinstance(value, _Known):
            return value
        if value.atom is None:
            array = np.asarray(value.value) if not _is_key(value.value) else value.value
            aval = jax.typeof(value.value)
            if array.shape == () and not _is_key(array):
                value.atom = Literal(array[()], aval)
            else:
                value.atom = self.arrays.setdefault(id(value.value), jaxapi.new_var(aval))
                self.consts[value.atom] = value.value
                known = id(value.value) in self.closed or (value.given and aval.size >= GIVEN)
                if known and jax.numpy.issubdtype(aval.dtype, np.inexact):
                    self.given.add(value.atom)
        return value.atom

    def append(self, eqn, atoms, caller) -> list:
        """Emit one equation over `atoms`, or find the equal one that is there."""
        if self.again:
            eqn = eqn.replace(params={**eqn.params, jaxapi.AGAIN: self.again})
        key = self.key(eqn, [_const_key(a.val) if isinstance(a, Literal) else a for a in atoms])
        if key is not None and key in self.seen:
            return self.seen[key]
        outvars = [jaxapi.new_var(v.aval) for v in eqn.outvars]
        if eqn.primitive.name in loops.SIZED and jaxapi.METER not in eqn.params:
            eqn = eqn.replace(params={**eqn.params, jaxapi.METER: self._meter(COUNTED)})
        self.eqns.append(jaxapi.rescope(eqn, caller, atoms, outvars))
        if key is not None:
            self.seen[key] = outvars
        if eqn.primitive.name in VIEWS and not isinstance(atoms[0], Literal) and atoms[0] in self.stored:
            self.stored.update(outvars)
        return outvars

    def key(self, eqn, operands):
        """What makes two equations equal, or None when that cannot be told. Those of one traced function share their
        parameters: these are looked at once."""
        at = eqn.primitive.name, id(eqn.params)
        if at not in self.whats:
            what = _what(eqn)
            number = None if what is None else self.kinds.setdefault(what, len(self.kinds))
            self.whats[at] = eqn.params, number
        number = self.whats[at][1]
        return None if number is None else (number, *operands)

    def _foldable(self, eqn, operands) -> bool:
        small = all(getattr(v.aval, "size", MAX_FOLD + 1) <= MAX_FOLD for v in eqn.outvars)
        return small and not eqn.effects and all(isinstance(o, _Known) for o in operands)

    def _fold(self, eqn, operands) -> list:
        key = self.key(eqn, [_const_key(o.value) for o in operands])
        if key is None or key not in self.seen:
            with jax.ensure_compile_time_eval():
                values = jaxapi.bind(eqn, [o.value for o in operands])
            known = [_Known(v) for v in values]
            if key is None:
                return known
            self.seen[key] = known
        return self.seen[key]

    def _control_flow(self, eqn, operands, caller) -> list:
        if eqn.primitive.name == "cond":
            return self._branches(eqn, operands, caller)
        if eqn.primitive.name == "while":
            return self._while(eqn, operands, caller)
        length, nconsts, ncarry = jaxapi.scan_counts(eqn)
        body, consts = jaxapi.open_jaxpr(eqn.params["jaxpr"])
        if not length and len(eqn.outvars) > ncarry:
            raise UnsupportedError(
                f"'scan' of no steps at {jaxapi.source_line(caller)} has results to stack: give it a step"
            )
        fixed, own = operands[:nconsts], operands[nconsts:]
        if length <= 1 or self._over_layers(body, fixed, own[ncarry:], length):
            return self._unroll(eqn, (body, consts), (fixed, own[:ncarry], own[ncarry:]), caller)
        found = self._body(body, consts, [*fixed, *[None] * len(own)], caller)
        loop = Loop("scan", (found,), ncarry, length, bool(eqn.params["reverse"]))
        return self._append_loop(eqn, caller, loop, own)

    def _over_layers(self, body, fixed: list, stacked: list, length: int) -> bool:
        """The steps of a scan are layers: its stacked operands are weights, or it takes weights by the step."""
        if any(s in self.stored for s in stacked if not isinstance(s, _Known)):
            return True
        of = [v for v, a in zip(body.invars, fixed) if not isinstance(a, _Known) and a in self.stored]
        return any(v.aval.shape[:1] == (length,) and _indexes(body, v) for v in of)

    def _while(self, eqn, operands, caller) -> list:
        (condition, c), (body, b) = (jaxapi.open_jaxpr(eqn.params[p]) for p in ("cond_jaxpr", "body_jaxpr"))
        first, after = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
        own = operands[after:]
        mine: list = [None] * len(own)

        def all_together(inner: Builder, args: list, found: list) -> list:
            """One trip for all members of a batch: those that are done keep their values."""
            (going,) = inner.inline(condition, c, [*operands[:first], *args[after - first :]], caller)
            return [inner.helper(_where, [going, *pair], caller) for pair in zip(found, args[after - first :])]

        def any_of_them(inner: Builder, args: list, found: list) -> list:
            return [inner.helper(jax.numpy.any, found, caller)]

        batched = bool(condition.outvars[0].aval.shape)  # by jax.vmap
        bodies = (
            self._body(condition, c, [*operands[:first], *mine], caller, any_of_them if batched else None),
            self._body(body, b, [*operands[first:after], *mine], caller, all_together if batched else None),
        )
        loop = Loop("while", bodies, len(own), meter=self._meter(2))
        return self._append_loop(eqn, caller, loop, own)

    def _branches(self, eqn, operands, caller) -> list:
        branches = [jaxapi.open_jaxpr(b) for b in eqn.params["branches"]]
        if isinstance(operands[0], _Known):
            taken, consts = branches[int(np.clip(operands[0].value, 0, len(branches) - 1))]
            return self.inline(taken, consts, operands[1:], caller)
        bodies = tuple(self._body(branch, consts, operands[1:], caller) for branch, consts in branches)
        return self._append_loop(eqn, caller, Loop("cond", bodies, 0, meter=self._meter(len(bodies))), operands[:1])

    def _body(self, jaxpr, consts, operands: list, caller, then=None) -> jaxapi.Jaxpr:
        """A body over outer operands; None stands for what changes from trip to trip. `then(inner, operands, results)`
        are its results, if given."""
        inner = Builder(self)
        args = [jaxapi.new_var(v.aval) if o is None else o for v, o in zip(jaxpr.invars, operands, strict=True)]
        found = inner.inline(jaxpr, consts, args, caller)
        outs = [inner.as_atom(o) for o in (then(inner, args, found) if then else found)]
        own = [a for a, o in zip(args, operands) if o is None]
        return jaxapi.Jaxpr([], own, outs, _live(inner.eqns, outs))

    def _append_loop(self, eqn, caller, loop: Loop, operands: list) -> list:
        outvars = [jaxapi.new_var(v.aval) for v in eqn.outvars]
        self.eqns.append(loops.make(eqn, caller, loop, [self.as_atom(o) for o in operands], outvars))
        return outvars

    def _meter(self, numbers: int) -> int:
        first = sum(self.meters)
        self.meters.append(numbers)
        return first

    def _unroll(self, eqn, closed, operands, caller) -> list:
        (body, body_consts), (consts, carry, stacked) = closed, operands
        length = eqn.params["length"]
        rows: list = [None] * length
        for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
            elements = [self.helper(partial(_element, i), [s], caller) for s in stacked]
            results = self.inline(body, body_consts, [*consts, *carry, *elements], caller)
            carry, rows[i] = results[: len(carry)], results[len(carry) :]
        return [*carry, *(self.helper(_stack, c, caller) for c in zip(*rows, strict=True))]

    def helper(self, fn, operands, caller):
        avals = [jax.typeof(o.value) if isinstance(o, _Known) else o.aval for o in operands]
        jaxpr, consts = jaxapi.make_jaxpr(fn, *avals)
        return self.inline(jaxapi.relocate(jaxpr, caller), consts, list(operands), None)[0]

    def _scoped(self, eqn, caller):
        return eqn if caller is None else jaxapi.rescope(eqn, caller, eqn.invars, eqn.outvars)


def _element(i, array):
    return jax.lax.index_in_dim(array, i, keepdims=False)


def _piece(starts, sizes, array):
    begins = [min(max(b, 0), n - size) for b, n, size in zip(starts, array.shape, sizes, strict=True)]
    return jax.lax.slice(array, begins, [b + size for b, size in zip(begins, sizes, strict=True)])


def _where(going, new, old):
    return jax.numpy.where(going.reshape(going.shape + (1,) * (new.ndim - going.ndim)), new, old)


def _stack(*arrays):
    return jax.numpy.stack(arrays)


def _indexes(jaxpr, v) -> bool:
    """A jaxpr takes a slice or row of its variable `v`, be it in a call."""
    for eqn in jaxpr.eqns:
        if any(a is v for a in eqn.invars):
            if eqn.primitive.name in _INDEXING and eqn.invars[0] is v:
                return True
            if eqn.primitive.name in jaxapi.CALLS:
                inner, _, operands = jaxapi.open_call(eqn, eqn.invars)
                if any(_indexes(inner, w) for w, a in zip(inner.invars, operands, strict=True) if a is v):
                    return True
    return False


def _is_key(value) -> bool:
    return jax.numpy.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.extended)


def _is_same_type(eqn) -> bool:
    if eqn.primitive.name != "convert_element_type":
        return False
    return eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype


def _is_max_with_minus_inf(eqn, operands) -> bool:
    if eqn.primitive.name != "max":
        return False
    known = [o.value for o in operands if isinstance(o, _Known)]
    return len(known) == 1 and np.ndim(known[0]) == 0 and bool(np.isneginf(np.asarray(known[0], np.float64)))


def _const_key(value):
    array = np.asarray(value) if not _is_key(value) else None
    if array is None or array.size > 64:
        return ("id", id(value))
    return (array.shape, str(array.dtype), array.tobytes())


def _what(eqn):
    """What an equation does, but for its operands; None when that cannot be told or it has effects."""
    if eqn.effects:
        return None
    key = (eqn.primitive.name, tuple(sorted(eqn.params.items(), key=lambda kv: kv[0])))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _live(eqns: list, outvars: list) -> list:
    needed = set(outvars_of(outvars))
    kept = []
    for eqn in reversed(eqns):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            kept.append(eqn)
            needed.update(a for a in eqn.invars if not isinstance(a, Literal))
    return kept[::-1]
