"""Figures of a run against sums done by hand."""

import itertools
import math

import jax.numpy as jnp
import pytest
from helpers import normal, small

import wsc
from wsc.models import Llama, LlamaConfig

KEYS = (
    "flops", "bytes accessed", "cycles", "cycles_per_layer", "seconds", "tokens_per_second", "hops", "wavelets",
    "sram_bytes", "fabric_bytes", "energy_joules",
)  # fmt: skip
CAUSES = ("latency", "serial", "arithmetic", "overhead", "links")


def residual(params, x):
    for layer in params["blocks"]:
        x = x + (x @ layer["a"]) @ layer["b"]
    return x


def blocks(count: int, d: int = 24, f: int = 32):
    return {"blocks": [{"a": normal(d, f, seed=i), "b": normal(f, d, seed=i)} for i in range(count)]}


@pytest.fixture(scope="module")
def one_dot():
    w, x = normal(33, 47), normal(3, 33)
    return wsc.compile(lambda w, x: x @ w, w, x, wafer=small(24, 24), weight_argnums=0)


def test_flat_dict_of_floats(one_dot):
    found = one_dot.cost_analysis()
    assert set(KEYS) <= found.keys()
    assert all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in found.values())
    assert found == one_dot.telemetry.as_dict()


def test_flops_of_a_product(one_dot):
    """2 M N K, whatever the number of PEs."""
    assert one_dot.cost_analysis()["flops"] == 2 * 3 * 47 * 33


@pytest.mark.parametrize("formula", ["bij,bjk->bik", "bij,bkj->bik", "ij,kjl->ikl"])
def test_flops_of_einsums(formula):
    left, right = normal(4, 6, 8)[:, :, :8], normal(4, 8, 8)
    left = left[0] if formula.startswith("ij") else left
    expected = 2 * 4 * 6 * 8 * 8
    exe = wsc.compile(lambda w, x: jnp.einsum(formula, x, w), right, left, weight_argnums=0)
    dots = [op for _, op in exe.program.ops() if op.name == "dot_general"]
    assert sum(exe.telemetry.of(op).flops for op in dots) == expected


def test_derived_figures(one_dot):
    found, wafer = one_dot.cost_analysis(), one_dot.program.wafer
    assert found["seconds"] == pytest.approx(found["cycles"] / wafer.clock_hz)
    assert found["tokens_per_second"] == pytest.approx(1 / found["seconds"])
    assert found["fabric_bytes"] == 4 * found["wavelets"]
    assert found["bytes accessed"] == found["sram_bytes"]
    assert found["pes"] == sum(s.region.height * s.region.width for s in one_dot.program.stages)


def test_energy_is_idle_power_over_time_and_work(one_dot):
    found = one_dot.cost_analysis()
    idle = 16100 * found["seconds"]
    fabric = found["hops"] * 32 * 0.1e-12
    assert found["energy_joules"] == pytest.approx(idle + found["dynamic_energy_joules"])
    assert found["dynamic_energy_joules"] == pytest.approx(fabric + one_dot.telemetry.total.busy * 27e-12)


def test_host_link_bytes(one_dot):
    """The input [3, 33] in, the result [3, 47] out, four bytes each."""
    assert one_dot.cost_analysis()["link_bytes"] == 4 * (3 * 33 + 3 * 47)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_causes_sum_to_the_cycles_of_the_critical_path(count):
    exe = wsc.compile(residual, blocks(count), normal(1, 24), wafer=small(24, 24, 2048))
    found = exe.cost_analysis()
    assert sum(found[f"cycles_{c}"] for c in CAUSES) == pytest.approx(found["cycles"], rel=1e-3)


def test_causes_sum_with_branches_and_several_inputs():
    def fn(p, a, b):
        left, right = a @ p["left"]["w"], b @ p["right"]["w"]
        return left @ p["join"]["w"] + right, right

    p = {n: {"w": normal(32, 32, seed=i)} for i, n in enumerate(("left", "right", "join"))}
    exe = wsc.compile(fn, p, normal(1, 32), normal(1, 32, seed=9), wafer=small(24, 24, 2048))
    found = exe.cost_analysis()
    assert len(exe.program.stages) > 1
    assert sum(found[f"cycles_{c}"] for c in CAUSES) == pytest.approx(found["cycles"], rel=1e-3)


def test_stages_start_when_their_input_is_there():
    exe = wsc.compile(residual, blocks(3), normal(1, 24), wafer=small(24, 24, 2048))
    times = exe.telemetry.times
    for before, after in itertools.pairwise(times):
        assert min(after.arrivals) > before.finish > before.start == max(*before.arrivals, before.control)
    assert exe.telemetry.cycles >= times[-1].finish


def test_twice_the_layers_take_twice_as_long():
    config = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2
    }  # fmt: skip
    found = {}
    for layers in (1, 2, 4):
        model = Llama.abstract(LlamaConfig(num_hidden_layers=layers, **config))
        exe = wsc.compile(model, context=64, prefill_chunk=4, wafer=small(40, 40, 32768))
        found[layers] = exe.cost_analysis()
    flops = [found[n]["flops"] for n in (1, 2, 4)]
    assert flops[2] - flops[1] == pytest.approx(2 * (flops[1] - flops[0]), rel=1e-3)
    more = found[4]["cycles"] - found[2]["cycles"]
    assert more == pytest.approx(2 * found[4]["cycles_per_layer"], rel=0.3)
    ratio = found[4]["cycles"] / found[2]["cycles"]
    assert 1.5 < ratio < 2.2  # embedding and head do not grow; a layer's share of a small wafer shrinks


def test_rows_of_ops_add_up(one_dot):
    rows = one_dot.telemetry.ops()
    (dot,) = [r for r in rows if r["op"] == "dot_general"]
    assert dot["weights"] == ["w"] and "test_telemetry.py" in dot["source"]
    assert dot["cycles"] == pytest.approx(sum(dot[c] for c in CAUSES))
    assert sum(r["flops"] for r in rows) == one_dot.cost_analysis()["flops"]


def test_the_wafers_clock_changes_time_and_not_cycles():
    def seconds(clock):
        exe = wsc.compile(
            lambda w, x: x @ w, normal(33, 47), normal(3, 33), weight_argnums=0,
            wafer=small(24, 24, clock_hz=clock, host_bytes_per_second=150 * clock),
        )  # fmt: skip
        return exe.cost_analysis()["cycles"], exe.cost_analysis()["seconds"]

    (slow, long), (fast, short) = seconds(1e9), seconds(2e9)
    assert slow == pytest.approx(fast) and long == pytest.approx(2 * short)


def test_repr(one_dot):
    assert "cycles" in repr(one_dot.telemetry) and "small" in repr(one_dot.telemetry)
