"""Halos: every part of one comes once, and what is another part is paid for."""

import jax.numpy as jnp
from helpers import normal, run_everywhere, small

from wsc.machine.steps import Compute, Rounds


def ops_of(fn, name):
    """The steps of the ops of that name, on PEs of which every two columns share the 12 rows of an array."""
    exe = run_everywhere(fn, normal(12, 9), wafer=small(5, 4, 16384))
    return [op.steps for _, op in exe.program.ops() if op.name == name]


def test_an_edge_alone_is_not_in_the_halo_of_a_larger_slice():
    """The last row goes to the other end, where the first rows' sums have brought nothing of it."""
    before = lambda x: (x[:-1] + x[1:], jnp.concatenate([x[-1:], x]))  # noqa: E731
    (steps,) = ops_of(before, "concatenate")
    assert any(isinstance(s, Rounds) for s in steps)


def test_what_came_for_another_op_is_copied_into_the_array_it_is_put_in():
    """Both arrays begin with the same row, 2 elements a PE; the second finds it there, and still writes it."""
    twice = lambda x: (jnp.concatenate([x[-1:], x]), jnp.concatenate([x[-1:], -x]))  # noqa: E731
    first, second = ops_of(twice, "concatenate")
    assert [sum(isinstance(s, Rounds) for s in steps) for steps in (first, second)] == [1, 0]
    assert [[s.length for s in steps if isinstance(s, Compute)] for steps in (first, second)] == [[6], [2, 6]]
