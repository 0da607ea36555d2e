"""Memory: an address for every byte a PE of a stage holds. Code first, then weights, state, and buffers by lifetime."""

from wsc.lowering.tile import Stored, TiledStage
from wsc.machine.wafer import Wafer
from wsc.program import Allocation


def stored_bytes(tiled: TiledStage) -> int:
    """Bytes a PE that stay for good: code, weights, state."""
    return tiled.wafer.code_bytes + tiled.kept_bytes


def state_bytes(tiled: TiledStage) -> int:
    """Bytes a PE of state, such as a cache."""
    return sum(s.tile_bytes(tiled.wafer.align_bytes) for s in tiled.states)


def allocate_buffers(buffers: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """(offset, bytes) of each buffer, given as (bytes, first use, last use): lowest place free over its lifetime.

    >>> allocate_buffers([(8, 0, 1), (16, 1, 2), (8, 2, 3)])    # the third takes the place of the first
    [(0, 8), (8, 16), (0, 8)]
    """
    placed: list[tuple[int, int]] = [(0, 0)] * len(buffers)
    live: list[int] = []
    for i in sorted(range(len(buffers)), key=lambda i: buffers[i][1]):
        nbytes, first, _ = buffers[i]
        live = [j for j in live if buffers[j][2] >= first]
        offset = 0
        for begin, length in sorted(placed[j] for j in live):
            if begin - offset >= nbytes:
                break
            offset = max(offset, begin + length)
        placed[i] = (offset, nbytes)
        live.append(i)
    return placed


def buffer_bytes(tiled: TiledStage) -> int:
    """Bytes a PE for values that come and go."""
    if tiled.peak_bytes is None:
        tiled.peak_bytes = max((o + n for o, n in allocate_buffers(tiled.buffers)), default=0)
    return tiled.twin_bytes + tiled.peak_bytes


def memory_map(
    tiled: TiledStage, weights: list[str], states: list[str], shared_buffers: int, twins: int
) -> tuple[Allocation, ...]:
    """The address ranges of one PE. `shared_buffers` is the buffer space of all programs that share the region, `twins`
    of it second accumulators: these come first of all, so that what lies last is in another bank."""
    align = tiled.wafer.align_bytes
    at = tiled.wafer.code_bytes
    found = [Allocation("code", "program and runtime", 0, at)]
    if twins:
        found.append(Allocation("buffer", "second accumulators", at, twins))
        at += twins
        shared_buffers -= twins

    def add(kind: str, name: str, stored: Stored) -> None:
        nonlocal at
        nbytes = stored.tile_bytes(align)
        found.append(Allocation(kind, name, at, nbytes))
        at += nbytes

    for stored in tiled.weights:
        add("weight", weights[stored.position], stored)
    for stored in tiled.states:
        add("state", states[stored.position], stored)
    if shared_buffers:
        if twins and same_bank(found[1].offset, at, tiled.wafer):
            bank = tiled.wafer.sram_bytes // tiled.wafer.sram_banks
            after = -(-(at + 1) // bank) * bank
            at = after if after + shared_buffers <= tiled.wafer.sram_bytes else at
        found.append(Allocation("buffer", "activations and control, by lifetime", at, shared_buffers))
    return tuple(found)


def same_bank(a: int, b: int, wafer: Wafer) -> bool:
    """Reads of two addresses meet: their banks are the same, or four apart (vendor text)."""
    bank = wafer.sram_bytes // wafer.sram_banks
    return (a // bank - b // bank) % 4 == 0


def over_by(used: int, wafer: Wafer) -> int:
    """Bytes by which a PE is over its SRAM, 0 if it fits."""
    return max(0, used - wafer.sram_bytes)
