"""What one step costs, worked out by hand from the published numbers of the wafer."""

import dataclasses

import pytest

from wsc.machine.cost import Cost, cost, energy_joules
from wsc.machine.steps import AllReduce, Compute, HostLink, Move, Multicast, Reduce, Rounds, Shift, WaferLink
from wsc.machine.wafer import WSE2, WSE3

PUBLISHED = {1: (3067, 560, 733), 256: (3322, 2349, 1238), 4096: (7162, 36909, 8843)}  # on 512 PEs
BROADCAST = {1: 517, 256: 772, 4096: 4612}
BARE = dataclasses.replace(WSE3, loop_cycles=0.0, deliver_cycles=1.0)  # as the HPDC 2024 model has it


@pytest.mark.parametrize("wavelets", PUBLISHED)
@pytest.mark.parametrize(("column", "name"), [(0, "chain"), (1, "tree"), (2, "two_phase")])
def test_all_reduce_is_reduce_and_broadcast(wavelets, column, name):
    found = cost(AllReduce(name, 512, 511, wavelets, 1), BARE)
    assert found.cycles == pytest.approx(PUBLISHED[wavelets][column] + BROADCAST[wavelets], rel=0.01)
    assert found.arithmetic == found.links == 0


def test_software_prepares_each_instruction():
    """A chain and its multicast: one instruction each, around it a loop; a forwarded hop that delivers takes 2."""
    found = cost(AllReduce("chain", 512, 511, 1, 1), WSE3)
    assert found.cycles == 3067 + 517 + 511 + 2 * WSE3.loop_cycles
    assert found.overhead == 2 * WSE3.loop_cycles


def test_reduce_and_multicast_apart():
    assert cost(Reduce("chain", 512, 511, 1, 1), BARE).cycles == 3067
    assert cost(Multicast(512, 511, 4096, 1), BARE).cycles == 4612


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


@pytest.mark.parametrize(("algorithm", "shape"), [("chain", ()), ("k_level", (8,)), ("centre_two_phase", ())])
def test_a_fused_all_reduce_adds_its_data_only(algorithm, shape):
    """5, 5 and 5 wavelets in one collective cost what 15 do: latency and setup once."""
    parts = [cost(AllReduce(algorithm, 64, 63, 5, 2, shape, after), WSE3) for after in (0, 5, 10)]
    whole = cost(AllReduce(algorithm, 64, 63, 15, 2, shape), WSE3)
    total = sum(parts, Cost())
    assert total.cycles == pytest.approx(whole.cycles)
    for name in ("wavelets", "hops", "sram_bytes", "busy", "flops"):
        assert getattr(total, name) == pytest.approx(getattr(whole, name))
    assert parts[1].latency == parts[1].overhead == 0 < parts[1].serial


def test_shift():
    """12 hops and both ramps, 40 words through the fullest link of which 30 are others', less one in ten of each of
    these three; an instruction, and the second that is prepared meanwhile."""
    found = cost(Shift(12, 40, 300, 3, 10), WSE3)
    assert (found.latency, found.serial, found.overhead) == (12 + 5, 40 - 3 / 10, WSE3.loop_cycles)
    assert (found.hops, found.wavelets) == (900, 75)
    assert found.contention == pytest.approx(30 - 3 / 10) and found.ideal_cycles == found.cycles - found.contention


def test_move_spreads_over_its_links():
    found = cost(Move(100, 1000, 30), WSE3)
    assert (found.latency, found.serial) == (105, 34)
    assert found.overhead == WSE3.task_cycles + WSE3.loop_cycles
    assert found.hops == 100_000


def test_links_by_bandwidth():
    """150 GB over 150 GB/s is one second of the clock; a wafer link adds its switch."""
    second = 150 * 10**9
    assert cost(HostLink(second), WSE3).links == pytest.approx(WSE3.clock_hz)
    assert cost(WaferLink(second), WSE3).links == pytest.approx(WSE3.clock_hz * (1 + WSE3.link_seconds))
    assert cost(WaferLink(0), WSE3).cycles == pytest.approx(WSE3.clock_hz * WSE3.link_seconds)
    assert cost(HostLink(second), WSE3).link_bytes == second


def test_multiply_accumulate_by_precision():
    """10 calls of 14 elements, each 1 to issue and a loop around: 8 a cycle in 16 bits, 1 in 32."""
    half, single = (cost(Compute("fmac", 10, 14, size, 280, 1), WSE3) for size in (2, 4))
    assert (half.arithmetic, single.arithmetic) == (10 * 2, 10 * 14)
    assert half.overhead == single.overhead == 10 * (1 + WSE3.loop_cycles)
    assert half.flops == 280


def test_a_measured_instruction():
    """14 elements in 15 cycles; 1,028 in 1,034, and in 2,062 where both reads meet one bank of a WSE-2."""
    assert cost(Compute("fmac", 1, 14, 4, 28, 1, bare=True), WSE3).cycles == 15
    assert cost(Compute("fmac", 1, 1028, 4, 0, 1, bare=True), WSE2).cycles == pytest.approx(1034, rel=0.01)
    assert cost(Compute("fmac", 1, 1028, 4, 0, 1, conflict=1.0, bare=True), WSE2).cycles == pytest.approx(
        2062, rel=0.01
    )


