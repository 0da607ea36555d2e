"""Place: region sizes for an objective, and rectangles on the wafer in snake order, so that stages in a row touch.

Programs that share weights (prefill and decode) share regions: the first program leads, the others must fit beside it.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wsc.lowering import misfit
from wsc.lowering.layout import Grid, default_extent
from wsc.lowering.memory import buffer_bytes, state_bytes, stored_bytes
from wsc.lowering.pack import Shelf, pack
from wsc.lowering.search import Planned
from wsc.machine.wafer import Wafer
from wsc.program import Region

MAX_WAFERS = 512
CROWDED = 0.4  # of the PEs needed at least: then packing decides on sizes
FULL = 0.7  # then shelves of other heights are looked at
MUCH = tuple(2.0**n for n in range(4, 11))  # times its weights that a stage may need, for what it works on
BEAM = 3  # of the best candidates, tiled again with more care
NEAR = tuple((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1))  # sizes next to one, of height and width
FARTHER = (*((a, 0) for a in (-4, -3, -2, 2, 3, 4)), (0, -2), (0, 2))  # looked at where none of those is better
OBJECTIVES = ("latency", "throughput", "users", "wafers")


@dataclass(frozen=True)
class Goal:
    """What a placement is for: the least "latency" of one user's token, the most "throughput" of the full machine, the
    most "users" whose tokens each come at `speed` a second, or the fewest "wafers"."""

    objective: str = "latency"
    speed: float = 0.0
    grid: tuple[int, int] | None = None  # every region of this size
    start: tuple[int, int] = (0, 0)  # (wafer, rows of it) where free PEs begin


@dataclass(frozen=True)
class Candidate:
    """Region sizes looked at: shelves with the width of each kind of stage, the regions, and how good they are."""

    rank: tuple[float, ...]
    shelves: tuple[Shelf, ...]
    regions: tuple[Region, ...]
    wafers: int  # that it may take


class Lazy(Sequence):
    """`length` items, each made by `make(i)` when it is first asked for."""

    def __init__(self, make: Callable[[int], Any], length: int):
        self._make, self._length, self._made = make, length, {}

    def __getitem__(self, i):
        if not 0 <= i < self._length:
            raise IndexError(i)
        if i not in self._made:
            self._made[i] = self._make(i)
        return self._made[i]

    def __len__(self) -> int:
        return self._length


def place(
    leader: Planned, others: Sequence[Planned], wafer: Wafer, wafers: int | None, goal: Goal = Goal()
) -> tuple[list[Region], int]:  # fmt: skip
    """One region a stage, on at most `wafers` wafers; None takes as many as needed. With it the number of the first of
    `others`, programs that share weights and regions, that fits beside the leader.

    Raises FitError when a stage or the whole does not fit, saying by how much and what would.
    """
    leader.quick = True
    try:
        return Placer(leader, others, wafer, wafers, goal).run()
    finally:
        leader.quick = False


class Placer:
    def __init__(self, first: Planned, others: Sequence[Planned], wafer: Wafer, wafers: int | None, goal: Goal):
        self.leader, self.others, self.wafer, self.limit, self.goal = first, others, wafer, wafers, goal
        self.both = self._with(0)  # the leader and the other that is tried first
        self.stages = first.stages
        templates = [s.template for s in self.stages]
        self.kinds = [templates.index(t) for t in templates]  # of a stage: the first of the same template
        self.count = {i: self.kinds.count(i) for i in dict.fromkeys(self.kinds)}
        self.short_of_colors: tuple[int, int] | None = None  # stage, colors that it would take
        self.usable = int(wafer.sram_bytes - wafer.code_bytes)
        self.least = {i: max(1, -(-first.stored(i) // self.usable)) for i in self.count}
        self.needed = sum(self.least[i] * n for i, n in self.count.items())
        self.layer = max(self.count, key=lambda i: (self.count[i] * first.stored(i), self.count[i]))

    def run(self) -> tuple[list[Region], int]:
        fewest = max(1, -(-self.needed // int(self.wafer.pes)))
        begun = self.goal.start[0]
        if self.limit is not None and begun + fewest > self.limit:
            raise misfit.too_large(self)
        for wafers in range(begun + fewest, (self.limit or MAX_WAFERS) + 1):
            found = self.best(wafers)
            if found is not None and self.limit and wafers < self.limit and self.goal.objective != "wafers":
                found = min([found, *filter(None, [self.best(self.limit)])], key=lambda f: f[0].rank)
            if found is not None:
                if self.goal.objective == "users" and found[0].rank[0]:
                    raise misfit.too_slow(self.goal, self.wafer, found[0].rank[1])
                return list(found[0].regions), found[1]
            if self.limit is None and wafers > begun + 4 * fewest + 4:
                break
        raise misfit.too_large(self)

    def best(self, wafers: int) -> tuple[Candidate, int] | None:
        """The best placement, and which of the other programs it was made for: the first that fits beside the leader
        in any region sizes looked at. The best few are tiled again with more care."""
        found = sorted(self._candidates(wafers), key=lambda c: c.rank)
        best: list[tuple[Candidate, int]] = []
        for which in range(max(1, len(self.others))):
            programs = self._with(which)
            settled: list[Candidate] = []
            for candidate in found:
                if self._hold_all(candidate, programs):
                    settled += self._settled(candidate, programs)
                if len(settled) == BEAM:
                    break
            best += [(c, which) for c in settled]
            if settled and self.goal.objective != "users":  # for users a smaller one may leave more room
                break
        return min(best, key=lambda f: f[0].rank, default=None)

    def _with(self, which: int) -> list[Planned]:
        """The leader and one of the other programs, if there are any."""
        return [self.leader, self.others[which]] if self.others else [self.leader]

    def _settled(self, candidate: Candidate, programs: list[Planned]) -> list[Candidate]:
        """The candidate with stages tiled as they are in the end, if it still fits."""
        self.leader.quick = False
        found = self._candidate(candidate.shelves, candidate.wafers, programs)
        holds = found is not None and self._hold_all(found, programs)
        self.leader.quick = True
        return [found] if found is not None and holds else []

    def _candidates(self, wafers: int) -> list[Candidate]:
        """Placements that hold the leader."""
        if self.goal.grid is not None:
            height, width = self.goal.grid
            one = self._candidate((Shelf(height, dict.fromkeys(self.count, width)),), wafers)
            return [one] if one else []
        return self._walk(wafers)

    def _hold_all(self, candidate: Candidate, programs: list[Planned]) -> bool:
        return all(self.holds(k, grid, programs) for k, grid in sorted(set(self._grids(candidate.regions))))

    def _grids(self, regions: Sequence[Region]) -> list[tuple[int, Grid]]:
        """Kind and size of every stage, in order."""
        return [(k, r.grid) for k, r in zip(self.kinds, regions, strict=True)]

    def _walk(self, wafers: int) -> list[Candidate]:
        """Every size of the repeated stage looked at and found to fit: some starts, then downhill."""
        heights, widths = default_extent(int(self.wafer.rows)), default_extent(int(self.wafer.columns))
        seen: dict[tuple[int, int], Candidate | None] = {}

        def rank(h: int, w: int) -> tuple[float, ...]:
            if (h, w) not in seen:
                seen[h, w] = self._try(heights[h], widths[w], wafers)
            candidate = seen[h, w]
            return (math.inf,) if candidate is None else candidate.rank

        for h, w in self._starts(heights, widths, wafers):
            rank(h, w)
        for h, w in sorted(seen, key=lambda p: rank(*p))[:2]:
            better = True
            while better:
                for steps in (NEAR, FARTHER):
                    found = [(h + a, w + b) for a, b in steps if 0 <= h + a < len(heights) and 0 <= w + b < len(widths)]
                    a, b = min(found, key=lambda p: rank(*p), default=(h, w))
                    better = rank(a, b) < rank(h, w)
                    if better:
                        h, w = a, b
                        break
        alone = self._candidate(self._fillers, wafers) if self.needed > FULL * self.wafer.pes * wafers else None
        return [c for c in (*seen.values(), alone) if c is not None]

    def _starts(self, heights: list[int], widths: list[int], wafers: int) -> list[tuple[int, int]]:
        """Sizes of the repeated stage to walk from: squarish ones, all of the wafer for a program without weights, and,
        where space is scarce, for every height the widest that leaves room for all."""
        most = self.wafer.pes * wafers / sum(self.count.values())
        found, area = [(len(heights) - 1, len(widths) - 1)] * (not self.leader.roles.weights), most
        while area >= max(1, self.least[self.layer]) and len(found) < 6:
            h = min(range(len(heights)), key=lambda i: abs(heights[i] - math.sqrt(area)))
            found.append((h, min(range(len(widths)), key=lambda i: abs(widths[i] - area / heights[h]))))
            area /= 2
        if self.needed > CROWDED * self.wafer.pes * wafers:
            for h, height in enumerate(heights):
                if most / 12 <= height * height <= most * 12:
                    narrow = self._narrowest(height)
                    over = bisect.bisect_left(
                        widths, True, key=lambda w: not self._pack((Shelf(height, narrow | {self.layer: w}),), wafers)
                    )
                    found += [(h, over - 1)] * (over > 0)
        return list(dict.fromkeys(found))

    def _try(self, height: int, width: int, wafers: int) -> Candidate | None:
        """The repeated stage at height x width, the others as wide as suits them best; None when they do not fit."""
        if height * width < self.least[self.layer]:
            return None
        chosen = self._narrowest(height) | {self.layer: width}
        shelves = (Shelf(height, chosen),)
        if self._pack(shelves, wafers) is None:
            if self.needed < FULL * self.wafer.pes * wafers:
                return None
            shelves = (*shelves, *self._fillers)
            if self._pack(shelves, wafers) is None:
                return None
        if not self.holds(self.layer, Grid(height, width), [self.leader]):
            return None
        options: dict[int, list[tuple[int, float]]] = {}
        for i in self.count:
            if i != self.layer:
                options[i] = self._widths(i, height, chosen[i])
                if options[i]:
                    chosen[i] = options[i][0][0]
                elif len(shelves) == 1:
                    return None
                else:
                    del chosen[i]
        return self._candidate((Shelf(height, self._widened(chosen, options, shelves, wafers)), *shelves[1:]), wafers)

    def _widths(self, i: int, height: int, narrowest: int) -> list[tuple[int, float]]:
        """(width, cycles) of a stage at this height, each wider one with fewer cycles than those before."""
        columns, found = int(self.wafer.columns), []
        factors = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0, *MUCH)
        for width in sorted({min(columns, math.ceil(narrowest * f)) for f in factors}):
            if found and width > 8 * narrowest:
                break
            if self.holds(i, Grid(height, width), self.both):
                cycles = self._cycles(i, Grid(height, width))
                if not found or cycles < found[-1][1]:
                    found.append((width, cycles))
        return found

    def _widened(
        self,
        chosen: dict[int, int],
        options: dict[int, list[tuple[int, float]]],
        shelves: tuple[Shelf, ...],
        wafers: int,
    ) -> dict[int, int]:
        """Widths after stages were widened, one by one, where a column saves most and all still fit."""
        at = {i: 0 for i, found in options.items() if found}
        refused: set[tuple[int, int]] = set()
        while True:
            gains = sorted(
                ((found[n][1] - found[at[i]][1]) / (found[n][0] - found[at[i]][0]), i, n)
                for i, found in options.items()
                for n in range(at.get(i, 0) + 1, len(found))
                if (i, n) not in refused
            )
            for _, i, n in gains:
                wider = chosen | {i: options[i][n][0]}
                if self._pack((Shelf(shelves[0].height, wider), *shelves[1:]), wafers) is not None:
                    chosen, at[i] = wider, n
                    break
                refused.add((i, n))
            else:
                return chosen

    def _narrowest(self, height: int) -> dict[int, int]:
        """The least width of each kind of stage at this height, with a little room for what rounds up."""
        columns = int(self.wafer.columns)
        return {i: min(columns, max(1, math.ceil(1.02 * self.least[i] / height))) for i in self.count}

    @cached_property
    def _fillers(self) -> tuple[Shelf, ...]:
        """Shelves of so many equal regions side by side, as low as their stages allow beside the smallest of the other
        programs: they fill what others leave."""
        found = []
        least = self._with(len(self.others) - 1)
        for i in self.count:
            for across in (1, 2, 3, 4) if i == self.layer else (1,):
                width = int(self.wafer.columns) // across
                if width == 0:
                    continue
                low = math.ceil(self.least[i] / width)
                heights = range(low, low + 2 + low // 6)
                n = bisect.bisect_left(heights, True, key=lambda h: self.holds(i, Grid(h, width), least))
                if n < len(heights):
                    found.append(Shelf(heights[n], {i: width}))
        return tuple(found)

    def _candidate(
        self, shelves: tuple[Shelf, ...], wafers: int, programs: list[Planned] | None = None
    ) -> Candidate | None:
        regions = self._pack(shelves, wafers)
        if regions is None:
            return None
        if not all(self.holds(i, grid, [self.leader]) for i, grid in dict.fromkeys(self._grids(regions))):
            return None
        return Candidate(self._rank(regions, programs or [self.leader]), shelves, tuple(regions), wafers)

    def _rank(self, regions: list[Region], programs: list[Planned]) -> tuple[float, ...]:
        """Smaller is better."""
        stages = self._grids(regions)
        grids, cycles = dict.fromkeys(stages), 0.0
        tiled = {key: self.leader.tile(*key, self.wafer) for key in grids}
        for key in stages:
            cycles = max(cycles, tiled[key].control_cycles) + float(tiled[key].data_cost.cycles)
        if self.goal.objective == "throughput":
            return max(self._cycles(i, grid) for i, grid in grids), cycles
        if self.goal.objective == "users":
            rooms = [self._rooms(i, grid, programs) for i, grid in grids]
            too_slow = cycles * self.goal.speed > self.wafer.clock_hz
            return float(too_slow), cycles * too_slow, -float(min(rooms) // 1), cycles
        return (cycles,)

    def _rooms(self, i: int, grid: Grid, programs: list[Planned]) -> float:
        """How often the state of a stage fits into what its region has left."""
        tiled = self.leader.tile(i, grid, self.wafer)
        state = state_bytes(tiled)
        buffers = max(buffer_bytes(p.tile(i, grid, self.wafer)) for p in programs)
        left = self.wafer.sram_bytes - stored_bytes(tiled) - buffers
        return left / state if state else math.inf

    def _pack(self, shelves: tuple[Shelf, ...], wafers: int) -> list[Region] | None:
        return pack(self.kinds, shelves, self.wafer, wafers, self.goal.start)

    def _cycles(self, i: int, grid: Grid) -> float:
        return float(self.leader.tile(i, grid, self.wafer).data_cost.cycles)

    def holds(self, i: int, grid: Grid, programs: list[Planned]) -> bool:
        """The fullest PE of a stage stays within SRAM, over all `programs` that share it, and what they share lies the
        same way for all: weights and state never move between programs."""
        tiled = [p.tile(i, grid, self.wafer) for p in programs]
        colors = max(t.colors for t in tiled)
        if colors > self.wafer.colors:
            self.short_of_colors = i, colors
            return False
        if any(t.weights != tiled[0].weights or t.states != tiled[0].states for t in tiled[1:]):
            return False
        return max(map(stored_bytes, tiled)) + max(map(buffer_bytes, tiled)) <= self.wafer.sram_bytes
