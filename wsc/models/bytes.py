"""Text as bytes: the tokenizer that needs no training, and a text to learn that every Python has.

Token b is byte b; token 256 ends a text.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wsc.models.bpe import byte_level_bpe
from wsc.models.tokenizer import Tokenizer

END = 256  # the token that ends a text
END_TEXT = "<|end|>"
VOCABULARY = 288  # room for the above, and a number of many divisors: its rows are cut over PEs with little padding


def byte_tokenizer() -> Tokenizer:
    """A tokenizer of bytes. CheckpointError where the package is missing that does the work.

    >>> byte_tokenizer().encode("wafer é")
    [119, 97, 102, 101, 114, 32, 195, 169]
    """
    source = Path("the byte tokenizer")
    return Tokenizer(
        byte_level_bpe([*_letters(), END_TEXT], [], [1] * 256 + [3], "gpt-2", source), eos_ids=[END], source=source
    )


def _letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: Latin-1 for what can be seen of it, and for the
    others, in order, the letters from U+0100."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in seen]
    return [chr(b) if b in seen else chr(256 + hidden.index(b)) for b in range(256)]


def tokens_of(texts: Iterable[str]) -> np.ndarray:
    """The tokens int32 [N] of `texts` one after the other, each ended by END.

    >>> tokens_of(["ab", "c"])
    array([ 97,  98, 256,  99, 256], dtype=int32)
    """
    end = np.array([END], np.int32)
    parts = [part for text in texts for part in (np.frombuffer(text.encode(), np.uint8).astype(np.int32), end)]
    return np.concatenate(parts) if parts else end[:0]


def topics() -> list[str]:
    """The topics of Python's own `help()`: 79 texts, 466 KB in Python 3.11, a little different in every release."""
    from pydoc_data.topics import topics as found

    return list(found.values())
