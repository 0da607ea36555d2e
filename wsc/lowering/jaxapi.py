"""Every contact with JAX that may change between releases. Works on jax 0.10 to 0.12.

The IR is JAX's own: a `Jaxpr` of equations over `Var`s and `Literal`s. Equations are told apart by
`primitive.name`, because not every primitive is exported.
"""

import importlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.extend.core as jex
from jax.extend import source_info_util

Var = jex.Var
Literal = jex.Literal
Eqn = jex.JaxprEqn
Atom = Var | Literal

AGAIN = "again"  # a parameter of ours: equal equations of other numbers are computed anew, not once
METER = "meter"  # a parameter of ours: the first number under which a run counts what an equation met


@dataclass(frozen=True, eq=False)
class Jaxpr:
    """A jaxpr without calls: JAX's equations over JAX's variables. JAX's own class keeps constants otherwise in every
    release."""

    constvars: list[Any]
    invars: list[Any]
    outvars: list[Any]
    eqns: list[Any]


@dataclass(frozen=True)
class Traced:
    """A function as JAX sees it: its jaxpr, the constants it closes over, the trees of arguments and results."""

    jaxpr: Any
    consts: tuple
    arg_names: tuple[str, ...]  # one per invar, such as "model.layers[0].attn.q.kernel"
    args: tuple[jax.ShapeDtypeStruct, ...]
    in_tree: Any
    out_tree: Any
    out_info: Any


def trace(fn, args: tuple) -> Traced:
    """Trace `fn(*args)`; arguments may be arrays or `ShapeDtypeStruct`s."""
    traced = jax.jit(fn).trace(*args)
    jaxpr, consts = open_jaxpr(traced.jaxpr)
    names = getattr(jaxpr.debug_info, "arg_names", None) or ()
    if len(names) != len(jaxpr.invars):
        names = tuple(f"argument {i}" for i in range(len(jaxpr.invars)))
    leaves, in_tree = jax.tree.flatten(args)
    abstract = tuple(jax.ShapeDtypeStruct(jax.numpy.shape(a), jax.numpy.result_type(a)) for a in leaves)
    out_tree = jax.tree.structure(traced.out_info)
    return Traced(jaxpr, tuple(consts), tuple(map(str, names)), abstract, in_tree, out_tree, traced.out_info)


def open_jaxpr(closed) -> tuple[Any, tuple]:
    """(jaxpr, consts) of a closed jaxpr, whether or not this release keeps the two classes apart."""
    return getattr(closed, "jaxpr", closed), tuple(getattr(closed, "consts", ()))


CALLS = {  # calls, by the parameter that has their jaxpr
    "call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "composite": "jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
    "custom_linear_solve": "jaxprs",  # of these the one that solves, applied to its constants and the right-hand sides
    "jit": "jaxpr",
    "linear_call": "callee",
    "pjit": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "remat_opt": "fwd_jaxpr",
}


def open_call(eqn: Eqn, operands: list) -> tuple[Any, tuple, list]:
    """(jaxpr, consts, operands) of a call: what it computes, and of what."""
    inner = eqn.params[CALLS[eqn.primitive.name]]
    if eqn.primitive.name == "custom_linear_solve":
        inner, lengths = inner.solve, eqn.params["const_lengths"]
        first = lengths.matvec + lengths.vecmat
        operands = [*operands[first : first + lengths.solve], *operands[sum(lengths) :]]
    return *open_jaxpr(inner), operands


def make_jaxpr(fn, *avals) -> tuple[Any, tuple]:
    """The jaxpr of a small helper of ours, to be inlined."""
    return open_jaxpr(jax.jit(fn).trace(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals)).jaxpr)


def new_var(aval) -> Var:
    return Var(aval)


def bind(eqn: Eqn, values: list) -> list:
    """Run one first-order equation on values."""
    params = {k: v for k, v in eqn.params.items() if k not in (AGAIN, METER)}
    result = eqn.primitive.bind(*values, **params)
    return list(result) if eqn.primitive.multiple_results else [result]


