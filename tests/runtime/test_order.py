"""Sums in the wafer's order, against loops that send every message, bit for bit in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsc.runtime.order import UNROLLED, reduce_in_order

SIZES = {"float32": [1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 17, 33, 64, 65, 130], "float16": [3, 8, 23]}


def chain(held):
    """The last PE starts; each adds what comes to what it has."""
    total = held[-1]
    for value in reversed(held[:-1]):
        total = value + total
    return total


def tree(held):
    """In round r, PE i adds what PE i + 2^r holds."""
    held, distance = list(held), 1
    while distance < len(held):
        for i in range(0, len(held) - distance, 2 * distance):
            held[i] = held[i] + held[i + distance]
        distance *= 2
    return held[0]


def two_phase(held):
    """Groups of S ~ sqrt(P), the last one shorter; a chain in each, then one over the firsts."""
    size = max(1, round(len(held) ** 0.5))
    return chain([chain(held[i : i + size]) for i in range(0, len(held), size)])


LOOPS = {"chain": chain, "tree": tree, "two_phase": two_phase}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("dtype", SIZES)
def test_bit_for_bit(name, dtype):
    rng = np.random.default_rng(0)
    for pes in SIZES[dtype]:
        parts = (rng.normal(size=(pes, 5)) * 10.0 ** rng.integers(-3, 4, (pes, 5))).astype(dtype)
        expected = LOOPS[name](list(parts))
        assert expected.dtype == dtype
        np.testing.assert_array_equal(np.asarray(reduce_in_order(jnp.asarray(parts), name)), expected, err_msg=str(pes))


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("pes", [5, 64, UNROLLED + 7])
def test_bit_for_bit_under_jit(name, pes):
    """The compiler must not reassociate."""
    parts = np.random.default_rng(1).normal(size=(pes, 3)).astype(np.float32) * np.float32(1e4)
    found = jax.jit(lambda p: reduce_in_order(p, name))(parts)
    np.testing.assert_array_equal(np.asarray(found), LOOPS[name](list(parts)))


def test_the_orders_differ():
    """Else the tests above would prove nothing."""
    parts = np.random.default_rng(2).normal(size=(100, 50)).astype(np.float32)
    chain_, tree_, two = (np.asarray(reduce_in_order(jnp.asarray(parts), n)) for n in LOOPS)
    assert (chain_ != tree_).any() and (tree_ != two).any() and (chain_ != two).any()


@pytest.mark.parametrize("name", LOOPS)
def test_one_pe_keeps_its_value(name):
    np.testing.assert_array_equal(reduce_in_order(jnp.array([[3.0, -0.0]]), name), [3.0, -0.0])
