"""How an array lies on a region: values only; what it costs to make it lie otherwise is in `wsc.lowering.layout`.

A region is a mesh of PEs with axes `y` (rows) and `x` (columns). A `Layout` says into how many parts each dimension
of an array is cut along each axis. Several dimensions cut along one axis nest, the first outermost: its parts get
segments of equal length, which the next dimension divides again. A dimension cut along both axes is cut into all
y * x parts; which axis is outer follows from how the layout came to be, and the tiles are as large either way. The
PEs of a segment that no further dimension divides all hold the same part (replication). A dimension may be folded
before it is cut: its `folds` equal pieces lie over each other, and a PE holds the same part of each. The halves of
a head that a rotation mixes then meet on one PE. A dimension with margins lies as the middle of a longer one: a slice
stays where the array that it was cut out of lies.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jax.sharding import PartitionSpec


class Grid(NamedTuple):
    """The extent of a region in PEs."""

    y: int
    x: int

    @property
    def pes(self) -> int:
        return self.y * self.x


@dataclass(frozen=True)
class Layout:
    """Parts of each dimension along `y` and along `x`.

    >>> q = Layout(y=(1, 1), x=(8, 16))            # 8 heads x 128 features over x
    >>> q.local((8, 128)), q.spec                # prints as JAX does
    ((1, 8), P('x', 'x'))
    >>> Layout((1,), (16,)).folded(0, 2).local((120,))     # halves of 60 in 16 parts of 4, two of them a PE
    (8,)
    >>> inner = Layout((1,), (16,)).with_margins(((4, 4),))     # elements 4 to 59 of 64 in 16 parts of 4
    >>> inner.local((56,)), inner.frame(0, 56)
    ((4,), 64)
    """

    y: tuple[int, ...]
    x: tuple[int, ...]
    folds: tuple[int, ...] = ()  # pieces of each dimension; none means that nothing is folded
    # Elements that a dimension is cut as if it had (before, after) its own; below 0, so many of its own lie with the
    # first and the last part beside theirs. None means no margins.
    margins: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        """Equal layouts are equal values: what is not cut is not folded and has no margins."""
        if self.margins:
            kept = tuple(m if y * x > 1 else (0, 0) for m, y, x in zip(self.margins, self.y, self.x, strict=True))
            object.__setattr__(self, "margins", kept if any(m != (0, 0) for m in kept) else ())
        if self.folds:
            folds = tuple(f if y * x > 1 else 1 for f, y, x in zip(self.folds, self.y, self.x, strict=True))
            object.__setattr__(self, "folds", folds if any(f > 1 for f in folds) else ())

    def fold(self, dim: int) -> int:
        """Pieces of a dimension that lie over each other."""
        return self.folds[dim] if self.folds else 1

    def margin(self, dim: int) -> tuple[int, int]:
        """Elements before and after a dimension that it is cut as if it had."""
        return self.margins[dim] if self.margins else (0, 0)

    def frame(self, dim: int, n: int) -> int:
        """Elements that are cut into equal parts where a dimension of n lies."""
        return n + sum(self.margin(dim))

    def with_margins(self, margins) -> "Layout":
        return Layout(self.y, self.x, self.folds, tuple(margins))

    def folded(self, dim: int, pieces: int) -> "Layout":
        """The same with dimension `dim` folded."""
        if pieces == self.fold(dim):
            return self
        folds = self.folds or (1,) * len(self.y)
        return Layout(self.y, self.x, (*folds[:dim], pieces, *folds[dim + 1 :]), self.margins)

    def unfolded(self, dims=None) -> "Layout":
        """The same with the dimensions `dims` (all of them by default) not folded."""
        if not self.folds:
            return self
        dims = None if dims is None else set(dims)
        folds = tuple(1 if dims is None or d in dims else f for d, f in enumerate(self.folds))
        return Layout(self.y, self.x, folds, self.margins)

    def local(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tile of the fullest PE, elements a dimension."""
        if self.margins:
            return tuple(self._tile(d, n) for d, n in enumerate(shape))
        if not self.folds:
            return tuple([-(-n // (y * x)) for n, y, x in zip(shape, self.y, self.x, strict=True)])
        return tuple(f * -(-n // (f * y * x)) for n, y, x, f in zip(shape, self.y, self.x, self.folds, strict=True))

    def _tile(self, d: int, n: int) -> int:
        """Elements of one dimension on the fullest PE."""
        parts, f = self.y[d] * self.x[d], self.fold(d)
        return min(n, f * -(-self.frame(d, n) // (f * parts)) + max(0, *(-m for m in self.margin(d))))

    def size(self, shape: tuple[int, ...]) -> int:
        """Elements of that tile."""
        return math.prod(self.local(shape))

    @cached_property
    def parts(self) -> Grid:
        """Distinct parts along each axis; fewer than PEs means replication."""
        return Grid(math.prod(self.y), math.prod(self.x))

    def fits(self, grid: Grid) -> bool:
        return self.parts.y <= grid.y and self.parts.x <= grid.x

    def copies(self, grid: Grid) -> int:
        """How many PEs hold each element."""
        return strides(self.y, grid.y)[-1] * strides(self.x, grid.x)[-1] if self.y else grid.pes

    @property
    def spec(self) -> PartitionSpec:
        """The same as JAX writes it, without the number of parts."""
        names = []
        for y, x in zip(self.y, self.x, strict=True):
            axes = tuple(a for a, parts in (("y", y), ("x", x)) if parts > 1)
            names.append(None if not axes else axes[0] if len(axes) == 1 else axes)
        return PartitionSpec(*names)

    def along(self, axis: str) -> tuple[int, ...]:
        return self.y if axis == "y" else self.x

    def with_axis(self, axis: str, parts) -> "Layout":
        parts = tuple(parts)
        y, x = (parts, self.x) if axis == "y" else (self.y, parts)
        return Layout(y, x, self.folds, self.margins)

    def take(self, dims) -> "Layout":
        """The layout of the dimensions `dims`, in that order; None stands for a dimension that is not cut."""
        dims = list(dims)
        folds = tuple(1 if d is None else self.folds[d] for d in dims) if self.folds else ()
        return Layout(
            tuple(1 if d is None else self.y[d] for d in dims),
            tuple(1 if d is None else self.x[d] for d in dims),
            folds,
            tuple((0, 0) if d is None else self.margins[d] for d in dims) if self.margins else (),
        )

    def uncut(self, dims) -> "Layout":
        """The same with the dimensions `dims` whole on every PE."""
        dims = set(dims)
        if not dims:
            return self
        return self.take(None if d in dims else d for d in range(len(self.y)))

    def __str__(self) -> str:
        cells = []
        for d, (y, x) in enumerate(zip(self.y, self.x, strict=True)):
            cell = "".join(f"{a}{parts}" for a, parts in (("y", y), ("x", x)) if parts > 1) or "-"
            cell = f"{self.fold(d)}~{cell}" if self.fold(d) > 1 else cell
            before, after = self.margin(d)
            cells.append(f"{before}+{cell}+{after}" if before or after else cell)
        return "[" + " ".join(cells) + "]"


def whole(rank: int) -> Layout:
    """Every PE has everything."""
    return Layout((1,) * rank, (1,) * rank)


def strides(parts: tuple[int, ...], pes: int) -> list[int]:
    """PEs from one part to the next, a dimension; the last is the length of the segment that holds one part.

    >>> strides((8, 16), 150)
    [18, 1]
    """
    found = []
    for p in parts:
        pes //= p
        found.append(pes)
    return found
