"""The words of Meta-World's instructions, for small backbones that learn them from nothing."""

from __future__ import annotations

from typing import Any

from mmdiff.canvas.vocab import word_tokenizer

from .worlds.metaworld import TASKS


def tokenizer() -> Any:
    """A transformers tokenizer of whole words: those of all 50 instructions, in alphabetical order."""
    return word_tokenizer(sorted({word for text in TASKS.values() for word in text.lower().split()}))
