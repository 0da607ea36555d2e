"""What planning a whole model costs: compiled from nothing, with its plan kept from before, and tracing alone; and
beside ZigZag's search for mappings of one layer's seven GEMMs: `pytest benchmarks/test_plan.py --benchmark-only -s`.

Every figure is of a fresh process that does nothing else; on a busy machine its CPU time says more than the clock.
ZigZag is no dependency: `pip install zigzag-dse==3.9.1 six`, here or elsewhere, ZIGZAG_PYTHON naming that Python. It
searches loop orders and levels of memory for each GEMM alone, on a 32 x 32 systolic array with shared SRAM; wsc cuts,
places and costs every equation of the model on a wafer. The ratio is of waiting times, not of results.
"""

import json
import os
import statistics
import subprocess
import sys

import pytest

BARS = {"llama-3.1-8b": 6.0, "llama-3.1-70b": 10.0, "llama-3.1-405b": 15.0}  # seconds to compile from nothing
CACHED_BAR = 1.0  # seconds that a kept plan may take beyond tracing
PEAK_BAR = 2e9  # bytes

# The clock starts after the imports. `trace` is what JAX alone does for the two programs of a language model.
SCRIPT = """
import json, resource, sys, time
import jax, jax.numpy as jnp
import wsc

what, name = sys.argv[1:]
model = wsc.models.Llama.abstract(name)
begin, cpu = time.perf_counter(), time.process_time()
if what == "trace":
    cache = model.abstract_cache(batch=1, context=2048)
    for tokens in (1, 8):
        ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
        jax.jit(lambda model, ids, cache: model(ids, cache)).trace(model, ids, cache)
else:
    exe = wsc.compile(model)
seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
try:  # of this process; what getrusage says can be its parent's
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
found = {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak}
if what != "trace":
    found |= {"cycles": exe.cost_analysis()["cycles"], "conditions": exe.program.conditions}
print(json.dumps(found))
"""

# GEMMs of one layer of Llama 3.1-8B, one token: inputs and outputs of each weight. Precisions are those of ZigZag's own
# examples. Nothing but the search is timed: no pictures, no pickles.
ZIGZAG = """
import json, logging, sys, time
from pathlib import Path
import zigzag.api
from zigzag.api import get_hardware_performance_zigzag

for stage in ("VisualizationStage", "SimpleSaveStage", "PickleSaveStage", "CompleteSaveStage"):
    setattr(zigzag.api, stage, None)  # the API leaves out what is None
logging.disable(logging.CRITICAL)
inputs = Path(zigzag.api.__file__).parent / "inputs"
gemms = {
    "q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096),
    "gate": (4096, 14336), "up": (4096, 14336), "down": (14336, 4096),
}
precision = {"W": 8, "I": 8, "O": 16, "O_final": 8}

def search(names):
    layers = [
        {
            "id": i, "name": name, "operator_type": "Gemm", "equation": "O[b][k]+=W[c][k]*I[b][c]",
            "loop_dims": ["B", "K", "C"], "loop_sizes": [1, gemms[name][1], gemms[name][0]],
            "operand_precision": precision, "operand_source": {"I": i, "W": i},
        }
        for i, name in enumerate(names)
    ]
    begin, cpu = time.perf_counter(), time.process_time()
    _, cycles, found = get_hardware_performance_zigzag(
        layers, str(inputs / "hardware/tpu_like.yaml"), str(inputs / "mapping/tpu_like.yaml"),
        opt="latency", dump_folder=sys.argv[1], loma_show_progress_bar=False,
    )
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    assert len(found[0][1]) == len(names), found
    return {"seconds": seconds, "cpu_seconds": cpu, "cycles": float(cycles)}

print(json.dumps({"seven": search(list(gemms)), "distinct": search(["q", "k", "gate", "down"])}))
"""


def apart(command: list[str], plans: str = "0") -> dict:
    """What a process says that does nothing else; `plans` is where it keeps plans."""
    env = os.environ | {"WSC_PLAN_CACHE": plans}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def measure(what: str, name: str, plans: str = "0") -> dict:
    return apart([sys.executable, "-c", SCRIPT, what, name], plans)


@pytest.mark.parametrize("name", BARS)
def test_plan(benchmark, tmp_path, name):
    # The benchmark's own figure is the whole process, imports included; `seconds` leave them out.
    plans = str(tmp_path / "plans")
    cold = benchmark.pedantic(measure, args=("compile", name, plans), rounds=1)
    cached, trace = measure("compile", name, plans), measure("trace", name)
    assert cached["cycles"] == cold["cycles"]
    beyond = {k: cached[k] - trace[k] for k in ("seconds", "cpu_seconds")}
    benchmark.extra_info.update({"cold": cold, "cached": cached, "trace": trace})
    print(f"\n{name}, {cold['conditions']}; load average {os.getloadavg()[0]:.2f}")
    rows = (
        ("compiled from nothing", cold, f"bar {BARS[name]:.0f} s, {cold['seconds'] / BARS[name]:.2f} of it"),
        ("with a kept plan", cached, ""),
        ("JAX's tracing alone", trace, ""),
        ("kept plan, beyond tracing", beyond, f"bar {CACHED_BAR:.0f} s, {beyond['seconds'] / CACHED_BAR:.2f} of it"),
    )
    for row, took, bar in rows:
        print(f"{row:26s}{took['seconds']:8.2f} s, {took['cpu_seconds']:6.2f} s of CPU; {bar}".rstrip("; "))
    peak = cold["peak_bytes"]
    print(f"{'peak memory':26s}{peak / 1e6:8,.0f} MB; bar {PEAK_BAR / 1e6:,.0f} MB, {peak / PEAK_BAR:.2f} of it")


@pytest.fixture(scope="module")
def zigzag() -> str:
    """A Python that has ZigZag."""
    found = os.environ.get("ZIGZAG_PYTHON", sys.executable)
    if subprocess.run([found, "-c", "import zigzag.api"], capture_output=True, check=False).returncode:
        pytest.skip("ZigZag is not installed: pip install zigzag-dse==3.9.1 six, or set ZIGZAG_PYTHON")
    return found


def test_beside_zigzag(zigzag, benchmark, tmp_path):
    # In turns, so that noise of the machine hits both alike.
    theirs = []
    ours = []
    benchmark.pedantic(
        lambda: ours.append(measure("compile", "llama-3.1-8b")),
        setup=lambda: theirs.append(apart([zigzag, "-c", ZIGZAG, str(tmp_path)])),
        rounds=3,
    )
    benchmark.extra_info.update({"wsc": ours, "zigzag": theirs})
    print(f"\nmedians of 3, load average {os.getloadavg()[0]:.2f}; wsc: {ours[0]['conditions']}, and prefill")
    for kind, clock in (("seconds", "s"), ("cpu_seconds", "s of CPU")):
        whole = statistics.median(r[kind] for r in ours)
        seven, distinct = (statistics.median(r[of][kind] for r in theirs) for of in ("seven", "distinct"))
        print(f"ZigZag, 7 GEMMs of one layer  {seven:6.2f} {clock}, the 4 distinct ones {distinct:.2f}")
        print(f"wsc, the whole of 8B          {whole:6.2f} {clock}, nothing kept")
        print(f"ZigZag / wsc                  {seven / whole:6.2f}, of the distinct ones {distinct / whole:.2f}")