def is_dropped(var) -> bool:
    return type(var).__name__ == "DropVar"


def rescope(eqn: Eqn, caller: Eqn | None, invars: list, outvars: list) -> Eqn:
    """`eqn` over other variables, its name stack put below that of the call it was inlined from."""
    info = eqn.source_info
    if caller is not None:
        stack = caller.source_info.name_stack + info.name_stack
        inside = bool(source_info_util.summarize(info)) and info.traceback is not None  # a frame of the user's
        traceback = info.traceback if inside else caller.source_info.traceback
        info = info.replace(name_stack=stack, traceback=traceback)
    return eqn.replace(invars=invars, outvars=outvars, source_info=info)


def relocate(jaxpr, eqn: Eqn):
    """A helper's jaxpr with the source line and name stack of `eqn`, the user's equation it stands for."""
    eqns = [e.replace(source_info=eqn.source_info) for e in jaxpr.eqns]
    return Jaxpr(jaxpr.constvars, jaxpr.invars, jaxpr.outvars, eqns)


def scan_counts(eqn: Eqn) -> tuple[int, int, int]:
    """(length, constants, carried values) of a scan, told by shape: stacked operands have one axis more than
    the body's, and the parameters that say it differ between releases."""
    body, _ = open_jaxpr(eqn.params["jaxpr"])
    stacked = sum(_rank(a) != _rank(b) for a, b in zip(eqn.invars, body.invars, strict=True))
    carried = sum(_rank(a) == _rank(b) for a, b in zip(eqn.outvars, body.outvars, strict=True))
    return eqn.params["length"], len(eqn.invars) - stacked - carried, carried


def _rank(atom) -> int:
    return len(atom.aval.shape)


def source_line(eqn: Eqn) -> str:
    """The user's line that made the equation, `file:line (function)`."""
    return source_info_util.summarize(eqn.source_info)


def scope(eqn: Eqn) -> str:
    """The name stack, as linen modules and `jax.named_scope` set it; empty for plain nnx."""
    return str(eqn.source_info.name_stack)


def is_extended(dtype) -> bool:
    """A dtype that numpy has no word for, such as a PRNG key."""
    return jax.numpy.issubdtype(dtype, jax.dtypes.extended)


@lru_cache(maxsize=256)
def bits_of(dtype) -> int:
    """Bits of an element as a PE stores it: packed, where numpy takes a byte for four bits.

    >>> [bits_of(jax.numpy.dtype(d)) for d in ("int4", "int8", "bool", "bfloat16")]
    [4, 8, 8, 16]
    """
    return 64 if is_extended(dtype) else jax.dtypes.itemsize_bits(dtype)


def nbytes(shape: tuple[int, ...], dtype) -> int:
    """Whole bytes of an array, its elements packed.

    >>> nbytes((5, 3), jax.numpy.dtype("int4"))
    8
    """
    return -(-math.prod(shape) * bits_of(dtype) // 8)


@lru_cache(maxsize=256)
def dtype_name(dtype) -> str:
    """`str(dtype)`, which numpy takes long to say."""
    return str(dtype)


def is_nnx_module(value) -> bool:
    nnx = importlib.import_module("flax.nnx")
    return isinstance(value, nnx.Module)


def is_nnx_object(value) -> bool:
    """A flax object with variables, such as a module or an optimizer."""
    nnx = importlib.import_module("flax.nnx")
    return isinstance(value, nnx.Module | nnx.Optimizer | nnx.Rngs | nnx.Metric)


def set_leaves(value, leaves: list) -> None:
    """Give the variables of a flax object new values, in the order of its leaves."""
    nnx = importlib.import_module("flax.nnx")
    nnx.update(value, nnx.state(jax.tree.unflatten(jax.tree.structure(value), leaves)))


def is_linen_module(value) -> bool:
    linen = importlib.import_module("flax.linen")
    return isinstance(value, linen.Module)
