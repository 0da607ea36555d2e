"""Steps are plain values: equal, hashable, printable, so that programs compare and costs are cached."""

import dataclasses
import typing

import pytest
from helpers import STEPS, step_name

from wsc.machine import steps
from wsc.machine.cost import Cost, cost
from wsc.machine.wafer import WSE2, WSE3


def test_examples_are_the_whole_vocabulary():
    assert {type(s) for s in STEPS} == set(typing.get_args(steps.Step))


@pytest.mark.parametrize("step", STEPS, ids=step_name)
def test_a_step_is_a_value(step):
    again = dataclasses.replace(step)
    assert again == step and hash(again) == hash(step) and again is not step
    assert eval(repr(step), vars(steps)) == step
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(step, dataclasses.fields(step)[0].name, 1)


@pytest.mark.parametrize("step", STEPS, ids=step_name)
def test_every_step_costs_something_and_nothing_negative(step):
    for wafer in (WSE2, WSE3):
        found = cost(step, wafer)
        assert found.cycles > 0
        assert all(v >= 0 for v in dataclasses.astuple(found))
        assert found != Cost()
