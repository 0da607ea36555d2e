"""The `.bin` checkpoints and tokenizers of llama2.c: a short header, then float32 arrays in a fixed order."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsc.errors import CheckpointError, ConfigError
from wsc.models.config import LlamaConfig
from wsc.models.weights import Tensor, head_rows_to_halves

if TYPE_CHECKING:
    from wsc.models.tokenizer import Tokenizer

_HEADER = struct.Struct("<7i")  # dim, hidden, layers, heads, KV heads, vocabulary (negative: own head), sequence


def read(path: Path) -> tuple[LlamaConfig, Mapping[str, Tensor]]:
    """Config and mapped weights of the file at `path`; CheckpointError when its size is not what its header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(_HEADER.size)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}; give the path of a llama2.c .bin file") from e
    if len(head) < _HEADER.size:
        raise CheckpointError(f"{path} has {size} bytes, a llama2.c header alone has {_HEADER.size}; fetch it again")
    d, f, layers, heads, kv, vocab, context = _HEADER.unpack(head)
    try:
        config = LlamaConfig(
            abs(vocab), d, f, layers, heads, kv, max_position_embeddings=context, tie_word_embeddings=vocab > 0
        )
    except (ConfigError, ZeroDivisionError) as e:
        raise CheckpointError(f"{path} does not start with a llama2.c header: {e}; give another file") from e
    arrays = _layout(config)
    want = _HEADER.size + 4 * sum(math.prod(shape) for _, shape in arrays)
    if size != want:
        raise CheckpointError(f"{path} has {size} bytes, its header asks for {want}; fetch the file again")
    data = np.memmap(path, np.float32, "r", offset=_HEADER.size)
    return config, _tensors(config, arrays, data)


def _layout(c: LlamaConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in file order; those without a dot are not ours."""
    n, d, f = c.num_hidden_layers, c.hidden_size, c.intermediate_size
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    table = ("rope", (2, c.max_position_embeddings, c.head_dim // 2))
    head = [] if c.tie_word_embeddings else [("lm_head.kernel", (c.vocab_size, d))]
    return [
        ("embed.embedding", (c.vocab_size, d)),
        ("attn_norm.scale", (n, d)),
        ("attn.q.kernel", (n, q, d)),
        ("attn.k.kernel", (n, kv, d)),
        ("attn.v.kernel", (n, kv, d)),
        ("attn.o.kernel", (n, d, q)),
        ("mlp_norm.scale", (n, d)),
        ("mlp.gate.kernel", (n, f, d)),
        ("mlp.down.kernel", (n, d, f)),
        ("mlp.up.kernel", (n, f, d)),
        ("norm.scale", (d,)),
        table,
        *head,
    ]


def _tensors(c: LlamaConfig, arrays: list[tuple[str, tuple[int, ...]]], data: np.ndarray) -> dict[str, Tensor]:
    found, at = {}, 0
    for name, shape in arrays:
        count = math.prod(shape)
        array = data[at : at + count].reshape(shape)
        at += count
        if name in ("embed.embedding", "norm.scale", "lm_head.kernel"):
            found[name] = Tensor(name, shape, lambda a=array: a)
        elif name != "rope":
            halve = name in ("attn.q.kernel", "attn.k.kernel")
            for i, a in enumerate(array):
                values = (lambda a=a: head_rows_to_halves(a, c.head_dim)) if halve else (lambda a=a: a)
                found[f"layers.{i}.{name}"] = Tensor(f"{name} of layer {i}", shape[1:], values)
    return found


def read_tokenizer(path: Path, vocab_size: int) -> "Tokenizer":
    """The tokenizer at `path`: int32 longest token, then a float32 score, int32 length and bytes for each token."""
    from wsc.models.tokenizer import Tokenizer, sentencepiece_bpe

    try:
        data = path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}; put the tokenizer of the checkpoint there") from e
    pieces, scores, at = [], [], 4
    try:
        for _ in range(vocab_size):
            score, length = struct.unpack_from("<fi", data, at)
            at += 8
            if not 0 <= length <= len(data) - at:
                raise struct.error
            pieces.append(data[at : at + length].decode())
            scores.append(score)
            at += length
    except (struct.error, UnicodeDecodeError) as e:
        raise CheckpointError(
            f"{path} has no {vocab_size} tokens: it breaks at byte {at}, token {len(pieces)}; "
            "put the tokenizer of this checkpoint beside it"
        ) from e
    if at != len(data):
        raise CheckpointError(f"{path} goes on after {vocab_size} tokens; put the tokenizer of this checkpoint there")
    pieces = [p.strip() if i < 3 else p.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}") for i, p in enumerate(pieces)]
    inner = sentencepiece_bpe(pieces, scores, special=[0, 1, 2], source=path)
    return Tokenizer(inner, bos_id=1, eos_ids={2}, add_bos=True, source=path)
