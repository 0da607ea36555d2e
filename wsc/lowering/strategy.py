"""How a program is mapped where there is a choice. A strategy is a value; the passes read it and stay the same."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsc.errors import ArgumentError
from wsc.machine.wafer import WSE3, Wafer


@dataclass(frozen=True)
class Strategy:
    """One way of mapping.

    wafer: the hardware it is for, unless told otherwise
    all_reduce: (algorithm, shape) of every all-reduce among so many PEs; None takes the cheapest for each
    compiled: as a compiler does it: equations are rewritten, PEs that hold copies share slow operations, instructions
        stand in straight-line code, accumulators lie apart from what they meet; else as kernels written by hand
    blocked: arrays come in blocks, their leading dimension one block a PE of the region (see `wsc.lowering.waferllm`)
    gemm_along: products of two operands that are cut along both axes run as rounds of neighbour exchange, their vector
        instructions along this dimension ("m" or "n"); None: one operand stays, the other comes to it
    streams: activations stay, cut over both axes, features along `y` and all else along `x`; weights are not stored but
        come in and pass over them (see `wsc.lowering.rules.streamed`)
    """

    name: str
    wafer: Wafer = WSE3
    all_reduce: Callable[[int], tuple[str, tuple[int, ...]]] | None = None
    compiled: bool = True
    blocked: bool = False
    gemm_along: str | None = None
    streams: bool = False


WSC = Strategy("wsc")
STREAMING = Strategy("streaming", streams=True)


def pair(grid: Any) -> tuple[int, int]:
    """(rows, columns) of a grid. Raises ArgumentError for anything else."""
    if not isinstance(grid, tuple | list) or len(grid) != 2 or not all(isinstance(n, int) and n >= 1 for n in grid):
        raise ArgumentError(f"grid is {grid!r}: it must be (rows, columns) of PEs, such as (540, 540)")
    return grid[0], grid[1]
