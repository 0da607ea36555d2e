"""Programs that come to no end: who waits for what, and what the queues hold."""

from collections.abc import Iterator

import numpy as np

from wsc.errors import CycleLimitError, DeadlockError
from wsc.runtime.fabric.bits import unpacked
from wsc.runtime.fabric.drive import Driven
from wsc.runtime.fabric.program import port_names
from wsc.runtime.fabric.sizes import bound

SHOWN = 8  # PEs and queues that a report names


def unended(driven: Driven, limit: int) -> DeadlockError | CycleLimitError:
    """The error that says so."""
    lines = list(_held(driven))
    what = (
        f"nothing moves any more in cycle {driven.moved + 1:,}"
        if driven.stuck
        else f"the program has not ended after {limit:,} cycles, its limit; a larger one may help"
    )
    text = "\n  ".join([what, *lines])
    return DeadlockError(text) if driven.stuck else CycleLimitError(text)


def _held(driven: Driven) -> Iterator[str]:
    """Who waits for what, and what the queues hold."""
    fabric, z = driven.fabric, driven.z

    def grid(name: str, thread: int | None = None) -> np.ndarray:
        return driven.grid(lambda s: unpacked(np.asarray(s[name] if thread is None else s[name][thread])))

    binding = bound(fabric)
    queued, inward = grid("queued").sum(axis=0), grid("in_queued").sum(axis=1)
    for thread in range(len(z.threads)):
        at, fields = grid("at", thread), grid("now", thread)
        waiting = np.argwhere(at.any(axis=0))
        for y, x in waiting[:SHOWN]:
            i = int(at[:, y, x].argmax())
            reads, sends = (_colors(fabric.code[name][thread, i, y, x]) for name in ("reads", "sends"))
            left = sum(int(fields[z.fields + b, y, x]) << b for b in range(z.length_bits))
            lacks = [k for k in reads if not inward[binding[k, y, x], y, x]]
            why = (
                f"waits for color {', '.join(map(str, lacks))}" if lacks else "its way out is full" if sends else "runs"
            )
            yield (
                f"PE ({y}, {x}), thread {thread}, instruction {i}: {left} elements left, reads "
                f"{reads or 'nothing'}, sends {sends or 'nothing'}: {why}"
            )
        if len(waiting) > SHOWN:
            yield f"and {len(waiting) - SHOWN:,} PEs more"
    position = grid("position_out")
    full = np.argwhere(queued > 0)
    for k, y, x in full[:SHOWN]:
        i = int(position[:, k, y, x].argmax())
        way = port_names(fabric.tx[k, i, y, x])
        yield f"router queue of color {k} at PE ({y}, {x}): {queued[k, y, x]} words, switch in position {i}, to {way}"
    if len(full) > SHOWN:
        yield f"and {len(full) - SHOWN:,} router queues more"
    full = np.argwhere((binding >= 0) & (np.take_along_axis(inward, np.maximum(binding, 0), 0) > 0))
    for k, y, x in full[:SHOWN]:
        yield f"PE's inward queue of color {k} at PE ({y}, {x}): {inward[binding[k, y, x], y, x]} words"
    if len(full) > SHOWN:
        yield f"and {len(full) - SHOWN:,} inward queues more"


def _colors(mask) -> list[int]:
    return [k for k in range(32) if int(mask) >> k & 1]
