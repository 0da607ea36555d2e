"""Search: the best way found to tile a stage onto a region, greedy with a beam of one over the state's layouts."""

from wsc.layout import Grid
from wsc.lowering.hints import find_hints, state_layouts
from wsc.lowering.memory import buffer_bytes, stored_bytes
from wsc.lowering.plan import Stage
from wsc.lowering.roles import Roles
from wsc.lowering.strategy import Strategy
from wsc.lowering.tile import TiledStage, tile_stage
from wsc.machine.wafer import Wafer


def best_tiling(
    stage: Stage, roles: Roles, grid: Grid, wafer: Wafer, strategy: Strategy, decided: TiledStage | None = None
) -> TiledStage:
    """The tiling with the fewest cycles found. `decided` is that of another program which shares weights and state:
    they lie as they do there."""
    given = {s.position: s.layout for s in decided.states} if decided else {}
    plain = tile_stage(stage, roles, grid, wafer, strategy, given)
    if not strategy.compiled or (decided and not decided.hinted):
        return plain
    hints = find_hints(stage, roles, plain.ops)
    hinted = tile_stage(stage, roles, grid, wafer, strategy, given, hints)
    if decided:
        return hinted
    best = min(plain, hinted, key=_rank)
    for p in range(len(stage.states) if best.hinted else 0):
        lying = {s.position: s.layout for s in best.states}
        for layout in state_layouts(stage, p, lying[p], grid):
            tried = tile_stage(stage, roles, grid, wafer, strategy, lying | {p: layout}, hints)
            best = min(best, tried, key=_rank)
    return best


def _rank(tiled: TiledStage) -> tuple[int, float]:
    """Within SRAM first, then by cycles."""
    over = stored_bytes(tiled) + buffer_bytes(tiled) - tiled.wafer.sram_bytes
    return max(0, over), float(tiled.data_cost.cycles)
