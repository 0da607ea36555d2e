import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from wsc.errors import ArgumentError, CheckpointError
from wsc.models import Llama, Tokenizer
from wsc.models.bpe import byte_level_bpe
from wsc.models.gguf import Gguf

# By transformers 5.23 from the same GGUF.
GOLDEN = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello, world! 123 4567  \n\n\tdéjà vu 🙂 ﬁ": [
        *(19556, 28, 905, 17, 216, 33, 34, 35, 216, 36, 37, 38, 39, 256, 1116, 197, 84, 2756, 90, 16739, 386, 101),
        *(47526, 40367),
    ],
    "  leading": [216, 2899],
    "I'm you're <|im_start|>user\nhi<|im_end|>": [57, 5248, 346, 2316, 216, 1, 4093, 198, 6004, 2],
}
CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"


def bytes_only(**options: Any) -> Tokenizer:
    """A byte-level tokenizer: every byte a token, `<end>` the last."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return Tokenizer(byte_level_bpe([*letters, "<end>"], [], [1] * 256 + [3], "smollm", Path("x")), **options)


@pytest.mark.parametrize("text", GOLDEN)
def test_smollm2_encodes_as_transformers_does(smollm2: tuple[Llama, Tokenizer], text: str) -> None:
    _, tokenizer = smollm2
    assert tokenizer.encode(text) == tokenizer.encode(text, special=True) == GOLDEN[text]
    assert tokenizer.decode(GOLDEN[text], special=True) == text


def test_smollm2_chat(smollm2: tuple[Llama, Tokenizer]) -> None:
    _, tokenizer = smollm2
    assert tokenizer.chat([{"role": "user", "content": "Name three colours."}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.bos_id == 1 and tokenizer.eos_ids == {2}


def test_a_stream_gives_whole_characters_only() -> None:
    tokenizer = bytes_only()
    text = "aé🙂\u200d👍 ﬁ\n  x"
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(pieces) == text and stream.flush() == ""
    assert pieces[:7] == ["a", "", "é", "", "", "", "🙂"]


def test_a_stream_shows_broken_bytes_in_the_end() -> None:
    tokenizer = bytes_only()
    start, other = tokenizer.encode("🙂")[0], tokenizer.encode("a")[0]
    stream = tokenizer.stream()
    assert [stream.push(start), stream.push(other)] == ["", "\ufffda"]
    assert stream.push(start) == "" and stream.flush() == "\ufffd"
    assert stream.push(other) == "a"
    assert "".join(stream.push(start) for _ in range(50)) + stream.flush() == "\ufffd" * 50


def test_control_tokens() -> None:
    tokenizer = bytes_only(bos_id=256, eos_ids=[256], add_bos=True)
    assert tokenizer.encode("<end>") == [256] and tokenizer.encode("", special=True) == [256]
    assert tokenizer.decode([256]) == "" and tokenizer.decode([256], special=True) == "<end>"
    with pytest.raises(ArgumentError, match="cannot be negative, got -1"):
        tokenizer.decode([-1])


def test_chat_errors() -> None:
    with pytest.raises(CheckpointError, match="has no chat template"):
        bytes_only().chat([{"role": "user", "content": "hi"}])
    with pytest.raises(ArgumentError, match="must have a role and a content"):
        bytes_only(chat_template=CHAT).chat([{"role": "user"}])
    with pytest.raises(ArgumentError, match="no system role"):
        template = "{{ raise_exception('no system role') }}"
        bytes_only(chat_template=template).chat([{"role": "system", "content": "x"}])
    with pytest.raises(ArgumentError, match="does not take these messages"):
        bytes_only(chat_template="{% for").chat([])


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"],
)
def test_a_template_cannot_reach_python(template: str) -> None:
    with pytest.raises(ArgumentError, match="does not take these messages"):
        bytes_only(chat_template=template).chat([{"role": "user", "content": "x"}])


def folder_with(folder: Path, **settings: Any) -> Path:
    bytes_only()._inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_from_a_folder(tmp_path: Path) -> None:
    folder_with(tmp_path, chat_template=CHAT, eos_token={"content": "<end>"}, bos_token=None)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 256]}')
    got = Tokenizer.from_folder(tmp_path, bos_id=3, eos_ids=[5])
    assert (got.bos_id, got.eos_ids, got.vocab_size) == (3, {5, 7, 256}, 257)
    assert got.decode(got.encode("déjà vu")) == "déjà vu"
    named = [{"name": "tool", "template": "no"}, {"name": "default", "template": CHAT}]
    assert (
        Tokenizer.from_folder(folder_with(tmp_path, chat_template=named))
        .chat([{"role": "user", "content": "hi"}])
        .startswith("user: hi")
    )
    (tmp_path / "chat_template.jinja").write_text("{{ messages|length }}")
    assert Tokenizer.from_folder(tmp_path).chat([]) == "0"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {}}'])
def test_bad_tokenizer_files(tmp_path: Path, text: str) -> None:
    folder_with(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer.json holds no tokenizer"):
        Tokenizer.from_folder(tmp_path)
    folder_with(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text if text != '{"model": {}}' else "3")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json (holds no|must hold)"):
        Tokenizer.from_folder(tmp_path)


def metadata(**changes: Any) -> dict[str, Any]:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    base = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": [*letters, "ab", "<s>"],
        "merges": ["a b"],
        "bos_token_id": 257,
    }
    base |= {"token_type": [1] * 257 + [3], "eos_token_id": 257}
    return {f"tokenizer.ggml.{k}": v for k, v in (base | changes).items() if v is not None}


def test_llama3_rules_from_gguf() -> None:
    got = Tokenizer.from_gguf(Gguf(Path("m.gguf"), metadata(), {}))
    ids = got.encode("ab<s>", special=True)
    assert ids == [257, 256, 257] and got.eos_ids == {257}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "tokenizer model 'bert'.*tokenizer.json"),
        ({"model": None}, "tokenizer model None"),
        ({"pre": "qwen2"}, "by the rules 'qwen2'"),
        ({"tokens": None}, "no whole list tokenizer.ggml.tokens"),
        ({"tokens": [1] * 258}, "no whole list tokenizer.ggml.tokens"),
        ({"token_type": [1]}, "no whole list tokenizer.ggml.token_type"),
        ({"merges": None}, "no whole list tokenizer.ggml.merges"),
        ({"merges": ["zz q"]}, "holds no tokenizer that can be built"),
        ({"model": "llama"}, "no whole list tokenizer.ggml.scores"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"chat": 1, "bos_token_id": []}, "bos_token_id"),
    ],
)
def test_bad_gguf_metadata(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_gguf(Gguf(Path("m.gguf"), metadata(**changes), {}))
