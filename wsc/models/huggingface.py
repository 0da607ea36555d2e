"""Hugging Face models: a folder of `config.json`, safetensors and `tokenizer.json`, or its name on the hub."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from wsc.errors import CheckpointError, ConfigError, DownloadError
from wsc.models.config import LlamaConfig
from wsc.models.llama import Llama
from wsc.models.weights import Tensor, name_of

if TYPE_CHECKING:
    from wsc.models.tokenizer import Tokenizer

_INDEX = "model.safetensors.index.json"
_NAMES = {
    "model.embed_tokens": "embed.embedding",
    "model.norm": "norm.scale",
    "lm_head": "lm_head.kernel",
    "input_layernorm": "attn_norm.scale",
    "self_attn.q_proj": "attn.q.kernel",
    "self_attn.k_proj": "attn.k.kernel",
    "self_attn.v_proj": "attn.v.kernel",
    "self_attn.o_proj": "attn.o.kernel",
    "post_attention_layernorm": "mlp_norm.scale",
    "mlp.gate_proj": "mlp.gate.kernel",
    "mlp.up_proj": "mlp.up.kernel",
    "mlp.down_proj": "mlp.down.kernel",
}
_FILES = ["*.json", "*.safetensors", "*.jinja"]


def read(folder: Path) -> tuple[LlamaConfig, Mapping[str, Tensor]]:
    """Config and unread weights of the model in `folder`; CheckpointError for what is missing or damaged."""
    try:
        config = LlamaConfig.from_json(folder / "config.json")
    except ConfigError as e:
        raise CheckpointError(f"{folder}: {e}") from e
    found: dict[str, Tensor] = {}
    for shard in shards(folder):
        for name, tensor in _open(shard).items():
            layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name.removesuffix(".weight"))
            stem = layer[2] if layer else name.removesuffix(".weight")
            ours = f"layers.{layer[1]}.{_NAMES.get(stem, stem)}" if layer else _NAMES.get(stem, stem)
            if ours.endswith("rotary_emb.inv_freq") or (ours == "lm_head.kernel" and config.tie_word_embeddings):
                continue  # computed from the config, and a second copy of the embedding
            if ours in found:
                raise CheckpointError(f"{shard}: {name} is in another file too; keep only the files of one model")
            found[ours] = tensor
    return config, found


def write(folder: Path, model: Llama, tokenizer: "Tokenizer | None" = None) -> None:
    """Write a model as a folder that `read` and `transformers` take: `config.json`, `model.safetensors`, and the files
    of its tokenizer. Each file appears whole or not at all. CheckpointError when one cannot be written."""
    try:
        from safetensors.flax import save
    except ImportError as e:
        raise CheckpointError(f"writing {folder} needs the safetensors package; run: pip install 'wsc[demo]'") from e
    leaves = {name_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]}
    weights = {_theirs(name): leaf.T if name.endswith("kernel") else leaf for name, leaf in leaves.items()}
    sizes = {k: v for k, v in dataclasses.asdict(model.config).items() if v is not None or k.endswith("_id")}
    config = sizes | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    config["dtype"] = config["torch_dtype"] = str(model.embed.embedding.dtype)
    files = {"model.safetensors": save(jax.tree.map(jnp.asarray, weights), {"format": "pt"})}
    files |= {name: text.encode() for name, text in ({} if tokenizer is None else tokenizer.files()).items()}
    files["config.json"] = json.dumps(config, indent=2).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            part = folder / f".{name}.part"
            part.write_bytes(data)
            os.replace(part, folder / name)
    except OSError as e:
        raise CheckpointError(
            f"cannot write to {folder} ({e.strerror}); choose another folder, or free the disk"
        ) from e


def _theirs(name: str) -> str:
    """`layers.0.attn.q.kernel` as `model.layers.0.self_attn.q_proj.weight`."""
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    theirs = next(k for k, ours in _NAMES.items() if ours == (layer[2] if layer else name))
    return f"model.layers.{layer[1]}.{theirs}.weight" if layer else f"{theirs}.weight"


def shards(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`; CheckpointError names one that is missing."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            inside = all(isinstance(n, str) and n and Path(n).name == n for n in names)
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{index} is no index of shards ({e!r}); fetch the file again") from e
        if not names or not inside:
            raise CheckpointError(f"{index} must name files of its own folder; fetch the file again")
        files = sorted(folder / n for n in names)
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [f.name for f in files if not f.is_file()]
    if missing or not files:
        what = ", ".join(missing[:5]) or "*.safetensors"
        raise CheckpointError(f"{folder} has no {what}; fetch the whole model again")
    return files


def _open(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file by name; they are read only when asked for."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as e:
        raise CheckpointError(f"reading {path} needs the safetensors package; run: pip install 'wsc[demo]'") from e
    try:
        file = safe_open(path, framework="flax")  # numpy has no bfloat16 of its own
        shapes = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not a whole safetensors file ({e}); fetch the file again") from e

    def tensor(name: str, piece: Any) -> Tensor:
        if piece.get_dtype() not in ("F32", "F16", "BF16"):
            raise CheckpointError(f"{path}: {name} is {piece.get_dtype()}; use f32, f16 or bf16 weights")

        def values() -> np.ndarray:
            return np.asarray(file.get_tensor(name))

        return Tensor(name, tuple(piece.get_shape()), values)

    return {name: tensor(name, piece) for name, piece in shapes.items()}


def fetch(repo: str, progress: bool = True) -> Path:
    """The folder of the hub's model `repo` ("org/name"), from its cache if it is there; DownloadError otherwise."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    except ImportError as e:
        raise CheckpointError(f"fetching {repo} needs huggingface_hub; run: pip install 'wsc[demo]'") from e
    wanted: dict[str, Any] = {"allow_patterns": _FILES, "ignore_patterns": ["*/*"]}
    try:
        folder = Path(snapshot_download(repo, local_files_only=True, **wanted))
        shards(folder)  # a half-fetched model is in the cache too
        if (folder / "config.json").is_file():
            return folder
    except Exception:  # nothing usable here: ask the hub
        pass
    quiet = not (progress and sys.stderr.isatty()) and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        return Path(snapshot_download(repo, **wanted))
    except Exception as e:  # its errors have no common base
        why = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
        raise DownloadError(
            f"cannot fetch {repo!r} from the Hugging Face hub ({why}); check the name, the network and your access "
            "to it, or fetch its config.json, *.safetensors and tokenizer*.json by hand and give their folder"
        ) from e
    finally:
        if quiet:
            enable_progress_bars()
