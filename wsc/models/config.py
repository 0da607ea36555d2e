"""What a Llama is: its sizes, its rotary embedding, and the published family by name.

Field names are those of a Hugging Face `config.json`. Sizes are counts, never bytes.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wsc.errors import ConfigError
from wsc.models.rope import RopeScaling, positive

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama; immutable and hashable, so that it can be a key.

    Raises ConfigError for a value that no Llama can have.

    >>> LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    ...             num_attention_heads=4).head_dim
    8
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0  # 0: as many as query heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    dtype: str = "float32"

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("num_key_value_heads", self.num_key_value_heads or self.num_attention_heads)
        for name in _SIZES:
            put(name, positive("config", name, getattr(self, name)))
        for name in ("rms_norm_eps", "rope_theta"):
            put(name, positive("config", name, getattr(self, name), float))
        self._check_heads()
        put("head_dim", positive("config", "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads))
        if self.head_dim % 2:
            raise ConfigError(f"config.head_dim must be even for rotary embedding, got {self.head_dim}")
        put("rope_scaling", RopeScaling.of(self.rope_scaling))
        put("eos_token_id", tuple(self.eos_token_id) if isinstance(self.eos_token_id, list) else self.eos_token_id)
        for name in ("bos_token_id", "eos_token_id"):
            self._check_token(name)
        for name, only in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
            if getattr(self, name) != only:
                raise ConfigError(
                    f"config.{name} must be {only!r}, got {getattr(self, name)!r}; wsc.models builds plain Llamas only"
                )
        if not isinstance(self.tie_word_embeddings, bool):
            raise ConfigError(f"config.tie_word_embeddings must be true or false, got {self.tie_word_embeddings!r}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"config.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}; choose one")

    def _check_heads(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"config.num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}): every KV head serves as many query heads"
            )
        if not self.head_dim and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config.hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}), or head_dim must be given"
            )

    def _check_token(self, name: str) -> None:
        value = getattr(self, name)
        ids = value if isinstance(value, tuple) else () if value is None else (value,)
        for i in ids:
            if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < self.vocab_size:
                raise ConfigError(f"config.{name} must lie in the vocabulary of {self.vocab_size}, got {value!r}")

    @property
    def parameters(self) -> int:
        """How many weights the model has; tied ones count once.

        >>> CONFIGS["smollm2-135m"].parameters
        134515008
        """
        d, h = self.hidden_size, self.head_dim
        attention = 2 * d * h * (self.num_attention_heads + self.num_key_value_heads)
        layer = attention + 3 * d * self.intermediate_size + 2 * d
        heads = 1 if self.tie_word_embeddings else 2
        return heads * self.vocab_size * d + self.num_hidden_layers * layer + d

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> "LlamaConfig":
        """Read a `config.json` (a path to it, or its contents), as transformers 4 or 5 writes it.

        Raises ConfigError when the file cannot be read, is of another architecture, or holds a bad value.
        """
        data = source if isinstance(source, Mapping) else _read(Path(source))
        if data.get("model_type", "llama") != "llama":
            raise ConfigError(f"config.model_type must be 'llama', got {data['model_type']!r}; use a Llama checkpoint")
        if data.get("quantization_config"):
            raise ConfigError("config.quantization_config is set; wsc reads f32, f16 and bf16 safetensors only")
        known = {f.name: data[f.name] for f in fields(cls) if data.get(f.name) is not None}
        for name in ("bos_token_id", "eos_token_id"):  # null says that there is none, not the default
            if name in data:
                known[name] = data[name]
        if data.get("torch_dtype") is not None:
            known.setdefault("dtype", data["torch_dtype"])
        rope = data.get("rope_parameters")
        if rope is not None:  # transformers 5: one mapping for both
            if not isinstance(rope, Mapping):
                raise ConfigError(f"config.rope_parameters must be a mapping, got {rope!r}; correct it in the config")
            known["rope_scaling"] = rope
            known["rope_theta"] = rope.get("rope_theta", known.get("rope_theta", cls.rope_theta))
        missing = [n for n in _REQUIRED if n not in known]
        if missing:
            raise ConfigError(f"config has no {', '.join(missing)}; add what is missing, with its config.json name")
        return cls(**known)


_REQUIRED = [f.name for f in fields(LlamaConfig)[:5]]
_SIZES = [*_REQUIRED, "num_key_value_heads", "max_position_embeddings"]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}; give the path of a config.json") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path} is not JSON ({e}); fetch the file again") from e
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold one JSON object, got {type(data).__name__}; fetch the file again")
    return data


def _llama3(vocab: int, d: int, f: int, layers: int, heads: int, factor: float | None, **more: Any) -> LlamaConfig:
    scaling = RopeScaling("llama3", factor, 1.0, 4.0, 8192) if factor else None
    common = {"bos_token_id": 128_000, "eos_token_id": 128_001, "rope_theta": 500_000.0, "dtype": "bfloat16"}
    context = 131_072 if factor else 8192
    return LlamaConfig(
        vocab, d, f, layers, heads, 8, rope_scaling=scaling, max_position_embeddings=context, **(common | more)
    )


# Source of each: the config.json published beside the weights, under the repository named in the comment.
CONFIGS: dict[str, LlamaConfig] = {
    # HuggingFaceTB/SmolLM2-135M-Instruct
    "smollm2-135m": LlamaConfig(
        49_152, 576, 1536, 30, 9, 3, 64, 1e-5, 100_000.0, None, 8192, tie_word_embeddings=True, dtype="bfloat16"
    ),
    # meta-llama/Llama-2-7b-hf
    "llama-2-7b": LlamaConfig(32_000, 4096, 11_008, 32, 32, max_position_embeddings=4096, dtype="float16"),
    # meta-llama/Llama-2-13b-hf
    "llama-2-13b": LlamaConfig(32_000, 5120, 13_824, 40, 40, max_position_embeddings=4096, dtype="float16"),
    # meta-llama/Meta-Llama-3-8B
    "llama-3-8b": _llama3(128_256, 4096, 14_336, 32, 32, None),
    # meta-llama/Llama-3.1-8B
    "llama-3.1-8b": _llama3(128_256, 4096, 14_336, 32, 32, 8.0),
    # meta-llama/Llama-3.1-70B
    "llama-3.1-70b": _llama3(128_256, 8192, 28_672, 80, 64, 8.0),
    # meta-llama/Llama-3.1-405B
    "llama-3.1-405b": _llama3(128_256, 16_384, 53_248, 126, 128, 8.0),
    # meta-llama/Llama-3.2-1B
    "llama-3.2-1b": _llama3(128_256, 2048, 8192, 16, 32, 32.0, tie_word_embeddings=True),
    # meta-llama/Llama-3.2-3B
    "llama-3.2-3b": _llama3(128_256, 3072, 8192, 28, 24, 32.0, tie_word_embeddings=True),
    # codellama/CodeLlama-34b-hf
    "codellama-34b": LlamaConfig(
        32_000, 8192, 22_016, 48, 64, 8, rope_theta=1e6, max_position_embeddings=16_384, dtype="bfloat16"
    ),
}


def config(name: str) -> LlamaConfig:
    """The published config called `name`; ConfigError lists the known ones.

    >>> config("llama-3.1-8b").parameters
    8030261248
    """
    if name in CONFIGS:
        return CONFIGS[name]
    close = difflib.get_close_matches(name.lower(), CONFIGS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"no model is called {name!r}; {hint}known: {', '.join(CONFIGS)}")
