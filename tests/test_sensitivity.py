"""The modelled time as a function of the hardware: derivatives, sweeps, and that both are the model's own."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import normal, small

import wsc
from wsc.errors import ArgumentError


@pytest.fixture(scope="module")
def exe() -> wsc.Executable:
    def fn(w, x):
        return jax.nn.softmax(jax.nn.silu(x @ w["a"]) @ w["b"])

    weights = {"a": normal(48, 60), "b": normal(60, 40)}
    return wsc.compile(fn, weights, normal(1, 48), wafer=small(), weight_argnums=0)


def test_on_its_own_wafer_it_is_the_telemetry(exe):
    assert exe.seconds_on(exe.program.wafer) == exe.telemetry.seconds


@pytest.mark.parametrize("name", ["clock_hz", "hop_cycles", "lanes32", "link_wavelets_per_cycle", "loop_cycles"])
def test_elasticities_are_finite_differences(exe, name):
    """By the closed forms themselves, a little more and a little less, where two paths are equally long on either side;
    lanes move in steps of whole instructions."""
    found = wsc.sensitivity(exe).as_dict()[name]
    value = getattr(exe.program.wafer, name)
    if name in ("lanes32",):
        assert found < 0
        return
    more, less = (exe.seconds_on(dataclasses.replace(exe.program.wafer, **{name: value * f})) for f in (1.001, 0.999))
    now = exe.telemetry.seconds
    low, high = sorted(((now - less) / 0.001 / now, (more - now) / 0.001 / now))
    slack = 0.02 * max(abs(low), abs(high))
    assert low - slack <= found <= high + slack


def test_the_largest_comes_first(exe):
    rows = [abs(e) for *_, e in wsc.sensitivity(exe).rows]
    assert rows == sorted(rows, reverse=True)
    assert wsc.sensitivity(exe).rows[0][0] == "clock_hz"


def test_it_prints_with_its_conditions(exe):
    text = str(wsc.sensitivity(exe))
    assert "small" in text
    assert "clock_hz" in text
    assert "<pre" in wsc.sensitivity(exe)._repr_html_()


def test_a_sweep_is_the_model_at_every_point(exe):
    rng = np.random.default_rng(0)
    points = {
        "hop_cycles": rng.uniform(0.5, 3, 20),
        "lanes32": rng.uniform(1, 8, 20),
        "clock_hz": rng.uniform(5e8, 2e9, 20),
    }
    found = wsc.sweep(exe, **points)
    for i in range(20):
        wafer = dataclasses.replace(exe.program.wafer, **{n: float(v[i]) for n, v in points.items()})
        assert found[i] == pytest.approx(exe.seconds_on(wafer), rel=1e-9)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, "a sweep over nothing"),
        ({"rows": [1, 2]}, "a sweep over rows: it must be over one or more of"),
        ({"hop_cycles": [1, 2], "clock_hz": [1e9]}, "one n for all"),
        ({"hop_cycles": [[1, 2]]}, "each must be"),
        ({"hop_cycles": [1, -2]}, "all must be finite and at least 0"),
        ({"clock_hz": [0.0]}, "all must be finite and above 0"),
        ({"hop_cycles": ["a"]}, "what are not numbers"),
        ({"hop_cycles": [1, float("nan")]}, "all must be finite"),
    ],
)
def test_bad_sweeps(exe, numbers, message):
    with pytest.raises(ArgumentError, match=message):
        wsc.sweep(exe, **numbers)


def test_what_is_no_program():
    for ask in (wsc.sensitivity, lambda what: wsc.sweep(what, hop_cycles=[1])):
        with pytest.raises(ArgumentError, match="no compiled program"):
            ask(None)
