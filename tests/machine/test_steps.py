"""Steps are plain values: equal, hashable, printable, so that programs compare and costs are cached."""

import dataclasses
import typing

import pytest

from wsc.machine import steps
from wsc.machine.cost import Cost, cost
from wsc.machine.wafer import WSE3

EXAMPLES = [
    steps.Compute("fmac", 2, 3, 4, 12, 5),
    steps.Multicast(4, 3, 2, 1),
    steps.Reduce("chain", 4, 3, 2, 1),
    steps.AllReduce("tree", 4, 3, 2, 1),
    steps.Shift(3, 2, 6, 1),
    steps.Move(10, 20, 4),
    steps.HostLink(100),
    steps.WaferLink(100),
]


def test_examples_are_the_whole_vocabulary():
    assert {type(s) for s in EXAMPLES} == set(typing.get_args(steps.Step))


@pytest.mark.parametrize("step", EXAMPLES, ids=lambda s: type(s).__name__)
def test_a_step_is_a_value(step):
    again = dataclasses.replace(step)
    assert again == step and hash(again) == hash(step) and again is not step
    assert eval(repr(step), vars(steps)) == step
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(step, dataclasses.fields(step)[0].name, 1)


@pytest.mark.parametrize("step", EXAMPLES, ids=lambda s: type(s).__name__)
def test_every_step_costs_something_and_nothing_negative(step):
    found = cost(step, WSE3)
    assert found.cycles > 0
    assert all(v >= 0 for v in dataclasses.astuple(found))
    assert found != Cost()