def test_calls_in_a_map():
    """Measured in 16 bits on a WSE-3, a call: 8.4 to 8.7 cycles for 8 elements, 10.1 to 11.6 for 16."""
    for length, low, high in ((8, 8.4, 8.7), (16, 10.1, 11.6)):
        found = cost(Compute("fmac", 10_000, length, 2, 0, 1, maps=1, conflict=1.0), WSE3).cycles / 10_000
        assert low * 0.99 <= found <= high * 1.01
    one, four = (cost(Compute("fmac", 64, 8, 2, 0, 1, maps=n), WSE3) for n in (1, 4))
    assert four.cycles - one.cycles == 3 * WSE3.nest_cycles


@pytest.mark.parametrize(
    ("wafer", "length", "itemsize", "cycles"), [(WSE3, 17, 2, 3), (WSE2, 17, 2, 5), (WSE3, 17, 4, 9)]
)
def test_vector_lanes(wafer, length, itemsize, cycles):
    assert cost(Compute("vector", 1, length, itemsize, length, 1), wafer).arithmetic == cycles


def test_one_accumulator_takes_one_element_a_cycle():
    assert cost(Compute("sum", 1, 17, 2, 17, 1), WSE3).arithmetic == 17


@pytest.mark.parametrize(("kind", "each"), [("transcendental", WSE3.transcendental_cycles), ("divide", 50)])
def test_scalar_functions(kind, each):
    """One element after the other, in a loop unless bare."""
    assert cost(Compute(kind, 1, 7, 4, 7, 1, bare=True), WSE3).cycles == pytest.approx(7 * each)
    assert cost(Compute(kind, 1, 7, 4, 7, 1), WSE3).cycles == pytest.approx(7 * each + WSE3.loop_cycles)


def test_busy_counts_every_pe():
    found = cost(Compute("fmac", 2, 8, 4, 0, 50), WSE3)
    assert found.busy == 50 * (16 + 2 * (1 + WSE3.loop_cycles))


def test_sram_bytes_of_a_vector_instruction():
    """Two operands read, one result written, by each of 5 PEs."""
    assert cost(Compute("vector", 1, 10, 4, 10, 5), WSE3).sram_bytes == 3 * 10 * 4 * 5


@pytest.mark.parametrize(("kind", "itemsize"), [("fmac", 4), ("vector", 4), ("fmac", 2), ("vector", 2)])
def test_no_port_beats_its_bandwidth(kind, itemsize):
    """A step moves no more SRAM bytes than a PE's ports let through in its cycles: two 64-bit reads and one write."""
    wafer = WSE2 if itemsize == 2 else WSE3
    found = cost(Compute(kind, 1, 4096, itemsize, 0, 1), wafer)
    assert found.sram_bytes <= found.cycles * wafer.sram_bytes_per_cycle * 1.01


WORK = Compute("vector", 1, 200, 4, 200, 10, bare=True)  # 1 to issue and 100
PASSING = Shift(2, 30, 60, 10, 30)  # 2 hops and ramps; 30 wavelets, at half the width in the background


def test_rounds_take_the_longer_of_both():
    assert cost(WORK, WSE3).cycles == 101
    found = cost(Rounds(3, (WORK,), (PASSING,), transfers=0, tasks=0), WSE3)
    assert (found.cycles, found.arithmetic, found.serial) == (3 * 101, 300, 0)
    found = cost(Rounds(3, (), (PASSING,), transfers=0, tasks=0), WSE3)
    assert (found.latency, found.serial, found.overhead) == (3 * 7, 3 * 60, 0)
    slow = dataclasses.replace(WSE3, background_wavelets_per_cycle=0.25)
    found = cost(Rounds(3, (WORK,), (PASSING,), transfers=0, tasks=0), slow)
    assert (found.cycles, found.serial, found.arithmetic) == (3 * (7 + 120), 360, 0)


def test_rounds_are_started_by_software_and_do_all_their_work():
    found = cost(Rounds(3, (WORK,), (PASSING,), transfers=4, tasks=2), WSE3)
    assert found.cycles == 3 * (101 + 4 * WSE3.loop_cycles + 2 * WSE3.task_cycles)
    work, passing = cost(WORK, WSE3), cost(PASSING, WSE3)
    assert (found.flops, found.hops, found.wavelets) == (3 * work.flops, 3 * passing.hops, 3 * passing.wavelets)
    assert found.sram_bytes == 3 * (work.sram_bytes + passing.sram_bytes)


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
    assert Cost(serial=9.0, contention=2.0).ideal_cycles == 7


def test_unknown_step():
    with pytest.raises(TypeError, match="not a step: 'fly'"):
        cost("fly", WSE3)


def test_energy_by_hand():
    """One second idle at 16.1 kW; 1e12 PE-cycles of 27 pJ; 1e12 hops of 32 bits at 0.1 pJ."""
    found = energy_joules(Cost(latency=0.875e9, busy=1e12, hops=1e12), WSE3, wafers=2)
    assert found == pytest.approx({"idle": 2 * 16100, "cores": 27, "fabric": 3.2})
