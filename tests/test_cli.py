"""The command as a user runs it: what it prints, its exit codes, one line for an error."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import small
from typer.testing import CliRunner

from wsc.cli import app
from wsc.machine.wafer import WAFERS

RUN = CliRunner()


def invoke(*args):
    result = RUN.invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return result.stdout


def command(*args):
    """As a process of its own: the error handling is around the app."""
    program = [sys.executable, "-W", "ignore", "-c", "from wsc.cli import main; main()", *args]
    return subprocess.run(program, capture_output=True, text=True, timeout=120)


def test_models_lists_every_config():
    text = invoke("models")
    rows = json.loads(invoke("models", "--json"))
    assert {"llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-3.2-1b"} <= rows.keys()
    assert rows["llama-3.1-8b"]["parameters"] == 8_030_261_248
    assert rows["llama-3.2-1b"]["parameters"] == 1_235_814_400
    assert "llama-3.1-8b" in text and "8,030,261,248" in text


def test_compile_json():
    found = json.loads(invoke("compile", "llama-3.2-1b", "--context", "128", "--json"))
    assert found["model"] == "llama-3.2-1b" and found["wafer"] == "WSE-3"
    assert found["weight_bytes"] == 2 * 1_235_814_400
    assert found["wafers"] == 1
    assert found["tokens_per_second"] == pytest.approx(0.875e9 / found["cycles"])
    assert "context 128" in found["conditions"] and "batch 1" in found["conditions"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A config file of a small Llama; a small wafer beside the real ones keeps its compilation short."""
    monkeypatch.setitem(WAFERS, "small", small(24, 24, 16384))
    config = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_compile_text(tiny):
    text = invoke("compile", str(tiny), "--context", "32", "--batch", "2", "--wafer", "SMALL", "--text")
    assert text.startswith("program on 1 x small, decode of 1 token, batch 2, context 32")
    assert "layers[0]" in text and "AllReduce" in text


def test_compile_report(tiny):
    report = invoke("compile", str(tiny / "config.json"), "--context", "32", "--wafer", "small")
    assert "Where the time goes" in report and "SRAM, all PEs" in report


def test_simulate(tiny, tmp_path):
    """A cut-out of a layer, in numbers, as pictures, and as a trace; a stage that is not there is an error."""
    args = ("simulate", str(tiny), "--context", "32", "--wafer", "small")
    files = [str(tmp_path / name) for name in ("links.png", "stalls.png", "run.pftrace")]
    pictures = [text for pair in zip(("--heat-map", "--stalls", "--trace"), files, strict=True) for text in pair]
    found = json.loads(invoke(*args, "--scale", "0.5", "--json", *pictures))
    assert found["stage"] == "layers[0]" and found["equal"] is None and abs(found["error_percent"]) < 15
    assert found["cycles"] == sum(phase["simulated"] for phase in found["phases"])
    assert all(Path(name).stat().st_size > 1000 for name in files)
    refused = RUN.invoke(app, [*args, "--stage", "nowhere"])
    assert refused.exit_code == 1 and "nowhere" in str(refused.exception)


def test_compile_in_another_precision(tiny):
    args = ("compile", str(tiny), "--context", "32", "--wafer", "small", "--json")
    half, single = (json.loads(invoke(*args, "--dtype", dtype)) for dtype in ("float16", "float32"))
    assert "float16" in half["conditions"] and "float32" in single["conditions"]
    assert single["weight_bytes"] == 2 * half["weight_bytes"]


def test_compile_with_dead_pes(tiny):
    args = ("compile", str(tiny), "--context", "32", "--wafer", "small", "--json", "--dead", "0.05", "--seed")
    one, again, other = (json.loads(invoke(*args, seed)) for seed in ("1", "1", "2"))
    dead = (np.random.default_rng(1).random((24, 24)) < 0.05).sum()
    assert one["wafer"].startswith(f"small with {dead} dead PEs (") and "% of PEs lost, hops x 1." in one["wafer"]
    assert one == again != other
    result = RUN.invoke(app, ["compile", str(tiny), "--wafer", "small", "--dead", "0.5"])
    assert result.exit_code == 1 and "rate of dead PEs is 0.5" in str(result.exception)
    theirs = ("compile", str(tiny), "--strategy", "waferllm", "--grid", "8", "--context", "64", "--dead", "0.001")
    assert json.loads(invoke(*theirs, "--json"))["wafer"].startswith("WSE-2 with ")


def test_plan_json(tiny):
    args = ("plan", str(tiny), "--context", "64", "--wafer", "small", "--json")
    found = json.loads(invoke(*args))
    assert "1 x small at 0.875 GHz" in found["conditions"] and "context 64, float32" in found["conditions"]
    assert found["tokens_per_second"] == pytest.approx(1 / found["seconds"])
    assert found["first_token"]["prompt_tokens"] == 32
    assert [r["context"] for r in found["capacity"]] == [64, 2048, 8192, 32768, 131072]
    assert found["users"] == found["capacity"][0]["users"] > found["capacity"][1]["users"]
    assert found["waferllm"] is None
    assert json.loads(invoke(*args, "--prefill-chunk", "1"))["users"] >= found["users"]
    assert json.loads(invoke(*args, "--batch", "2"))["pipeline_users"] % 2 == 0
    worn = json.loads(invoke(*args, "--dead", "0.05", "--seed", "1"))
    assert "small with " in worn["conditions"] and worn["pes_of_wafers"] < found["pes_of_wafers"] == 24 * 24


