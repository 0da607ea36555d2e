"""What is wrong with a program of the fabric has a name: before the first cycle where it shows, or in a report."""

import numpy as np
import pytest

from wsc.errors import (
    ArgumentError,
    ColorClashError,
    CycleLimitError,
    DeadlockError,
    FabricError,
    MissingReceiverError,
    QueueSizeError,
    RouteLoopError,
)
from wsc.runtime.fabric import lines
from wsc.runtime.fabric.program import EAST, NORTH, RAMP, SOUTH, WEST, Fabric, Instruction
from wsc.runtime.fabric.simulate import simulate
from wsc.runtime.fabric.sizes import Timing


def pair(receives: int = 4, sends: int = 4) -> Fabric:
    """One PE that sends to another."""
    line = Fabric(1, 2)
    red = line.color()
    line.route(red, (0, 0), RAMP, [EAST])
    line.route(red, (0, 1), WEST, [RAMP])
    line.instruct((0, 0), Instruction(sends, sends=red, load=True))
    line.instruct((0, 1), Instruction(receives, reads=(red,), store=True))
    return line


def test_a_route_that_comes_back_is_a_loop():
    grid = Fabric(3, 3)
    red = grid.color()
    for (y, x), rx, tx in (((0, 0), SOUTH, EAST), ((0, 1), WEST, SOUTH), ((1, 1), NORTH, WEST), ((1, 0), EAST, NORTH)):
        grid.route(red, (y, x), rx, [tx])
    with pytest.raises(RouteLoopError, match=r"color 0 is routed in a loop.*\(0, 0\), \(0, 1\), \(1, 0\), \(1, 1\)"):
        simulate(grid)


def test_two_neighbours_that_send_back_are_a_loop():
    line = Fabric(1, 2)
    red = line.color()
    line.route(red, (0, 0), EAST, [EAST])
    line.route(red, (0, 1), WEST, [WEST])
    with pytest.raises(RouteLoopError):
        simulate(line)


def test_a_color_routed_twice_is_a_clash():
    line = pair()
    with pytest.raises(
        ColorClashError, match=r"color 0 at the router of PE \(0, 1\).*west to ramp, and now east to ramp"
    ):
        line.route(0, (0, 1), EAST, [RAMP], switch=False)
    for rx in (EAST, WEST, EAST):
        line.route(0, (0, 1), rx, [RAMP])
    with pytest.raises(ColorClashError, match="4 positions"):
        line.route(0, (0, 1), WEST, [RAMP])


@pytest.mark.parametrize("queue", ["router", "inward", "outward"])
def test_a_queue_of_no_words(queue):
    with pytest.raises(QueueSizeError, match="queue of 0 words"):
        simulate(pair(), Timing(**{queue: 0}))


def test_wavelets_that_nobody_takes_in():
    line = Fabric(1, 3)
    red = line.color()
    line.route(red, (0, 0), RAMP, [EAST])
    line.instruct((0, 0), Instruction(4, sends=red, load=True))
    with pytest.raises(MissingReceiverError, match=r"goes east from the router of PE \(0, 0\)"):
        simulate(line)
    line.route(red, (0, 1), WEST, [RAMP])
    with pytest.raises(MissingReceiverError, match=r"PE \(0, 1\) is given color 0 .* no instruction"):
        simulate(line)
    line.instruct((0, 1), Instruction(4, reads=(red,), store=True))
    simulate(line)
    line.instruct((0, 2), Instruction(4, reads=(red,), store=True))
    with pytest.raises(MissingReceiverError, match=r"PE \(0, 2\) reads color 0, which its router never gives it"):
        simulate(line)


def test_a_route_over_the_edge_and_a_sender_without_one():
    line = Fabric(1, 2)
    red = line.color()
    line.route(red, (0, 1), WEST, [EAST])
    with pytest.raises(MissingReceiverError, match=r"goes east from the router of PE \(0, 1\)"):
        simulate(line)
    alone = Fabric(1, 1)
    alone.color()
    alone.instruct((0, 0), Instruction(1, sends=0, load=True))
    with pytest.raises(MissingReceiverError, match="never takes in from the ramp"):
        simulate(alone)


def test_a_receiver_that_waits_for_more_is_a_deadlock_with_its_report():
    with pytest.raises(DeadlockError) as caught:
        simulate(pair(receives=6), limit=10_000)
    text = str(caught.value)
    assert "PE (0, 1), thread 0, instruction 0: 2 elements left, reads [0]" in text and "waits for color 0" in text


def test_a_receiver_that_takes_less_leaves_full_queues():
    with pytest.raises(DeadlockError) as caught:
        simulate(pair(receives=1, sends=20))
    text = str(caught.value)
    assert "its way out is full" in text
    assert "router queue of color 0 at PE (0, 1): 3 words, switch in position 0, to ramp" in text
    assert "PE's inward queue of color 0 at PE (0, 1): 2 words" in text


def test_two_that_wait_for_each_other():
    line = Fabric(1, 2)
    red, blue = line.color(), line.color()
    for color, source, target, way, back in ((red, 0, 1, EAST, WEST), (blue, 1, 0, WEST, EAST)):
        line.route(color, (0, source), RAMP, [way])
        line.route(color, (0, target), back, [RAMP])
    for pe, reads, sends in ((0, blue, red), (1, red, blue)):
        line.instruct((0, pe), Instruction(1, reads=(reads,), store=True))
        line.instruct((0, pe), Instruction(1, sends=sends, load=True))
    with pytest.raises(DeadlockError, match=r"(?s)PE \(0, 0\).*waits for color 1.*PE \(0, 1\).*waits for color 0"):
        simulate(line)


def test_a_limit_of_cycles():
    with pytest.raises(CycleLimitError, match="not ended after 20 cycles"):
        simulate(lines.reduce("chain", 30, 30), limit=20)
    assert issubclass(CycleLimitError, FabricError)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match=r"memory is float32\[4, 1, 3\]: expected float32\[words, 1, 2\]"):
        simulate(pair(), memory=np.zeros((4, 1, 3), np.float32))
    with pytest.raises(ArgumentError, match="reaches word 4 of its memory, which has 3"):
        simulate(pair(), memory=np.zeros((3, 1, 2), np.float32))
    with pytest.raises(ArgumentError, match="float64"):
        simulate(pair(), memory=np.zeros((4, 1, 2)))
    with pytest.raises(ArgumentError, match="combined by 'minus'"):
        simulate(pair(), memory=np.zeros((4, 1, 2), np.float32), combine="minus")
    with pytest.raises(ArgumentError, match="colors 0 to 0"):
        pair().instruct((0, 0), Instruction(1, sends=3, load=True))
    with pytest.raises(ArgumentError, match="at least one"):
        Fabric(0, 3)
    with pytest.raises(ArgumentError, match="ring"):
        lines.all_reduce("ring", 4, 1)
    with pytest.raises(ArgumentError, match="same size"):
        lines.multicast(3, 1).then(lines.multicast(4, 1))


def test_more_memory_than_a_pe_could_address():
    busy = Fabric(1, 1)
    busy.instruct((0, 0), Instruction(1, load=True, store=True))
    with pytest.raises(ArgumentError, match="at most 65,536"):
        simulate(busy, memory=np.zeros(((1 << 16) + 1, 1, 1), np.float32))
