"""Small tokenizers for toy twins of published models."""

from __future__ import annotations

from typing import Any


def byte_tokenizer(*, bos: str | None, eos: str, special: tuple[str, ...]) -> Any:
    """Returns a tokenizer of one id per byte, then special tokens: it encodes any text and needs no file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=eos, additional_special_tokens=[*special]
    )
