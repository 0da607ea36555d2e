"""What a datasheet roofline says of Llama 3.1-8B on a WSE-3, beside wsc and the published service: decode on a wafer is
bound by latency, which no roofline has.

GenZ is no dependency: `pip install genz-llm==0.0.16`, here or elsewhere with GENZ_PYTHON naming that Python.
"""

import json
import os
import subprocess
import sys

import pytest

import wsc

PUBLISHED = 1_800  # tokens/s for one user, Cerebras, August 2024
PEAK_TFLOPS, BYTES_PER_SECOND, GIGABYTES = 125e3, 21e15, 44  # WSE-3 datasheet
WEIGHT_BYTES = 16.06e9
GIB = 2**30  # GenZ's unit of bandwidth, whatever it calls it

# Twice: attention scores at GenZ's default on-chip bandwidth, a GPU's 18 TB/s, and at that of the datasheet.
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from GenZ import System, decode_moddeling
context, flops, bandwidth, size = int(sys.argv[1]), *map(float, sys.argv[2:])
kinds = {"default": {}, "datasheet": {"onchip_mem_bw": bandwidth}}
found = {}
for name, options in kinds.items():
    system = System(flops=flops, offchip_mem_bw=bandwidth, off_chip_mem_size=size * 1024, bits="bf16", **options)
    out = decode_moddeling(
        model="meta-llama/meta-llama-3.1-8b", batch_size=1, input_tokens=context, output_tokens=0, Bb=1,
        system_name=system, bits="bf16",
    )
    found[name] = float(out["Throughput"])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has GenZ."""
    found = os.environ.get("GENZ_PYTHON", sys.executable)
    if subprocess.run([found, "-c", "import GenZ"], capture_output=True, check=False).returncode:
        pytest.skip("GenZ is not installed: pip install genz-llm==0.0.16, or set GENZ_PYTHON")
    return found


def genz(python: str, context: int) -> dict[str, float]:
    """Tokens/s by GenZ's roofline, one user, bf16, with each on-chip bandwidth."""
    numbers = (context, PEAK_TFLOPS, BYTES_PER_SECOND / GIB, GIGABYTES)
    done = subprocess.run([python, "-c", SCRIPT, *map(str, numbers)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("context", [2048, 8192])
def test_roofline(python, benchmark, context):
    exe = benchmark.pedantic(
        wsc.compile, args=(wsc.models.Llama.abstract("llama-3.1-8b"),), kwargs={"context": context}, rounds=1
    )
    roofline = genz(python, context)
    rows = {
        "datasheet: bandwidth / weights": BYTES_PER_SECOND / WEIGHT_BYTES,
        "GenZ, datasheet on-chip bandwidth": roofline["datasheet"],
        "GenZ, default on-chip bandwidth": roofline["default"],
        "wsc": exe.cost_analysis()["tokens_per_second"],
        "published": PUBLISHED,
    }
    benchmark.extra_info.update(rows | {"conditions": exe.program.conditions})
    print(f"\nLlama 3.1-8B on one WSE-3, {exe.program.conditions}")
    for name, rate in rows.items():
        print(f"{name:34s}{rate:12,.0f} tokens/s, {rate / PUBLISHED:8.2f} x published")
