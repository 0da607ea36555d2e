"""Windows over a dimension that is cut: the elements a PE needs beside its own come from its neighbours."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wsc.lowering.layout import Layout, cut, strides, traffic, wavelets
from wsc.lowering.rules.registry import Where
from wsc.machine.steps import Multicast, Shift, Step


@dataclass(frozen=True)
class Window:
    """One dimension of a windowed op, as `jax.lax.reduce_window` names its numbers: result o is made of the elements
    at o * stride - low + t * dilation, t < size, of the operand with base_dilation - 1 holes after each element."""

    n: int  # elements of the operand
    out: int  # elements of the result
    size: int
    stride: int = 1
    low: int = 0
    base_dilation: int = 1
    dilation: int = 1

    @property
    def moves(self) -> bool:
        """Results are not made of the elements of the same index."""
        return (self.n, self.size, self.stride, self.low, self.base_dilation) != (self.out, 1, 1, 0, 1)

    def transposed(self) -> "Window":
        """Elements of the window and results in each other's place: for the gradient of a kernel."""
        return Window(self.n, self.size, self.out, self.dilation, self.low, self.base_dilation, self.stride)

    def pairs(self) -> int:
        """How many (result, element of its window) fall on an element of the operand, not on padding or a hole.

        >>> Window(n=4, out=4, size=3, low=1).pairs()
        10
        """
        return len(self.touched(0, self.out))

    def touched(self, first: int, last: int) -> np.ndarray:
        """The elements that the results from `first` to before `last` are made of, one for each place of a window.

        >>> Window(n=9, out=5, size=1, stride=2).touched(1, 4).tolist()
        [2, 4, 6]
        """
        at = np.arange(first, last)[:, None] * self.stride - self.low + np.arange(self.size) * self.dilation
        inside = (at >= 0) & (at <= (self.n - 1) * self.base_dilation) & (at % self.base_dilation == 0)
        return at[inside] // self.base_dilation


@lru_cache(maxsize=65536)
def _missing(window: Window, parts: int, out_parts: int, spacing: int, out_spacing: int) -> tuple[int, ...]:
    """(farthest, fullest link, total hops, largest message, most that one part misses) in elements, when part p stands
    at PE p * spacing and part p of the result at p * out_spacing."""
    tile, out_tile = -(-window.n // parts), -(-window.out // out_parts)
    source, target, most = [], [], 0
    for p in range(-(-window.out // out_tile)):
        needed = np.unique(window.touched(p * out_tile, min(window.out, (p + 1) * out_tile)))
        owner = needed // tile * spacing
        missing = owner[owner != p * out_spacing]
        source.append(missing)
        target.append(np.full(len(missing), p * out_spacing))
        most = max(most, len(missing))
    reach = max(parts * spacing, out_parts * out_spacing)
    return *traffic(np.concatenate(source), np.concatenate(target), reach), most


def exchange_halo(
    window: Window, dim: int, at: Layout, out_dim: int, out_at: Layout, beside: int, axis: str, itemsize: int,
    where: Where,
) -> tuple[list[Step], int]:  # fmt: skip
    """The steps that bring each PE of `axis` what it misses of dimension `dim`, the innermost one that is cut along
    it, and how many elements of that dimension the one that misses most gets. `beside` elements go along with each."""
    pes, parts, out_parts = getattr(where.grid, axis), at.along(axis), out_at.along(axis)
    if parts[dim] == 1:
        return [], 0
    spacing, out_spacing = strides(parts, pes)[dim], strides(out_parts, pes)[out_dim]
    distance, load, total, largest, most = _missing(window, parts[dim], out_parts[out_dim], spacing, out_spacing)
    if not distance:
        return [], most

    def words(elements: int) -> int:
        return wavelets(elements * beside, itemsize, where.wafer)

    lines, segments = where.grid.pes // pes, max(1, int(np.prod(parts[:dim])))
    steps: list[Step] = [Shift(distance, words(load), words(total) * segments, lines, words(largest))]
    if out_spacing > 1:  # PEs that hold the same part get the same
        steps.append(Multicast(out_spacing, out_spacing - 1, words(most), lines * int(np.prod(out_parts))))
    return steps, most


def windowed(at: Layout, windows: tuple[Window, ...]) -> tuple[Layout, Layout]:
    """Layouts of operand and result of an op that keeps its dimensions: one with a window stays cut where it is the
    innermost along one axis, and is put together where not."""
    moving = [d for d, w in enumerate(windows) if w.moves]
    at = at.unfolded(moving).uncut(d for d in moving if at.y[d] > 1 and at.x[d] > 1)
    for axis in "yx":
        last = max((d for d, p in enumerate(at.along(axis)) if p > 1), default=-1)
        at = at.uncut(d for d in moving if at.along(axis)[d] > 1 and d != last)
    at = at.uncut(d for d in moving if windows[d].out == 0)
    out = [
        tuple(cut(windows[d].out, p) if d in moving and p > 1 else p for d, p in enumerate(at.along(axis)))
        for axis in "yx"
    ]
    return at, Layout(out[0], out[1], at.folds)
