"""Frames: arrays of programs without weights lie in the middle of the largest of their rank."""

import jax.numpy as jnp
from helpers import most_parts, normal, run_everywhere, small
from jax import lax

from wsc.lowering.frames import Frames
from wsc.lowering.layout import Grid, Layout


def test_an_array_far_larger_than_the_frame_is_cut_on_its_own():
    """Its parts beyond the frame would all lie with the PEs at the ends."""
    frames = Frames.of([(8, 16)], Grid(y=8, x=8))
    assert frames.layout((600, 120)) == Layout((8, 1), (1, 8)) == frames.layout((8, 16))
    assert frames.layout((6, 12)).margins == ((1, 1), (2, 2))
    assert frames.layout((10, 18)).margins == ((-1, -1), (-1, -1))


def test_a_table_made_by_a_small_program_fits():
    count = lambda x: (x[:1, :1] < lax.broadcasted_iota(jnp.float32, (600, 120), 1)).sum()  # noqa: E731
    exe = run_everywhere(count, normal(8, 16), wafer=small(usable=6000))
    assert most_parts(exe.program) > 64


def test_slices_with_starts_of_numpy_come_from_neighbours():
    """Reflections are slices whose starts are numbers of numpy, not of Python."""
    reflect = lambda x: jnp.pad(x, ((2, 1), (0, 2)), mode="reflect")[1:-2, 2:] + x  # noqa: E731
    run_everywhere(reflect, normal(9, 8), wafer=small(4, 5, 16384))
    thirds = lambda x: sum(jnp.split(x, 3, axis=0))  # noqa: E731
    run_everywhere(thirds, normal(9, 8), wafer=small(4, 5, 16384))
