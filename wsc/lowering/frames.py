"""Frames: how the arrays of a program without weights and products lie, such as a stencil's.

Two dimensions are cut, one along each axis; the others stay whole on a PE. The largest array of each rank is a frame:
arrays of nearly its size lie in its middle, so that elements which meet in the program are neighbours on the wafer. A
slice stays where it was cut out; what is computed from it lies in the middle of its frame again, and what has to come
there from neighbours is a halo.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from wsc.layout import Grid, Layout, whole
from wsc.lowering.layout import cut


@dataclass(frozen=True)
class Frames:
    """The largest shape and how it lies, one a rank.

    >>> frames = Frames.of([(100, 64, 30), (92, 56, 30)], Grid(y=64, x=100))
    >>> print(frames.layout((100, 64, 30)), frames.layout((92, 56, 30)))
    [x100 y64 -] [4+x100+4 4+y64+4 -]
    """

    shapes: tuple[tuple[int, ...], ...]
    layouts: tuple[Layout, ...]
    grid: Grid

    @staticmethod
    def of(shapes: Iterable[tuple[int, ...]], grid: Grid) -> "Frames":
        largest: dict[int, tuple[int, ...]] = {}
        for shape in shapes:
            known = largest.get(len(shape), (0,) * len(shape))
            largest[len(shape)] = tuple(map(max, known, shape))
        return Frames(tuple(largest.values()), tuple(_spread(s, grid) for s in largest.values()), grid)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """In the frame of its rank: dimensions of more than half its size in the middle of it, others whole. A larger
        array for which the frame is too small by half, such as a table that the program makes, is cut on its own."""
        for frame, at in zip(self.shapes, self.layouts, strict=True):
            if len(frame) == len(shape):
                if any(2 * n > 3 * m for n, m in zip(shape, frame, strict=True)):
                    return _spread(shape, self.grid)
                at = at.uncut(d for d, (n, m) in enumerate(zip(shape, frame, strict=True)) if 2 * n <= m)
                free = [m - n for n, m in zip(shape, frame, strict=True)]
                return at.with_margins((f // 2, f - f // 2) for f in free)
        return whole(len(shape))


def _spread(shape: tuple[int, ...], grid: Grid) -> Layout:
    """Two dimensions cut, one along each axis, so that tiles are smallest; the first ones among equals."""
    if len(shape) < 2:
        return Layout(tuple(cut(n, grid.y) for n in shape), (1,) * len(shape))
    found = []
    for pair in itertools.combinations(range(len(shape)), 2):
        for d, e in (pair, pair[::-1]):  # along y, along x
            y = tuple(cut(n, grid.y) if i == d else 1 for i, n in enumerate(shape))
            x = tuple(cut(n, grid.x) if i == e else 1 for i, n in enumerate(shape))
            found.append(Layout(y, x))
    return min(found, key=lambda at: at.size(shape))


def cut_out(at: Layout, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]) -> Layout:
    """Where `size` elements from `start` of an array lie while nothing moves.

    >>> print(cut_out(Layout((64, 1), (1, 1)), (64, 8), (3, 0), (60, 8)))
    [3+y64+1 -]
    """
    margins = []
    for d, (n, s, k) in enumerate(zip(shape, start, size, strict=True)):
        before, after = at.margin(d)
        margins.append((int(before + s), int(after + n - s - k)))
    return at.with_margins(margins)


def around(at: Layout, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]) -> Layout:
    """Where an array of `size` lies best that holds one of `shape`, laid as `at`, from element `start` on: in the
    middle of the same frame; anew where that is too small by half."""
    frames = [at.frame(d, n) for d, n in enumerate(shape)]
    free = [m - k if 2 * k <= 3 * m else 0 for m, k in zip(frames, size, strict=True)]
    return at.with_margins((f // 2, f - f // 2) for f in free)


def home(at: Layout, shape: tuple[int, ...]) -> Layout:
    """Where values of this shape are worked on: in the middle of the frame that they lie in.

    >>> print(home(Layout((1,), (8,)).with_margins(((3, 1),)), (60,)))      # elements 3 to 62 of 64
    [2+x8+2]
    """
    if not at.margins:
        return at
    free = [sum(m) for m in at.margins]
    return at.with_margins((f // 2, f - f // 2) for f in free)


def without_margins(at: Layout, shape: tuple[int, ...]) -> Layout:
    """The same array cut into parts of its own, none of them empty."""
    if not at.margins:
        return at
    y, x = list(at.y), list(at.x)
    for d, n in enumerate(shape):
        if at.margin(d) != (0, 0):
            y[d] = cut(n, y[d])
            x[d] = cut(-(-n // y[d]), x[d])
    return Layout(tuple(y), tuple(x), at.folds)
