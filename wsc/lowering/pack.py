"""Pack: rectangles on wafers, in shelves. A shelf is a full row of regions of one height; shelves run left to right,
then right to left, so that stages in a row touch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsc.machine.wafer import Wafer
from wsc.program import Region


@dataclass(frozen=True)
class Shelf:
    """A height, and the width that each kind of stage takes at it; a kind that is not there cannot lie on it."""

    height: int
    widths: Mapping[int, int]


def pack(
    kinds: Sequence[int], shelves: Sequence[Shelf], wafer: Wafer, wafers: int, start: tuple[int, int] = (0, 0)
) -> list[Region] | None:
    """Regions of stages of the given kinds, in order, on the fewest wafers and then the fewest rows that shelves of
    these heights allow, from `start` on, (wafer, rows in use on it); None when `wafers` do not hold them.

    After so many stages, a packing that ends on an earlier wafer, or with fewer rows, is as good a start for the rest
    as any: so the best end after every stage leads to the best end of all.

    >>> [str(r) for r in pack([0, 0, 0], [Shelf(400, {0: 300})], Wafer(), 1)]
    ['wafer 0 [0:400, 0:300]', 'wafer 0 [0:400, 300:600]', 'wafer 0 [400:800, 455:755]']
    """
    rows, columns = int(wafer.rows), int(wafer.columns)
    far = (wafers, 0)
    ends: list[tuple[int, int]] = [start] + [far] * len(kinds)  # (wafer, rows used on it) after so many stages
    cut: list[tuple[int, Shelf] | None] = [None] * (len(kinds) + 1)  # where the last shelf begins, and which it is
    for begin in range(len(kinds)):
        if ends[begin] >= far:
            continue
        for shelf in shelves:
            if shelf.height > rows:
                continue
            chip, used = ends[begin]
            end = (chip, used + shelf.height) if used + shelf.height <= rows else (chip + 1, shelf.height)
            width = 0
            for i in range(begin, len(kinds)):
                width += shelf.widths.get(kinds[i], columns + 1)
                if width > columns:
                    break
                if end <= ends[i + 1] and end < far:  # of equals the one that leaves the fullest shelves behind
                    ends[i + 1], cut[i + 1] = end, (begin, shelf)
    if ends[-1] >= far:
        return None
    found: list[tuple[int, int, int, Shelf]] = []
    last = len(kinds)
    while (at := cut[last]) is not None:
        found.append((at[0], last, ends[last][1], at[1]))
        last = at[0]
    return _lay(kinds, found[::-1], columns, start)


def _lay(kinds: Sequence[int], shelves: list[tuple[int, int, int, Shelf]], columns: int, start) -> list[Region]:
    """Shelves given as (first stage, end, rows used with it, shelf), every other one from right to left."""
    regions: list[Region] = []
    chip, forward = start[0], False
    for begin, end, bottom, shelf in shelves:
        widths = [shelf.widths[k] for k in kinds[begin:end]]
        top = bottom - shelf.height
        if top == 0 or not regions:
            chip, forward, x = chip + (top == 0 and bool(regions or start[1])), True, 0
        else:  # begin where the last one ended, as far as there is room
            forward, before = not forward, regions[-1]
            if forward:
                x = min(max(0, before.x - widths[0] + 1), columns - sum(widths))
            else:
                x = max(min(columns, before.x + before.width + widths[0] - 1), sum(widths))
        for width in widths:
            regions.append(Region(chip, top, x if forward else x - width, shelf.height, width))
            x += width if forward else -width
    return regions
