"""Addresses: no two live values share a byte, and the lowest free place is taken."""

import jax.numpy as jnp
import pytest
from helpers import CODE, assert_within_sram, normal, small
from hypothesis import given, settings
from hypothesis import strategies as st

import wsc
from wsc.lowering.memory import allocate_buffers, over_by

BUFFERS = st.lists(
    st.tuples(st.integers(1, 8).map(lambda n: 8 * n), st.integers(0, 12), st.integers(0, 6)).map(
        lambda b: (b[0], b[1], b[1] + b[2])
    ),
    max_size=20,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(BUFFERS)
def test_live_buffers_never_overlap(buffers):
    placed = allocate_buffers(buffers)
    assert [n for _, n in placed] == [b[0] for b in buffers]
    for i, (at, size) in enumerate(placed):
        assert at >= 0
        for j in range(i):
            other, length = placed[j]
            in_time = buffers[i][1] <= buffers[j][2] and buffers[j][1] <= buffers[i][2]
            in_space = at < other + length and other < at + size
            assert not (in_time and in_space)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(BUFFERS)
def test_space_is_between_what_is_live_and_all_of_it(buffers):
    used = max((at + n for at, n in allocate_buffers(buffers)), default=0)
    live = max((sum(n for n, a, b in buffers if a <= t <= b) for t in range(20)), default=0)
    assert live <= used <= sum(n for n, _, _ in buffers)


def test_first_fit_by_hand():
    buffers = [(16, 0, 9), (8, 0, 2), (8, 0, 9), (8, 3, 9), (16, 3, 9)]
    assert [at for at, _ in allocate_buffers(buffers)] == [0, 16, 24, 16, 32]


def test_over_by():
    wafer = small(usable=100)
    assert (over_by(CODE + 100, wafer), over_by(CODE + 107, wafer), over_by(0, wafer)) == (0, 7, 0)


def test_the_map_of_a_program():
    """Code first; every weight at its own address, its tile rounded up to the port's width."""
    w, x = normal(33, 21), normal(2, 33)
    wafer = small(align_bytes=8)
    program = wsc.compile(lambda w, x: x @ w, w, x, wafer=wafer, weight_argnums=0).program
    (stage,) = program.stages
    assert (stage.memory[0].kind, stage.memory[0].offset, stage.memory[0].nbytes) == ("code", 0, CODE)
    (weight,) = [a for a in stage.memory if a.kind == "weight"]
    (stored,) = stage.weights
    rows, columns = (-(-n // (y * x)) for n, y, x in zip((33, 21), stored.layout.y, stored.layout.x))
    assert weight.nbytes == -(-rows * columns * 4 // 8) * 8
    assert stage.used_bytes == max(a.offset + a.nbytes for a in stage.memory)
    assert_within_sram(program)


@pytest.mark.parametrize(("dtype", "nbytes"), [("int4", 32), ("int8", 56), ("bfloat16", 104)])
def test_elements_are_packed(dtype, nbytes):
    """5 x 10 of them on one PE, rounded up to whole bytes and to the port's 8: 25, 50 or 100."""
    w, x = jnp.ones((5, 10), dtype), normal(1, 5)
    exe = wsc.compile(lambda w, x: x @ w.astype(x.dtype), w, x, wafer=small(1, 1), weight_argnums=0)
    (weight,) = [a for a in exe.program.stages[0].memory if a.kind == "weight"]
    assert weight.nbytes == nbytes
    memory = exe.memory_analysis()
    assert memory.weight_bytes + memory.padding_bytes == nbytes == memory.stored_weight_bytes


@pytest.mark.parametrize("usable", [512, 1024, 4096])
def test_programs_use_what_they_are_given(usable):
    """Less SRAM a PE means more PEs, never a PE over its SRAM."""
    w, x = normal(64, 96), normal(1, 64)
    program = wsc.compile(lambda w, x: x @ w, w, x, wafer=small(24, 24, usable), weight_argnums=0).program
    assert_within_sram(program)
    assert program.stages[0].region.pes >= 64 * 96 * 4 / usable


def test_an_array_without_elements_has_no_address():
    weights, x = {"none": jnp.zeros((1, 0)), "some": normal(12, 8)}, normal(2, 12)
    fn = lambda w, x: (x @ w["some"], x[:, :0] + w["none"])  # noqa: E731
    program = wsc.compile(fn, weights, x, wafer=small(), weight_argnums=0).program
    assert_within_sram(program)
    assert [a.name for s in program.stages for a in s.memory if a.kind == "weight"] == ["w.some"]
