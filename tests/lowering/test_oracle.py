"""The planner's searches against exact ones, on cases small enough to be solved for good.

CP-SAT proves the fewest rows of a packing and the fewest cycles of a placement; the ways in which state may lie are few
enough to try them all together. Cycles are those of the stages, as the planner ranks them: not of what travels between.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal, small, traced
from hypothesis import given, settings
from hypothesis import strategies as st

from wsc.layout import Grid
from wsc.lowering.hints import find_hints, state_layouts
from wsc.lowering.layout import default_extent
from wsc.lowering.memory import buffer_bytes, stored_bytes
from wsc.lowering.normalize import normalize
from wsc.lowering.pack import Shelf, pack
from wsc.lowering.place import place
from wsc.lowering.plan import plan_stages
from wsc.lowering.rewrite import rewrite
from wsc.lowering.roles import find_roles
from wsc.lowering.search import Planned, best_tiling
from wsc.lowering.strategy import WSC
from wsc.lowering.tile import tile_stage
from wsc.lowering.tiled import TiledStage
from wsc.machine.wafer import Wafer
from wsc.models import Llama, LlamaConfig
from wsc.program import Region

cp_model: Any = pytest.importorskip("ortools.sat.python.cp_model", reason="needs OR-Tools: pip install 'wsc[test]'")

End = tuple[int, int]  # last wafer, rows in use on it
Cycles = Mapping[int, Mapping[tuple[int, int], int]]  # template -> (height, width) of a region that holds it -> cycles


def solve(model) -> Any:
    """The solver at a proven optimum; None when it is proven that there is no solution."""
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # the same search every time
    solver.parameters.max_deterministic_time = 100
    status = solver.solve(model)
    assert status in (cp_model.OPTIMAL, cp_model.INFEASIBLE), f"not proven: {solver.status_name(status)}"
    return solver if status == cp_model.OPTIMAL else None


def exact_shelves(
    kinds: Sequence[int], shelves: Sequence[Shelf], rows: int, columns: int, wafers: int, start: End = (0, 0),
    in_order: bool = True,
) -> End | None:  # fmt: skip
    """The end of the best packing in shelves from `start` on, the stages in order or in any."""
    model = cp_model.CpModel()
    slots, types, chips = range(len(kinds)), range(len(shelves)), range(start[0], wafers)
    lies = [[model.new_bool_var("") for _ in slots] for _ in kinds]  # of a stage: on the j-th shelf
    used = {key: model.new_bool_var("") for key in itertools.product(slots, types, chips)}
    on = [model.new_int_var(0, wafers, "") for _ in slots]
    end = model.new_int_var(0, wafers * (rows + 1), "")
    for stage in lies:
        model.add_exactly_one(stage)
    if in_order:
        for a, b in itertools.pairwise(sum(j * stage[j] for j in slots) for stage in lies):
            model.add(a <= b)
    for a, b in itertools.pairwise(on):
        model.add(a <= b)
    for j in slots:
        ways = [used[j, s, c] for s, c in itertools.product(types, chips)]
        model.add_at_most_one(ways)
        for stage in lies:
            model.add_bool_or(ways).only_enforce_if(stage[j])
    for (j, s, c), way in used.items():
        widths = [shelves[s].widths.get(k, columns + 1) for k in kinds]
        model.add(sum(w * stage[j] for w, stage in zip(widths, lies)) <= columns).only_enforce_if(way)
        model.add(on[j] == c).only_enforce_if(way)
    for c in chips:
        rows_used = sum(shelves[s].height * way for (_, s, d), way in used.items() if d == c)
        rows_used += start[1] * (c == start[0])
        model.add(rows_used <= rows)
        for way in (way for (_, _, d), way in used.items() if d == c):
            model.add(end >= c * (rows + 1) + rows_used).only_enforce_if(way)
    model.minimize(end)
    solver = solve(model)
    return solver and divmod(solver.value(end), rows + 1)


def lay(model, choices: Sequence[Sequence[tuple[int, int]]], rows: int, columns: int) -> tuple[list[dict], list]:
    """Rectangles apart, each of one of its sizes: what picks each size, and the row after its last one."""
    picked, bottoms, xs, ys, area = [], [], [], [], []
    for sizes in choices:
        picks = {size: model.new_bool_var("") for size in sizes}
        model.add_exactly_one(picks.values())
        height, bottom, y = (model.new_int_var(0, rows, "") for _ in range(3))
        width, right, x = (model.new_int_var(0, columns, "") for _ in range(3))
        model.add(height == sum(h * pick for (h, _), pick in picks.items()))
        model.add(width == sum(w * pick for (_, w), pick in picks.items()))
        ys.append(model.new_interval_var(y, height, bottom, ""))
        xs.append(model.new_interval_var(x, width, right, ""))
        area += [h * w * pick for (h, w), pick in picks.items()]
        picked.append(picks)
        bottoms.append(bottom)
    model.add_no_overlap_2d(xs, ys)
    model.add(sum(area) <= rows * columns)  # follows from the line above; it prunes
    return picked, bottoms


def exact_rectangles(kinds: Sequence[int], shelves: Sequence[Shelf], rows: int, columns: int) -> int:
    """The fewest rows of one wafer that hold rectangles of the same sizes, wherever they lie."""
    model = cp_model.CpModel()
    _, bottoms = lay(model, [[(s.height, s.widths[k]) for s in shelves] for k in kinds], rows, columns)
    last = model.new_int_var(0, rows, "")
    model.add_max_equality(last, bottoms)
    model.minimize(last)
    return solve(model).value(last)


def end_of(regions: Sequence[Region] | None) -> End | None:
    return max((r.wafer, r.y + r.height) for r in regions) if regions else None


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=7),
    st.lists(st.tuples(st.integers(1, 6), st.tuples(*[st.integers(0, 7)] * 3)), min_size=1, max_size=3),
    st.integers(5, 14), st.integers(7, 14), st.integers(1, 3), st.integers(0, 8),
)  # fmt: skip
def test_pack_is_optimal(kinds, shelves, rows, columns, wafers, begun):
    """No packing of the stages in order ends earlier, and where `pack` finds none there is none; begun wafers too."""
    shelves = [Shelf(height, {k: w for k, w in enumerate(widths) if w}) for height, widths in shelves]
    start = 0, min(begun, rows)
    found = pack(kinds, shelves, small(rows, columns), wafers, start)
    assert end_of(found) == exact_shelves(kinds, shelves, rows, columns, wafers, start)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 4), st.integers(9, 14))
def test_shelves_of_one_height(widths, height, columns):
    """Rectangles of one height h lie nowhere better than in shelves: each crosses one of the rows h-1, 2h-1, ..., and
    those that cross one lie side by side. Order costs less than as many shelves again: two in a row fill more than one.
    """
    kinds, rows = range(len(widths)), height * len(widths)
    shelves = [Shelf(height, dict(enumerate(widths)))]
    free = exact_rectangles(kinds, shelves, rows, columns)
    assert exact_shelves(kinds, shelves, rows, columns, 1, in_order=False) == (0, free)
    _, found = end_of(pack(kinds, shelves, small(rows, columns), 1)) or (0, 0)
    assert free <= found <= (free if len(set(widths)) == 1 else 2 * free - height)


def test_what_shelves_lose():
    """Rows that shelves of two heights lose to free rectangles: never less than none; how many is printed."""
    random, lost = np.random.default_rng(0), []
    for _ in range(30):
        kinds = random.integers(0, 3, 6).tolist()
        shelves = [Shelf(int(h), dict(enumerate(random.integers(2, 9, 3).tolist()))) for h in random.integers(2, 7, 2)]
        _, found = end_of(pack(kinds, shelves, small(40, 12), 1)) or (0, 0)
        lost.append(found / exact_rectangles(kinds, shelves, 40, 12) - 1)
    assert min(lost) >= 0
    print(f"rows lost to shelves: mean {np.mean(lost):.1%}, most {max(lost):.1%}")


def planned(fn, *args) -> Planned:
    """A program before placement; its first argument is weights."""
    found, leaves = traced(fn, *args), frozenset(range(len(jax.tree.leaves(args[0]))))
    normalized = rewrite(normalize(found), leaves)
    roles = find_roles(normalized, found.arg_names, leaves)
    return Planned(plan_stages(normalized, roles), roles)


def mlp(*sizes: int) -> Planned:
    def fn(p, x):
        for w in p["layers"]:
            x = jax.nn.relu(x @ w["w"])
        return x

    return planned(fn, {"layers": [{"w": normal(*shape)} for shape in itertools.pairwise(sizes)]}, normal(1, sizes[0]))


def llama(context: int = 16, tokens: int = 1, layers: int = 2) -> Planned:
    model = Llama.abstract(LlamaConfig(64, 32, 64, layers, 4, 2))  # vocabulary, features, MLP; heads of queries, of KV
    cache = model.abstract_cache(batch=1, context=context)
    ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    return planned(lambda model, tokens, cache: model(tokens, cache), model, ids, cache)


def fits(tiled: TiledStage) -> bool:
    """The fullest PE stays within its SRAM, and the communication within its colors."""
    used = stored_bytes(tiled) + buffer_bytes(tiled)
    return used <= tiled.wafer.sram_bytes and tiled.colors <= tiled.wafer.colors


def cycles_of(program: Planned, wafer: Wafer, grids: Sequence[tuple[int, int]]) -> Cycles:
    """Cycles of each distinct stage on the regions that hold it, tiled as they are in the end."""
    found: dict[int, dict[tuple[int, int], int]] = {}
    for stage in {s.template_number: s for s in program.stages}.values():
        tiled = {g: best_tiling(stage, program.roles, Grid(*g), wafer, WSC)[0] for g in grids}
        found[stage.template_number] = {g: round(float(t.data_cost.cycles)) for g, t in tiled.items() if fits(t)}
    return found


def useful(cycles: Mapping[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    """Sizes that no other one betters: none within it takes as few cycles."""
    better = lambda a, b: a[0] <= b[0] and a[1] <= b[1] and (cycles[a], a) < (cycles[b], b)  # noqa: E731
    return {g: n for g, n in cycles.items() if not any(better(a, g) for a in cycles)}


def exact_sizes(kinds: Sequence[int], cycles: Cycles, wafer: Wafer) -> int:
    """The fewest cycles of all stages on one wafer: every stage on a rectangle of its own size, anywhere."""
    model, sizes = cp_model.CpModel(), [useful(cycles[k]) for k in kinds]
    picked, _ = lay(model, [list(s) for s in sizes], int(wafer.rows), int(wafer.columns))
    model.minimize(sum(s[g] * pick for s, picks in zip(sizes, picked) for g, pick in picks.items()))
    return round(solve(model).objective_value)


def exact_sizes_in_shelves(kinds: Sequence[int], cycles: Cycles, wafer: Wafer) -> int:
    """The same as the planner lays them: one height for all, one width for a template, in order on full rows."""
    best = []
    for height in sorted({h for sizes in cycles.values() for h, _ in sizes}):
        model, total, widths = cp_model.CpModel(), [], {}
        across = {k: useful({g: n for g, n in cycles[k].items() if g[0] == height}) for k in dict.fromkeys(kinds)}
        if not all(across.values()):
            continue
        for k, sizes in across.items():
            picks = {g: model.new_bool_var("") for g in sizes}
            model.add_exactly_one(picks.values())
            widths[k] = sum(g[1] * pick for g, pick in picks.items())
            total += [kinds.count(k) * sizes[g] * pick for g, pick in picks.items()]
        begun, right = 1, 0  # shelves, and the columns in use on the last: a stage lies beside it, or on another one
        for k in kinds:
            beside, right, another = right, model.new_int_var(1, int(wafer.columns), ""), model.new_bool_var("")
            model.add(right == beside + widths[k]).only_enforce_if(~another)
            model.add(right == widths[k]).only_enforce_if(another)
            begun += another
        model.add(begun <= int(wafer.rows) // height)
        model.minimize(sum(total))
        if solver := solve(model):
            best.append(round(solver.objective_value))
    return min(best)


# Program, wafer, and how many times the fewest cycles in shelves, and anywhere, it may take.
CASES = {
    "chain": (lambda: mlp(48, 96, 32, 64), small(24, 24), 1.05, 1.08),
    "chain, little room": (lambda: mlp(48, 96, 32, 64), small(12, 10), 1.05, 1.09),
    "equal stages": (lambda: mlp(64, 64, 64, 64, 64), small(24, 24), 1.05, 1.06),
    "unequal stages": (lambda: mlp(128, 128, 64, 256, 64), small(24, 24), 1.05, 1.08),
    "long wafer": (lambda: mlp(96, 32, 128, 32), small(30, 20), 1.05, 1.05),
    "llama": (llama, small(24, 24, 4096), 1.05, 1.05),
    "llama of three layers": (lambda: llama(layers=3), small(32, 24, 4096), 1.05, 1.05),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_of_regions(name):
    make, wafer, in_shelves, anywhere = CASES[name]
    program = make()
    kinds = [s.template_number for s in program.stages]
    regions, _ = place(program, [], wafer, 1)
    heights, widths = default_extent(int(wafer.rows)), default_extent(int(wafer.columns))
    if name.startswith("llama"):  # layers take longer to tile
        heights, widths = [h for h in heights if h >= 8 and h % 4 == 0], widths[5::2]
    heights, widths = {*heights, *(r.height for r in regions)}, {*widths, *(r.width for r in regions)}
    cycles = cycles_of(program, wafer, sorted(itertools.product(heights, widths)))
    ours = sum(cycles[k][r.height, r.width] for k, r in zip(kinds, regions))
    best, free = exact_sizes_in_shelves(kinds, cycles, wafer), exact_sizes(kinds, cycles, wafer)
    print(f"{name}: {ours:,} cycles; {ours / best - 1:.1%} over the best in shelves, {ours / free - 1:.1%} over any")
    assert free <= min(best, ours)
    if len({(k, r.grid) for k, r in zip(kinds, regions)}) == len(cycles) and len({r.height for r in regions}) == 1:
        assert best <= ours  # ours is one of those among which it was sought
    assert ours <= in_shelves * best
    assert ours <= anywhere * free


@pytest.mark.parametrize(("context", "tokens"), [(16, 1), (256, 1), (64, 8)])
def test_layouts_of_state(context, tokens):
    """All combinations of layouts of the two caches, with hints and without: none is much faster than what is found."""
    program, wafer = llama(context, tokens), small(48, 48, 8192)
    layer, worst = program.stages[1], 1.0
    assert len(layer.states) == 2
    for grid in (Grid(6, 8), Grid(12, 32), Grid(16, 12), Grid(24, 24)):
        where, tried = (layer, program.roles, grid, wafer, WSC), []
        for hints in ({}, find_hints(layer, program.roles, tile_stage(*where).ops)):
            lying = [s.layout for s in tile_stage(*where, hints=hints).states]
            ways = [[at, *state_layouts(layer, p, at, grid).values()] for p, at in enumerate(lying)]
            assert min(map(len, ways)) > 1
            tried += [tile_stage(*where, dict(enumerate(lie)), hints) for lie in itertools.product(*ways)]
        found, _ = best_tiling(*where)
        assert fits(found)
        worst = max(worst, found.data_cost.cycles / min(t.data_cost.cycles for t in tried if fits(t)))
    print(f"context {context}, {tokens} tokens: at worst {worst - 1:.1%} over the best")
    assert worst <= 1.05
