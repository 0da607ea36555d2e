import dataclasses
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from wsc.errors import CheckpointError, DownloadError
from wsc.models import Llama, LlamaConfig, load
from wsc.models.bytes import byte_tokenizer
from wsc.models.huggingface import write

HF = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def hf_tensors(model: Llama) -> dict[str, np.ndarray]:
    """The weights of `model` as transformers names and turns them."""
    out = {"model.embed_tokens.weight": model.embed.embedding[...], "model.norm.weight": model.norm.scale[...]}
    if not model.config.tie_word_embeddings:
        out["lm_head.weight"] = model.lm_head.kernel[...].T
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}."
        out[at + "input_layernorm.weight"] = layer.attn_norm.scale[...]
        out[at + "post_attention_layernorm.weight"] = layer.mlp_norm.scale[...]
        for ours, theirs in HF.items():
            room, name = ours.split(".")
            out[f"{at}{theirs}.weight"] = getattr(getattr(layer, room), name).kernel[...].T
    return {name: np.ascontiguousarray(w) for name, w in out.items()}


def hf_config(c: LlamaConfig) -> dict[str, Any]:
    names = [n for n in c.__dataclass_fields__ if n not in ("rope_scaling", "eos_token_id")]
    scaling = None if c.rope_scaling is None else vars(c.rope_scaling)
    return {"model_type": "llama", **{n: getattr(c, n) for n in names}, "rope_scaling": scaling, "eos_token_id": 2}


def write_folder(folder: Path, config: LlamaConfig, tensors: dict[str, np.ndarray], shards: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return folder
    names, where = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        safetensors.numpy.save_file({n: tensors[n] for n in names[i::shards]}, folder / file)
        where |= dict.fromkeys(names[i::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def assert_same(got: Llama, want: Llama, dtype: Any = jnp.float32) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b.astype(dtype), np.float32))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_loads_to_the_same_weights(tmp_path: Path, tiny: Llama, shards: int) -> None:
    got, tokenizer = load(write_folder(tmp_path, tiny.config, hf_tensors(tiny), shards), progress=False)
    assert_same(got, tiny)
    assert got.config == tiny.config and tokenizer is None


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files(tmp_path: Path, tiny: Llama, dtype: Any) -> None:
    tensors = {name: w.astype(dtype) for name, w in hf_tensors(tiny).items()}
    folder = write_folder(tmp_path, tiny.config, tensors)
    assert_same(load(folder, dtype=dtype)[0], jax.tree.map(lambda w: w.astype(dtype), tiny), dtype)
    wide = jax.tree.map(lambda w: w.astype(dtype).astype(jnp.float32), tiny)
    assert_same(load(folder)[0], wide)


def test_tied_models_may_carry_the_head_twice(tmp_path: Path, tiny: Llama) -> None:
    tensors, data = hf_tensors(tiny), hf_config(tiny.config) | {"tie_word_embeddings": True}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    write_folder(tmp_path, tiny.config, tensors)
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert not hasattr(load(tmp_path)[0], "lm_head")


Damage = Callable[[dict[str, np.ndarray]], Any]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "norm.scale is missing"),
        (
            lambda t: t.update({"model.layers.1.mlp.extra.weight": t["model.norm.weight"]}),
            "mlp.extra.weight is unexpec",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.Q.weight": t.pop("model.layers.0.self_attn.q_proj.weight")}),
            r"layers.0.attn.q.kernel is missing; model.layers.0.self_attn.Q.weight is unexpected",
        ),
        (
            lambda t: t.update({"model.layers.2.self_attn.k_proj.weight": np.ones((48, 32), np.float32)}),
            r"model.layers.2.self_attn.k_proj.weight has shape \(48, 32\), expected \(32, 48\)",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(48, np.int32)}), "model.norm.weight is I32"),
        (lambda t: t.update({"model.norm.weight": np.full(48, np.nan, np.float32)}), "norm.weight holds NaN or inf"),
        (lambda t: [t.pop(n) for n in list(t)[4:]], "is missing.* and 21 more"),
        (lambda t: [t.pop(n) for n in list(t)[2:]], "3 layers, but 2 tensors"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, tiny: Llama, damage: Damage, message: str) -> None:
    tensors = hf_tensors(tiny)
    damage(tensors)
    with pytest.raises(CheckpointError, match=message):
        load(write_folder(tmp_path, tiny.config, tensors))


