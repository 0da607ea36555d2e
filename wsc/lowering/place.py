"""Place: region sizes by modelled cycles, and rectangles on the wafer in snake order, so that stages in a row touch.

All regions of a program have the same height, a shelf; shelves run left to right, then right to left. Programs that
share weights (prefill and decode) share regions: the first program decides, the others must fit beside it.
"""

import bisect
import math
from dataclasses import dataclass, field

from wsc.errors import FitError
from wsc.lowering import jaxapi
from wsc.lowering.layout import Grid, default_extent
from wsc.lowering.memory import buffer_bytes, stored_bytes
from wsc.lowering.plan import Stage
from wsc.lowering.roles import Roles
from wsc.lowering.strategy import WSC, Strategy
from wsc.lowering.search import best_tiling
from wsc.lowering.tile import TiledStage
from wsc.machine.wafer import Wafer
from wsc.program import Region

MAX_WAFERS = 512

Candidate = tuple[float, int, dict[int, int]]  # cycles, height of all regions, width by first stage of a template


@dataclass
class Planned:
    """One program, planned into stages and not yet placed."""

    stages: list[Stage]
    roles: Roles
    strategy: Strategy = WSC
    leader: "Planned | None" = None  # the program whose weights and state it shares: it decides how they lie
    tiled: dict = field(default_factory=dict)  # (template, grid) -> TiledStage

    def tile(self, i: int, grid: Grid, wafer: Wafer) -> TiledStage:
        key = (self.stages[i].template, grid)
        if key not in self.tiled:
            decided = self.leader.tile(i, grid, wafer) if self.leader else None
            self.tiled[key] = best_tiling(self.stages[i], self.roles, grid, wafer, self.strategy, decided)
        return self.tiled[key]

    def stored(self, i: int) -> int:
        """Bytes of weights and state of a stage, wherever they lie."""
        stage = self.stages[i]
        weights = sum(self.roles.weights[v].nbytes for v in stage.weights)
        return weights + sum(jaxapi.nbytes(v.aval.shape, v.aval.dtype) for v in stage.states)


def place(
    programs: list[Planned], wafer: Wafer, wafers: int | None, grid: tuple[int, int] | None = None
) -> list[Region]:
    """One region a stage, the same for all `programs`. `wafers` None takes as many as needed; `grid` (rows, columns)
    gives every stage a region of that size.

    Raises FitError when a stage or the whole does not fit, saying by how much and what would.
    """
    return _Placer(programs, wafer, wafers, grid).run()


def snake(widths: list[int], height: int, wafer: Wafer, wafers: int) -> list[Region] | None:
    """Rectangles of one height in snake order, each touching the one before; None when they do not fit."""
    shelves, columns = int(wafer.rows) // height, int(wafer.columns)
    regions: list[Region] = []
    chip, shelf, forward, x = 0, 0, True, 0
    for width in widths:
        if width > columns or shelves == 0:
            return None
        if (x + width > columns) if forward else (x - width < 0):
            shelf, forward = shelf + 1, not forward
            last = regions[-1]
            x = max(0, last.x - width + 1) if forward else min(columns, last.x + last.width + width - 1)
            if (x + width > columns) if forward else (x - width < 0):
                return None
            if shelf == shelves:
                chip, shelf, forward, x = chip + 1, 0, True, 0
        if chip >= wafers:
            return None
        regions.append(Region(chip, shelf * height, x if forward else x - width, height, width))
        x = x + width if forward else x - width
    return regions


