"""Normalize: one flat jaxpr of first-order equations, each doing work that an output needs.

Calls (jit, custom_jvp, custom_vjp, remat) are inlined; a scan is unrolled, so that a scan over stacked layers is
seen as layers, slice i of `W[L, ...]` being layer i's weight; identities go; equations that no argument reaches are
computed now; equal equations become one; what no output needs is dropped. Source lines and name stacks survive.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from wsc.errors import UnsupportedError
from wsc.lowering import jaxapi
from wsc.lowering.jaxapi import Literal, Traced

MAX_UNROLL = 1024  # iterations of a scan; more would make a program nobody can read
MAX_FOLD = 1 << 16  # elements of a constant computed at compile time; larger ones stay equations

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat2": "jaxpr",
    "remat": "jaxpr",
    "checkpoint": "jaxpr",
}
_IDENTITIES = {"copy", "copy_p", "stop_gradient", "optimization_barrier", "sharding_constraint"}
_CONTROL_FLOW = {"while", "cond"}


@dataclass(frozen=True)
class Normal:
    """A normalized program: `jaxpr` has no calls, and `consts` are the values of its constvars."""

    jaxpr: jaxapi.Jaxpr
    consts: tuple


def normalize(traced: Traced) -> Normal:
    """The same function, flat. Its invars are those of the trace, in order, used or not."""
    builder = Builder()
    invars = [jaxapi.new_var(v.aval) for v in traced.jaxpr.invars]
    outs = builder.inline(traced.jaxpr, traced.consts, invars, None)
    return finish(builder, invars, [builder.as_atom(o) for o in outs])


def finish(builder: "Builder", invars: list, outvars: list) -> Normal:
    """What was built, without what no output needs."""
    eqns = _live(builder.eqns, outvars)
    used = {v for e in eqns for v in e.invars if not isinstance(v, Literal)} | set(outvars_of(outvars))
    constvars = [v for v in builder.consts if v in used]
    jaxpr = jaxapi.Jaxpr(constvars, invars, outvars, eqns)
    return Normal(jaxpr, tuple(builder.consts[v] for v in constvars))


def outvars_of(outvars) -> list:
    return [v for v in outvars if not isinstance(v, Literal)]


class _Known:
    """A value that no argument reaches, known at compile time."""

    def __init__(self, value):
        self.value = value
        self.atom: Any = None


class Builder:
    def __init__(self):
        self.eqns: list = []
        self.consts: dict = {}  # constvar -> value
        self.seen: dict = {}  # (what it does, operands) -> results, for common subexpressions
        self.kinds: dict = {}  # what an equation does -> its number
        self.whats: dict = {}  # id of parameters -> (them, that number)

    def inline(self, jaxpr, consts, args, caller) -> list:
        """Emit the equations of `jaxpr` applied to `args` (Vars or `_Known`s); returns its results likewise."""
        env: dict = dict(zip(jaxpr.invars, args, strict=True))
        env.update((v, _Known(c)) for v, c in zip(jaxpr.constvars, consts, strict=True))

        def read(atom):
            return _Known(atom.val) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            operands = [read(a) for a in eqn.invars]
            results = self.emit(eqn, operands, caller)
            env.update((v, r) for v, r in zip(eqn.outvars, results, strict=True) if not jaxapi.is_dropped(v))
        return [read(a) for a in jaxpr.outvars]

    def emit(self, eqn, operands, caller) -> list:
        name = eqn.primitive.name
        if name in _CALLS:
            inner, consts = jaxapi.open_jaxpr(eqn.params[_CALLS[name]])
            return self.inline(inner, consts, operands, self._scoped(eqn, caller))
        if name == "scan":
            return self._unroll(eqn, operands, self._scoped(eqn, caller))
        if name == "cond" and isinstance(operands[0], _Known):
            branches = eqn.params["branches"]
            taken, consts = jaxapi.open_jaxpr(branches[int(np.clip(operands[0].value, 0, len(branches) - 1))])
            return self.inline(taken, consts, operands[1:], self._scoped(eqn, caller))
        if eqn.effects and name not in _CONTROL_FLOW:
            raise UnsupportedError(
                f"'{name}' at {jaxapi.source_line(self._scoped(eqn, caller))} has a side effect on the host, which a "
                f"wafer has not: take it out, such as jax.debug.print and callbacks"
            )
        if name in _CONTROL_FLOW:
            line = jaxapi.source_line(self._scoped(eqn, caller))
            raise UnsupportedError(
                f"'{name}' at {line}: its trip count or branch is known only at run time, and wsc "
                f"places straight-line programs. Use a loop of fixed length (jax.lax.scan, fori_loop with constant "
                f"bounds) or jnp.where, or compile the loop's body alone."
            )
        if name in _IDENTITIES or _is_same_type(eqn) or _is_max_with_minus_inf(eqn, operands):
            if _is_max_with_minus_inf(eqn, operands) and isinstance(operands[0], _Known):
                return [operands[1]]
            return list(operands)[: len(eqn.outvars)]
        if self._foldable(eqn, operands):
            return self._fold(eqn, operands)
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
                value.atom = jaxapi.new_var(aval)
                self.consts[value.atom] = value.value
        return value.atom

    def append(self, eqn, atoms, caller) -> list:
        """Emit one equation over `atoms`, or find the equal one that is there."""
        key = self.key(eqn, [_const_key(a.val) if isinstance(a, Literal) else a for a in atoms])
        if key is not None and key in self.seen:
            return self.seen[key]
        outvars = [jaxapi.new_var(v.aval) for v in eqn.outvars]
        self.eqns.append(jaxapi.rescope(eqn, caller, atoms, outvars))
        if key is not None:
            self.seen[key] = outvars
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

    def _unroll(self, eqn, operands, caller) -> list:
        length, nconsts, ncarry = jaxapi.scan_counts(eqn)
        if length > MAX_UNROLL:
            raise UnsupportedError(
                f"'scan' of {length} steps at {jaxapi.source_line(eqn)}: wsc unrolls a scan onto the wafer, up to "
                f"{MAX_UNROLL} steps. Scan over fewer steps a call, or compile the body alone."
            )
        body, body_consts = jaxapi.open_jaxpr(eqn.params["jaxpr"])
        consts, carry, stacked = operands[:nconsts], operands[nconsts : nconsts + ncarry], operands[nconsts + ncarry :]
        rows: list = [None] * length
        for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
            elements = [self._helper(partial(_element, i), [s], caller) for s in stacked]
            results = self.inline(body, body_consts, [*consts, *carry, *elements], caller)
            carry, rows[i] = results[:ncarry], results[ncarry:]
        columns = list(zip(*rows, strict=True)) if length else []
        if not length and len(eqn.outvars) > ncarry:
            raise UnsupportedError(
                f"'scan' of no steps at {jaxapi.source_line(eqn)} has results to stack: give it a step"
            )
        return [*carry, *(self._helper(_stack, c, caller) for c in columns)]

    def _helper(self, fn, operands, caller):
        avals = [jax.typeof(o.value) if isinstance(o, _Known) else o.aval for o in operands]
        jaxpr, consts = jaxapi.make_jaxpr(fn, *avals)
        return self.inline(jaxapi.relocate(jaxpr, caller), consts, list(operands), None)[0]

    def _scoped(self, eqn, caller):
        return eqn if caller is None else jaxapi.rescope(eqn, caller, eqn.invars, eqn.outvars)


def _element(i, array):
    return jax.lax.index_in_dim(array, i, keepdims=False)


def _stack(*arrays):
    return jax.numpy.stack(arrays)


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
