"""Equal inputs give equal programs: whatever the hashes and addresses of a process, with and without kept plans."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import hashlib, json, sys
import jax, jax.numpy as jnp
import wsc
from helpers import small
from wsc.models import Llama, LlamaConfig

ones = lambda *shape: jnp.ones(shape, jnp.float32)

def mlp(p, x):
    h = jax.nn.relu(x @ p["a"]["w"])
    g = jnp.tanh(h @ p["b"]["w"]) + jnp.arange(24.0)
    return {"y": g @ p["c"]["w"], "sums": h.sum(-1), "view": p["a"]["w"].T, "both": h.T @ g}

def relaid(w, x, y):  # values brought into several layouts for one op, of different lifetimes
    p = y @ x
    q = jnp.cumsum(y, 0) - p.T
    return p, q, p.T @ x, jax.nn.softmax(x, 0) * x

tiny = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
weights = {n: {"w": ones(24, 24)} for n in "abc"}
square = ones(8, 8)
junk = []

def compiled():
    llama = wsc.compile(Llama.abstract(tiny), context=16, wafer=small(12, 12, 1 << 17))
    yield from (("decode", llama), ("prefill", llama.prefill))
    yield "mlp", wsc.compile(mlp, weights, ones(4, 24), wafer=small(24, 24, 16384), weight_argnums=0)
    for n in range(8):  # a stray order would come out the same by chance once in two
        junk.append([object() for _ in range(997 * int(sys.argv[1]) + 101 * n)])  # other addresses
        yield f"relaid {n}", wsc.compile(relaid, square, square, square, wafer=small(12, 12, 4096), weight_argnums=0)

found = {}
for name, exe in compiled():
    found[name] = {"text": exe.as_text(), "cost": json.dumps(exe.cost_analysis())}
print(json.dumps({"programs": found, "of_seed": hash("a string")}))
"""


def run(seed: int, plans: str) -> dict:
    """What a process of that hash seed says of its programs; `plans` is where it keeps plans."""
    env = os.environ | {"PYTHONHASHSEED": str(seed), "WSC_PLAN_CACHE": plans, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", SCRIPT, str(seed)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plans(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def cold(plans) -> dict:
    return run(0, str(plans))


def test_a_process_with_other_hashes_and_no_plans(cold):
    other = run(123, "0")
    assert other["of_seed"] != cold["of_seed"]
    assert list(other["programs"]) == list(cold["programs"])
    for name, figures in cold["programs"].items():
        assert other["programs"][name] == figures, name
    relaid = [figures for name, figures in cold["programs"].items() if name.startswith("relaid")]
    assert relaid == [relaid[0]] * 8


def test_a_process_with_other_hashes_and_kept_plans(cold, plans):
    before = {f.name: f.stat().st_mtime_ns for f in plans.iterdir()}
    assert len(before) == 3  # the Llama's two programs share one
    warm = run(123, str(plans))
    assert {f.name: f.stat().st_mtime_ns for f in plans.iterdir()} == before  # found by its keys, nothing kept anew
    assert warm["programs"] == cold["programs"]
