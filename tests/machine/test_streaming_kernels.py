"""Products of tiles cut over both axes: work is complete, little is on its way at once, times are what hands count."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsc.machine import streaming_kernels as kernels
from wsc.machine.cost import cost
from wsc.machine.steps import Compute, Rounds, Shift, Stream
from wsc.machine.wafer import WSE3

TILE = st.integers(1, 200)
GRID = st.integers(1, 900)


def multiplied(rounds: Rounds) -> int:
    """Multiply-accumulates of a PE."""
    return rounds.times * sum(s.calls * s.length for s in rounds.compute if isinstance(s, Compute) and s.kind == "fmac")


def at_once(rounds: Rounds) -> int:
    return max(s.wavelets for s in rounds.fabric if isinstance(s, Shift))


@settings(max_examples=60, deadline=None)
@given(m=TILE, k=TILE, n=TILE, rows=GRID, columns=GRID)
def test_all_products_are_made_and_little_is_on_its_way(m, k, n, rows, columns):
    passing = kernels.passing_weights(m, k, n, rows, columns, 2, WSE3)[0]
    turning = kernels.turning(m, k, n, rows, columns, 2, WSE3)[0]
    meeting = kernels.meeting(m, k * rows, n, rows, columns, 2, WSE3)[-1]
    assert isinstance(passing, Rounds) and isinstance(turning, Rounds) and isinstance(meeting, Rounds)
    for rounds in (passing, turning):
        assert multiplied(rounds) >= rows * m * k * n
        assert at_once(rounds) <= 2 * kernels.ROUND_WORDS + 2 or n == 1
    assert multiplied(meeting) >= m * k * rows * n


def test_a_product_with_streamed_weights_by_hand():
    """100 tokens, 4 features, 4 of the result on each of 1,000 rows: 16 calls of 100, 13 cycles of 8 lanes each; the
    sums, 200 words, come in at half a word a cycle; in every round two transfers and two tasks are begun."""
    rounds, first = kernels.passing_weights(100, 4, 4, 1000, 700, 2, WSE3)
    assert isinstance(rounds, Rounds) and rounds.times == 1000
    calls = 16 * (1 + 13 + WSE3.map_cycles) + 4 * WSE3.nest_cycles
    adding = 1 + 200 + WSE3.loop_cycles
    passing = 1 * WSE3.hop_cycles + WSE3.relay_cycles + (8 + 200) / 0.5
    begun = 2 * WSE3.loop_cycles + 2 * WSE3.task_cycles
    assert cost(rounds, WSE3).cycles == pytest.approx(1000 * (max(calls + adding, passing) + begun))
    assert cost(first, WSE3).cycles > 999


def test_one_row_sums_nothing():
    (rounds,) = kernels.passing_weights(8, 8, 8, 1, 10, 2, WSE3)
    assert isinstance(rounds, Rounds) and len(rounds.compute) == 1


def test_a_stream_goes_both_ways_at_once_and_pays_for_every_level():
    second = int(WSE3.link_bytes_per_second)
    one = cost(Stream(second, second // 2, 0), WSE3)
    assert one.links == pytest.approx(WSE3.clock_hz * (1 + WSE3.link_seconds)) and one.link_bytes == second * 1.5
    assert cost(Stream(second // 2, second, 0), WSE3).links == pytest.approx(one.links)
    deeper = cost(Stream(second, 0, 3), WSE3)
    assert deeper.links - one.links == pytest.approx(3 * WSE3.link_seconds * WSE3.clock_hz)
