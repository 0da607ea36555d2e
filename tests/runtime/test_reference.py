"""The reference interpreter itself, against sums and products written out by hand."""

import numpy as np
import pytest
from helpers import normal, small

import wsc
from wsc.machine.collectives import ways
from wsc.runtime.reference import interpret, reduce_line


class Spelled(str):
    """A value that writes down how it was added."""

    def __add__(self, other):
        return Spelled(f"({str.__str__(self)}{str.__str__(other)})")


@pytest.mark.parametrize(
    ("algorithm", "shape", "expected"),
    [
        ("chain", (), "(a(b(c(de))))"),
        ("tree", (), "(((ab)(cd))e)"),
        ("two_phase", (), "((ab)((cd)e))"),
        ("star", (), "((((ab)c)d)e)"),
        ("generated", (1,), "((((ab)c)d)e)"),
        ("generated", (4,), "(a(b(c(de))))"),
        ("centre_chain", (), "((c(de))(ba))"),
        ("centre_star", (), "((((cd)e)b)a)"),
        ("k_level", (3,), "((ed)((bc)a))"),
    ],
)
def test_order_of_five_pes(algorithm, shape, expected):
    """Groups of two in the two-phase reduce of five PEs; of three, and their two roots, in the two levels."""
    assert reduce_line([Spelled(c) for c in "abcde"], algorithm, shape) == expected


@pytest.mark.parametrize("pes", range(2, 41))
def test_every_way_takes_in_each_pe_once(pes):
    letters = [chr(ord("A") + i) for i in range(pes)]
    for name, shape in {way for wavelets in (1, 64, 4096) for way in ways(pes, wavelets)}:
        found = reduce_line([Spelled(c) for c in letters], name, shape)
        assert sorted(found.replace("(", "").replace(")", "")) == letters, (name, shape)
        assert found.count("(") == pes - 1


def test_a_product_cut_both_ways_is_the_float64_product():
    w, x = normal(23, 31), normal(3, 23)
    exe = wsc.compile(lambda w, x: x @ w, w, x, wafer=small(), weight_argnums=0)
    (found,) = interpret(exe.program, w, x)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32


def test_a_tile_that_is_left_out_would_be_seen():
    """Every element of the operands reaches the result: unit vectors one by one."""
    exe = wsc.compile(
        lambda w, x: x @ w, np.ones((13, 7), np.float32), np.ones((1, 13), np.float32), wafer=small(), weight_argnums=0
    )
    w = normal(13, 7)
    for i in range(13):
        (found,) = interpret(exe.program, w, np.eye(13, dtype=np.float32)[i : i + 1])
        np.testing.assert_array_equal(found[0], np.asarray(w)[i])
