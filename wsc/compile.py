"""`wsc.compile`: the passes in order, from a JAX function to a program placed on wafers."""

import contextlib
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wsc.errors import ArgumentError, FitError, TraceError, WscError
from wsc.lowering import jaxapi, plancache, waferllm
from wsc.lowering.build import build_programs
from wsc.lowering.check import check
from wsc.lowering.entry import Entry, closed_over, entry_of, step, timed_layers, weight_leaves
from wsc.lowering.normalize import Normal, normalize
from wsc.lowering.place import OBJECTIVES, Goal, Lazy, place
from wsc.lowering.plan import plan_stages
from wsc.lowering.rewrite import rewrite
from wsc.lowering.roles import find_roles
from wsc.lowering.search import Planned
from wsc.lowering.strategy import STREAMING, WSC, Strategy, pair
from wsc.lowering.updates import find_updates, homes, updated_weights
from wsc.machine.wafer import Wafer
from wsc.program import Program
from wsc.runtime.executable import Executable, TimedLayer
from wsc.runtime.execute import ORDERS
from wsc.runtime.generate import LanguageModel

STRATEGIES = {s.name: s for s in (WSC, waferllm.WAFERLLM, STREAMING)}
PREFILL_CHUNK = 8  # tokens a prefill program takes at a time; their activations must fit beside the weights


