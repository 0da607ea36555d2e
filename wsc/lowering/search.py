"""Search: how to tile a stage onto a region. Greedy, with a beam over the ways in which its state may lie.

The ways are tried where a stage is first met, and the best of them is kept for the other sizes of its region; for what
is placed in the end, all of them are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wsc.layout import Grid
from wsc.lowering import jaxapi
from wsc.lowering.hints import find_hints, state_layouts
from wsc.lowering.memory import buffer_bytes, over_by, stored_bytes
from wsc.lowering.plan import Stage
from wsc.lowering.roles import Roles
from wsc.lowering.strategy import WSC, Strategy
from wsc.lowering.tile import tile_stage
from wsc.lowering.tiled import TiledStage
from wsc.machine.wafer import Wafer

NEAR = 8  # a tiling over by less than this part of the SRAM may yet be made to fit

Shares = Mapping[int, int]  # by position of a state: among how many PEs its growing dimension is shared besides


@dataclass
class Planned:
    """One program, planned into stages and not yet placed."""

    stages: list[Stage]
    roles: Roles
    strategy: Strategy = WSC
    leader: "Planned | None" = None  # the program whose weights and state it shares: it decides how they lie
    tiled: dict = field(default_factory=dict)  # (template, grid, quick) -> TiledStage
    shares: dict = field(default_factory=dict)  # template -> Shares found best where it was first tiled
    quick: bool = False  # a stage's state lies as was best where it was first tiled; else all ways are tried again

    def tile(self, i: int, grid: Grid, wafer: Wafer) -> TiledStage:
        """Stage i on a region of `grid` PEs."""
        stage = self.stages[i]
        quick = self.leader.quick if self.leader else self.quick
        key = (stage.template_number, grid, quick)
        if key not in self.tiled:
            if self.leader:
                decided = self.leader.tile(i, grid, wafer)
                self.tiled[key] = follow(stage, self.roles, grid, wafer, self.strategy, decided)
            else:
                known = self.shares.get(stage.template_number) if quick else None
                self.tiled[key], found = best_tiling(stage, self.roles, grid, wafer, self.strategy, known)
                self.shares.setdefault(stage.template_number, found)
        return self.tiled[key]

    def stored(self, i: int) -> int:
        """Bytes of weights and state of a stage, wherever they lie."""
        stage = self.stages[i]
        weights = sum(self.roles.weights[v].nbytes for v in stage.weights)
        return weights + sum(jaxapi.nbytes(v.aval.shape, v.aval.dtype) for v in stage.states)


def follow(stage: Stage, roles: Roles, grid: Grid, wafer: Wafer, strategy: Strategy, decided: TiledStage) -> TiledStage:
    """A stage of a program whose weights and state lie as another's tiling `decided`."""
    states = {s.position: s.layout for s in decided.states}
    return tile_stage(stage, roles, grid, wafer, strategy, states, uses=decided.uses, apart=decided.apart)


def best_tiling(
    stage: Stage, roles: Roles, grid: Grid, wafer: Wafer, strategy: Strategy, shares: Shares | None = None
) -> tuple[TiledStage, Shares]:
    """The tiling with the fewest cycles found, and the shares of its state; all are tried where `shares` is None."""
    plain = tile_stage(stage, roles, grid, wafer, strategy)
    if not strategy.compiled:
        return plain, {}
    hints = find_hints(stage, roles, plain.ops)
    made = (
        (v, at) for e, op in zip(stage.eqns, plain.ops, strict=True) for v, at in zip(e.outvars, op.outs, strict=True)
    )
    if all(hints.get(v, at) == at for v, at in made):
        hinted = plain  # everything lies where it will be wanted as it is
    else:
        hinted = tile_stage(stage, roles, grid, wafer, strategy, hints=hints)
    best = hinted
    found: dict[int, int] = {}
    for p in range(len(stage.states)):
        lying = {s.position: s.layout for s in best.states}
        for share, layout in state_layouts(stage, p, hinted.states[p].layout, grid).items():
            if shares is None or shares.get(p) == share:
                tried = tile_stage(stage, roles, grid, wafer, strategy, lying | {p: layout}, hints)
                if _rank(tried) < _rank(best):
                    best, found[p] = tried, share
    for share in {*found.values()} if shares is None and len(stage.states) > 1 else ():  # the best is often one for all
        ways = [state_layouts(stage, p, hinted.states[p].layout, grid) for p in range(len(stage.states))]
        if all(share in way for way in ways):
            states = {p: way[share] for p, way in enumerate(ways)}
            tried = tile_stage(stage, roles, grid, wafer, strategy, states, hints)
            if _rank(tried) < _rank(best):
                best, found = tried, dict.fromkeys(states, share)
    best = min(best, plain, key=_rank)
    if 0 < _rank(best)[0] < wafer.sram_bytes // NEAR:  # without second accumulators, and as weights take the least
        for states, told in (({}, {}), ({}, hints), ({s.position: s.layout for s in best.states}, hints)):
            tried = tile_stage(stage, roles, grid, wafer, strategy, states, told, apart=False)
            best = min(best, tried, key=_rank)
    return best, found


def _rank(tiled: TiledStage) -> tuple[int, float]:
    """Within SRAM first, then by cycles."""
    return over_by(stored_bytes(tiled) + buffer_bytes(tiled), tiled.wafer), float(tiled.data_cost.cycles)