def truncated(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("keep", [0, 0.0001, 0.01, 0.5, 0.999])
def test_truncated_safetensors(tmp_path: Path, tiny: Llama, keep: float) -> None:
    write_folder(tmp_path, tiny.config, hf_tensors(tiny))
    truncated(tmp_path / "model.safetensors", keep)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "no index of shards"),
        ("[]", "no index of shards"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "files of its own folder"),
        ('{"weight_map": {"a": 3}}', "files of its own folder"),
        ('{"weight_map": {}}', "files of its own folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "has no gone.safetensors"),
    ],
)
def test_bad_index(tmp_path: Path, tiny: Llama, index: str, message: str) -> None:
    write_folder(tmp_path, tiny.config, hf_tensors(tiny))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rms_norm_eps": NaN, "vocab_size": 300}', "has no hidden_size"),
        ("", "not JSON"),
        (None, "cannot read"),
    ],
)
def test_bad_config(tmp_path: Path, tiny: Llama, text: str | None, message: str) -> None:
    write_folder(tmp_path, tiny.config, hf_tensors(tiny))
    (tmp_path / "config.json").unlink() if text is None else (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_config_of_nan(tmp_path: Path, tiny: Llama) -> None:
    write_folder(tmp_path, tiny.config, hf_tensors(tiny))
    data = hf_config(tiny.config) | {"rms_norm_eps": float("nan")}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="rms_norm_eps must be a positive float, got nan"):
        load(tmp_path)


def test_an_empty_folder_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json"):
        load(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="no kind of checkpoint that wsc reads"):
        load(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"there is no .*none.gguf"):
        load("models/none.gguf")
    with pytest.raises(CheckpointError, match=r"there is no \.\./x"):
        load("../x")
    with pytest.raises(CheckpointError, match="has no weights for it"):
        load("llama-3.1-8b")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(repo: str, **options: Any) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DownloadError, match=r"cannot fetch 'org/name' .*Name or service not known.*by hand"):
        load("org/name")


def test_the_hub_cache_is_looked_into_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Llama) -> None:
    import huggingface_hub

    calls = []

    def local(repo: str, local_files_only: bool = False, **options: Any) -> str:
        calls.append(local_files_only)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", local)
    write_folder(tmp_path, tiny.config, hf_tensors(tiny), shards=2)
    assert_same(load("org/name")[0], tiny)
    assert calls == [True]
    (tmp_path / "model-00002-of-00002.safetensors").unlink()  # half-fetched: the hub is asked
    with pytest.raises(CheckpointError, match=r"has no model-00002-of-00002\.safetensors"):
        load("org/name")
    assert calls == [True, True, False]


