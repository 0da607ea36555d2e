"""What the routing of a mixture of experts takes: how rows that go to experts meet PEs and links, and the steps of it.

Rows come sorted by expert, and how many each gets is known only when the program runs. What a run counts of it adds up
over runs (of a loop), so that steps are those of the mean run: cycles are linear in rows, but for rounded lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wsc.lowering.layout import strides, wavelets
from wsc.machine.cost import cost
from wsc.machine.kernels import tile_product
from wsc.machine.steps import AllReduce, Multicast, Shift, Step
from wsc.machine.wafer import Wafer


@dataclass(frozen=True)
class Experts:
    """Where experts stand on a line of `pes` PEs: in `segments` segments of equal length, each of which holds `held`
    experts whose features are cut into `pieces` parts; result features are cut into as many over the whole line."""

    pes: int
    experts: int
    segments: int
    pieces: int

    @property
    def held(self) -> int:
        return -(-self.experts // self.segments)

    def ways(self, segment: int) -> tuple[np.ndarray, np.ndarray]:
        """PEs that make the pieces of a result in a segment, and those they go to first."""
        length = self.pes // self.segments
        source = segment * length + np.arange(self.pieces) * (length // self.pieces)
        return source, np.arange(self.pieces) * (self.pes // self.pieces)

    @cached_property
    def distances(self) -> np.ndarray:
        """int [segments, pieces]: hops that each piece goes."""
        return np.stack([np.abs(np.subtract(*self.ways(s))) for s in range(self.segments)])

    @cached_property
    def loads(self) -> np.ndarray:
        """int [segments, links]: pieces of one row that pass each link, both ways; links that are loaded alike once."""
        link = np.arange(max(1, self.pes - 1))[:, None]
        found = []
        for source, target in map(self.ways, range(self.segments)):
            ends = ((source, target), (target, source))
            found.append(np.concatenate([((a <= link) & (link < b)).sum(axis=1) for a, b in ends]))
        return np.unique(np.stack(found), axis=1)


class Routing(NamedTuple):
    """What real counts need: rows in all, rows on the busiest segment of PEs, hops to the farthest segment that has
    any, pieces over the fullest link of the line, and hops of all pieces of all rows."""

    rows: Any
    busiest: Any
    farthest: Any
    fullest: Any
    piece_hops: Any


def routing(group_sizes: Any, at: Experts) -> Routing:
    """What `group_sizes` needs, int [experts], the rows of each: arrays of numpy or JAX, or tracers. Wavelets over the
    fullest link, and wavelets times hops, are as many pieces times the wavelets of a piece.

    >>> two = Experts(pes=8, experts=4, segments=2, pieces=2)  # experts 0, 1 on PEs 0..3, experts 2, 3 on 4..7
    >>> list(map(int, routing(np.array([3, 0, 1, 1]), two)))  # hops: 3 x (0 + 2) and 2 x (4 + 2)
    [5, 3, 4, 3, 18]
    """
    sizes = jnp.pad(jnp.asarray(group_sizes, jnp.int32), (0, at.segments * at.held - at.experts))
    rows = sizes.reshape(at.segments, at.held).sum(1)
    farthest = jnp.where(rows > 0, at.distances.max(1), 0).max()
    fullest = (rows @ jnp.asarray(at.loads, jnp.int32)).max(initial=0)
    return Routing(rows.sum(), rows.max(), farthest, fullest, (rows * at.distances.sum(1)).sum())


@dataclass(frozen=True)
class ByExpert:
    """Products of `rows` rows with the kernels of their experts: each PE multiplies [row, k] and [k, n] for the rows
    of its experts (or, `into_kernels`, sums rows of [k, row] and [row, n]); partial sums are all-reduced by `sums`,
    given for all rows; results go home over the line of experts, `lines` of them at once, where `lines` is not 0.

    `pes` in all hold kernels. Segments of fewer rows wait for the busiest one; their work is counted as theirs."""

    at: Experts
    rows: int
    k: int
    n: int
    row_flops: int
    pes: int
    itemsize: int
    out_itemsize: int
    wafer: Wafer
    straight: bool
    sums: tuple[AllReduce, ...] = ()
    lines: int = 0
    into_kernels: bool = False

    @property
    def worst(self) -> tuple[Step, ...]:
        """One expert gets all rows, be it the farthest one and the one whose results share links most."""
        return self.steps(
            Routing(
                self.rows,
                self.rows,
                int(self.at.distances.max()),
                self.rows * int(self.at.loads.max(initial=0)),
                self.rows * int(self.at.distances.sum(1).max()),
            )
        )

    def count(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """The routing that the operands of a run say: rows, kernels, rows of each expert."""
        return routing(values[2], self.at)

    def steps(self, numbers: Sequence[Any]) -> tuple[Step, ...]:
        """The steps of a run with this `Routing`."""
        rows, busiest, farthest, fullest, piece_hops = numbers
        if not rows:
            return ()

        def sharing(pes: int) -> Any:
            """PEs at work: as many, be it not a whole number, as would share all rows if each had the busiest's."""
            return pes * rows / (self.at.segments * busiest)

        def words(pieces: Any) -> Any:
            return wavelets(pieces * self.n, self.out_itemsize, self.wafer)

        steps: list[Step] = [self._product(busiest, sharing(self.pes), rows * self.row_flops, self._along)]
        steps += [replace(s, wavelets=words(busiest), instances=sharing(s.instances)) for s in self.sums]
        if not self.lines or self.at.segments == 1:
            return tuple(steps)
        if farthest:
            largest = words(min(busiest, fullest))
            steps.append(Shift(farthest, words(fullest), words(piece_hops), self.lines, largest, self.straight))
        copies = strides((self.at.pieces,), self.at.pes)[-1]
        if copies > 1:
            steps.append(Multicast(copies, copies - 1, words(rows), self.lines * self.at.pieces, self.straight))
        return tuple(steps)

    def _product(self, rows: Any, pes: Any, flops: Any, along: str) -> Step:
        m, k = (self.k, rows) if self.into_kernels else (rows, self.k)
        return tile_product(m, k, self.n, self.itemsize, self.wafer, pes, flops, along=along)

    @cached_property
    def _along(self) -> str:
        """The order of the loops that is best for all rows; a run has the same."""
        return min("nm", key=lambda way: cost(self._product(self.rows, 1, 0, way), self.wafer).cycles)
