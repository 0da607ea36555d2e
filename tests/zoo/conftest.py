"""What every model of the zoo has to hold: the numbers of plain JAX in both orders, a cost, and honest memory."""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import numpy as np
import pytest
from helpers import assert_close, assert_within_sram, most_parts, small

import wsc
from wsc.lowering import jaxapi
from wsc.runtime.execute import as_function

QUICK = {"xla_backend_optimization_level": 0}  # the references are compiled for one call
TOLERANCE = 2e-5  # what another order of adding may change in float32, of the largest result


def plain(model, *args):
    """What JAX without wsc computes: a function, a linen module with its variables, or an nnx module."""
    if jaxapi.is_nnx_module(model):
        return jax.jit(lambda m, *a: m(*a), compiler_options=QUICK)(model, *args)
    return jax.jit(model.apply if jaxapi.is_linen_module(model) else model, compiler_options=QUICK)(*args)


def assert_stored(program: wsc.Program) -> None:
    """Every weight takes its tile's bytes on as many PEs as it says it is copied to, and no more PEs than there are."""
    for stage in program.stages:
        addresses = sorted(a.nbytes for a in stage.memory if a.kind == "weight")
        taken = []
        for w in stage.weights:
            parts = w.layout.parts.pes
            itemsize = w.nbytes / math.prod(w.shape)
            tile = math.prod(
                f * -(-n // (f * y * x))
                for n, y, x, f in zip(w.shape, w.layout.y, w.layout.x, w.layout.folds or (1,) * len(w.shape))
            )
            rounded = -(-int(tile * itemsize) // program.wafer.align_bytes) * program.wafer.align_bytes
            assert w.copies >= 1 and parts * w.copies <= stage.region.pes
            assert w.stored_bytes == rounded * parts * w.copies
            assert w.stored_bytes >= w.nbytes * w.copies
            taken.append(rounded)
        assert addresses == sorted(taken)


def arrays(*trees) -> list:
    """Leaves that have bytes, keys as their bits."""
    leaves = [a for a in jax.tree.leaves(trees) if hasattr(a, "dtype")]
    return [jax.random.key_data(a) if jaxapi.is_extended(a.dtype) else a for a in leaves]


@pytest.fixture
def equal() -> Callable[..., wsc.Executable]:
    """`equal(model, *args)` compiles onto a small wafer, on which the model is really cut, runs in both orders, and
    holds outputs to plain JAX; the executable is returned."""

    def compiled(model, *args, wafer=None, tolerance=TOLERANCE, cut=True, **options) -> wsc.Executable:
        exe = wsc.compile(model, *args, wafer=wafer or small(usable=16384), **options)
        given = () if not jaxapi.is_nnx_module(model) else tuple(jax.tree.leaves(model))
        expected = plain(model, *args)
        outputs, telemetry = exe(*args)
        assert_close(outputs, expected, tolerance)
        flat, _ = jax.jit(as_function(exe.program, "xla"), compiler_options=QUICK)(*given, *jax.tree.leaves(args))
        results = flat[: exe.out_tree.num_leaves]  # what a module changes of itself comes after them
        assert_close(jax.tree.unflatten(exe.out_tree, results), expected, tolerance)
        assert math.isfinite(telemetry.cycles) and telemetry.cycles > 0
        assert_within_sram(exe.program)
        assert_stored(exe.program)
        assert exe.memory_analysis().weight_bytes <= sum(
            a.nbytes for a in map(np.asarray, arrays(given, args, exe.program.consts))
        )
        if cut:
            assert most_parts(exe.program) > 1
        return exe

    return compiled


@pytest.fixture
def variables() -> Callable:
    """`variables(module, *args)`: a linen module's variables, every array with numbers of its own."""

    def made(module, *args, **kwargs):
        shapes = jax.eval_shape(functools.partial(module.init, **kwargs), jax.random.key(0), *args)
        return _filled(shapes)

    return made


@pytest.fixture
def filled() -> Callable:
    """`filled(make)`: the nnx module that `make(nnx.Rngs)` makes, in eval, every array with numbers of its own."""
    from flax import nnx

    def made(make):
        module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        nnx.update(module, _filled(nnx.state(module)))
        module.eval()
        return module

    return made


def _filled(shapes):
    """Small numbers about zero; about one for what scales, so that no start of zeros or ones hides a mistake."""
    seeds = itertools.count()

    def array(path, leaf):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if not jax.numpy.issubdtype(leaf.dtype, np.floating):
            return jax.numpy.zeros(leaf.shape, leaf.dtype)
        values = np.random.default_rng(next(seeds)).uniform(-0.4, 0.4, leaf.shape)
        scales = any(f"{word}'" in jax.tree_util.keystr(path) for word in ("scale", "var"))
        return jax.numpy.asarray(values + scales, leaf.dtype)

    return jax.tree_util.tree_map_with_path(array, shapes)
