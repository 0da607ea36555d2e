"""Programs of every kind on this computer: plain `jax.jit`, and calls of the executables of both orders, telemetry
included, one after another in every round, so that noise of the machine hits all alike.

`pytest benchmarks/test_models.py --benchmark-only -s` prints a row a program, and what is beyond its bar.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable

import jax
import pytest
from flax import nnx
from models import CASES, Case

import wsc
from wsc.lowering import jaxapi

BARS = {"xla": 1.1, "fabric": 2.0}  # times the time of plain JAX
SECONDS, LEAST, MOST = 4.0, 8, 300  # a program is timed for so long, in so many rounds


def plain(case: Case) -> Callable[[], object]:
    """What JAX does without wsc. A module's weights are flat, so that no time is spent on taking it apart."""
    if case.in_place:
        step, args = nnx.jit(case.call), copy.deepcopy(case.args)
        return lambda: (step(*args), [jax.tree.leaves(a) for a in args])
    if not jaxapi.is_nnx_module(case.call):
        jitted = jax.jit(case.call)
        return lambda: jitted(*case.args)
    weights, tree = jax.tree.flatten(case.call)
    jitted = jax.jit(lambda weights, *args: jax.tree.unflatten(tree, weights)(*args))
    return lambda: jitted(weights, *case.args)


def placed(case: Case, order: str) -> Callable[[], object]:
    """The executable's own call."""
    if case.in_place:
        args = copy.deepcopy(case.args)
        exe = wsc.compile(case.call, *args, order=order)
        return lambda: (exe(*args), [jax.tree.leaves(a) for a in args])
    if hasattr(case.call, "abstract_cache"):  # a language model
        exe = wsc.compile(case.call, order=order, context=256)
        return lambda: exe(*case.args)[0]
    exe = wsc.compile(case.call, *case.args, order=order, weight_argnums=case.weights)
    return lambda: exe(*case.args)[0]


def seconds_of(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready([a for a in jax.tree.leaves(call()) if isinstance(a, jax.Array)])
    return time.perf_counter() - begin


@pytest.fixture(scope="module")
def heading() -> None:
    print(f"\n\nms a call, best (and median); load average of a minute last; {os.cpu_count()} cores")
    print(f"{'':42s}{'jit':>16s}{'xla':>16s}{'fabric':>18s}{'xla / jit':>15s}{'fabric / jit':>15s}  load")


@pytest.mark.parametrize("name", CASES)
def test_model(benchmark, heading, name):
    # The benchmark's own figure is the fabric order; the others run in the setup of each round.
    case = CASES[name]()
    calls = {"jit": plain(case)} | {order: placed(case, order) for order in BARS}
    for call in calls.values():
        seconds_of(call)  # compiles
    once = sum(seconds_of(call) for call in calls.values())
    rounds = round(min(MOST, max(LEAST, SECONDS / once)))
    times: dict[str, list[float]] = {n: [] for n in calls}

    def others():
        for other in ("jit", "xla"):
            times[other].append(seconds_of(calls[other]))

    benchmark.pedantic(lambda: times["fabric"].append(seconds_of(calls["fabric"])), setup=others, rounds=rounds)
    best, median = ({n: f(t) for n, t in times.items()} for f in (min, statistics.median))
    ratios = {order: (best[order] / best["jit"], median[order] / median["jit"]) for order in BARS}
    figures = [f"{best[n] * 1e3:7.2f} ({median[n] * 1e3:6.2f})" for n in calls]
    beyond = [f" {order} beyond {bar}" for order, bar in BARS.items() if ratios[order][0] > bar]
    figures += [f"{r:6.2f} ({m:5.2f})" for r, m in ratios.values()]
    load = f"{os.getloadavg()[0]:6.2f}"
    print("".join((f"{name:42s}", *(f"{f:>15s} " for f in figures), load, *beyond)), flush=True)
    benchmark.extra_info.update({"load_average": os.getloadavg(), "ratios": ratios, "rounds": rounds})
