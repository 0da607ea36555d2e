"""The rules of a placed program refuse every program that breaks one."""

import dataclasses

import pytest
from helpers import normal, small

import wsc
from wsc.lowering.check import BrokenRule, check
from wsc.lowering.layout import Layout
from wsc.program import Allocation, Region


@pytest.fixture(scope="module")
def program():
    def fn(p, x):
        for layer in p["blocks"]:
            x = x + (x @ layer["a"]) @ layer["b"]
        return x

    layers = [{"a": normal(24, 32, seed=i), "b": normal(32, 24, seed=i)} for i in range(3)]
    return wsc.compile(fn, {"blocks": layers}, normal(1, 24), wafer=small(24, 24, 2048)).program


def with_stage(program, i, **changes):
    stages = list(program.stages)
    stages[i] = dataclasses.replace(stages[i], **changes)
    return dataclasses.replace(program, stages=tuple(stages))


def test_a_compiled_program_is_well_formed(program):
    check([program])


def test_regions_that_overlap(program):
    with pytest.raises(BrokenRule, match="overlap"):
        check([with_stage(program, 2, region=program.stages[0].region)])


def test_a_region_outside_the_wafer(program):
    region = dataclasses.replace(program.stages[2].region, x=20, width=8)
    with pytest.raises(BrokenRule):
        check([with_stage(program, 2, region=region)])


def test_a_region_on_a_wafer_that_is_not_there(program):
    region = program.stages[2].region
    with pytest.raises(BrokenRule):
        check([with_stage(program, 2, region=Region(7, 0, 0, region.height, region.width))])


def test_memory_that_overlaps(program):
    memory = list(program.stages[0].memory)
    memory[1] = dataclasses.replace(memory[1], offset=memory[1].offset - 8)
    with pytest.raises(BrokenRule, match="overlaps"):
        check([with_stage(program, 0, memory=tuple(memory))])


def test_memory_over_the_sram(program):
    memory = (*program.stages[0].memory, Allocation("buffer", "huge", program.stages[0].used_bytes, 48000))
    with pytest.raises(BrokenRule, match=r"uses .* bytes"):
        check([with_stage(program, 0, memory=memory)])


def test_code_that_is_not_reserved(program):
    memory = tuple(a for a in program.stages[0].memory if a.kind != "code")
    with pytest.raises(BrokenRule, match="reserves no code"):
        check([with_stage(program, 0, memory=memory)])


@pytest.mark.parametrize(
    "layout", [Layout((1,), (1,)), Layout((1, 1), (1, 25)), Layout((1, 25), (1, 1))], ids=["rank", "columns", "rows"]
)
def test_layouts_that_do_not_go_with_the_region(program, layout):
    ops = list(program.stages[0].ops)
    n = next(i for i, op in enumerate(ops) if op.name == "dot_general")
    ops[n] = dataclasses.replace(ops[n], outs=(layout,))
    with pytest.raises(BrokenRule, match="dot_general"):
        check([with_stage(program, 0, ops=tuple(ops))])


def test_an_op_that_lies_nowhere(program):
    ops = list(program.stages[0].ops)
    n = next(i for i, op in enumerate(ops) if op.name == "add" and not op.control)
    ops[n] = dataclasses.replace(ops[n], outs=(None,))
    with pytest.raises(BrokenRule, match="lies nowhere"):
        check([with_stage(program, 0, ops=tuple(ops))])


def test_programs_that_share_must_agree(program):
    other = with_stage(program, 1, region=dataclasses.replace(program.stages[1].region, width=1))
    with pytest.raises(BrokenRule):
        check([program, other])