def compile(
    model: Any,
    *args: Any,
    wafer: Wafer | None = None,
    wafers: int | None = None,
    context: int = 2048,
    batch: int = 1,
    order: str = "fabric",
    objective: str = "latency",
    speed: float | None = None,
    prefill_chunk: int | None = None,
    weight_argnums: int | Sequence[int] | None = None,
    strategy: str = "wsc",
    grid: tuple[int, int] | None = None,
    beside: Executable | None = None,
) -> Executable:
    """Compile a JAX function or a flax module for a wafer.

    `compile(language_model)` compiles decode and prefill with a KV cache of `context` tokens for `batch` users and
    returns a LanguageModel. `compile(module, *args)` compiles a flax module (nnx; or linen, its variables first), and
    `compile(fn, *args)` any function, training steps and loops included; arguments may be arrays or
    `jax.ShapeDtypeStruct`s, in any pytrees. What a function changes of flax objects is written back by every call;
    results that are new values of an argument's leaves stay where those lie.

    wafer: the hardware, WSE3 unless told (WSE2 for "waferllm"); `wafers`: how many at most, None for as few as hold it.
    objective: what regions are sized for: the least "latency" of a token, the most "throughput" of the full machine,
    the most "users" that each get `speed` tokens a second, or the fewest "wafers".
    prefill_chunk: tokens of each user that a prefill program takes at a time; None for as many as fit beside the
    weights, up to 8 shared among the users.
    order: "fabric" adds partial sums as the wafer does, "xla" as `jax.jit` does.
    weight_argnums: which arguments stay in SRAM as weights; by default flax modules and their variables, pytrees of
    floats, and what a step trains. Arrays that a function closes over do too.
    strategy: "wsc"; "streaming" for layers whose weights stream in (see `wsc.streamed`); or "waferllm" to map a
    language model as that paper does: one layer on a square `grid` of PEs. Its cost is to be compared; what it computes
    is that layer in blocks (see `wsc.lowering.waferllm`), and `.prefill` of it is the layer for a whole prompt of
    `context` tokens. grid: (rows, columns) of PEs of every stage.
    beside: another executable, on whose last wafer this one begins below what is in use.

    Raises TraceError, ArgumentError, UnsupportedError or FitError, each a `wsc.WscError`.

    >>> import jax, jax.numpy as jnp
    >>> exe = compile(lambda w, x: jnp.tanh(x @ w), jnp.ones((64, 32)), jnp.ones((1, 64)), weight_argnums=0)
    >>> y, telemetry = exe(jnp.ones((64, 32)), jnp.ones((1, 64)))
    >>> y.shape, telemetry.cycles > 0
    ((1, 32), True)
    """
    chosen = _strategy(strategy)
    wafer = chosen.wafer if wafer is None else wafer
    _check_options(wafer, order, wafers, context, batch, prefill_chunk, chosen, grid)
    goal = _goal(objective, speed, grid, beside, wafer)
    decodes = not args and hasattr(model, "abstract_cache")
    if chosen.blocked and decodes:
        entries = timed_layers(model, waferllm.square(grid), context, batch)
        (decode,), (prefill,) = (_lower(e, [], wafer, wafers, chosen, goal) for e in entries)
        return TimedLayer(*decode, order, prefill=Executable(*prefill, order))
    if decodes:
        most = max(1, min(PREFILL_CHUNK // batch, context))
        chunks = [prefill_chunk] if prefill_chunk else [n for n in (most, most // 2, most // 4, most // 8) if n]
        chunked = [step(model, n, context, batch) for n in chunks]
        decode, prefill = _lower(step(model, 1, context, batch), chunked, wafer, wafers, chosen, goal)
        return LanguageModel(model, *decode, Executable(*prefill, order, (model,)), order, context, batch, again)
    entry = entry_of(model, args, weight_argnums)
    (lowered,) = _lower(entry, [], wafer, wafers, chosen, goal)
    bound = (model,) if jaxapi.is_nnx_module(model) else ()
    return Executable(*lowered, order, bound, entry.in_place)


@contextlib.contextmanager
def _no_pauses():
    """Nothing that the passes make is cyclic garbage: looking for it would take a third of their time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@_no_pauses()
def _lower(
    entry: Entry, others: list[Entry], wafer: Wafer, wafers: int | None, strategy: Strategy, goal: Goal
) -> list[tuple[Program, jaxapi.Traced]]:
    """The passes in order, for an entry and the first of `others` that fits beside it on the same regions: they share
    their weights."""
    first = _plan(entry, strategy)
    plans = Lazy(lambda i: _plan(others[i], strategy, first.planned), len(others))

    def search() -> dict:
        regions, which = place(first.planned, Lazy(lambda i: plans[i].planned, len(others)), wafer, wafers, goal)
        return {"regions": plancache.pack(regions), "which": which}

    def build(plan: dict) -> list[tuple[Program, jaxapi.Traced]]:
        regions = plancache.unpack(plan["regions"], wafers, goal)
        chosen = [(first, entry)]
        if others:
            chosen.append((plans[plan["which"]], others[plan["which"]]))
        normals, planned = [p.normal for p, _ in chosen], [p.planned for p, _ in chosen]
        programs = build_programs(normals, planned, regions, wafer, [e.conditions for _, e in chosen])
        check(programs)
        return [
            (replace(program, written=(p.written.jaxpr, p.written.consts)), p.traced)
            for program, (p, _) in zip(programs, chosen, strict=True)
        ]

    kept = [e.conditions.text for e in others]  # not their equations: a plan is checked against those when it is built
    key = plancache.key([first.planned.stages], strategy.name, wafer, wafers, goal, kept)
    return plancache.cached(key, search, build)


@dataclass(frozen=True)
class _Plan:
    """One entry after the passes that come before placement."""

    traced: jaxapi.Traced
    written: Normal
    normal: Normal
    planned: Planned


def _plan(entry: Entry, strategy: Strategy, leader: Planned | None = None) -> _Plan:
    """The passes before placement. The weights lie as the `leader` lays them."""
    traced = _trace(entry)
    closed = closed_over(entry.fn)
    written = normalize(traced, weight_leaves(entry), closed.keys())
    updates = find_updates(traced, written, entry.in_place)
    weights = updated_weights(written, updates, weight_leaves(entry))
    normal = rewrite(written, weights) if strategy.compiled else written
    roles = find_roles(normal, traced.arg_names, weights, updates, homes(written, updates, weights), closed)
    return _Plan(traced, written, normal, Planned(plan_stages(normal, roles), roles, strategy, leader))


def further_pass(exe: LanguageModel, tokens: int) -> Program:
    """The prefill program of another number of tokens, on the regions and with the weights of a compiled model.

    Raises FitError when it does not fit there.
    """
    _, found = again(exe, exe.context)(1, tokens)
    layouts = [[w.layout for s in p.stages for w in s.weights] for p in (exe.program, found)]
    if layouts[0] != layouts[1]:
        raise FitError(f"{tokens} tokens at a time do not fit these regions with the weights laid as they are")
    check([exe.program, found])
    return found


def again(exe: LanguageModel, context: int) -> Callable[..., list[Program]]:
    """What makes programs of a compiled model for another context, on its regions: called with numbers of tokens it
    returns a program for each; the first says how weights and state lie. It raises FitError when they do not fit."""
    wafer, regions = exe.program.wafer, [s.region for s in exe.program.stages]
    steps = {1: step(exe.model, 1, context, exe.batch)}
    with _no_pauses():
        plans = {1: _plan(steps[1], WSC)}

    def programs(*tokens: int) -> list[Program]:
        with _no_pauses():
            for n in tokens:
                if n not in plans:
                    steps[n] = step(exe.model, n, context, exe.batch)
                    plans[n] = _plan(steps[n], WSC, plans[1].planned)
            found = [plans[n] for n in tokens]
            for i, region in enumerate(regions):
                lead, *others = (p.planned.tile(i, region.grid, wafer) for p in found)
                alike = all(t.weights == lead.weights and t.states == lead.states for t in others)
                if not alike or max(t.colors for t in (lead, *others)) > wafer.colors:
                    raise FitError(f"{tokens} tokens at a time do not fit {region} with weights that lie alike for all")
            normals, planned = [p.normal for p in found], [p.planned for p in found]
            return build_programs(normals, planned, regions, wafer, [steps[n].conditions for n in tokens])

    return programs


def _goal(objective: str, speed: Any, grid: Any, beside: Any, wafer: Wafer) -> Goal:
    if objective not in OBJECTIVES:
        raise ArgumentError(f"objective is {objective!r}: it must be one of {', '.join(OBJECTIVES)}")
    if speed is not None and (objective != "users" or not isinstance(speed, int | float) or not 0 < speed < math.inf):
        raise ArgumentError(f"speed is {speed!r} tokens a second: a number above 0, for objective 'users' alone")
    start = (0, 0)
    if beside is not None:
        if not isinstance(beside, Executable) or beside.program.wafer != wafer:
            raise ArgumentError(f"beside is {beside!r}: it must be an executable compiled for the same {wafer.name}")
        regions = [s.region for s in beside.program.stages]
        last = max(r.wafer for r in regions)
        start = (last, max(r.y + r.height for r in regions if r.wafer == last))
    return Goal(objective, float(speed or 0.0), pair(grid) if grid is not None else None, start)


def _strategy(name: str) -> Strategy:
    if name not in STRATEGIES:
        raise ArgumentError(f"strategy is {name!r}: it must be one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def _check_options(wafer: Any, order, wafers, context, batch, prefill_chunk, strategy: Strategy, grid: Any) -> None:
    if not isinstance(wafer, Wafer):
        raise ArgumentError(f"wafer is {wafer!r}: it must be a wsc.Wafer, such as wsc.WSE3")
    if order not in ORDERS:
        raise ArgumentError(f"order is {order!r}: it must be one of {', '.join(ORDERS)}")
    for name, value in (("wafers", wafers), ("context", context), ("batch", batch), ("prefill_chunk", prefill_chunk)):
        if (value is not None or name not in ("wafers", "prefill_chunk")) and (not isinstance(value, int) or value < 1):
            raise ArgumentError(f"{name} is {value!r}: it must be a whole number of at least 1")
    if prefill_chunk is not None and prefill_chunk > context and not strategy.blocked:
        raise ArgumentError(f"prefill_chunk is {prefill_chunk}, more than the context of {context}: make it smaller")
    if strategy.blocked:
        waferllm.square(grid)
    if grid is not None:
        rows, columns = pair(grid)
        if rows > wafer.rows or columns > wafer.columns:
            raise ArgumentError(f"grid is {grid!r} PEs, and a {wafer.name} has {wafer.rows} x {wafer.columns}")


def _trace(entry: Entry) -> jaxapi.Traced:
    """Trace with JAX; whatever it has to say about the function is said as a TraceError."""
    try:
        return jaxapi.trace(entry.fn, entry.args)
    except WscError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TraceError(
            f"JAX could not trace {getattr(entry.fn, '__name__', entry.fn)!r} with these arguments: "
            f"{type(error).__name__}: {first}. Check that it runs under jax.jit with arrays of these shapes and dtypes."
        ) from error
