"""Llamas to compile: the module, the published sizes, checkpoints and tokenizers.

What reads files (`load`, `Tokenizer`) is imported when first asked for: it needs `pip install 'wsc[demo]'`.
"""

from typing import TYPE_CHECKING, Any

from wsc.models.config import CONFIGS, LlamaConfig
from wsc.models.llama import Cache, Llama
from wsc.models.quantize import quantize

if TYPE_CHECKING:
    from wsc.models.checkpoint import load
    from wsc.models.tokenizer import Tokenizer

__all__ = ["CONFIGS", "Cache", "Llama", "LlamaConfig", "Tokenizer", "load", "quantize"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from wsc.models.checkpoint import load

        return load
    if name == "Tokenizer":
        from wsc.models.tokenizer import Tokenizer

        return Tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
