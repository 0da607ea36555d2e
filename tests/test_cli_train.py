"""`wsc train` as a user runs it: it learns, resumes bit for bit, writes what `wsc run` takes, overwrites nothing."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import small
from typer.testing import CliRunner

import wsc
from wsc.cli import app
from wsc.machine.wafer import WAFERS

RUN = CliRunner()
SIZES = ("--layers", "2", "--hidden", "32", "--heads", "2", "--sequence", "16", "--batch", "4", "--schedule", "5")


def train(*args, fails=False):
    result = RUN.invoke(app, ["train", *map(str, args)])
    assert (result.exit_code != 0) == fails, result.output
    return str(result.exception) if fails else result.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder trained for five steps at once, and what the command said."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    return folder, json.loads(train(folder, "--steps", 5, *SIZES, "--json"))


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "out")


def test_it_reports(whole):
    _, found = whole
    assert (found["step"], found["resumed_from"], len(found["losses"])) == (5, 0, 5)
    assert 5 < found["losses"][4] < found["losses"][0] < 7  # nats; a guess among 288 tokens costs 5.66
    assert 7 < found["held_out_bits_per_byte"] < 9
    assert found["parameters"] == 2 * 288 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 96 + 2 * 32) + 32
    assert found["recipe"]["hidden"] == 32 and found["recipe"]["learning_rate"] == 0.003
    assert found["measured_on_this_computer"]["tokens_per_second"] > 0
    assert "modelled" in found


def test_two_steps_and_three_more_are_five_bit_for_bit(whole, tmp_path):
    folder, found = whole
    first = json.loads(train(tmp_path / "out", "--steps", 2, *SIZES, "--json"))
    then = json.loads(train(tmp_path / "out", "--steps", 5, "--json"))  # sizes are kept
    assert (then["resumed_from"], then["step"], then["recipe"]) == (2, 5, found["recipe"])
    assert first["losses"] + then["losses"] == found["losses"]
    assert then["held_out_bits_per_byte"] == found["held_out_bits_per_byte"]
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_what_was_trained_loads_and_runs(whole, monkeypatch):
    monkeypatch.setitem(WAFERS, "small", small(24, 24, 16384))
    model, tokenizer = wsc.models.load(whole[0])
    assert model.config.hidden_size == 32 and model.config.max_position_embeddings == 16
    ids = tokenizer.encode("The ")
    assert ids == list(b"The ")
    for _ in range(4):  # greedy, by plain JAX
        ids.append(int(jax.jit(lambda m, t: m(t)[0])(model, np.array([ids]))[0, -1].argmax()))
    command = ["run", "The ", "--model", str(whole[0]), "--context", "16", "--max-new-tokens", "4", "--wafer", "small"]
    result = RUN.invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text"] == tokenizer.decode(ids[4:])


def test_a_finished_training_is_examined_and_written_again(copy, whole):
    (copy / "model.safetensors").unlink()
    text = train(copy, "--steps", 5)
    assert (copy / "model.safetensors").read_bytes() == (whole[0] / "model.safetensors").read_bytes()
    assert "wsc run --model" in text and "held-out text, bits a byte" in text and "45,216 parameters" in text


def test_other_sizes_are_refused(copy):
    assert "hidden was 32 and is now 64" in train(copy, "--steps", 6, "--hidden", 64, fails=True)
    assert sorted(f.name for f in (copy / "checkpoints").iterdir()) == ["5"]


def test_a_new_training_replaces_the_old(copy, whole):
    found = json.loads(train(copy, "--no-resume", "--steps", 1, "--seed", 3, *SIZES, "--json"))
    assert found["resumed_from"] == 0 and found["losses"][0] != whole[1]["losses"][0]
    assert [f.name for f in (copy / "checkpoints").iterdir()] == ["1"]


def test_a_text_of_ones_own(tmp_path):
    (tmp_path / "song.txt").write_text("la la lé\n" * 100)
    found = json.loads(
        train(tmp_path / "out", "--steps", 1, *SIZES, "--save-every", 1, "--text", tmp_path / "song.txt", "--json")
    )
    assert found["step"] == 1
    assert "was trained on another text" in train(tmp_path / "out", "--steps", 2, fails=True)
    (tmp_path / "latin").write_bytes("lé".encode("latin-1"))
    assert "as text in UTF-8" in train(tmp_path / "new", "--text", tmp_path / "latin", fails=True)
    assert "cannot read" in train(tmp_path / "new", "--text", tmp_path / "none", fails=True)


def test_a_model_of_another_kind_is_not_overwritten(copy, tmp_path):
    shutil.rmtree(copy / "checkpoints")
    before = (copy / "model.safetensors").read_bytes()
    for option in ("--resume", "--no-resume"):
        assert "of a model that was not trained there" in train(copy, "--steps", 1, option, fails=True)
    assert (copy / "model.safetensors").read_bytes() == before
    (tmp_path / "file").write_text("x")
    assert "is a file: give a folder" in train(tmp_path / "file", fails=True)


@pytest.mark.parametrize("args", [("--wafer", "wse9"), ("--hidden", "30"), ("--sequence", "0"), ("--seed", "-1")])
def test_wrong_options_write_nothing(tmp_path, args):
    train(tmp_path / "out", *args, fails=True)
    assert not (tmp_path / "out").exists()
