"""Every cost is a function of the wafer: JAX compiles it, maps it over wafers and takes its derivatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import COMPUTES, STEPS, step_name

from wsc.machine.cost import cost
from wsc.machine.steps import Compute
from wsc.machine.wafer import WSE2, WSE3

NUMBERS = (
    "clock_hz", "lanes16", "lanes32", "fmac32_lanes", "conflict16", "conflict32", "issue_cycles", "map_cycles",
    "loop_cycles", "nest_cycles", "task_cycles", "transcendental_cycles", "division_cycles", "hop_cycles",
    "deliver_cycles", "ramp_cycles", "link_wavelets_per_cycle", "background_wavelets_per_cycle",
    "host_bytes_per_second", "link_bytes_per_second", "link_seconds",
)  # fmt: skip


def cycles(step, numbers: dict, wafer=WSE3):
    return cost(step, dataclasses.replace(wafer, **numbers)).cycles


def numbers_of(wafer) -> dict[str, float]:
    return {name: float(getattr(wafer, name)) for name in NUMBERS}


def random_wafers(count: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    return [
        {name: np.float32(value * rng.uniform(0.6, 1.7)).item() for name, value in numbers_of(WSE3).items()}
        for _ in range(count)
    ]


@pytest.mark.parametrize("step", STEPS, ids=step_name)
@pytest.mark.parametrize("wafer", [WSE2, WSE3], ids=["WSE-2", "WSE-3"])
def test_jit_gives_the_plain_cost(step, wafer):
    plain = cost(step, wafer)
    traced = jax.jit(lambda n: dataclasses.astuple(cost(step, dataclasses.replace(wafer, **n))))(numbers_of(wafer))
    for field, found in zip(dataclasses.fields(plain), traced):
        assert float(found) == pytest.approx(float(getattr(plain, field.name)), rel=1e-5, abs=1e-3), field.name


@pytest.mark.parametrize("step", STEPS, ids=step_name)
def test_vmap_over_fifty_wafers_is_a_loop_over_them(step):
    wafers = random_wafers(50)
    together = {name: jnp.array([w[name] for w in wafers], jnp.float32) for name in NUMBERS}
    found = jax.jit(jax.vmap(lambda n: (cycles(step, n), cycles(step, n) / n["clock_hz"])))(together)
    one_by_one = [cycles(step, w) for w in wafers]
    # an instruction that just fills its lanes in float32 may need one more pass than in float64
    np.testing.assert_allclose(found[0], one_by_one, rtol=1e-5)
    seconds = [c / w["clock_hz"] for c, w in zip(one_by_one, wafers, strict=True)]
    np.testing.assert_allclose(found[1], seconds, rtol=1e-5)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("step", STEPS, ids=step_name)
def test_derivatives_have_the_signs_of_differences(step):
    """A small change of any number, in both directions, moves cycles the way that the derivative says."""
    at = numbers_of(WSE3)
    slopes = jax.grad(lambda n: cycles(step, n))(at)
    for name, value in at.items():
        slope = float(slopes[name])
        assert np.isfinite(slope), name
        far = 0.5 if "lanes" in name else 0.01  # whole passes change only with many lanes more
        up, down = (cycles(step, at | {name: value * (1 + d) if value else max(d, 0)}) for d in (far, -far))
        here = cycles(step, at)
        difference = {np.sign(round(up - here, 6)), np.sign(round(here - down, 6))}
        assert np.sign(slope) in difference, (name, slope, down, here, up)


@pytest.mark.parametrize(
    ("step", "lanes"),
    [(COMPUTES[0], "lanes16"), (COMPUTES[1], "fmac32_lanes"), (COMPUTES[2], "lanes16"), (COMPUTES[3], "lanes32")],
    ids=lambda v: v if isinstance(v, str) else step_name(v),
)
def test_lanes_matter_to_a_derivative(step, lanes):
    """Whole passes are steps; the derivative is that of the line along them: - calls * length * passes / lanes^2."""
    slope = float(jax.grad(lambda n: cycles(step, n))(numbers_of(WSE3))[lanes])
    passes = 1 + step.conflict * WSE3.conflict(step.itemsize)
    assert slope == pytest.approx(-step.calls * step.length * passes / getattr(WSE3, lanes) ** 2)
    assert slope < 0


def test_the_whole_wafer_is_a_pytree_to_differentiate():
    """Also through a Wafer given as an argument, whole numbers as floats."""
    wafer = jax.tree.map(float, WSE3)
    slope = jax.jit(jax.grad(lambda w: cost(Compute("fmac", 10, 14, 4, 280, 1), w).cycles))(wafer)
    assert float(slope.loop_cycles) == float(slope.issue_cycles) == 10
    assert float(slope.hop_cycles) == float(slope.columns) == 0


def test_a_faster_clock_has_a_negative_derivative_of_seconds():
    def seconds(clock):
        wafer = dataclasses.replace(WSE3, clock_hz=clock)
        return cost(COMPUTES[0], wafer).cycles / clock

    assert float(jax.grad(seconds)(WSE3.clock_hz)) < 0


def test_plain_numbers_give_plain_numbers():
    """Compiling asks for hundreds of thousands of costs: no array may come of them."""
    for step in STEPS:
        assert all(isinstance(v, int | float) for v in dataclasses.astuple(cost(step, WSE3))), step
