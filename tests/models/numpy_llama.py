"""A Llama in plain float64 numpy, written from the papers and not from `wsc.models.llama`: what that is held to."""

import math

import numpy as np

from wsc.models import Llama, LlamaConfig


def frequencies(c: LlamaConfig) -> list[float]:
    """Radians per token of every rotary pair, one at a time, as Llama 3.1's release describes the scaling."""
    out = []
    for i in range(c.head_dim // 2):
        f = c.rope_theta ** (-2 * i / c.head_dim)
        s = c.rope_scaling
        if s is not None and s.rope_type == "linear":
            f /= s.factor
        elif s is not None:
            wavelength = 2 * math.pi / f
            longest = s.original_max_position_embeddings / s.low_freq_factor
            shortest = s.original_max_position_embeddings / s.high_freq_factor
            if wavelength > longest:
                f /= s.factor
            elif wavelength >= shortest:
                mix = s.original_max_position_embeddings / wavelength - s.low_freq_factor
                mix /= s.high_freq_factor - s.low_freq_factor
                f = (1 - mix) * f / s.factor + mix * f
        out.append(f)
    return out


def logits(model: Llama, tokens: list[int]) -> np.ndarray:
    """Float64 [T, V] for one row of tokens, no cache: all positions see all before them."""
    c = model.config

    def w(parameter: object) -> np.ndarray:
        return np.asarray(parameter[...], np.float64)  # type: ignore[index]

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.rms_norm_eps) * scale

    t, h = len(tokens), c.head_dim
    turn = np.exp(1j * np.outer(np.arange(t), frequencies(c)))  # a rotation is a complex product

    def rotate(x: np.ndarray) -> np.ndarray:
        z = (x[:, : h // 2] + 1j * x[:, h // 2 :]) * turn
        return np.concatenate([z.real, z.imag], axis=1)

    x = w(model.embed.embedding)[tokens]
    for layer in model.layers:
        y = norm(x, w(layer.attn_norm.scale))
        q, k, v = (y @ w(m.kernel) for m in (layer.attn.q, layer.attn.k, layer.attn.v))
        heads = []
        for i in range(c.num_attention_heads):
            j = i * c.num_key_value_heads // c.num_attention_heads
            mine, shared = slice(i * h, i * h + h), slice(j * h, j * h + h)
            s = rotate(q[:, mine]) @ rotate(k[:, shared]).T / math.sqrt(h)
            s[np.triu_indices(t, 1)] = -np.inf
            p = np.exp(s - s.max(-1, keepdims=True))
            heads.append(p / p.sum(-1, keepdims=True) @ v[:, shared])
        x = x + np.concatenate(heads, axis=1) @ w(layer.attn.o.kernel)
        y = norm(x, w(layer.mlp_norm.scale))
        gate = y @ w(layer.mlp.gate.kernel)
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w(layer.mlp.up.kernel))) @ w(layer.mlp.down.kernel)
    x = norm(x, w(model.norm.scale))
    return x @ (w(model.embed.embedding).T if c.tie_word_embeddings else w(model.lm_head.kernel))
