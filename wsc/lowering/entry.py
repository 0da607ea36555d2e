"""Entries: what is compiled, as a function with example arguments, and which of these are weights."""

import functools
import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsc.errors import ArgumentError, TraceError, UnsupportedError
from wsc.lowering import jaxapi, waferllm
from wsc.lowering.build import Conditions


@dataclass(frozen=True)
class Entry:
    """One function to compile: its example arguments, which of them are weights, and what its figures hold for. One
    that is `in_place` returns (outputs, new leaves of its arguments by number)."""

    fn: Callable
    args: tuple
    weight_argnums: tuple[int, ...]
    conditions: Conditions
    in_place: bool = False


def timed_layers(model: Any, grid: int, context: int, batch: int) -> list[Entry]:
    """Decode of one token and prefill of `context` tokens through one layer, as WaferLLM times them."""
    if batch != 1:
        raise ArgumentError(f"batch is {batch}: strategy 'waferllm' reproduces kernels for one user")
    sizes = waferllm.Sizes.of(model.config, grid, context)
    layers = model.config.num_hidden_layers
    words = f"one layer of {layers} as WaferLLM times it on {grid} x {grid} PEs, batch 1, context {context}, float16"
    decode = Conditions(f"decode of 1 token, {words}", 1, layers)
    prefill = Conditions(f"prefill of {context} tokens, {words}", context, layers)
    return [
        Entry(waferllm.decode_layer, waferllm.decode_arguments(sizes), (0,), decode),
        Entry(waferllm.prefill_layer, waferllm.prefill_arguments(sizes), (0,), prefill),
    ]


def step(model: Any, tokens: int, context: int, batch: int) -> Entry:
    """`tokens` new tokens for each of `batch` users, over a cache of `context`."""
    cache = model.abstract_cache(batch=batch, context=context)
    ids = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)
    what = "decode of 1 token" if tokens == 1 else f"prefill of {tokens} tokens"
    dtype = jnp.dtype(jax.tree.leaves(cache)[0].dtype).name
    codes = sorted({a.dtype.name for a in jax.tree.leaves(model) if jnp.issubdtype(a.dtype, jnp.integer)})
    conditions = f"{what}, batch {batch}, context {context}, {dtype}" + "".join(f", {c} weights" for c in codes)
    figures = Conditions(conditions, tokens)
    return Entry(lambda model, tokens, cache: model(tokens, cache), (model, ids, cache), (0,), figures)


def entry_of(model: Any, args: tuple, weight_argnums: int | Sequence[int] | None) -> Entry:
    if jaxapi.is_nnx_module(model):
        fn, args, weights = (lambda model, *args: model(*args)), (model, *args), (0,)
    elif jaxapi.is_linen_module(model):
        fn, weights = model.apply, (0,)
    elif callable(model):
        fn, weights = model, tuple(i for i, a in enumerate(args) if _looks_like_weights(a))
    else:
        raise TraceError(
            f"{type(model).__name__} is not something to compile: give wsc.compile a JAX function, a flax module, or a "
            f"model with a KV cache such as wsc.models.Llama"
        )
    if weight_argnums is not None:
        try:
            weights = tuple(operator.index(i) for i in np.atleast_1d(np.asarray(weight_argnums)))
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"weight_argnums is {weight_argnums!r}: it must be a whole number or several"
            ) from error
        if bad := [i for i in weights if not 0 <= i < len(args)]:
            raise ArgumentError(f"weight_argnums has {bad[0]}, and there are {len(args)} arguments")
    sizes = {str(a.dtype) for a in jax.tree.leaves(args) if hasattr(a, "dtype")}
    conditions = Conditions(f"one call, {', '.join(sorted(sizes)) or 'no arrays'}")
    in_place = any(map(jaxapi.is_nnx_object, args))
    return Entry(_in_place(fn) if in_place else fn, args, weights, conditions, in_place)


def _in_place(fn: Callable) -> Callable:
    """The function with what it changes of flax nnx objects among its results: their new leaves by number."""

    @functools.wraps(fn)  # arguments keep their names
    def call(*args: Any) -> tuple[Any, dict[int, Any]]:
        before, tree = jax.tree.flatten(args)
        outputs = fn(*args)
        after, now = jax.tree.flatten(args)
        if now != tree:
            raise UnsupportedError(
                f"{getattr(fn, '__name__', fn)!r} gives its arguments another structure: it may set variables of flax "
                f"objects, and not add or remove any. Was: {tree}. Is: {now}"
            )
        return outputs, {i: b for i, (a, b) in enumerate(zip(before, after, strict=True)) if a is not b}

    return call


def closed_over(fn: Any, inside: int = 4) -> dict[int, str]:
    """The path of every array that a function closes over, by the array's id: through partial functions, methods,
    other functions, and objects that keep their parameters.

    >>> w = jnp.ones((2, 2))
    >>> list(closed_over(functools.partial(lambda p, x: x @ p["w"], {"w": w})).values())
    ['argument0.w']
    """
    found: dict[int, str] = {}
    held: dict[str, Any] = {}
    fn = inspect.unwrap(fn) if callable(fn) else fn
    if isinstance(fn, functools.partial):
        held = {f"argument{i}": a for i, a in enumerate(fn.args)} | dict(fn.keywords) | {"": fn.func}
    elif inspect.ismethod(fn):
        held = {"self": fn.__self__, "": fn.__func__}
    elif inspect.isfunction(fn):
        variables = inspect.getclosurevars(fn)
        held = {**variables.globals, **variables.nonlocals}
    elif isinstance(params := getattr(fn, "params", None), Mapping):
        held = {"params": params}
    for name, value in held.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
            if isinstance(leaf, jax.Array | np.ndarray):
                keys = re.sub(r"\['([^']+)'\]", r".\1", jax.tree_util.keystr(path))
                found.setdefault(id(leaf), f"{name or 'closure'}{keys}")
            elif inside and (callable(leaf) or hasattr(leaf, "params")) and not inspect.isclass(leaf):
                found = closed_over(leaf, inside - 1) | found
    return found


def _looks_like_weights(argument: Any) -> bool:
    """A flax module, or a container of several arrays none of which is an integer; a bare array is an activation."""
    if jaxapi.is_nnx_module(argument):
        return True
    leaves = jax.tree.leaves(argument)
    if isinstance(argument, dict) and "params" in argument:
        return True
    bare = len(leaves) == 1 and leaves[0] is argument
    return bool(leaves) and not bare and all(jnp.issubdtype(jnp.result_type(a), jnp.inexact) for a in leaves)


def weight_leaves(entry: Entry) -> frozenset[int]:
    """Flat indices of the leaves of the arguments that are weights."""
    found, at = set(), 0
    for i, argument in enumerate(entry.args):
        count = len(jax.tree.leaves(argument))
        if i in entry.weight_argnums:
            found |= set(range(at, at + count))
        at += count
    return frozenset(found)
