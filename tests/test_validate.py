"""The published measurements, the bars they are held to, and the refit of the fitted constants."""

import dataclasses
import json

import pytest

import wsc
from wsc.errors import ArgumentError
from wsc.machine import published
from wsc.machine.published import BARS, MEASUREMENTS
from wsc.machine.wafer import WSE2
from wsc.refit import refit
from wsc.validate import Row, Validation, timed_layer

CHEAP = [g for g, bar in BARS.items() if bar is not None]


@pytest.fixture(scope="module")
def found() -> Validation:
    return wsc.validate(CHEAP)


@pytest.mark.parametrize("group", CHEAP)
def test_every_group_is_within_its_bar(found, group):
    mean, largest, bar, within = found.groups()[group]
    assert bar is not None
    assert within, (mean, largest)
    assert mean <= bar[0]
    assert largest <= bar[1]


def test_the_bars_that_were_promised():
    """Collectives 1 %; single PEs and meshes 10 and 25; decode 5 and 10; prefill 7 and 12; KV 15; GPUs 12."""
    promised = {"collectives": 1, "single PE": 25, "small meshes": 25, "decode": 10, "prefill": 12}
    promised |= {"KV capacity": 15, "GPUs": 12}
    for group, largest in promised.items():
        bar = BARS[group]
        assert bar is not None
        assert bar[1] == largest
    assert (BARS["decode"], BARS["prefill"], BARS["small meshes"]) == ((5, 10), (7, 12), (10, 25))


def test_decode_slows_down_with_more_cores_and_prefill_speeds_up(found):
    for group, slower in (("decode", True), ("prefill", False)):
        for model in published.DECODE:
            rows = [r for r in found.rows if r.measurement.group == group and r.measurement.setting[1] == model]
            cycles = [r.predicted for r in sorted(rows, key=lambda r: r.measurement.setting[2])]
            assert len(cycles) == 3
            assert cycles == sorted(cycles, reverse=not slower)


def test_every_row_has_a_source_and_some_of_every_group_are_held_out():
    for group in BARS:
        rows = [m for m in MEASUREMENTS if m.group == group]
        assert rows
        assert all(m.source and m.unit and m.value > 0 for m in rows)
        if group != "decode":
            assert any(not m.fits for m in rows)


def test_what_a_row_was_used_for_is_a_number_of_the_model():
    from wsc.machine.baselines import H100

    known = {f.name for f in dataclasses.fields(WSE2)} | {f.name for f in dataclasses.fields(H100)}
    assert {name for m in MEASUREMENTS for name in m.fits} <= known


def test_a_group_over_its_bar_fails(found):
    row = next(r for r in found.rows if r.measurement.group == "decode")
    wrong = Validation((dataclasses.replace(row, predicted=2 * row.measurement.value),))
    assert not wrong.passed
    assert "OVER" in str(wrong)


def test_refit_finds_the_constants_of_the_code_and_carries_to_a_model_left_out():
    fitted = refit()
    for name, (now, again) in fitted.constants.items():
        assert again == pytest.approx(now, rel=0.02), name
    assert fitted.worst_left_out <= 12
    assert set(fitted.left_out) == set(published.DECODE)
    assert len(fitted.residuals) == 9
    assert "transcendental_cycles" in str(fitted)


def test_refit_would_notice_another_machine():
    """The derivative by which it fits is that of the program: more cycles an exponential, more cycles a layer."""
    telemetry = timed_layer("decode", "llama-3-8b", 420, 4096)
    slower = dataclasses.replace(WSE2, transcendental_cycles=2 * WSE2.transcendental_cycles)
    program = dataclasses.replace(telemetry.program, wafer=slower)
    assert wsc.Telemetry(program).cycles_per_layer > telemetry.cycles_per_layer


def test_it_prints_and_dumps(found):
    text = str(found)
    assert "held out" in text
    assert "used: transcendental_cycles" in text
    plain = json.loads(json.dumps(found.as_dict()))
    assert len(plain["rows"]) == len(found.rows)
    assert plain["passed"] is found.passed


def test_plot(found, tmp_path):
    found.plot(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ArgumentError, match="cannot write the plot"):
        found.plot(tmp_path / "no" / "folder.png")


def test_unknown_group():
    with pytest.raises(ArgumentError, match="no group 'tea'"):
        wsc.validate(["tea"])


def test_error_is_signed():
    row = Row(MEASUREMENTS[0], 1.1 * MEASUREMENTS[0].value)
    assert row.error == pytest.approx(10)


def test_nothing_to_validate_and_nowhere_to_plot(found, tmp_path):
    with pytest.raises(ArgumentError, match="no group of measurements was named"):
        wsc.validate([])
    with pytest.raises(ArgumentError, match="name a file with an ending"):
        found.plot(tmp_path)
