"""Words of 32 PEs, and counters of such words, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsc.runtime.fabric import bits

SHAPES = [(1, 1), (5, 3), (32, 4), (33, 2), (100, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_words_hold_every_pe_and_know_their_neighbours(shape):
    grid = np.random.default_rng(0).random(shape) < 0.5
    words = jnp.asarray(bits.pack(grid))

    def back(words):
        return bits.unbanded(np.asarray(bits.unpack(words)), shape[0])

    assert np.array_equal(back(words), grid)
    padded = np.pad(grid, 1)
    assert np.array_equal(back(bits.from_north(words)), padded[:-2, 1:-1])
    assert np.array_equal(back(bits.from_south(words)), padded[2:, 1:-1])
    assert np.array_equal(back(bits.from_west(words)), padded[1:-1, :-2])
    assert np.array_equal(back(bits.from_east(words)), padded[1:-1, 2:])


@pytest.mark.parametrize("shape", SHAPES)
def test_values_of_neighbours(shape):
    grid = np.random.default_rng(0).integers(1, 100, shape)
    values, padded = jnp.asarray(bits.banded(grid)), np.pad(grid, 1)
    want = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    for side in range(4):
        assert np.array_equal(bits.unbanded(np.asarray(bits.values_from(side, values)), shape[0]), want[side])


def test_counters():
    numbers = np.random.default_rng(0).integers(1, 31, (40, 3))
    where = np.random.default_rng(1).random((40, 3)) < 0.5
    counter, mask = jnp.asarray(bits.planes(numbers, 5)), jnp.asarray(bits.pack(where))

    def back(counter):
        unpacked = np.asarray(bits.unpack(counter)).astype(int)
        return sum(bits.unbanded(plane, 40) << b for b, plane in enumerate(unpacked))

    assert np.array_equal(back(counter), numbers)
    assert np.array_equal(back(bits.less_one(counter, mask)), numbers - where)
    assert np.array_equal(back(bits.plus_one(counter, mask)), numbers + where)
    ones = bits.unbanded(np.asarray(bits.unpack(bits.is_one(counter))), 40)
    assert np.array_equal(ones, numbers == 1)


def test_more_there_than_late():
    for there in range(4):
        for late in range(16):
            unary = [jnp.uint32(0xFFFFFFFF if i < there else 0) for i in range(3)]
            marks = [jnp.uint32(0xFFFFFFFF if late >> i & 1 else 0) for i in range(4)]
            assert bool(bits.more_than(unary, marks)) == (there > late.bit_count()) or there == 4 or there > 3
