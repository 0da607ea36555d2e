"""A training on the disk: the recipe, and the state of model and optimizer, bit for bit. orbax does the writing.

A checkpoint appears whole or not at all, and the one before it stays. It is JSON, the notes, and one array of bytes:
the leaves of model and optimizer one after the other, as the notes list them. (Were they arrays of their own, the first
that is damaged would leave the reads of the others hanging, and Python complaining about each.) Nothing that is read is
ever executed, and a digest of all of it is compared before anything is believed.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsc.errors import CheckpointError, ConfigError
from wsc.models.training import Compiled, Recipe, Text, Trainer, new_state

KEPT = 2  # checkpoints: the newest, and one that is known to be whole while the newest is written


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says of itself: its step, its recipe, a digest of its text, the name, dtype and shape of every
    array, and a digest of all that and of their bytes."""

    folder: Path
    step: int
    recipe: Recipe
    text: str
    arrays: list
    digest: str


def latest(folder: Path) -> Saved | None:
    """The newest checkpoint in `folder`, None where there is none; CheckpointError when it is none of a training."""
    if not folder.is_dir():
        return None
    with _manager(folder) as manager, _reading(folder):
        step = manager.latest_step()
        if step is None:
            return None
        with _reading(folder / str(step)):
            found = manager.restore(step, args=_args(notes=_orbax().args.JsonRestore()))["notes"]
            recipe = Recipe.of(found["recipe"])
            return Saved(folder, step, recipe, found["text"], found["arrays"], found["digest"])


def save(folder: Path, trainer: Trainer, anew: bool = False) -> None:
    """Write a checkpoint of the trainer's step; CheckpointError when the disk refuses, and the ones before stay.

    `anew`: it begins another training, and takes the place of the checkpoints of an earlier one when it is whole.
    """
    leaves = _named((trainer.model, trainer.optimizer))
    data = b"".join(np.asarray(leaf).tobytes() for leaf in leaves.values())
    notes = {
        "recipe": dataclasses.asdict(trainer.recipe),
        "text": trainer.text.digest,
        "arrays": _listed(leaves),
    }
    notes["digest"] = _digest(notes, data)
    save = _orbax().args
    try:
        target = folder.with_name(folder.name + ".new") if anew else folder
        if anew:
            shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True, exist_ok=True)
        with _manager(target, max_to_keep=KEPT, cleanup_tmp_directories=True) as manager:
            manager.save(
                trainer.step,
                args=_args(state=save.ArraySave(np.frombuffer(data, np.uint8)), notes=save.JsonSave(notes)),
            )
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
            target.rename(folder)
    except (OSError, ValueError) as e:
        raise CheckpointError(
            f"cannot save step {trainer.step} in {folder} ({_first_line(e)}); free the disk, or choose another folder"
        ) from e


def resume(saved: Saved, text: Text, recipe: Recipe | None = None, compiled: Compiled | None = None) -> Trainer:
    """The trainer of a checkpoint, as it was when it was saved.

    Raises ConfigError when `recipe` or `text` is not that of the checkpoint, CheckpointError when it is damaged.
    """
    if recipe is not None and recipe != saved.recipe:
        theirs, ours = dataclasses.asdict(saved.recipe), dataclasses.asdict(recipe)
        other = "; ".join(f"{n} was {theirs[n]} and is now {ours[n]}" for n in ours if ours[n] != theirs[n])
        raise ConfigError(f"{saved.folder} is of another recipe: {other}; keep that one, or train anew elsewhere")
    if text.digest != saved.text:
        raise ConfigError(
            f"{saved.folder} was trained on another text (Python's own differs from release to release); give that "
            "text, or train anew elsewhere"
        )
    abstract = nnx.eval_shape(lambda: new_state(saved.recipe))
    wanted = _named(abstract)
    notes = {"recipe": dataclasses.asdict(saved.recipe), "text": saved.text, "arrays": saved.arrays}
    path = saved.folder / str(saved.step)
    with _manager(saved.folder) as manager, _reading(path):
        data = manager.restore(saved.step, args=_args(state=_orbax().args.ArrayRestore()))["state"].tobytes()
        if _digest(notes, data) != saved.digest:
            raise CheckpointError("what it holds is not what was saved")
        if saved.arrays != _listed(wanted):
            raise CheckpointError("its arrays are not those of its recipe")
    leaves, at = [], 0
    for leaf in wanted.values():
        values = np.frombuffer(data, leaf.dtype, leaf.size, at).reshape(leaf.shape)
        leaves.append(jnp.array(values))
        at += values.nbytes
    return Trainer(saved.recipe, text, jax.tree.unflatten(jax.tree.structure(abstract), leaves), compiled)


def _named(state: Any) -> dict[str, Any]:
    """The leaves of (model, optimizer) by their paths."""
    paths = jax.tree_util.tree_flatten_with_path(dict(zip(("model", "optimizer"), state, strict=True)))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _listed(leaves: Mapping[str, Any]) -> list:
    """Name, dtype and shape of each, as JSON gives them back."""
    return [[name, leaf.dtype.name, list(leaf.shape)] for name, leaf in leaves.items()]


def _digest(notes: Mapping[str, Any], data: bytes) -> str:
    """SHA-256 of the notes and the bytes."""
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode() + b"\n" + data).hexdigest()


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as e:
        raise CheckpointError("checkpoints need the orbax-checkpoint package; run: pip install 'wsc[train]'") from e
    return orbax.checkpoint


def _args(**items: Any) -> Any:
    return _orbax().args.Composite(**items)


@contextlib.contextmanager
def _manager(folder: Path, **options: Any) -> Iterator[Any]:
    """orbax's manager of a folder, which must be there; it speaks through our errors alone."""
    ocp = _orbax()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        chosen = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False, **options)
        with ocp.CheckpointManager(folder.absolute(), options=chosen) as manager:
            yield manager
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever orbax or the contents raise, as a CheckpointError that names the checkpoint."""
    try:
        yield
    except Exception as e:
        if isinstance(e, CheckpointError) and str(path.parent) in str(e):
            raise
        raise CheckpointError(
            f"{path} is no whole checkpoint of a training ({_first_line(e)}); remove it to go on from the one before, "
            "or train anew in another folder"
        ) from e


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
