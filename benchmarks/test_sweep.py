"""Ten thousand wafers for one compiled program: `pytest benchmarks/test_sweep.py --benchmark-only -s`.

The peer in the same run is a Python loop over the plain closed forms, on as many points as take it a second or so.
"""

import dataclasses
import time

import numpy as np

import wsc

POINTS = 10_000


def test_sweep_of_8b_decode(benchmark):
    exe = wsc.compile(wsc.models.Llama.abstract("llama-3.1-8b"), context=8192)
    rng = np.random.default_rng(0)
    numbers = {
        "clock_hz": rng.uniform(0.5e9, 2e9, POINTS),
        "hop_cycles": rng.uniform(0.5, 3, POINTS),
        "deliver_cycles": rng.uniform(0.5, 3, POINTS),
        "lanes16": rng.uniform(2, 32, POINTS),
        "link_wavelets_per_cycle": rng.uniform(0.5, 4, POINTS),
    }
    found = benchmark.pedantic(lambda: wsc.sweep(exe, **numbers), rounds=1)  # tracing and XLA included
    begin = time.perf_counter()
    for i in range(20):
        wafer = dataclasses.replace(wsc.WSE3, **{n: float(v[i]) for n, v in numbers.items()})
        np.testing.assert_allclose(found[i], exe.seconds_on(wafer), rtol=1e-6)
    loop = (time.perf_counter() - begin) / 20 * POINTS
    whole = benchmark.stats.stats.min
    print(f"\n{POINTS:,} wafers: {whole:.2f} s by vmap, {loop:.0f} s one by one: {loop / whole:.0f} times as fast")
