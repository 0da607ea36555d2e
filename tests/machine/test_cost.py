"""What one step costs, worked out by hand from the published numbers of the wafer."""

import dataclasses

import jax
import pytest

from wsc.machine.cost import Cost, cost, energy_joules
from wsc.machine.steps import AllReduce, Compute, HostLink, Move, Multicast, Reduce, Shift, WaferLink
from wsc.machine.wafer import WSE2, WSE3

PUBLISHED = {1: (3067, 560), 256: (3322, 2349), 4096: (7162, 36909)}  # chain, tree on 512 PEs
BROADCAST = {1: 517, 256: 772, 4096: 4612}


@pytest.mark.parametrize("wavelets", PUBLISHED)
@pytest.mark.parametrize(("column", "name"), [(0, "chain"), (1, "tree")])
def test_all_reduce_is_reduce_and_broadcast(wavelets, column, name):
    """The published cycles of both, and a task switch for each."""
    found = cost(AllReduce(name, 512, 511, wavelets, 1), WSE3)
    assert int(found.cycles) == PUBLISHED[wavelets][column] + BROADCAST[wavelets] + 2 * WSE3.task_cycles
    assert found.arithmetic == found.links == 0


def test_reduce_and_multicast_apart():
    assert cost(Reduce("chain", 512, 511, 1, 1), WSE3).cycles == 3067 + WSE3.task_cycles
    assert cost(Multicast(512, 511, 4096, 1), WSE3).cycles == 4612 + WSE3.task_cycles


def test_latency_is_what_remains_of_one_wavelet():
    """More data adds serial cycles only."""
    small, large = (cost(Multicast(512, 511, n, 1), WSE3) for n in (1, 4096))
    assert small.latency == large.latency
    assert large.serial - small.serial == 4095


def test_lines_at_once_take_no_longer_and_move_more():
    one, many = (cost(Reduce("chain", 16, 15, 4, n), WSE3) for n in (1, 30))
    assert many.cycles == one.cycles
    assert (many.hops, many.wavelets) == (30 * one.hops, 30 * one.wavelets) == (30 * 15 * 4, 30 * 15 * 4)


def test_multicast_hops():
    found = cost(Multicast(8, 7, 5, 2), WSE3)
    assert found.hops == 2 * 7 * 5


def test_shift():
    """12 hops and both ramps, 40 words through the fullest link, a task switch."""
    found = cost(Shift(12, 40, 300, 3), WSE3)
    assert (found.cycles, found.serial) == (12 + 5 + 40 + WSE3.task_cycles, 40)
    assert found.hops == 900


def test_move_spreads_over_its_links():
    found = cost(Move(100, 1000, 30), WSE3)
    assert (found.cycles, found.serial) == (105 + 34 + WSE3.task_cycles, 34)
    assert found.hops == 100_000


def test_links_by_bandwidth():
    """150 GB over 150 GB/s is one second of the clock; a wafer link adds its switch."""
    assert cost(HostLink(150 * 10**9), WSE3).links == pytest.approx(0.875e9)
    assert cost(WaferLink(150 * 10**9), WSE3).links == pytest.approx(0.875e9 * (1 + 2e-6))
    assert cost(WaferLink(0), WSE3).cycles == pytest.approx(0.875e9 * 2e-6)


def test_multiply_accumulate_by_precision():
    """10 calls of 14 elements: 4 a cycle in 16 bits, 1 in 32, and the fitted cost of a call."""
    half, single = (cost(Compute("fmac", 10, 14, size, 280, 1), WSE3) for size in (2, 4))
    assert half.arithmetic == 10 * 4
    assert single.arithmetic == 10 * 14
    assert half.overhead == single.overhead == pytest.approx(10 * 6.3)
    assert half.flops == 280


def test_vector_lanes():
    assert cost(Compute("vector", 1, 17, 2, 17, 1), WSE3).arithmetic == 3
    assert cost(Compute("vector", 1, 17, 2, 17, 1), WSE2).arithmetic == 5
    assert cost(Compute("vector", 1, 17, 4, 17, 1), WSE3).arithmetic == 9


def test_scalar_functions():
    assert cost(Compute("transcendental", 1, 7, 4, 7, 1), WSE3).cycles == 7 * 115
    assert cost(Compute("divide", 1, 7, 4, 7, 1), WSE3).cycles == 7 * 50


def test_busy_counts_every_pe():
    found = cost(Compute("fmac", 2, 8, 4, 0, 50), WSE3)
    assert found.busy == pytest.approx(50 * (16 + 2 * 6.3))


def test_sram_bytes_of_a_vector_instruction():
    """Two operands read, one result written, by each of 5 PEs."""
    assert cost(Compute("vector", 1, 10, 4, 10, 5), WSE3).sram_bytes == 3 * 10 * 4 * 5


def test_no_port_beats_its_bandwidth():
    """A step moves no more SRAM bytes than a PE's ports let through in its cycles: an fp16 FMAC of 4 a cycle, 24 B."""
    for kind, size in (("fmac", 2), ("fmac", 4), ("vector", 4)):
        found = cost(Compute(kind, 1, 4096, size, 0, 1), WSE3)
        assert found.sram_bytes <= found.cycles * WSE3.sram_bytes_per_cycle * 1.01


def test_costs_add_and_scale():
    a, b = Cost(latency=1, flops=2), Cost(latency=10, serial=3, hops=4)
    assert a + b == Cost(latency=11, serial=3, flops=2, hops=4)
    assert b * 3 == Cost(latency=30, serial=9, hops=12)
    assert (a + b).cycles == 14


def test_the_five_causes_are_the_cycles():
    """No field is counted twice, none left out."""
    names = ("latency", "serial", "arithmetic", "overhead", "links")
    for n, name in enumerate(names):
        assert Cost(**{name: n + 1.0}).cycles == n + 1
    for other in {f.name for f in dataclasses.fields(Cost)} - set(names):
        assert Cost(**{other: 7.0}).cycles == 0


def test_unknown_step():
    with pytest.raises(TypeError, match="not a step: 'fly'"):
        cost("fly", WSE3)


def test_energy_by_hand():
    """One second idle at 16.1 kW; 1e12 PE-cycles of 27 pJ; 1e12 hops of 32 bits at 0.1 pJ."""
    found = energy_joules(Cost(latency=0.875e9, busy=1e12, hops=1e12), WSE3, wafers=2)
    assert found == pytest.approx({"idle": 2 * 16100, "cores": 27, "fabric": 3.2})


def test_differentiable_in_the_hardware():
    """A wafer is a pytree of numbers: how cycles change with the cost of a call."""

    def cycles(call):
        wafer = dataclasses.replace(WSE3, call_cycles=call)
        return cost.__wrapped__(Compute("fmac", 10, 14, 4, 280, 1), wafer).cycles

    assert jax.grad(cycles)(6.3) == pytest.approx(10.0)
