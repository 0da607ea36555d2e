"""Checkpoints of a training: what goes on from one is what would have been, and a damaged one is refused."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from wsc.errors import CheckpointError, ConfigError
from wsc.models import training_state
from wsc.models.bytes import tokens_of, topics
from wsc.models.training import Recipe, Text, Trainer
from wsc.models.training_state import latest, resume, save

RECIPE = Recipe(layers=1, hidden=16, heads=2, sequence=16, batch=4, learning_rate=0.01, schedule=20)
TEXT = Text(tokens_of(topics()))


def same(a: Trainer, b: Trainer) -> bool:
    pairs = zip(*(jax.tree.leaves((t.model, t.optimizer)) for t in (a, b)), strict=True)
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """A folder with the checkpoints of steps 1 and 2, and their trainer."""
    folder, trainer = tmp_path_factory.mktemp("saved") / "checkpoints", Trainer(RECIPE, TEXT)
    for _ in trainer.run(2):
        save(folder, trainer)
    return folder, trainer


@pytest.fixture
def copy(saved: tuple[Path, Trainer], tmp_path: Path) -> Path:
    shutil.copytree(saved[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def found(folder: Path) -> Any:
    at = latest(folder)
    assert at is not None
    return at


def test_ten_steps_and_ten_more_are_twenty_bit_for_bit(tmp_path: Path) -> None:
    whole = Trainer(RECIPE, TEXT)
    losses = list(whole.run(20))
    half = Trainer(RECIPE, TEXT)
    pieces = list(half.run(10))
    save(tmp_path / "checkpoints", half)
    at = found(tmp_path / "checkpoints")
    assert (at.step, at.recipe, at.text) == (10, RECIPE, TEXT.digest)
    later = resume(at, Text(TEXT.tokens.copy()), RECIPE)
    assert later.step == 10 and same(later, half)
    pieces += later.run(20)
    assert pieces == losses
    assert same(later, whole) and not same(later, half)


def test_no_checkpoint(tmp_path: Path) -> None:
    assert latest(tmp_path / "nothing") is None
    (tmp_path / "empty").mkdir()
    assert latest(tmp_path / "empty") is None


def test_the_last_two_are_kept(saved: tuple[Path, Trainer], tmp_path: Path) -> None:
    trainer = Trainer(RECIPE, TEXT)
    for _ in trainer.run(3):
        save(tmp_path / "checkpoints", trainer)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_a_save_that_was_interrupted_leaves_the_one_before(saved: tuple[Path, Trainer], copy: Path) -> None:
    (copy / "2").rename(copy / "2.orbax-checkpoint-tmp")  # what a killed process leaves behind
    assert found(copy).step == 1
    assert resume(found(copy), TEXT).step == 1
    save(copy, saved[1])
    assert sorted(f.name for f in copy.iterdir()) == ["1", "2"]
    assert same(resume(found(copy), TEXT), saved[1])


def test_a_new_training_replaces_the_old_one_when_it_is_saved(saved: tuple[Path, Trainer], copy: Path) -> None:
    trainer = Trainer(dataclasses.replace(RECIPE, seed=5), TEXT)
    list(trainer.run(1))
    save(copy, trainer, anew=True)
    assert [f.name for f in copy.parent.iterdir()] == ["checkpoints"]
    assert found(copy).step == 1 and found(copy).recipe.seed == 5


def test_a_new_training_that_cannot_be_saved_removes_nothing(
    saved: tuple[Path, Trainer], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_state, "_manager", full)
    with pytest.raises(CheckpointError, match=r"cannot save step 2 .*No space left on device"):
        save(copy, saved[1], anew=True)
    monkeypatch.undo()
    assert found(copy).step == 2
    assert same(resume(found(copy), TEXT), saved[1])


def test_a_folder_that_cannot_be(saved: tuple[Path, Trainer], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot save step 2 in .*file"):
        save(tmp_path / "file" / "checkpoints", saved[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 32}, "another recipe: hidden was 16 and is now 32; "),
        ({"layers": 3, "schedule": 40}, "layers was 1 and is now 3; schedule was 20 and is now 40; "),
        ({"seed": 1}, "seed was 0 and is now 1"),
    ],
)
def test_another_recipe_is_refused(saved: tuple[Path, Trainer], change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resume(found(saved[0]), TEXT, dataclasses.replace(RECIPE, **change))


def test_another_text_is_refused(saved: tuple[Path, Trainer]) -> None:
    with pytest.raises(ConfigError, match="was trained on another text"):
        resume(found(saved[0]), Text(TEXT.tokens[:-1]))


def files_of(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [halve, flip, os.remove])
def test_a_damaged_checkpoint_is_refused_or_whole(
    saved: tuple[Path, Trainer], copy: Path, harm: Callable[[Path], None]
) -> None:
    """Any one of its files: some, such as orbax's note of when it was written, change nothing."""
    refused = set()
    for name in files_of(copy / "2"):
        before = (copy / "2" / name).read_bytes()
        harm(copy / "2" / name)
        try:
            at = latest(copy)
            if at is not None and at.step == 2:
                assert same(resume(at, TEXT), saved[1]), name
            else:  # no longer taken for a checkpoint
                refused.add(name)
        except CheckpointError as e:
            assert str(copy) in str(e) and "train anew" in str(e), name
            refused.add(name)
        (copy / "2" / name).write_bytes(before)
    assert {"notes/metadata", "state/checkpoint/.zarray", "state/checkpoint/0"} <= refused


@pytest.mark.parametrize("notes", ["[]", "{}", '{"recipe": {"layers": 1}}', "[" * 100_000, "\ud800"])
def test_notes_of_another_kind_are_refused(copy: Path, notes: str) -> None:
    (copy / "2" / "notes" / "metadata").write_bytes(notes.encode(errors="surrogatepass"))
    with pytest.raises(CheckpointError, match="2 is no whole checkpoint of a training"):
        latest(copy)


@pytest.mark.parametrize(("was", "becomes"), [('"hidden": 16', '"hidden": 32'), ('"schedule": 20', '"schedule": 60')])
def test_notes_that_lie_are_refused(copy: Path, was: str, becomes: str) -> None:
    path = copy / "2" / "notes" / "metadata"
    text = path.read_text()
    path.write_text(text.replace(was, becomes))
    assert path.read_text() != text
    with pytest.raises(CheckpointError, match=r"2 is no whole checkpoint .*what it holds is not what was saved"):
        resume(found(copy), TEXT)


def test_arrays_of_another_shape_are_refused(saved: tuple[Path, Trainer], tmp_path: Path) -> None:
    """Though the digest agrees: the weights of one recipe under the notes of another."""
    other = Trainer(dataclasses.replace(RECIPE, hidden=32), TEXT, (saved[1].model, saved[1].optimizer))
    save(tmp_path / "checkpoints", other)
    with pytest.raises(CheckpointError, match="its arrays are not those of its recipe"):
        resume(found(tmp_path / "checkpoints"), TEXT)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "weights.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointError, match="7 is no whole checkpoint of a training"):
        latest(tmp_path)
