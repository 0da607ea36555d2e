"""Drawn programs: what is placed computes what `jax.jit` computes, work costs cycles, and no PE is over its SRAM.

`pytest tests/generated` tries 80 programs, `pytest tests/generated --programs 2000 -n 2` as many as are asked for,
`--programs-from 2000` those after them, in steps of 100; the same numbers give the same programs.
"""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from generator import Program, programs
from helpers import assert_within_sram, small
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from laid import assert_laid

import wsc
from wsc.machine.cost import cost
from wsc.machine.steps import HostLink
from wsc.program import work
from wsc.runtime.reference import interpret

PART = 100  # programs of one test; many such run one after the other or in as many processes
WAFERS = ((3, 3, 16384), (5, 9, 4096), (7, 2, 16384), (12, 10, 4096), (24, 24, 16384))
ORDERS = st.sampled_from(["fabric", "fabric", "xla"])
# What only renames elements, or reads nothing: it may cost nothing.
FREE = {
    "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "slice", "split", "copy", "iota",
    "random_wrap", "random_unwrap", "bitcast_convert_type",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """XLA compiles in half the time, and no plan is kept: every program is another one."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSC_PLAN_CACHE", "0")
        yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    programs, first = (metafunc.config.getoption(name) for name in ("--programs", "--programs-from"))
    counts = [min(PART, programs - n) for n in range(0, programs, PART)]
    metafunc.parametrize("part, count", list(enumerate(counts, first // PART)))


def test_generated(part, count):

    @seed(part)
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink], print_blob=False,
    )  # fmt: skip
    @given(
        programs(),
        st.sampled_from(WAFERS),
        st.sampled_from(["fabric", "fabric", "xla"]),
        st.booleans(),
        st.integers(1, 10),
    )
    def run(program, wafer, order, searched, interpreted):
        *size, usable = wafer
        grid = None if searched and size[0] * size[1] < 50 else (min(size[0], 5), min(size[1], 4))
        exe = compiled(program, small(*size, usable=usable), order, grid)
        found, telemetry = exe(*program.args)
        expected = jax.jit(program.fn)(*program.args)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        assert_same(jax.tree.leaves(found), jax.tree.leaves(expected), program.outs, order)
        if interpreted == 10:
            flat = interpret(exe.program, *jax.tree.leaves(program.args))
            assert_same([jnp.asarray(v) for v in flat], jax.tree.leaves(found), program.outs, "fabric")
        if program.trains:
            assert_in_place(exe, expected)
        assert_within_sram(exe.program)
        assert_within_regions(exe.program)
        assert_laid(exe.program)
        assert_charged(exe, telemetry, program)

    run()
    jax.clear_caches()


def compiled(program: Program, wafer, order: str, grid) -> wsc.Executable:
    """The program placed; one that is too large for the wafer is not counted."""
    argnums = None if program.trains else 0
    try:
        return wsc.compile(program.fn, *program.args, wafer=wafer, order=order, grid=grid, weight_argnums=argnums)
    except wsc.FitError:
        reject()


def assert_same(found, expected, outs, order: str) -> None:
    """Shapes and dtypes, and every value that no jump may have turned: as near as its forward error analysis says."""
    for a, b, (bound, error, loose) in zip(found, expected, outs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = (np.asarray(v.astype("float32") if v.dtype.name in ("bfloat16", "float16") else v) for v in (a, b))
        if loose and order == "fabric":
            continue
        if a.dtype not in (np.float32, np.complex64) or error == 0:
            np.testing.assert_array_equal(a, b)
        else:
            assert np.abs(b).max(initial=0) <= 1.05 * bound + 2 * error, f"the bound of {bound} is wrong"
            assert np.abs(a - b).max(initial=0) <= 2 * error, f"{a} is not {b}"


def assert_within_regions(program: wsc.Program) -> None:
    for stage, op in program.ops():
        for at in op.outs:
            assert at is None or (at.parts.y <= stage.region.height and at.parts.x <= stage.region.width)


def _cycles(program: wsc.Program, op) -> float:
    """Of an op when it is run, once each body of it: in a branch that is not taken, an op of no cycles was not free."""
    return sum(float(cost(step, program.wafer).cycles) * runs for step, runs in work(op))


def assert_in_place(exe: wsc.Executable, expected) -> None:
    """New parameters and moments stay on the wafer: the host gets what else there is."""
    sent = sum(s.nbytes for stage in exe.program.stages for s in stage.departures if isinstance(s, HostLink))
    assert sent <= expected[-1].nbytes, f"{sent} bytes go to the host"


def assert_charged(exe: wsc.Executable, telemetry, program: Program) -> None:
    """An op that computes or moves elements takes cycles, and so does the run of which it is one."""
    assert np.isfinite(telemetry.cycles)
    weights, consts = exe.program.weight_vars, set(exe.program.jaxpr.constvars)
    works = False
    sums = (op for _, op in exe.program.ops() if op.name in ("add", "sub") and op.steps)
    multiply_adds = [op for op in sums if getattr(op.steps[-1], "kind", "") == "fmac"]
    taken_in = {a for op in multiply_adds for a in op.eqn.invars if not isinstance(a, jex.Literal)}
    for _, op in exe.program.ops():
        read = [a for a in op.eqn.invars if not isinstance(a, jex.Literal) and a not in consts and a not in weights]
        if op.name in FREE or not read or not any(v.aval.size for v in op.eqn.outvars):
            continue
        works = True
        paid = any(getattr(step, "after", 0) for step in op.steps)  # in the last instruction of what it is fused with
        paid |= op.name == "mul" and op.eqn.outvars[0] in taken_in
        assert paid or _cycles(exe.program, op) > 0, f"{op.name} of {[a.aval for a in op.eqn.invars]} is free: {op}"
    if works:
        assert telemetry.cycles > 0
