"""One decode step on this computer: plain `jax.jit`, and the placed program in both orders. Run one after another in
every round, so that noise of the machine hits all alike."""

import os
import statistics
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import wsc
from wsc.models import Llama, LlamaConfig

SMALL = LlamaConfig(
    vocab_size=32_000, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6
)


def stepper(step, weights, cache):
    """() -> seconds of one step; the cache is donated, so each contestant keeps its own."""
    tokens = jnp.ones((1, 1), jnp.int32)
    held = jax.tree.leaves(cache)

    def run() -> float:
        nonlocal held
        begin = time.perf_counter()
        _, *held = jax.block_until_ready(step(weights, tokens, held))
        return time.perf_counter() - begin

    run()  # compiles
    return run


def contestants(model: Llama, context: int) -> dict:
    """Name -> stepper, all over the same weights."""
    weights, tree = jax.tree.flatten(model)
    cache_tree = jax.tree.structure(model.abstract_cache(context=context))

    def plain(weights, tokens, cache):
        return jax.tree.leaves(jax.tree.unflatten(tree, weights)(tokens, jax.tree.unflatten(cache_tree, cache)))

    steps = {"jit": jax.jit(plain, donate_argnums=2)}
    steps |= {order: wsc.compile(model, context=context, order=order).decoder for order in ("xla", "fabric")}
    return {name: stepper(step, weights, model.init_cache(context=context)) for name, step in steps.items()}


def compare(benchmark, model: Llama, context: int, rounds: int) -> None:
    """The benchmark's own figure is the fabric order; the others run in the setup of each round."""
    runs = contestants(model, context)
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def others():
        for name in ("jit", "xla"):
            seconds[name].append(runs[name]())

    benchmark.pedantic(lambda: seconds["fabric"].append(runs["fabric"]()), setup=others, rounds=rounds)
    load = os.getloadavg()
    print(f"\nload average {load[0]:.2f} {load[1]:.2f} {load[2]:.2f}, {rounds} rounds, context {context}")
    for name, times in seconds.items():
        print(f"{name:7s} best {min(times) * 1e3:7.2f} ms, median {statistics.median(times) * 1e3:7.2f} ms")
    info = {"load_average": load}
    for name in ("xla", "fabric"):
        best = min(seconds[name]) / min(seconds["jit"])
        median = statistics.median(seconds[name]) / statistics.median(seconds["jit"])
        print(f"{name} / jit: best {best:.3f}, median {median:.3f}")
        info |= {f"{name}_ratio_best": best, f"{name}_ratio_median": median}
    benchmark.extra_info.update(info)


@pytest.fixture(scope="module")
def smollm2() -> Llama:
    try:
        return wsc.models.load("smollm2-135m", progress=False)[0]
    except wsc.DownloadError as error:
        pytest.skip(f"SmolLM2-135M cannot be fetched: {error}")


def test_decode_smollm2(smollm2, benchmark):
    compare(benchmark, smollm2, context=2048, rounds=40)


def test_decode_random_15m(benchmark):
    compare(benchmark, Llama(SMALL, rngs=nnx.Rngs(0)), context=256, rounds=200)
