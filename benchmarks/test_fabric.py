"""PE-cycles per second of the fabric simulator, on whatever device JAX has: on a grid all of whose routers and PEs are
busy, chains of eight PEs side by side, each PE streaming `out = in + memory`, with values and without; and of one
all-reduce over a whole WSE-3, from its program to everyone's sum, compiling included.

Peers on such a machine: BookSim2 1.7e6 router-cycles/s at 8 x 8 and 1.8e5 at 32 x 32; tt-npe, flow level, 4e7; the
vendor's own simulator 1.8e5 to 5.5e5 PE-cycles/s.
"""

import resource

import jax
import numpy as np
import pytest

from wsc.machine.wafer import WSE3
from wsc.runtime.fabric import lines, rectangles
from wsc.runtime.fabric.program import Fabric
from wsc.runtime.fabric.simulate import Timing, simulate

CHAIN, WORDS, TIMES = 8, 16, 16


def busy(size: int) -> Fabric:
    """Rows of chains that each add up `WORDS` words, over and over."""
    chain = lines.reduce("chain", CHAIN, WORDS).across(size)
    grid = Fabric(size, size)
    for _ in range(chain.colors):
        grid.color()
    side_by_side = (1, 1, 1, size // CHAIN)
    grid.rx, grid.tx, grid.controls = (np.tile(a, side_by_side) for a in (chain.rx, chain.tx, chain.controls))
    grid.code = {name: np.tile(table, side_by_side) for name, table in chain.code.items()}
    grid.code["repeat"] = np.where(grid.code["length"] > 0, TIMES, 0).astype(np.uint32)
    grid.instructions = np.tile(chain.instructions, side_by_side[1:])
    return grid


@pytest.mark.parametrize("size", [256, 1024])
@pytest.mark.parametrize("values", [True, False], ids=["values", "time"])
def test_pe_cycles(benchmark, size, values):
    grid, timing = busy(size), Timing(router=2)
    memory = np.ones((WORDS, size, size), np.float32) if values else None

    def once():
        return simulate(grid, timing, memory=memory, watch=False)

    once()  # compiles
    run = benchmark.pedantic(once, rounds=3)
    if values:
        assert np.isclose(run.memory[0, 0, 0], TIMES * (CHAIN - 1) + 1)
    rate = size * size * run.cycles / benchmark.stats.stats.min
    print(
        f"\n{size} x {size}, {'values and time' if values else 'time'}: {rate:.3g} PE-cycles/s, on {jax.devices()[0]}"
    )


@pytest.mark.parametrize("turned", [True, False], ids=["755 x 1170", "1170 x 755"])
def test_all_reduce_of_a_whole_wafer(benchmark, turned):
    rows, columns, words = WSE3.rows, WSE3.columns, 4
    if turned:
        rows, columns = columns, rows
    memory = np.random.default_rng(0).normal(size=(words, rows, columns)).astype(np.float32)
    timing = Timing.of(WSE3, float(WSE3.straight_cycles))

    def once():
        program = rectangles.all_reduce("centre_two_phase", rows, columns, words)
        return simulate(program, timing, memory=memory, watch=False)

    run = benchmark.pedantic(once, rounds=1)
    assert (run.memory == run.memory[:, :1, :1]).all()  # the same sum everywhere
    assert np.allclose(run.memory[:, 0, 0], memory.sum(axis=(1, 2), dtype=np.float64), atol=0.01)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\n{rows} x {columns}: {run.cycles:,} cycles in {benchmark.stats.stats.min:.0f} s, at most {peak:.1f} GB")
