"""What several tests share: small wafers, on which programs are really cut, and the comparison with plain JAX."""

import dataclasses
import itertools
import math

import jax
import numpy as np

import wsc
from wsc.lowering import jaxapi
from wsc.lowering.layout import Layout
from wsc.machine import steps
from wsc.machine.collectives import REDUCES, ways
from wsc.runtime.execute import as_function
from wsc.runtime.reference import interpret

CODE = 1024


# One step of each kind at least, and of each way to do it.
COMPUTES = (
    steps.Compute("fmac", 10, 64, 2, 1280, 5, maps=2, conflict=1.0),
    steps.Compute("fmac", 10, 64, 4, 1280, 5, conflict=0.25),
    steps.Compute("vector", 2, 48, 2, 96, 5, bare=True),
    steps.Compute("vector", 2, 48, 4, 96, 5),
    steps.Compute("sum", 1, 30, 4, 30, 5),
    steps.Compute("divide", 1, 3, 4, 3, 5),
    steps.Compute("transcendental", 1, 7, 2, 7, 5),
)
SHIFT = steps.Shift(3, 20, 60, 2, 10)
FABRIC = (
    steps.Multicast(40, 80, 20, 3),
    *(steps.Reduce(name, 40, 39, 20, 3) for name in REDUCES),
    *(steps.AllReduce(name, 40, 39, 20, 3, shape) for name, shape in ways(40, 20)),
    steps.AllReduce("k_level", 40, 39, 20, 3, (8,), after=15),
    steps.AllReduce("ring", 40, 39, 20, 3),
    SHIFT,
    steps.Move(10, 21, 4),
)
STEPS = (
    *COMPUTES,
    *FABRIC,
    steps.Rounds(6, COMPUTES[:1], (SHIFT,), transfers=4, tasks=4),  # computing takes longer
    steps.Rounds(6, COMPUTES[2:3], (steps.Shift(3, 400, 1200, 2, 400),), transfers=2, tasks=1),  # passing on does
    steps.HostLink(10**6),
    steps.WaferLink(10**6),
    steps.Stream(10**6, 2 * 10**6, 2),
)


def step_name(step: steps.Step) -> str:
    """What tells one of STEPS from the others, to name a test."""
    at = next((str(i) for i, s in enumerate(STEPS) if s is step), "")
    return "-".join(filter(None, (at, type(step).__name__, getattr(step, "kind", getattr(step, "algorithm", "")))))


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
    plain = jax.tree.unflatten(exe.out_tree, as_function(exe.program, "xla")(*jax.tree.leaves(args))[0])
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
