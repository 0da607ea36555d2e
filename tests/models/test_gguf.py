import struct
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest

from wsc.errors import CheckpointError
from wsc.models import Llama, load
from wsc.models.rope import inverse_frequencies

GGUF = {
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


def interleaved(w: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows as llama.cpp wants them: the two halves of every head alternate."""
    heads = w.reshape(-1, 2, head_dim // 2, w.shape[1])
    return np.stack([heads[:, 0], heads[:, 1]], axis=2).reshape(w.shape)


def write(path: Path, model: Llama, changes: dict[str, Any] | None = None, architecture: str = "llama") -> Path:
    """`model` as a GGUF file; `changes` replaces tensors by name, None leaves one out."""
    c, changes = model.config, changes or {}
    tensors = {"token_embd": model.embed.embedding[...], "output_norm": model.norm.scale[...]}
    tensors["output"] = model.lm_head.kernel[...].T
    divisors = inverse_frequencies(c.head_dim, c.rope_theta) / inverse_frequencies(
        c.head_dim, c.rope_theta, c.rope_scaling
    )
    if c.rope_scaling is not None:
        tensors["rope_freqs"] = divisors
    for i, layer in enumerate(model.layers):
        tensors[f"blk.{i}.attn_norm"] = layer.attn_norm.scale[...]
        tensors[f"blk.{i}.ffn_norm"] = layer.mlp_norm.scale[...]
        for ours, theirs in GGUF.items():
            room, name = ours.split(".")
            w = np.asarray(getattr(getattr(layer, room), name).kernel[...]).T
            halves = ours in ("attn.q", "attn.k")
            tensors[f"blk.{i}.{theirs}"] = interleaved(w, c.head_dim) if halves else w
    out = gguf.GGUFWriter(path, architecture)
    out.add_block_count(c.num_hidden_layers)
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_key_length(c.head_dim)
    out.add_rope_freq_base(c.rope_theta)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_tokenizer_model("llama")
    out.add_token_list(
        ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(chr(0x2581 + i) for i in range(41))]
    )
    out.add_token_scores([0.0] * 259 + [-float(i) for i in range(41)])
    out.add_token_types([2, 3, 3, *[6] * 256, *[1] * 41])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    for name, value in {**tensors, **changes}.items():
        if value is not None:
            out.add_tensor(f"{name}.weight", np.ascontiguousarray(value, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.fixture(scope="module")
def model(tiny: Llama) -> Llama:
    """`tiny` with the frequencies that GGUF can say: those of Llama 3.1."""
    import dataclasses

    from flax import nnx

    from wsc.models.rope import RopeScaling

    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    c = dataclasses.replace(tiny.config, rope_theta=500_000.0, rope_scaling=scaling)
    return Llama(c, rngs=nnx.Rngs(2))


def test_a_gguf_file_loads_to_the_same_weights(tmp_path: Path, model: Llama) -> None:
    got, tokenizer = load(write(tmp_path / "m.gguf", model), progress=False)
    assert got.config.rope_scaling == model.config.rope_scaling
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert tokenizer is not None
    assert tokenizer.encode("a", special=True) == [1, 259, 3 + ord("a")]  # a sentencepiece BPE with its prefix space
    assert tokenizer.decode([259, 3 + ord("a")]) == "a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blk.1.attn_q": None}, r"layers.1.attn.q.kernel is missing"),
        ({"blk.1.attn_x": np.ones((2, 2))}, r"blk.1.attn_x.weight is unexpected"),
        ({"output_norm": np.ones(32)}, r"output_norm.weight has shape \(32,\), expected \(48,\)"),
        ({"blk.0.ffn_up": np.full((80, 48), np.inf)}, r"blk.0.ffn_up.weight holds NaN or infinity"),
        ({"rope_freqs": np.full(8, 2.0)}, "rope_freqs.weight is not the scaling of Llama 3"),
        ({"rope_freqs": np.full(4, 2.0)}, r"rope_freqs.weight has shape \(4,\)"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, model: Llama, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(write(tmp_path / "m.gguf", model, changes))


def test_another_architecture(tmp_path: Path, model: Llama) -> None:
    with pytest.raises(CheckpointError, match="architecture is 'qwen2', not 'llama'"):
        load(write(tmp_path / "m.gguf", model, architecture="qwen2"))


def test_every_truncation_is_an_error(tmp_path: Path, model: Llama) -> None:
    path = write(tmp_path / "m.gguf", model)
    data = path.read_bytes()
    header = data.index(b"blk.2.ffn_down") + 64  # about where the tensors start
    cuts = [*range(64), *range(64, header, 97), *range(header, len(data), 50_021), len(data) - 33]
    for size in cuts:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="not a GGUF file that wsc can read"):
            load(path)


def test_a_flipped_header_never_escapes(tmp_path: Path, model: Llama) -> None:
    """Any byte of the header may be wrong: the file loads or is refused, nothing else."""
    path = write(tmp_path / "m.gguf", model)
    data = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for at in [*range(24), *rng.integers(24, data.index(b"blk.2.ffn_down"), 60)]:
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load(path)
        except CheckpointError:
            refused += 1
    assert refused > 30


def test_hostile_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    huge = 2**63
    key = struct.pack("<Q", 1) + b"k"
    for body in (
        b"GGUF" + struct.pack("<IQQ", 3, huge, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, huge),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", huge),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 4, huge),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 8, huge),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<I", 77),
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        b"GGML" + bytes(40),
        b"",
    ):
        path.write_bytes(body)
        with pytest.raises(CheckpointError, match="not a GGUF file that wsc can read"):
            load(path)


def test_without_the_library(tmp_path: Path, model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = write(tmp_path / "m.gguf", model)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'wsc\[demo\]'"):
        load(path)
