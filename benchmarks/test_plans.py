"""What the planner finds, a row a claim, each beside the figure it is held to: `pytest benchmarks/test_plans.py
--benchmark-only -s`. All figures are modelled; nothing is asserted about them here.

WaferLLM's mapping is costed by the same machine model on the same WSE-2, at the best of the grids tried, its own
published ones among them (420, 540, 660), context 4096, one user.
"""

import pytest

import wsc
from wsc.errors import FitError
from wsc.models import Llama

GRIDS = (180, 240, 300, 360, 420, 480, 540, 600, 660)
PUBLISHED_70B, PUBLISHED_8B, PUBLISHED_405B = 450.0, 1800.0, 969.0  # tokens/s of a commercial service


def show(text: str) -> None:
    print(f"\n  {text}")


def speed(exe) -> float:
    return 1 / float(exe.telemetry.seconds)


@pytest.fixture
def once(benchmark):
    return lambda fn: benchmark.pedantic(fn, rounds=1, iterations=1)


def test_8b_near_its_bound(once):
    exe = once(lambda: wsc.compile(Llama.abstract("llama-3.1-8b"), wafers=1, context=8192))
    bound = wsc.lower_bound(exe)
    show(f"8B, {exe.program.conditions}: {speed(exe):,.0f} tokens/s (bar {PUBLISHED_8B:,.0f}, published service)")
    show(f"{bound.ratio:.2f} of its lower bound (bar 1.6)")


@pytest.mark.parametrize(
    ("name", "wafers"), [("llama-3-8b", 6), ("llama-2-13b", 7), ("codellama-34b", 24)], ids=lambda v: str(v)
)
def test_beside_waferllm(once, name, wafers):
    """`wafers` are those that WaferLLM's regions would take: layers over the whole squares on a wafer."""
    model = Llama.abstract(name)
    ours = once(lambda: wsc.compile(model, wafer=wsc.WSE2, wafers=wafers, context=4096))
    theirs = {}
    for grid in GRIDS:
        try:
            layer = wsc.compile(model, strategy="waferllm", wafer=wsc.WSE2, grid=(grid, grid), context=4096)
            theirs[grid] = float(layer.telemetry.cycles_per_layer)
        except FitError:
            continue
    grid = min(theirs, key=lambda g: theirs[g])
    mine = float(ours.telemetry.cycles_per_layer)
    show(
        f"{name}: {mine:,.0f} cycles a layer on {ours.program.layer.region.grid} PEs of {ours.program.wafers} WSE-2, "
        f"WaferLLM's mapping {theirs[grid]:,.0f} on {grid} x {grid}: {theirs[grid] / mine:.2f} times faster (bar 1.5)"
    )


def test_70b_on_four(once):
    model = Llama.abstract("llama-3.1-70b")
    with pytest.raises(FitError) as refused:
        wsc.compile(model, wafers=3, context=8192)
    exe = once(lambda: wsc.compile(model, wafers=4, context=8192))
    show(f"70B on three: {refused.value}")
    show(
        f"70B on {exe.program.wafers}: {speed(exe):,.0f} tokens/s (bar {PUBLISHED_70B:,.0f}), {exe.program.conditions}"
    )


def test_405b(once):
    exe = once(lambda: wsc.compile(Llama.abstract("llama-3.1-405b"), context=8192))
    first = exe.first_token(1024)
    show(
        f"405B: {exe.program.wafers} wafers (at least 19), {speed(exe):,.0f} tokens/s without a draft model (published "
        f"with one: {PUBLISHED_405B:,.0f}), first token of 1,024 after {float(first.seconds):.2f} s (published 0.24)"
    )


def test_users(once):
    def measure():
        exe = wsc.compile(Llama.abstract("llama-3.1-8b"), wafers=1, context=8192, objective="users", speed=1000.0)
        return exe, exe.capacity((8192,))

    exe, capacity = once(measure)
    stages = len(exe.program.stages)
    flat = exe.user_speed(stages) / exe.user_speed(1)
    show(f"8B, users at 8,192 tokens (bar 26 +- 3 by bytes beside 16-bit weights): {capacity.as_dict()}")
    show(f"speed of each of {stages} users, as many as stages: {flat:.2f} of one user's")


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b"])
def test_dead_pes(once, name):
    model = Llama.abstract(name)
    worn = once(lambda: wsc.compile(model, wafer=wsc.WSE3.with_defects(0.015, seed=0), context=8192))
    whole = wsc.compile(model, wafers=worn.program.wafers, context=8192)
    slower = speed(whole) / speed(worn) - 1
    show(f"{name}, 1.5 % dead PEs: {worn.program.wafers} wafers, {100 * slower:+.1f} % time a token (bar 5 %)")