def test_plan_report(tiny):
    text = invoke("plan", str(tiny), "--context", "64", "--wafer", "small", "--objective", "users", "--speed", "1000")
    for title in ("Where it lies", "How fast it is", "Users by context", "Lower bound"):
        assert title in text
    assert "first token after a prompt of 32" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "beauty"], "objective is 'beauty': it must be one of latency, throughput, users, wafers"),
        (["--speed", "5"], "for objective 'users' alone"),
        (["--against-waferllm"], "on any of the published grids"),
    ],
)
def test_plan_refuses(tiny, options, message):
    result = RUN.invoke(app, ["plan", str(tiny), "--context", "64", "--wafer", "small", *options])
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_wafers_are_a_limit(tiny):
    result = RUN.invoke(app, ["compile", str(tiny), "--wafer", "small", "--context", "2000000", "--wafers", "1"])
    assert result.exit_code == 1
    assert "does not fit" in str(result.exception)


def test_help_and_wrong_calls():
    assert "compile" in invoke("--help")
    assert RUN.invoke(app, ["fly"]).exit_code == 2
    assert RUN.invoke(app, ["compile"]).exit_code == 2
    assert RUN.invoke(app, ["compile", "llama-3.2-1b", "--context", "many"]).exit_code == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["compile", "llama-9-1b"], "llama-9-1b"),
        (["compile", "llama-3.2-1b", "--wafer", "wse9"], "no wafer named 'wse9': there are wse2, wse3"),
        (["compile", "llama-3.1-70b", "--wafers", "1"], "wsc: FitError: the program does not fit"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(args, message):
    found = command(*args)
    assert found.returncode == 1
    assert found.stdout == ""
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("wsc: ") and message in lines[0]


def test_debug_shows_the_traceback():
    found = command("--debug", "compile", "llama-3.2-1b", "--wafer", "wse9")
    assert found.returncode == 1
    assert "Traceback" in found.stderr and "ArgumentError" in found.stderr


def test_validate_json_and_group():
    found = json.loads(invoke("validate", "--group", "collectives", "--group", "GPUs", "--json"))
    assert found["passed"] is True
    assert set(found["groups"]) == {"collectives", "GPUs"}
    assert all(row["source"] for row in found["rows"])


def test_validate_fabric(monkeypatch):
    found = json.loads(invoke("validate", "--fabric", "--sizes", "2", "--no-setup", "--json"))
    assert [r["name"] for r in found["rows"]] == ["multicast", "exchange"] and found["passed"]
    assert "nothing to prepare" in found["conditions"]
    monkeypatch.setattr("wsc.fabric_check.SHORT", -1)
    monkeypatch.setattr("wsc.fabric_check.BAR", -1)
    assert RUN.invoke(app, ["validate", "--fabric", "--sizes", "1"]).exit_code == 1
    assert RUN.invoke(app, ["validate", "--fabric", "--sizes", "0"]).exit_code != 0


def test_validate_writes_a_plot(tmp_path):
    assert "held out" in invoke("validate", "--group", "single PE", "--plot", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_validate_fails_over_a_bar(monkeypatch):
    from wsc.machine.published import BARS

    monkeypatch.setitem(BARS, "GPUs", (0.1, 0.1))
    assert RUN.invoke(app, ["validate", "--group", "GPUs"]).exit_code == 1


def test_sensitivity_json(tiny):
    found = json.loads(invoke("sensitivity", str(tiny), "--context", "64", "--json"))
    assert found["clock_hz"] < 0 < found["straight_cycles"]
    assert "context 64" in found["conditions"]


def test_speculate(tiny):
    args = ("speculate", str(tiny), str(tiny), "--tokens", "2", "--context", "32", "--wafer", "small")
    text = invoke(*args, "--acceptance", "0.5")
    assert "streamed" in text and "a decode step of the draft" in text
    found = json.loads(invoke(*args, "--acceptance", "0.5", "--verify", "stream", "--json"))
    assert found["tokens_per_second"] * found["round_seconds"] == pytest.approx(1 + 0.5 + 0.25)
    assert found["curve"]["acceptances"] == [0.5] and "context 32" in found["conditions"]


def test_hardware_lists_every_number_with_its_source():
    rows = json.loads(invoke("hardware", "wse2", "--json"))
    assert {"clock_hz", "deliver_cycles", "straight_cycles"} <= {r["name"] for r in rows}
    assert all(r["unit"] and r["kind"] and r["source"] for r in rows)
    assert "published" in invoke("hardware")


def test_compile_as_waferllm_does(tiny):
    args = ["compile", str(tiny), "--strategy", "waferllm", "--grid", "8", "--context", "64", "--wafer", "wse2"]
    found = json.loads(invoke(*args, "--json"))
    assert "as WaferLLM times it on 8 x 8 PEs" in found["conditions"]
    assert found["cycles_per_layer"] > 0
