"""`load`: one door for every kind of checkpoint. Nothing that is read is ever executed."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from wsc.errors import CheckpointError
from wsc.models import download, gguf, huggingface, llama2c
from wsc.models.config import CONFIGS, LlamaConfig
from wsc.models.llama import Llama
from wsc.models.weights import build

if TYPE_CHECKING:
    from wsc.models.tokenizer import Tokenizer


def load(
    name_or_path: str | Path, *, dtype: Any = jnp.float32, progress: bool = True
) -> "tuple[Llama, Tokenizer | None]":
    """A trained model and its tokenizer, None where the checkpoint has none.

    `name_or_path` is "smollm2-135m" (fetched once, 93 MB), a `.gguf` file, a llama2.c `.bin` file with its tokenizer
    beside it (`tokenizer.bin` or `tok*.bin`), a folder as Hugging Face writes it, or a model of its hub ("org/name").
    Weights become `dtype`. `progress` allows a bar, on a terminal only.

    Raises CheckpointError when a file is missing, damaged or of another model, DownloadError when a fetch fails.
    """
    path = download.smollm2(progress) if name_or_path == "smollm2-135m" else Path(name_or_path)
    if not path.exists():
        path = _fetch(str(name_or_path), progress)
    if path.is_dir():
        config, tensors = huggingface.read(path)
    elif _is_gguf(path):
        file = gguf.read(path)
        config = gguf.llama_config(file)
        model = build(config, gguf.llama_tensors(file, config), path, dtype, progress)
        from wsc.models.tokenizer import Tokenizer

        return model, _fits(Tokenizer.from_gguf(file), config, path)
    elif path.suffix == ".bin":
        config, tensors = llama2c.read(path)
    else:
        raise CheckpointError(
            f"{path} is no kind of checkpoint that wsc reads; give a .gguf file, a llama2.c .bin file, or the folder "
            "that holds config.json and the safetensors"
        )
    model = build(config, tensors, path, dtype, progress)
    return model, _fits(_tokenizer_beside(path, config), config, path)


def _fetch(name: str, progress: bool) -> Path:
    """The folder of a model on the hub; CheckpointError when `name` cannot be the name of one."""
    if name in CONFIGS:
        raise CheckpointError(
            f"wsc knows the sizes of {name!r} but has no weights for it; Llama.abstract({name!r}) needs none, "
            "or give the path or hub name (org/name) of a checkpoint"
        )
    looks_local = Path(name).suffix in (".gguf", ".bin", ".safetensors", ".json")
    if looks_local or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise CheckpointError(f"there is no {name}; give the path of a checkpoint, 'smollm2-135m', or a name org/name")
    return huggingface.fetch(name, progress)


def _is_gguf(path: Path) -> bool:
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as f:
            return f.read(4) == b"GGUF"
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}; give the path of a checkpoint") from e


def _tokenizer_beside(path: Path, config: LlamaConfig) -> "Tokenizer | None":
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            return None
        from wsc.models.tokenizer import Tokenizer

        ends = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
        return Tokenizer.from_folder(path, config.bos_token_id, [e for e in ends if e is not None])
    beside = [f for f in sorted(path.parent.glob("tok*.bin")) if f != path]
    beside.sort(key=lambda f: f.name != "tokenizer.bin")  # its usual name first
    return llama2c.read_tokenizer(beside[0], config.vocab_size) if beside else None


def _fits(tokenizer: "Tokenizer | None", config: LlamaConfig, path: Path) -> "Tokenizer | None":
    if tokenizer is None:
        return None
    highest = max([tokenizer.vocab_size - 1, *tokenizer.eos_ids, tokenizer.bos_id or 0])
    if highest >= config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has an id {highest}, the model a vocabulary of {config.vocab_size}; "
            "they are not of one model: fetch both again"
        )
    return tokenizer
