"""Sums in the wafer's order, against loops that send every message, bit for bit in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsc.machine.collectives import ways
from wsc.runtime.order import FEW, reduce_in_order
from wsc.runtime.reference import reduce_line

SIZES = {"float32": [1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 17, 33, 64, 65, 130], "float16": [3, 8, 23]}
WAVELETS = (1, 5, 64, 4096)  # a generated tree is another one for each


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


def star(held):
    """The first PE takes in the others, the nearest first."""
    total = held[0]
    for value in held[1:]:
        total = total + value
    return total


def from_both_ends(line):
    """The middle PE sums the half after it, then with that sum the half before it, the nearest first."""

    def total(held):
        middle = len(held) // 2
        after = line(held[middle:])
        return line([after, *reversed(held[:middle])])

    return total


LOOPS = {f.__name__: f for f in (chain, tree, two_phase, star)}
LOOPS |= {f"centre_{name}": from_both_ends(f) for name, f in LOOPS.items()}


def parts_of(pes: int, width: int = 5, dtype="float32", seed: int = 0):
    """Numbers of very different sizes, so that every order gives another sum."""
    rng = np.random.default_rng([seed, pes])
    return (rng.normal(size=(pes, width)) * 10.0 ** rng.integers(-3, 4, (pes, width))).astype(dtype)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("dtype", SIZES)
def test_bit_for_bit(name, dtype):
    for pes in SIZES[dtype]:
        parts = parts_of(pes, dtype=dtype)
        expected = LOOPS[name](list(parts))
        assert expected.dtype == dtype
        np.testing.assert_array_equal(np.asarray(reduce_in_order(jnp.asarray(parts), name)), expected, err_msg=str(pes))


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("pes", [5, 64, FEW + 7])
def test_bit_for_bit_under_jit(name, pes):
    """The compiler must not reassociate."""
    parts = parts_of(pes, seed=1)
    found = jax.jit(lambda p: reduce_in_order(p, name))(parts)
    np.testing.assert_array_equal(np.asarray(found), LOOPS[name](list(parts)))


def all_ways(pes: int) -> list:
    return sorted({way for wavelets in WAVELETS for way in ways(pes, wavelets)})


def sums(parts, options) -> list[np.ndarray]:
    """The sum of `parts` by each of the options, compiled together."""
    run = jax.jit(lambda p: [reduce_in_order(p, name, shape) for name, shape in options])
    return [np.asarray(found) for found in run(parts)]


@settings(deadline=None, max_examples=8)
@given(st.integers(2, 130), st.integers(0, 2**31))
def test_every_way_is_the_references_bit_for_bit(pes, seed):
    """Whatever a program may choose: the executed order is that of the interpreter, which sends every message."""
    parts, options = parts_of(pes, 3, seed=seed), all_ways(pes)
    for (name, shape), found in zip(options, sums(parts, options), strict=True):
        np.testing.assert_array_equal(found, reduce_line(list(parts), name, shape), err_msg=f"{name} {shape}")
        assert found.dtype == np.float32


@pytest.mark.parametrize("pes", [2, 9, 23])
def test_every_way_is_the_references_without_jit_too(pes):
    parts = parts_of(pes, seed=4)
    for name, shape in all_ways(pes):
        found = np.asarray(reduce_in_order(jnp.asarray(parts), name, shape))
        np.testing.assert_array_equal(found, reduce_line(list(parts), name, shape), err_msg=f"{name} {shape}")


@pytest.mark.parametrize("pes", [2, 3, 7, 23])
def test_every_way_takes_in_each_pe_once(pes):
    """Powers of two add without rounding: a PE left out or counted twice would show."""
    options = all_ways(pes)
    for way, found in zip(options, sums(2.0 ** np.arange(pes, dtype=np.float32)[:, None], options), strict=True):
        assert float(found[0]) == 2.0**pes - 1, way


def test_the_orders_differ():
    """Else the tests above would prove nothing."""
    options = [(name, shape) for name, shape in ways(60, 64) if not shape or name == "k_level"]
    found = {total.tobytes() for total in sums(parts_of(60, 50, seed=2), options)}
    assert len(found) == len(options) > 10


@pytest.mark.parametrize(("name", "shape"), [*ways(16, 4), ("chain", ())])
def test_one_pe_keeps_its_value(name, shape):
    np.testing.assert_array_equal(reduce_in_order(jnp.array([[3.0, -0.0]]), name, shape), [3.0, -0.0])
