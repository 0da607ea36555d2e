"""A run as a trace for Perfetto (ui.perfetto.dev): a track for each thread of a PE, a slice for each instruction.

One cycle is one nanosecond of the trace. A slice begins where the one before it in its thread has ended, so it has in it
the cycles that its instruction is prepared and waits, and ends with its last element.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wsc.errors import ArgumentError
from wsc.runtime.fabric.pictures import conditions
from wsc.runtime.fabric.program import FLAGS, Fabric

if TYPE_CHECKING:
    from wsc.runtime.fabric.simulate import Run

MOST = 256  # PEs of a trace whose PEs nobody named
ROOT = 1  # the track that has all others in it


class Slice(NamedTuple):
    """An instruction of a PE: its number in its thread, what it does, from and until which cycle, on how many elements
    how often."""

    number: int
    name: str
    begin: int
    end: int
    length: int
    repeat: int


def sample(rows: int, columns: int, most: int = MOST) -> list[tuple[int, int]]:
    """PEs spread evenly over a grid, with its corners and its centre.

    >>> sample(9, 5, most=7)
    [(0, 0), (0, 4), (4, 0), (4, 2), (4, 4), (8, 0), (8, 4)]
    """
    high = min(rows, max(2, round(((most - 1) * rows / columns) ** 0.5)))
    wide = min(columns, max(2, (most - 1) // high))
    high = min(rows, max(2, (most - 1) // wide))
    lines = [np.linspace(0, n - 1, few).round().astype(int).tolist() for n, few in ((rows, high), (columns, wide))]
    return sorted({(y, x) for y in lines[0] for x in lines[1]} | {(rows // 2, columns // 2)})


def slices(run: "Run", thread: int, y: int, x: int) -> Iterator[Slice]:
    """What a thread of a PE did, in order."""
    assert run.ended is not None
    code, begin = run.fabric.code, 0
    for i in range(int(run.fabric.instructions[thread, y, x])):
        end = int(run.ended[thread, i, y, x])
        length, repeat = (int(code[name][thread, i, y, x]) for name in ("length", "repeat"))
        yield Slice(i, named(run.fabric, thread, i, y, x), begin, end, length, repeat)
        begin = end


def named(fabric: Fabric, thread: int, i: int, y: int, x: int) -> str:
    """What an instruction does, in words.

    >>> from wsc.runtime.fabric.lines import reduce
    >>> line = reduce("chain", 3, wavelets=8)
    >>> [named(line, 0, 0, 0, x) for x in range(3)]
    ['reduce color 0', 'reduce color 1, send color 0', 'send color 1']
    """
    reads, sends, mask = (int(fabric.code[name][thread, i, y, x]) for name in ("reads", "sends", "flags"))
    flags = {name for bit, name in enumerate(FLAGS) if mask >> bit & 1}
    taken = " and ".join(f"color {k}" for k in range(fabric.colors) if reads >> k & 1)
    given = ", ".join(f"send color {k}" for k in range(fabric.colors) if sends >> k & 1)
    if not taken and not given:
        return "wait for other threads" if "joins" in flags else "copy" if {"load", "store"} <= flags else "work"
    verb = ("maximum of" if "largest" in flags else "reduce") if "load" in flags or " and " in taken else "receive"
    return ", ".join(part for part in (f"{verb} {taken}" if taken else "", given) if part)


def encoded(run: "Run", pes: Iterable[tuple[int, int]] | None = None) -> bytes:
    """The trace as Perfetto's protobuf, of the PEs (row, column) named, or of a sample. Needs the package perfetto."""
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto  # type: ignore[import-not-found]
        from perfetto.trace_builder.proto_builder import TraceProtoBuilder  # type: ignore[import-not-found]
    except ImportError as error:
        raise ArgumentError("a trace needs the package perfetto: pip install 'wsc[trace]'") from error
    rows, columns = run.fabric.rows, run.fabric.columns
    chosen = sample(rows, columns) if pes is None else _checked(pes, rows, columns)
    builder: Any = TraceProtoBuilder()
    root = builder.add_packet().track_descriptor
    root.uuid, root.name = ROOT, f"Fabric: {conditions(run)}; 1 ns of trace is 1 cycle"
    root.description = " ".join((__doc__ or "").split("\n\n")[1].split())
    root.child_ordering = proto.TrackDescriptor.EXPLICIT
    events: list[tuple[int, int, Slice | None]] = []
    tracks = ((y, x, thread) for y, x in chosen for thread in np.flatnonzero(run.fabric.instructions[:, y, x]))
    for number, (y, x, thread) in enumerate(tracks, start=ROOT + 1):
        track = builder.add_packet().track_descriptor
        track.uuid, track.parent_uuid, track.sibling_order_rank = number, ROOT, number
        track.name = f"PE ({y}, {x})" + (f", thread {thread}" if thread else "")
        for s in slices(run, thread, y, x):
            events += [(s.begin, number, s), (s.end, number, None)]
    for time, number, begun in sorted(events, key=lambda event: event[0]):  # of equal times as they are
        packet = builder.add_packet()
        packet.timestamp, packet.trusted_packet_sequence_id = time, 1
        event = packet.track_event
        event.track_uuid = number
        event.type = proto.TrackEvent.TYPE_SLICE_END if begun is None else proto.TrackEvent.TYPE_SLICE_BEGIN
        if begun is not None:
            event.name = begun.name
            for name in ("length", "repeat", "number"):
                note = event.debug_annotations.add()
                note.name, note.uint_value = name, getattr(begun, name)
    return builder.serialize()


def _checked(pes: Iterable[tuple[int, int]], rows: int, columns: int) -> list[tuple[int, int]]:
    found = list(dict.fromkeys((int(y), int(x)) for y, x in pes))
    for y, x in found:
        if not (0 <= y < rows and 0 <= x < columns):
            raise ArgumentError(f"there is no PE ({y}, {x}): the grid has {rows} rows and {columns} columns")
    if not found:
        raise ArgumentError("no PE was named for the trace: leave pes out for a sample")
    return found
