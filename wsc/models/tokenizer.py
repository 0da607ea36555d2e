"""Text to token ids and back, for every checkpoint format; the work is done by the `tokenizers` library."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsc.errors import ArgumentError, CheckpointError
from wsc.models.bpe import LLAMA3, byte_level_bpe, guard, library, sentencepiece_bpe

if TYPE_CHECKING:
    import tokenizers

    from wsc.models.gguf import Gguf


class Tokenizer:
    """The tokenizer of one model.

    `bos_id` begins a text (None: the model has none), any of `eos_ids` ends what the model says.
    """

    def __init__(
        self,
        inner: "tokenizers.Tokenizer",
        *,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        add_bos: bool = False,
        chat_template: str | None = None,
        source: str | Path = "tokenizer",
    ):
        self._inner, self._add_bos, self._template, self._source = inner, add_bos, chat_template, source
        self.bos_id, self.eos_ids = bos_id, frozenset(eos_ids)

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self._inner.get_vocab().values(), default=-1) + 1

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of `text`; `special` adds those the model wants around every text, such as BOS."""
        ids = self._inner.encode(text, add_special_tokens=special).ids
        return [self.bos_id, *ids] if special and self._add_bos and self.bos_id is not None else ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of `ids`; `special` shows control tokens. Bytes that are not UTF-8 become U+FFFD."""
        if any(i < 0 for i in ids):
            raise ArgumentError(f"token ids cannot be negative, got {min(ids)}; give ids that the model made")
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=not special)

    def stream(self) -> "TextStream":
        """For ids that come one by one: text as soon as its characters are whole."""
        return TextStream(self)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for `messages`, each with a `role` and a `content`, ready for the model's answer.

        Raises CheckpointError if the model has no chat template, ArgumentError for messages it cannot take.
        """
        if self._template is None:
            raise CheckpointError(f"{self._source} has no chat template; use an instruct model, or encode plain text")
        for m in messages:
            if not isinstance(m, Mapping) or not all(isinstance(m.get(k), str) for k in ("role", "content")):
                raise ArgumentError(f"a message must have a role and a content, both strings, got {m!r}")
        return _render(
            self._template, list(messages), self._text(self.bos_id), self._text(min(self.eos_ids, default=None))
        )

    def _text(self, token: int | None) -> str:
        return "" if token is None else self._inner.id_to_token(token) or ""

    def files(self) -> dict[str, str]:
        """What `from_folder` reads, by the names of the files: `tokenizer.json` and `tokenizer_config.json`."""
        named = {"bos_token": self._text(self.bos_id), "eos_token": self._text(min(self.eos_ids, default=None))}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | {k: v for k, v in named.items() if v}
        return {"tokenizer.json": self._inner.to_str(), "tokenizer_config.json": json.dumps(settings, indent=2)}

    @classmethod
    def from_folder(cls, folder: Path, bos_id: int | None = None, eos_ids: Iterable[int] = ()) -> "Tokenizer":
        """From `tokenizer.json`, with what `tokenizer_config.json` adds; CheckpointError when one cannot be read."""
        tokenizers = library(folder)
        path = folder / "tokenizer.json"
        with guard(path):
            inner = tokenizers.Tokenizer.from_file(str(path))
        settings, template = _json(folder / "tokenizer_config.json"), None
        if isinstance(found := settings.get("chat_template"), str):
            template = found
        elif isinstance(found, list):  # several: the one that is called default
            template = next(
                (t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None
            )
        if (file := folder / "chat_template.jinja").is_file():
            with guard(file):
                template = file.read_text(encoding="utf-8")

        def token(name: str) -> int | None:
            value = settings.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            return inner.token_to_id(text) if isinstance(text, str) else None

        named_bos, named_eos = token("bos_token"), token("eos_token")
        listed = _json(folder / "generation_config.json").get("eos_token_id")
        more = [i for i in (listed if isinstance(listed, list) else [listed]) if isinstance(i, int)]
        ends = {*eos_ids, *more, *([] if named_eos is None else [named_eos])}
        bos = named_bos if named_bos is not None else bos_id
        return cls(inner, bos_id=bos, eos_ids=ends, chat_template=template, source=folder)

    @classmethod
    def from_gguf(cls, file: "Gguf") -> "Tokenizer":
        """From the metadata of a GGUF file; CheckpointError for a kind that wsc cannot build."""
        library(file.path)
        meta = {k.removeprefix("tokenizer.ggml."): v for k, v in file.metadata.items()}
        kind, pre = meta.get("model"), str(meta.get("pre", "default"))
        tokens, types = _list(file, "tokens", str), _list(file, "token_type", int)
        with guard(file.path):
            if kind == "gpt2":
                inner = byte_level_bpe(tokens, _list(file, "merges", str), types, pre, file.path)
            elif kind == "llama":
                special = [i for i, t in enumerate(types) if t == 3]
                prefix = bool(meta.get("add_space_prefix", True))
                inner = sentencepiece_bpe(tokens, _list(file, "scores", float), special, file.path, prefix)
            else:
                raise CheckpointError(
                    f"{file.path} has the tokenizer model {kind!r}; wsc builds 'gpt2' and 'llama', so use the "
                    "safetensors of the same model with its tokenizer.json"
                )
        named = {key: meta[f"{key}_token_id"] for key in ("bos", "eos", "eot") if f"{key}_token_id" in meta}
        for key, value in named.items():
            if not isinstance(value, int) or not 0 <= value < len(tokens):
                raise CheckpointError(f"{file.path}: its {key}_token_id is {value!r}, not one of {len(tokens)} tokens")
        bos = named.pop("bos", None)
        template = file.metadata.get("tokenizer.chat_template")
        template = template if isinstance(template, str) else None
        add_bos = bool(meta.get("add_bos_token", kind == "llama" or pre in LLAMA3))
        return cls(inner, bos_id=bos, eos_ids=named.values(), add_bos=add_bos, chat_template=template, source=file.path)


class TextStream:
    """Ids in, text out, a character only when all of its bytes are there."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # since the last cut, with one id before it: a first token may lose its space
        self._shown = 0  # characters of their text that are out

    def push(self, token: int) -> str:
        """The text that `token` completes, perhaps empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip("\ufffd")
        if len(text) - len(whole) > 3:  # no character has so many missing bytes: these are wrong for good
            whole = text
        out, self._shown = whole[self._shown :], max(self._shown, len(whole))
        alone = self._tokenizer.decode([token])
        if whole == text and "\ufffd" not in alone:
            self._ids, self._shown = [token], len(alone)
        return out

    def flush(self) -> str:
        """What is left, incomplete characters as U+FFFD; the stream is then empty."""
        rest = self._tokenizer.decode(self._ids)[self._shown :]
        self._ids, self._shown = [], 0
        return rest


def _render(template: str, messages: list[Mapping[str, str]], bos: str, eos: str) -> str:
    """The template in Jinja's sandbox: it comes from the checkpoint, and must not reach Python."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as e:
        raise CheckpointError("chat templates need the jinja2 package; run: pip install 'wsc[demo]'") from e

    def raise_exception(message: str) -> str:
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals["raise_exception"] = raise_exception
    try:
        return env.from_string(template).render(
            messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
        )
    except Exception as e:  # whatever a foreign template does wrong
        raise ArgumentError(f"the chat template of this model does not take these messages: {e}") from e


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty if there is no such file."""
    if not path.is_file():
        return {}
    with guard(path):
        data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold one JSON object, got {type(data).__name__}; fetch the file again")
    return data


def _list(file: "Gguf", key: str, kind: type) -> list[Any]:
    """The list tokenizer.ggml.`key`, all `kind`, as long as the list of tokens (merges: any length)."""
    value, tokens = file.metadata.get(f"tokenizer.ggml.{key}"), file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(value, list) and isinstance(tokens, list) and all(isinstance(v, kind) for v in value):  # noqa: SIM102
        if key == "merges" or len(value) == len(tokens) > 0:
            return value
    raise CheckpointError(f"{file.path} has no whole list tokenizer.ggml.{key}; fetch the file again")
