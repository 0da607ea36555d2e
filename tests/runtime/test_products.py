"""Products that are multiplied while they are added, against numpy, which rounds every product and every sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsc.machine.collectives import ways
from wsc.machine.messages import senders
from wsc.runtime.order import FEW, levels, never
from wsc.runtime.products import COLUMNS, WIDE, Products
from wsc.runtime.reference import reduce_line

SHAPES = [  # PEs, batch, tile, rows, columns
    (5, 1, 1, 3, 7),
    (40, 2, 3, 16, COLUMNS),
    (FEW + 6, 1, 2, 8, 2 * COLUMNS),
    (130, 1, 1, WIDE // COLUMNS, 3 * COLUMNS),
    (FEW + 1, 2, 1, 1, 300),
]


def operands(pes, batch, tile, rows, columns):
    rng = np.random.default_rng([pes, columns])
    return [rng.normal(size=(pes, batch, tile, n)).astype("float32") for n in (rows, columns)]


def parts(lhs, rhs):
    """What each PE has: its tile's products, added from the first to the last."""
    for left, right in zip(lhs, rhs, strict=True):
        products = left[:, :, :, None] * right[:, :, None, :]
        total = products[:, 0]
        for k in range(1, products.shape[1]):
            total = total + products[:, k]
        yield total


def summed(products: Products, lhs, rhs):
    return products.sum(products.left(lhs), products.right(rhs), never([lhs]))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_bit_for_bit(shape):
    """No product is contracted with the sum that takes it in, under jit."""
    lhs, rhs = operands(*shape)
    expected = list(parts(lhs, rhs))
    for name, how in sorted({*ways(shape[0], 64), *ways(shape[0], 4096)}):
        found = jax.jit(lambda lhs, rhs, name=name, how=how: summed(Products(name, how, *shape), lhs, rhs))(lhs, rhs)
        np.testing.assert_array_equal(found, reduce_line(expected, name, how), err_msg=f"{name} {how}")


def test_numbers_that_a_contracted_product_would_show():
    """(1 + e)^2 rounds to 1 + 2e: the chain's last sum is 0 then, and e^2 with one rounding."""
    e = np.float32(2.0**-12)
    lhs = np.array([[[[1 + e]]], [[[-(1 + 2 * e)]]]], "float32")
    rhs = np.array([[[[1 + e]]], [[[1]]]], "float32")
    lhs, rhs = np.tile(lhs, (1, 1, 1, 128)), np.tile(rhs, (1, 1, 1, 128))
    found = jax.jit(lambda lhs, rhs: summed(Products("chain", (), 2, 1, 1, 128, 128), lhs, rhs))(lhs, rhs)
    assert float(jnp.abs(found).max()) == 0
    assert float(e) ** 2 != 0


@pytest.mark.parametrize("pes", [2, 3, 16, 37])
def test_every_pe_but_the_root_sends_once(pes):
    for algorithm, shape in ways(pes, 64):
        tree, root = senders(algorithm, pes, shape)
        sent = [child for takes_in in tree for child in takes_in]
        assert sorted([*sent, root]) == list(range(pes)), algorithm


def test_lines_of_a_tree_take_few_levels():
    assert [len(levels(name, 500, ())) for name in ("chain", "star", "tree")] == [1, 1, 8]


def test_an_unknown_reduce_is_named():
    with pytest.raises(ValueError, match="no reduce named 'ring'"):
        senders("ring", 4)