def write_bin(path: Path, model: Llama) -> None:
    """A llama2.c checkpoint of `model`: rows of q and k interleaved, as that format has them."""
    c = model.config
    sign = 1 if c.tie_word_embeddings else -1
    head = (c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads)

    def rows(w: jax.Array) -> np.ndarray:
        return np.asarray(w).T

    def interleaved(w: jax.Array) -> np.ndarray:
        heads = rows(w).reshape(-1, 2, c.head_dim // 2, c.hidden_size)
        return np.stack([heads[:, 0], heads[:, 1]], axis=2)

    layers = list(model.layers)
    parts = [model.embed.embedding[...]]
    parts += [layer.attn_norm.scale[...] for layer in layers]
    parts += [interleaved(layer.attn.q.kernel[...]) for layer in layers]
    parts += [interleaved(layer.attn.k.kernel[...]) for layer in layers]
    parts += [rows(layer.attn.v.kernel[...]) for layer in layers]
    parts += [rows(layer.attn.o.kernel[...]) for layer in layers]
    parts += [layer.mlp_norm.scale[...] for layer in layers]
    parts += [rows(layer.mlp.gate.kernel[...]) for layer in layers]
    parts += [rows(layer.mlp.down.kernel[...]) for layer in layers]
    parts += [rows(layer.mlp.up.kernel[...]) for layer in layers]
    parts += [model.norm.scale[...], np.zeros((2, c.max_position_embeddings, c.head_dim // 2))]
    parts += [] if c.tie_word_embeddings else [rows(model.lm_head.kernel[...])]
    data = b"".join(np.ascontiguousarray(p, np.float32).tobytes() for p in parts)
    path.write_bytes(struct.pack("<7i", *head, sign * c.vocab_size, c.max_position_embeddings) + data)


@pytest.fixture
def small() -> Llama:
    from flax import nnx

    return Llama(LlamaConfig(270, 32, 44, 2, 4, 2, max_position_embeddings=16), rngs=nnx.Rngs(5))


def test_a_bin_file_loads_to_the_same_weights(tmp_path: Path, small: Llama) -> None:
    write_bin(tmp_path / "model.bin", small)
    got, tokenizer = load(tmp_path / "model.bin")
    assert_same(got, small)
    assert tokenizer is None


@pytest.mark.parametrize("keep", [0, 0.0001, 0.5, 0.9999, 2])
def test_bin_files_of_another_size(tmp_path: Path, small: Llama, keep: float) -> None:
    path = tmp_path / "model.bin"
    write_bin(path, small)
    path.write_bytes(path.read_bytes() * 2) if keep == 2 else truncated(path, keep)
    with pytest.raises(CheckpointError, match=r"has \d+ bytes"):
        load(path)


def test_bin_files_of_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for fields in ((0,) * 7, (64, 1, 1, 3, 2, 8, 8), (-1,) * 7, (2**31 - 1,) * 7):
        path.write_bytes(struct.pack("<7i", *fields) + bytes(100))
        with pytest.raises(CheckpointError, match=r"does not start with a llama2.c header|its header asks for"):
            load(path)


def test_the_tokenizer_beside_a_bin_file(tmp_path: Path, small: Llama) -> None:
    write_bin(tmp_path / "model.bin", small)
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{i:02X}>".encode() for i in range(256))]
    pieces += [b" ", b"h", b"i", b"hi", b" hi", "\N{SNOWMAN}".encode()]
    pieces += [f"pad{i}".encode() for i in range(270 - len(pieces))]
    body = b"".join(struct.pack("<fi", -float(i), len(p)) + p for i, p in enumerate(pieces))
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(struct.pack("<i", 9) + body)
    tokenizer = load(tmp_path / "model.bin")[1]
    assert tokenizer is not None
    ids = tokenizer.encode("hi \N{SNOWMAN} é", special=True)
    assert ids == [1, 263, 259, 264, 259, 3 + 0xC3, 3 + 0xA9] and tokenizer.decode(ids) == "hi \N{SNOWMAN} é"
    for data in (b"", struct.pack("<i", 9) + body[:-1], struct.pack("<i", 9) + body + b"x"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="put the tokenizer of this checkpoint"):
            load(tmp_path / "model.bin")


def test_damaged_stories(stories: Path, tmp_path: Path) -> None:
    path = tmp_path / "stories.bin"
    shutil.copyfile(stories / "stories260K.bin", path)
    truncated(path, 0.9)
    with pytest.raises(CheckpointError, match="its header asks for 1056540"):
        load(path)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_written_folder_is_what_transformers_names_it_and_loads_again(
    tiny: Llama, tmp_path: Path, dtype: Any
) -> None:
    model = jax.tree.map(lambda w: w.astype(dtype), tiny)
    write(tmp_path / "out", model, byte_tokenizer())
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", framework="flax") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == hf_tensors(model).keys()
    for name, want in hf_tensors(model).items():
        assert found[name].dtype == dtype and found[name].shape == want.shape
        np.testing.assert_array_equal(found[name].astype(jnp.float32), want.astype(np.float32))
    again, tokenizer = load(tmp_path / "out", dtype=dtype)
    assert dataclasses.replace(again.config, dtype="float32") == model.config
    assert again.config.dtype == jnp.dtype(dtype).name
    assert tokenizer is not None and tokenizer.encode("é<|end|>") == [195, 169, 256]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_folder_that_cannot_be_written(tiny: Llama, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot write to .*file"):
        write(tmp_path / "file" / "out", tiny)
