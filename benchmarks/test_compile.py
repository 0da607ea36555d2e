"""Compile time and peak memory of `wsc.compile`, each in a fresh process: JAX caches what it has traced."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys, time
import jax, jax.numpy as jnp
import wsc

name = sys.argv[1]
if name == "function":
    half = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float16)
    what = (lambda w, x: jax.nn.silu(x @ w[0]) @ w[1], [half(4096, 14336), half(14336, 4096)], half(1, 4096))
    options = {"weight_argnums": 0}
else:
    what, options = (wsc.models.Llama.abstract(name),), {}
begin = time.perf_counter()
exe = wsc.compile(*what, **options)
seconds = time.perf_counter() - begin
cost = exe.cost_analysis()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
figures = {"compile_seconds": seconds, "peak_bytes": peak, "conditions": exe.program.conditions}
print(json.dumps(figures | {k: cost[k] for k in ("cycles", "tokens_per_second", "wafers")}))
"""


def compile_apart(name: str) -> dict:
    """What a process that does nothing else measures."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["function", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"])
def test_compile(benchmark, name):
    # The benchmark's own figure is the whole process, imports included; `compile_seconds` is wsc.compile alone.
    found = benchmark.pedantic(compile_apart, args=(name,), rounds=1)
    benchmark.extra_info.update(found)
    print(
        f"\n{name}: compiled in {found['compile_seconds']:.2f} s, peak {found['peak_bytes'] / 1e6:,.0f} MB; "
        f"{found['cycles']:,.0f} cycles, {found['tokens_per_second']:,.0f} /s on {found['wafers']:.0f} wafers "
        f"({found['conditions']})"
    )
