"""Rotary position embedding: its frequencies, how they are stretched, and the rotation itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsc.errors import ConfigError


def positive(owner: str, name: str, value: Any, kind: type = int) -> Any:
    """`value` as a finite positive `kind`; ConfigError names the field otherwise."""
    good = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{owner}.{name} must be a positive {kind.__name__}, got {value!r}; correct it in the config")
    return kind(value)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for a longer context.

    `linear` divides every frequency by `factor`. `llama3` divides those whose wavelength in tokens is over
    `original_max_position_embeddings / low_freq_factor`, keeps those under `.../high_freq_factor`, and blends between.

    >>> RopeScaling("linear", factor=2).factor
    2.0
    """

    rope_type: str
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in ("llama3", "linear"):
            raise ConfigError(
                f"rope_scaling.rope_type must be 'llama3', 'linear' or 'default', got {self.rope_type!r}; "
                "wsc has no other rotary scaling"
            )
        names = ["factor"] if self.rope_type == "linear" else [f.name for f in fields(self)[1:]]
        for name in names:
            kind = int if name == "original_max_position_embeddings" else float
            object.__setattr__(self, name, positive("rope_scaling", name, getattr(self, name), kind))
        if self.low_freq_factor and self.high_freq_factor and self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"rope_scaling.high_freq_factor must be over low_freq_factor, "
                f"got {self.high_freq_factor} and {self.low_freq_factor}; correct them in the config"
            )

    @classmethod
    def of(cls, value: Any) -> "RopeScaling | None":
        """`value` as written in a config.json: None, or a mapping with `rope_type` (older files: `type`)."""
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"rope_scaling must be null or a mapping, got {value!r}; correct it in the config")
        rope_type = value.get("rope_type", value.get("type", "default"))
        if rope_type == "default":
            return None
        known = {f.name: value[f.name] for f in fields(cls)[1:] if f.name in value}
        if "factor" not in known:
            raise ConfigError(f"rope_scaling has no 'factor', got {dict(value)!r}; add it to the config")
        return cls(rope_type, **known)


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Rotary frequencies float32 [head_dim / 2], in radians per token, scaled as `scaling` says.

    >>> inverse_frequencies(4, 100.0)
    array([1. , 0.1], dtype=float32)
    """
    frequency = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return frequency.astype(np.float32)
    if scaling.low_freq_factor is None or scaling.high_freq_factor is None or scaling.rope_type == "linear":
        return (frequency / scaling.factor).astype(np.float32)
    turns = (scaling.original_max_position_embeddings or 0) * frequency / (2 * math.pi)  # over the original context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (frequency * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate-half of `x[B, T, heads, h]` by `cos, sin [T, 1, h/2]`, in float32."""
    cos, sin = rope
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
