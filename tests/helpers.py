"""What several tests share: small wafers, on which programs are really cut, and the comparison with plain JAX."""

import dataclasses
import itertools
import math

import jax
import numpy as np

import wsc
from wsc.lowering import jaxapi
from wsc.lowering.layout import Layout
from wsc.runtime.execute import as_function
from wsc.runtime.reference import interpret

CODE = 1024


def small(rows: int = 12, columns: int = 10, usable: int = 1024, **changes) -> wsc.Wafer:
    """A wafer so small that even tiny programs are spread over its PEs; `usable` bytes of SRAM beside the code."""
    sizes = {"rows": rows, "columns": columns, "sram_bytes": CODE + usable, "code_bytes": CODE}
    return dataclasses.replace(wsc.WSE3, name="small", **(sizes | changes))


def normal(*shape: int, seed: int = 0, dtype=np.float32):
    """Standard normal numbers; a seed and a shape give the same ones always."""
    return jax.numpy.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def most_parts(program: wsc.Program) -> int:
    """Into how many parts the finest-cut value of the program is cut."""
    found = [at.parts.pes for _, op in program.ops() for at in (*op.ins, *op.outs) if isinstance(at, Layout)]
    found += [w.layout.parts.pes for s in program.stages for w in s.weights]
    return max(found, default=1)


def sums_over_pes(program: wsc.Program) -> set[str]:
    """Primitives of the program whose partial sums are added between PEs."""
    return {op.name for _, op in program.ops() if any("Reduce" in type(s).__name__ for s in op.steps)}


def assert_within_sram(program: wsc.Program) -> None:
    """No PE of any stage is over its SRAM, no two of its address ranges overlap, and none is empty or negative."""
    for stage in program.stages:
        ranges = sorted((a.offset, a.offset + a.nbytes) for a in stage.memory)
        assert all(0 <= begin < end for begin, end in ranges)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ranges))
        assert ranges[-1][1] <= program.wafer.sram_bytes


def assert_close(found, expected, tolerance: float) -> None:
    """Equal trees, shapes and dtypes; values within `tolerance` of the largest expected one."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not jax.numpy.issubdtype(a.dtype, jax.numpy.inexact):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
            continue
        wide = [np.asarray(v.astype("float32")) for v in map(jax.numpy.asarray, (a, b))]
        finite = wide[1][np.isfinite(wide[1])]
        scale = max(1.0, float(np.abs(finite).max(initial=0.0)))
        np.testing.assert_allclose(wide[0], wide[1], rtol=tolerance, atol=tolerance * scale)


def tolerance_of(*args) -> float:
    """What reordering sums may change, by the narrowest dtype among the arguments."""
    sizes = [a.dtype.itemsize for a in jax.tree.leaves(args) if jax.numpy.issubdtype(a.dtype, jax.numpy.inexact)]
    return {2: 3e-2, 4: 2e-5}.get(min(sizes, default=4), 1e-10)


def run_everywhere(fn, *args, wafer=None, expected=None, tolerance=None, **options) -> wsc.Executable:
    """Compile and run `fn` in both orders: outputs must be those of `jax.jit` and of the reference interpreter."""
    tolerance = tolerance or tolerance_of(args)
    expected = jax.jit(fn)(*args) if expected is None else expected
    exe = wsc.compile(fn, *args, wafer=wafer or small(), **options)
    outputs, telemetry = exe(*args)
    assert_close(outputs, expected, tolerance)
    flat = interpret(exe.program, *jax.tree.leaves(args))
    again = jax.tree.unflatten(exe.out_tree, flat)
    assert_close(outputs, again, tolerance)
    plain = jax.tree.unflatten(exe.out_tree, as_function(exe.program, "xla")(*jax.tree.leaves(args)))
    assert_close(plain, expected, tolerance)
    assert_within_sram(exe.program)
    assert math.isfinite(telemetry.cycles)
    if telemetry.total.flops:
        assert telemetry.cycles > 0
    return exe


def eqn_names(jaxpr) -> list[str]:
    """Primitive names of a jaxpr in order."""
    return [e.primitive.name for e in jaxpr.eqns]


def traced(fn, *args):
    """The function as the compiler's first pass sees it."""
    return jaxapi.trace(fn, args)
