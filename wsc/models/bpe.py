"""The two kinds of byte-pair encoding that Llamas have, built from bare lists of tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsc.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers

LLAMA3 = ("llama-bpe", "llama3", "llama-v3")  # what GGUF files call Llama 3's rules for splitting words
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space


def sentencepiece_bpe(
    pieces: Sequence[str], scores: Sequence[float], special: Sequence[int], source: Path, prefix: bool = True
) -> "tokenizers.Tokenizer":
    """A sentencepiece BPE: of all neighbours that join to a piece, the one of best score joins first."""
    tokenizers = library(source)
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for _, i in sorted((-score, i) for i, score in enumerate(scores)):
        piece = pieces[i]
        splits = ((piece[:n], piece[n:]) for n in range(1, len(piece)))
        merges += sorted(
            (s for s in splits if s[0] in vocab and s[1] in vocab), key=lambda s: (vocab[s[0]], vocab[s[1]])
        )
    from tokenizers import decoders, models, normalizers

    with guard(source):
        bpe = models.BPE(vocab, merges, unk_token=pieces[0], fuse_unk=True, byte_fallback=True)
        inner = tokenizers.Tokenizer(bpe)
        spaces = normalizers.Replace(" ", _SPACE)
        inner.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        inner.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        inner.add_special_tokens([_added(pieces[i], True) for i in special])
    return inner


def byte_level_bpe(
    tokens: list[str], merges: list[str], types: list[int], pre: str, source: Path
) -> "tokenizers.Tokenizer":
    """A byte-level BPE, as GPT-2 and Llama 3 have; `pre` names the rules that first split a text into words."""
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in LLAMA3:
        split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"), whole])
    elif pre == "smollm":
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    elif pre == "gpt-2":
        split = words
    else:
        raise CheckpointError(
            f"{source} splits text by the rules {pre!r}; wsc knows smollm, llama-bpe and gpt-2, so use the "
            "safetensors of the same model with its tokenizer.json"
        )
    pairs = [(a, b) for a, _, b in (m.partition(" ") for m in merges)]
    inner = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, pairs, ignore_merges=pre in LLAMA3))
    inner.pre_tokenizer, inner.decoder = split, decoders.ByteLevel()
    inner.add_special_tokens([_added(tokens[i], True) for i, t in enumerate(types) if t == 3])
    inner.add_tokens([_added(tokens[i], False) for i, t in enumerate(types) if t == 4])
    return inner


def _added(text: str, special: bool) -> Any:
    from tokenizers import AddedToken

    return AddedToken(text, special=special, normalized=False)


def library(source: Path) -> Any:
    try:
        import tokenizers
    except ImportError as e:
        raise CheckpointError(f"the tokenizer of {source} needs a package; run: pip install 'wsc[demo]'") from e
    return tokenizers


@contextmanager
def guard(path: Path) -> Iterator[None]:
    """Turns whatever the tokenizers library raises, its Rust panics too, into a CheckpointError."""
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:
        raise CheckpointError(f"{path} holds no tokenizer that can be built: {e}; fetch the file again") from e
