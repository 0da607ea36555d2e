"""PE-cycles per second of the fabric simulator on a grid all of whose routers and PEs are busy: chains of eight PEs
side by side, each PE streaming `out = in + memory`, with values and without, on whatever device JAX has.

Peers on such a machine: BookSim2 1.7e6 router-cycles/s at 8 x 8 and 1.8e5 at 32 x 32; tt-npe, flow level, 4e7; the
vendor's own simulator 1.8e5 to 5.5e5 PE-cycles/s.
"""

import jax
import numpy as np
import pytest

from wsc.runtime.fabric import lines
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
