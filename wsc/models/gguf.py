"""GGUF files: a bounded reader of the header, and the tensors of a Llama.

The header is read here, not by the `gguf` library: every length is checked against the file before it is believed,
and 100,000 token strings take a tenth of the time. The library knows the quantized formats.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsc.errors import CheckpointError, ConfigError
from wsc.models.config import LlamaConfig
from wsc.models.rope import RopeScaling, inverse_frequencies
from wsc.models.weights import Tensor, head_rows_to_halves

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_NAMES = {
    "token_embd": "embed.embedding",
    "output_norm": "norm.scale",
    "output": "lm_head.kernel",
    "attn_norm": "attn_norm.scale",
    "attn_q": "attn.q.kernel",
    "attn_k": "attn.k.kernel",
    "attn_v": "attn.v.kernel",
    "attn_output": "attn.o.kernel",
    "ffn_norm": "mlp_norm.scale",
    "ffn_gate": "mlp.gate.kernel",
    "ffn_up": "mlp.up.kernel",
    "ffn_down": "mlp.down.kernel",
}


class Gguf(NamedTuple):
    """What a GGUF file holds: its metadata by key, its tensors by the file's own names."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def bad(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a GGUF file that wsc can read: {why}; fetch the file again")


class _Reader:
    """Little-endian values from `data`, none of them past its end."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path, self.data, self.at = path, data.data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise bad(self.path, f"it ends at byte {len(self.data)}, {size} more were expected at {self.at}")
        self.at += size
        return self.data[self.at - size : self.at].tobytes()

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize("<" + code)
        return struct.unpack(f"<{count}{code}", self.take(size * count))

    def text(self) -> str:
        raw = self.take(self.numbers("Q")[0])
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise bad(self.path, f"a string before byte {self.at} is not UTF-8") from e

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise bad(self.path, f"unknown value type {kind} before byte {self.at}")
        (item,), (count,) = self.numbers("I"), self.numbers("Q")
        if item in _SCALARS:
            return list(self.numbers(_SCALARS[item], count))
        if item != _STRING:
            raise bad(self.path, f"unknown array type {item} before byte {self.at}")
        return [self.text() for _ in range(count)]


def read(path: Path) -> Gguf:
    """The header of the GGUF file at `path`; tensors are mapped, not read. CheckpointError if anything is off."""
    try:
        import gguf  # noqa: F401  the formats of the tensors
    except ImportError as e:
        raise CheckpointError(f"reading {path} needs the gguf package; run: pip install 'wsc[demo]'") from e
    try:
        size = path.stat().st_size
        data = np.asarray(np.memmap(path, np.uint8, "r")) if size else np.zeros(0, np.uint8)  # memmap slices slowly
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}; give the path of a GGUF file") from e
    r = _Reader(path, data)
    if (magic := r.take(4)) != b"GGUF":
        raise bad(path, f"it starts with {magic!r}, not b'GGUF'")
    if (version := r.numbers("I")[0]) not in (2, 3):
        raise bad(path, f"its version is {version}, not 2 or 3")
    tensors, keys = r.numbers("Q", 2)
    metadata = {r.text(): r.value(r.numbers("I")[0]) for _ in range(keys)}
    infos = [(r.text(), r.numbers("Q", _rank(r)), *r.numbers("I"), *r.numbers("Q")) for _ in range(tensors)]
    align = metadata.get("general.alignment", 32)
    if not isinstance(align, int) or align < 1:
        raise bad(path, f"general.alignment is {align!r}, not a positive integer")
    start = -(-r.at // align) * align
    found = {}
    for name, dims, kind, offset in infos:
        if name in found:
            raise bad(path, f"tensor {name} is there twice")
        found[name] = _tensor(path, data, name, dims[::-1], kind, start + offset)
    return Gguf(path, metadata, found)


def _rank(r: _Reader) -> int:
    if not 1 <= (rank := r.numbers("I")[0]) <= 4:
        raise bad(r.path, f"a tensor before byte {r.at} has {rank} dimensions")
    return rank


def _tensor(path: Path, data: np.ndarray, name: str, shape: tuple[int, ...], code: int, start: int) -> Tensor:
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(code)
    except ValueError as e:
        raise bad(path, f"tensor {name} has the unknown type {code}") from e
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = math.prod(shape)
    if shape[-1] % block:
        raise bad(path, f"tensor {name} of shape {shape} is not in whole blocks of {block}")
    end = start + count // block * size
    if count == 0 or end > len(data):
        raise bad(path, f"tensor {name} of shape {shape} ends at byte {end}, the file at {len(data)}")

    def values() -> np.ndarray:
        raw = data[start:end].reshape(*shape[:-1], shape[-1] // block * size)
        try:
            with np.errstate(all="ignore"):  # damaged scales: the check for finite weights names the tensor
                return gguf.quants.dequantize(raw, kind).reshape(shape)
        except NotImplementedError as e:
            raise CheckpointError(f"{path}: tensor {name} is {kind.name}; use a file quantized otherwise") from e

    return Tensor(name, shape, values)


def llama_config(file: Gguf) -> LlamaConfig:
    """The config that the metadata of a Llama GGUF describes; CheckpointError for another architecture."""
    meta = file.metadata
    if (architecture := meta.get("general.architecture")) != "llama":
        raise CheckpointError(f"{file.path}: the architecture is {architecture!r}, not 'llama'; use a Llama checkpoint")

    def get(key: str, default: Any = None) -> Any:
        value = meta.get(f"llama.{key}", default)
        if value is None:
            raise CheckpointError(f"{file.path}: the metadata has no llama.{key}; fetch the file again")
        return value

    heads, d = get("attention.head_count"), get("embedding_length")
    tokens = meta.get("tokenizer.ggml.tokens")
    try:
        head_dim = get("attention.key_length", get("rope.dimension_count", d // heads))
        return LlamaConfig(
            vocab_size=get("vocab_size", len(tokens) if tokens else None),
            hidden_size=d,
            intermediate_size=get("feed_forward_length"),
            num_hidden_layers=get("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=get("attention.head_count_kv", heads),
            head_dim=head_dim,
            rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
            rope_theta=get("rope.freq_base", 10_000.0),
            rope_scaling=_scaling(file, head_dim, get("rope.freq_base", 10_000.0)),
            max_position_embeddings=get("context_length"),
            tie_word_embeddings="output.weight" not in file.tensors,
            bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
            eos_token_id=meta.get("tokenizer.ggml.eos_token_id"),
        )
    except (ConfigError, TypeError, ZeroDivisionError) as e:
        raise CheckpointError(f"{file.path}: its metadata is no Llama's: {e}; fetch the file again") from e


def _scaling(file: Gguf, head_dim: int, theta: float) -> RopeScaling | None:
    """Linear scaling is in the metadata; Llama 3's is only there as the tensor of its effect."""
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ConfigError(f"rotary scaling {kind!r} is neither 'none' nor 'linear'; wsc has no rule for it")
    if kind == "linear":
        return RopeScaling("linear", file.metadata.get("llama.rope.scaling.factor", 0))
    if "rope_freqs.weight" not in file.tensors:
        return None
    tensor = file.tensors["rope_freqs.weight"]
    if tensor.shape != (head_dim // 2,):
        raise ConfigError(f"rope_freqs.weight has shape {tensor.shape}, expected {(head_dim // 2,)}")
    divisors = tensor.read()
    scaling = RopeScaling("llama3", round(float(divisors.max()), 3), 1.0, 4.0, 8192)
    with_it = inverse_frequencies(head_dim, theta) / inverse_frequencies(head_dim, theta, scaling)
    if not np.allclose(divisors, with_it, rtol=1e-3):
        raise ConfigError("rope_freqs.weight is not the scaling of Llama 3.1 or 3.2; wsc knows no other")
    return scaling


def llama_tensors(file: Gguf, config: LlamaConfig) -> Mapping[str, Tensor]:
    """The weights under the names of the module; q and k rows back in rotate-half order."""
    found = {}
    for name, tensor in file.tensors.items():
        if name == "rope_freqs.weight":
            continue
        layer, _, stem = name.removesuffix(".weight").removeprefix("blk.").rpartition(".")
        ours = f"layers.{layer}.{_NAMES.get(stem, stem)}" if layer else _NAMES.get(stem, stem)
        found[ours] = _halved(tensor, config.head_dim) if stem in ("attn_q", "attn_k") else tensor
    return found


def _halved(tensor: Tensor, head_dim: int) -> Tensor:
    return tensor._replace(read=lambda: head_rows_to_halves(tensor.read(), head_dim))
