"""The plan of a compiled language model: sums over its stages, and WaferLLM's layer beside it."""

import json

import pytest
from helpers import normal, small

import wsc
from wsc.models import Llama, LlamaConfig
from wsc.plan_report import KINDS

TINY = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2)


@pytest.fixture(scope="module")
def exe():
    return wsc.compile(Llama.abstract(TINY, dtype="float32"), wafer=small(40, 40, 12288), context=64)


@pytest.fixture(scope="module")
def plan(exe):
    return wsc.plan_report(exe, contexts=[128, 64, 32])


def test_sram_of_the_fullest_pe_by_kind(exe, plan):
    rows = plan.sram()
    fullest = max(rows.values(), key=lambda r: sum(r[kind] for kind in KINDS))
    assert sum(fullest[kind] for kind in KINDS) == exe.memory_analysis().fullest_pe_bytes
    assert set(rows) >= {"layers[0]"}
    for row in rows.values():
        assert row["free"] == 12288 + 1024 - sum(row[kind] for kind in KINDS)
        assert row["code"] == 1024


def test_figures(exe, plan):
    found = plan.as_dict()
    assert found["conditions"] == exe.conditions
    assert (found["wafers"], found["stages"], found["layers_alike"]) == (1, 5, 3)
    assert found["pes"] == sum(s.region.height * s.region.width for s in exe.program.stages) < found["pes_of_wafers"]
    assert found["throughput"] == pytest.approx(found["users"] * found["tokens_per_second_at_capacity"])
    assert found["first_token"]["prompt_tokens"] == 32
    assert [r["context"] for r in found["capacity"]] == [32, 64, 128]
    bound = found["lower_bound"]
    assert bound["ratio"] == pytest.approx(exe.telemetry.cycles / bound["cycles"])
    assert sum(bound["gap"].values()) == pytest.approx(exe.telemetry.cycles - bound["cycles"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_table_says_what_it_holds_for(exe, plan):
    text = " ".join(str(plan).split())
    assert text.count(exe.conditions) == 4
    for what in ("(and 2 alike)", "decode only: no room for prefill", "first token after a prompt of 32", "gap: "):
        assert what in text
    assert "<pre" in plan._repr_html_()


def test_prompt_tokens(exe):
    assert wsc.plan_report(exe, prompt_tokens=7, contexts=[64]).first_token == exe.first_token(7)


def test_not_a_language_model():
    exe = wsc.compile(lambda w, x: x @ w, normal(8, 8), normal(1, 8), wafer=small(), weight_argnums=0)
    with pytest.raises(wsc.ArgumentError, match="Executable is no compiled language model"):
        wsc.plan_report(exe)


def test_waferllm_beside():
    """Published for 420 x 420 PEs of a WSE-2, the best of their grids: 12,732 cycles a layer with 4,096 tokens."""
    exe = wsc.compile(Llama.abstract("llama-3-8b"), context=4096, prefill_chunk=1)
    found = wsc.plan_report(exe, contexts=[4096], waferllm=True)
    theirs = found.theirs
    assert theirs.grid == 420
    assert theirs.cycles_per_layer == pytest.approx(12732, rel=0.05)
    assert "1 x WSE-3" in theirs.conditions and "context 4096" in theirs.conditions
    assert theirs.ours == exe.cost_analysis()["cycles_per_layer"]
    assert found.as_dict()["waferllm"]["ratio"] == pytest.approx(theirs.cycles_per_layer / theirs.ours)
    assert "WaferLLM's, 420 x 420" in str(found)
