"""Halos: what comes to an array's PEs from their neighbours, each part of it once.

A column that goes d PEs along an axis passes those in between, which may keep it. Slices of one array that lie at
distances 1 to d are therefore one message of the farthest: the next one costs only what is sent beyond the last.
Every PE sends and receives at the same time, so wavelets are taken in in the background, as in measured stencils.
"""

from dataclasses import replace
from typing import Any

from wsc.layout import Layout
from wsc.lowering.layout import relayout
from wsc.lowering.rules.registry import Where
from wsc.lowering.tiled import tile_bytes
from wsc.machine.steps import Rounds, Shift, Step


class Halos:
    """What has come so far, while the ops of a stage are tiled in order."""

    def __init__(self, where: Where):
        self.where = where
        self.base: dict[Any, Any] = {}  # a slice -> the array that it was cut out of
        self.come: dict[tuple, tuple[Shift, int]] = {}  # what reaches farthest of an array's halo, and since which op
        self.held: list[tuple[int, int, int]] = []  # buffers of what came on the way: (bytes, from op, to op)

    def copy(self) -> "Halos":
        """The same state, to return to."""
        found = Halos(self.where)
        found.base, found.come, found.held = dict(self.base), dict(self.come), list(self.held)
        return found

    def see_through(self, eqn, at: dict[Any, Layout]) -> None:
        """The results of a slice are parts of the array that it was cut out of."""
        for v in eqn.outvars:
            self.base[v] = self.base.get(eqn.invars[0], eqn.invars[0])

    def bring(self, v: Any, itemsize: int, now: Layout, there: Layout, op: int) -> list[tuple[str, Step]]:
        """The steps that bring a value from one layout to another for the op numbered `op`, each with its axis; the
        axis is "" where the value is laid anew."""
        shape, where = tuple(v.aval.shape), self.where
        if (now.y, now.x, now.folds) != (there.y, there.x, there.folds):
            return [("", s) for s in relayout(shape, itemsize, now, there, where.grid, where.wafer)]
        base = self.base.get(v, v)
        large = 2 * v.aval.size > base.aval.size
        if large:  # whole columns: so that any part of them is there for the next slice
            shape = tuple(m if cuts == 1 else n for n, m, cuts in zip(shape, base.aval.shape, _cuts(now), strict=True))
        steps: list[tuple[str, Step]] = []
        for axis in "yx":
            along = [p > 1 for p in now.along(axis)]
            goes = [there.margin(d) if a else now.margin(d) for d, a in enumerate(along)]
            then = now.with_margins(goes)
            found = relayout(shape, itemsize, now, then, where.grid, where.wafer)
            if len(found) == 1 and isinstance(shift := found[0], Shift):
                signs = tuple((a > b) - (a < b) for (a, _), (b, _) in zip(goes, map(now.margin, range(len(shape)))))
                # Where the slice is cut out across the axis: what came along the one axis is passed on along the other.
                across = tuple(now.margin(d) for d, a in enumerate(along) if not a)
                # An edge alone, as a roll takes it, is not among what the neighbours of a larger slice need.
                far = 2 * shift.distance > getattr(where.grid, axis)  # round the ends of a line, not a neighbour's
                found = self._more(base, (axis, signs, across, far, large), shift, v, there, op)
            steps += [(axis, s) for s in found]
            now = then
        return steps

    def _more(self, base: Any, which: tuple, shift: Shift, v: Any, there: Layout, op: int) -> tuple[Step, ...]:
        """What a shift takes beyond those of the same array that have come before."""
        before, since = self.come.get((base, which), (None, op))
        if before is not None and shift.wavelets <= before.wavelets:
            self.held.append((tile_bytes(there, tuple(v.aval.shape), v.aval.dtype, self.where.wafer), since, op))
            return ()
        self.come[base, which] = shift, op
        if before is not None:
            shift = replace(
                shift,
                distance=max(0, shift.distance - before.distance),
                wavelets=shift.wavelets - before.wavelets,
                total_wavelet_hops=max(0, shift.total_wavelet_hops - before.total_wavelet_hops),
                largest=min(shift.largest, shift.wavelets - before.wavelets),
            )
        return (Rounds(1, (), (shift,), transfers=0, tasks=1),)


def together(halo: list[tuple[str, Step]]) -> list[Step]:
    """Pieces of one array that go to different PEs, as when it is rolled, come along an axis at the same time: those
    that go round the ends travel against the others, over links of their own."""
    found: dict[str, Step] = {}
    rest: list[Step] = []
    for axis, step in halo:
        before = found.get(axis)
        if not isinstance(step, Rounds) or not axis:
            rest.append(step)
        elif isinstance(before, Rounds):
            (a,), (b,) = before.fabric, step.fabric
            assert isinstance(a, Shift) and isinstance(b, Shift)
            both = replace(
                a,
                distance=max(a.distance, b.distance),
                wavelets=max(a.wavelets, b.wavelets),
                total_wavelet_hops=a.total_wavelet_hops + b.total_wavelet_hops,
                largest=max(a.largest, b.largest),
            )
            found[axis] = replace(before, fabric=(both,))
        else:
            found[axis] = step
    return [*found.values(), *rest]


def _cuts(at: Layout) -> list[int]:
    return [y * x for y, x in zip(at.y, at.x, strict=True)]
