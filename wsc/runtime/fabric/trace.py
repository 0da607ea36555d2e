"""A run as a trace for Perfetto (ui.perfetto.dev): a track for each thread of a PE, a slice for each instruction.

One cycle is one nanosecond of the trace. A slice begins where the one before it in its thread has ended, so it has in
it the cycles that its instruction is prepared and waits, and ends with its last element.
"""

from collections.abc import Iterable, Iterator, Mapping
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wsc.errors import ArgumentError
from wsc.runtime.fabric.files import write
from wsc.runtime.fabric.pictures import conditions
from wsc.runtime.fabric.program import FLAGS

if TYPE_CHECKING:
    from wsc.runtime.fabric.simulate import Run

MOST = 256  # PEs of a trace, where nobody named them
ROOT = 1  # the track that has all others in it


class Slice(NamedTuple):
    """An instruction of a PE: its number in its thread, from and until which cycle, as numbers."""

    instruction: int
    begin: int
    end: int
    code: dict[str, int]


def save_trace(run: "Run", path: str | Path, pes: Iterable[tuple[int, int]] | None = None) -> None:
    """Write the trace of the PEs (row, column) named, or of a sample."""
    write(path, encoded(run, pes))


def encoded(run: "Run", pes: Iterable[tuple[int, int]] | None = None) -> bytes:
    """The trace as Perfetto's protobuf. Raises ArgumentError without the package perfetto."""
    run.counted()
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto  # type: ignore[import-not-found]
        from perfetto.trace_builder.proto_builder import TraceProtoBuilder  # type: ignore[import-not-found]
    except ImportError as error:
        raise ArgumentError("a trace needs the package perfetto: pip install 'wsc[trace]'") from error
    rows, columns = run.fabric.rows, run.fabric.columns
    chosen = sample(rows, columns) if pes is None else _checked(pes, rows, columns)
    builder: Any = TraceProtoBuilder()
    root = builder.add_packet().track_descriptor
    root.uuid, root.name = ROOT, f"{conditions(run)}; 1 ns is 1 cycle"
    root.description = " ".join((__doc__ or "").split("\n\n")[-1].split())
    root.child_ordering = root.EXPLICIT
    events: list[tuple[int, int, Slice | None]] = []
    threads = ((y, x, int(i)) for y, x in chosen for i in np.flatnonzero(run.fabric.instructions[:, y, x]))
    for number, (y, x, thread) in enumerate(threads, start=ROOT + 1):
        track = builder.add_packet().track_descriptor
        track.uuid, track.parent_uuid, track.sibling_order_rank = number, ROOT, number
        track.name = f"PE ({y}, {x})" + (f", thread {thread}" if thread else "")
        for s in slices(run, thread, y, x):
            events += [(s.begin, number, s), (s.end, number, None)]
    for time, number, begun in sorted(events, key=lambda event: event[0]):  # those of the same time stay as they are
        packet = builder.add_packet()
        packet.timestamp, packet.trusted_packet_sequence_id = time, 1
        event = packet.track_event
        event.track_uuid = number
        event.type = proto.TrackEvent.TYPE_SLICE_END if begun is None else proto.TrackEvent.TYPE_SLICE_BEGIN
        if begun is not None:
            event.name = named(begun.code)
            shown = {name: begun.code[name] for name in ("length", "repeat", "address")}
            for name, value in {"instruction": begun.instruction, **shown}.items():
                note = event.debug_annotations.add()
                note.name, note.uint_value = name, value
    return builder.serialize()


def slices(run: "Run", thread: int, y: int, x: int) -> Iterator[Slice]:
    """What a thread of a PE did, in order."""
    assert run.ended is not None
    begin = 0
    for i in range(int(run.fabric.instructions[thread, y, x])):
        end = int(run.ended[thread, i, y, x])
        yield Slice(i, begin, end, {name: int(table[thread, i, y, x]) for name, table in run.fabric.code.items()})
        begin = end


def named(code: Mapping[str, int]) -> str:
    """What an instruction, as numbers, does, in words.

    >>> from wsc.runtime.fabric.program import Instruction, encoded
    >>> named(encoded(Instruction(8, reads=(2,), sends=3, load=True)))
    'reduce color 2, send color 3'
    """
    flags = {name for bit, name in enumerate(FLAGS) if code["flags"] >> bit & 1}
    reads, sends = ([str(k) for k in range(32) if code[name] >> k & 1] for name in ("reads", "sends"))
    if not reads and not sends:
        return "wait for threads" if "joins" in flags else "copy" if {"load", "store"} <= flags else "work"
    verb = "receive" if "store" in flags else "pass on" if sends else "drop"
    if "load" in flags or len(reads) > 1:
        verb = "maximum" if "largest" in flags else "reduce"
    parts = ((verb, reads), ("send", sends))
    return ", ".join(f"{does} color {' and '.join(colors)}" for does, colors in parts if colors)


def sample(rows: int, columns: int, most: int = MOST) -> list[tuple[int, int]]:
    """At most so many PEs spread evenly over a grid, in rows and columns, with its corners and its centre.

    >>> sample(9, 5, most=7)
    [(0, 0), (0, 4), (4, 0), (4, 2), (4, 4), (8, 0), (8, 4)]
    """
    high = min(rows, max(2, round(((most - 1) * rows / columns) ** 0.5)))
    wide = min(columns, max(2, (most - 1) // high))
    high = min(rows, max(2, (most - 1) // wide))
    down, along = (np.linspace(0, n - 1, few).round().astype(int) for n, few in ((rows, high), (columns, wide)))
    spread = {(int(y), int(x)) for y in down for x in along}
    return sorted(spread | {(rows // 2, columns // 2)})


def _checked(pes: Iterable[tuple[int, int]], rows: int, columns: int) -> list[tuple[int, int]]:
    """The PEs named, each once."""
    found = []
    for pe in pes:
        try:
            y, x = map(index, pe)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{pe!r} is no PE: name each as (row, column)") from error
        if not (0 <= y < rows and 0 <= x < columns):
            raise ArgumentError(f"there is no PE ({y}, {x}): the grid has {rows} rows and {columns} columns")
        found.append((y, x))
    if not found:
        raise ArgumentError("no PE was named for the trace: leave pes out for a sample")
    return list(dict.fromkeys(found))