class _Placer:
    def __init__(self, programs: list[Planned], wafer: Wafer, wafers: int | None, grid: tuple[int, int] | None = None):
        self.programs, self.wafer, self.limit, self.grid = programs, wafer, wafers, grid
        first = programs[0]
        self.stages = first.stages
        templates = [s.template for s in self.stages]
        self.count = {
            i: templates.count(templates[i]) for i in range(len(templates)) if templates.index(templates[i]) == i
        }
        self.like = [templates.index(t) for t in templates]  # the first stage of the same template
        self.short_of_colors: tuple[int, int] | None = None  # stage, colors that it would take
        self.usable = int(wafer.sram_bytes - wafer.code_bytes)
        self.least = {i: max(1, -(-first.stored(i) // self.usable)) for i in self.count}
        self.layer = max(self.count, key=lambda i: (self.count[i] * first.stored(i), self.count[i]))

    def run(self) -> list[Region]:
        needed = sum(self.least[i] * n for i, n in self.count.items())
        fewest = max(1, -(-needed // int(self.wafer.pes)))
        if self.limit is not None and fewest > self.limit:
            raise self._too_large(needed)
        for wafers in range(fewest, (self.limit or MAX_WAFERS) + 1):
            found = self._best(wafers)
            if found is not None:
                return found
            if self.limit is None and wafers > 4 * fewest + 4:
                break
        raise self._too_large(needed)

    def _best(self, wafers: int) -> list[Region] | None:
        """The placement with the fewest cycles found by walking from a few sizes of the repeated stage downhill."""
        if self.grid is not None:
            height, width = self.grid
            chosen = dict.fromkeys(self.count, width)
            return self._pack(chosen, height, wafers) if self._hold_all((0.0, height, chosen)) else None
        heights = default_extent(int(self.wafer.rows))
        widths = default_extent(int(self.wafer.columns))
        found = sorted(self._walk(heights, widths, wafers, self.programs[:1]), key=lambda c: c[0])
        if found and not self._hold_all(found[0]):  # the other programs must fit beside the first: look again
            found += self._walk(heights, widths, wafers, self.programs)
            found.sort(key=lambda c: c[0])
        best = next((c for c in found if self._hold_all(c)), None)
        return self._pack(best[2], best[1], wafers) if best else None

    def _hold_all(self, candidate: Candidate) -> bool:
        _, height, chosen = candidate
        return all(self._holds(i, Grid(height, w), self.programs) for i, w in chosen.items())

    def _walk(self, heights, widths, wafers: int, programs: list[Planned]) -> list[Candidate]:
        """Every size of the repeated stage looked at and found to hold `programs`: some starts, then downhill."""
        seen: dict[tuple[int, int], Candidate | None] = {}

        def score(h: int, w: int) -> float:
            if (h, w) not in seen:
                seen[h, w] = self._try(heights[h], widths[w], wafers, programs)
            candidate = seen[h, w]
            return math.inf if candidate is None else candidate[0]

        for h, w in self._starts(heights, widths, wafers):
            score(h, w)
        for h, w in sorted(seen, key=lambda p: score(*p))[:3]:
            while True:
                near = [(h + a, w + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
                near = [(a, b) for a, b in near if 0 <= a < len(heights) and 0 <= b < len(widths)]
                a, b = min(near, key=lambda p: score(*p))
                if score(a, b) >= score(h, w):
                    break
                h, w = a, b
        return [c for c in seen.values() if c is not None]

    def _starts(self, heights, widths, wafers) -> list[tuple[int, int]]:
        """Sizes of the repeated stage to walk from: squarish ones, and for every height the widest that still packs."""
        most = int(self.wafer.pes) * wafers / sum(self.count.values())
        found, area = [], most
        while area >= max(1, self.least[self.layer]) and len(found) < 6:
            h = min(range(len(heights)), key=lambda i: abs(heights[i] - math.sqrt(area)))
            found.append((h, min(range(len(widths)), key=lambda i: abs(widths[i] - area / heights[h]))))
            area /= 3
        needed = sum(self.least[i] * n for i, n in self.count.items())
        crowded = needed > 0.2 * self.wafer.pes * wafers  # only then does the packing decide the size
        for h, height in enumerate(heights if crowded else ()):
            if most / 12 <= height * height <= most * 12:
                over = bisect.bisect_left(
                    range(len(widths)),
                    True,
                    key=lambda w: not self._pack(self._narrow(height, widths[w]), height, wafers),
                )
                found += [(h, over - 1)] * (over > 0)
        return list(dict.fromkeys(found))

    def _narrow(self, height: int, width: int) -> dict[int, int]:
        """The repeated stage at `width`, the others at the least width that can hold them."""
        chosen = {i: max(1, math.ceil(1.02 * self.least[i] / height)) for i in self.count}
        return chosen | {self.layer: width}

    def _try(self, height: int, width: int, wafers: int, programs: list[Planned]) -> Candidate | None:
        """Cycles and widths with the repeated stage at height x width; None when it does not fit."""
        chosen = self._narrow(height, width)
        if height * width < self.least[self.layer] or self._pack(chosen, height, wafers) is None:
            return None
        if not self._holds(self.layer, Grid(height, width), programs):
            return None
        for i in self.count:
            if i != self.layer and not self._widen(i, chosen, height, wafers, programs):
                return None
        cycles = sum(self._cycles(i, Grid(height, chosen[i])) * n for i, n in self.count.items())
        return cycles, height, chosen

    def _widen(self, i: int, chosen: dict[int, int], height: int, wafers: int, programs: list[Planned]) -> bool:
        """Give a stage the width with the fewest cycles among those that still let everything fit."""
        least, best = chosen[i], (math.inf, 0)
        for factor in (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0):
            width = min(int(self.wafer.columns), math.ceil(least * factor))
            if self._pack({**chosen, i: width}, height, wafers) is None:
                break
            if self._holds(i, Grid(height, width), programs):
                best = min(best, (self._cycles(i, Grid(height, width)), width))
        if best[1] == 0:
            return False
        chosen[i] = best[1]
        return True

    def _pack(self, chosen: dict[int, int], height: int, wafers: int) -> list[Region] | None:
        return snake([chosen[i] for i in self.like], height, self.wafer, wafers)

    def _cycles(self, i: int, grid: Grid) -> float:
        return self.programs[0].tile(i, grid, self.wafer).data_cost.cycles

    def _holds(self, i: int, grid: Grid, programs: list[Planned]) -> bool:
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

    def _too_large(self, needed: int) -> FitError:
        """What does not fit, by how much, and what would: found by trying, not by arithmetic."""
        pes = int(self.wafer.pes)
        total = sum(self.programs[0].stored(i) * n for i, n in self.count.items())
        big = max(self.count, key=lambda i: self.least[i])
        message = (
            f"the program does not fit: {_size(total)} of weights and state need at least {needed:,} PEs of "
            f"{self.usable:,} B beside the code, and a {self.wafer.name} has {pes:,}."
        )
        if self.grid is not None:
            h, w = self.grid
            short = [i for i in self.count if not self._holds(i, Grid(h, w), self.programs)]
            if short:
                first = short[0]
                needs = self.least[first]
                why = f"its weights and state need {needs:,}" if needs > h * w else "its PEs have no room for buffers"
                return FitError(
                    f"stage '{self.stages[first].name}' does not fit a region of {h} x {w} PEs: {why}. Give a larger "
                    f"grid, or none to have sizes chosen."
                )
        if self.short_of_colors is not None:
            i, colors = self.short_of_colors
            return FitError(
                f"stage '{self.stages[i].name}' communicates in ways that take {colors} colors, and "
                f"{int(self.wafer.colors)} are free on a {self.wafer.name}: split the stage, or give it more colors"
            )
        if self.least[big] > pes:
            return FitError(
                f"{message} Stage '{self.stages[big].name}' alone needs {self.least[big]:,}, more than a wafer has, so "
                f"more wafers do not help: split it into stages with weights of their own, or use a smaller dtype."
            )
        if self.limit is not None:
            over = needed - self.limit * pes
            by = f"It is over by {over:,} PEs on" if over > 0 else "With buffers and whole stages it does not fit on"
            more = range(self.limit + 1, 4 * (needed // pes + 1) + 5)
            enough = next((n for n in more if self._best(n) is not None), None)
            advice = f"give it wafers={enough}." if enough else "no number of wafers was found that would do."
            return FitError(f"{message} {by} {self.limit}: {advice}")
        return FitError(
            f"{message} No region was found for stage '{self.stages[big].name}' whose PEs stay within "
            f"{int(self.wafer.sram_bytes):,} B with their buffers. Use smaller shapes (of a language model: a shorter "
            f"context, a smaller batch or prefill chunk) or a smaller dtype."
        )


def _size(nbytes: int) -> str:
    """In the unit that leaves few digits: 16.33 GB, 4.1 MB, 400 B."""
    unit, of = next((u for u in ((1e9, "GB"), (1e6, "MB")) if nbytes >= u[0]), (1, "B"))
    return f"{nbytes / unit:,.4g} {of}"
