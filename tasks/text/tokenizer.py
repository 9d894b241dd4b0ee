"""A byte-level BPE tokenizer of documents' own words, for models that begin from nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import UpToMillion
from mmdiff.protocols import Row

from .data.documents import texts_of

SPECIAL = ("<pad>", "<eos>", "<mask>")
_trained: dict[str, str] = {}  # digest of texts and size -> a trained tokenizer, which a run needs several times


@part
def byte_pairs(documents: Iterable[Row], vocab_size: UpToMillion = 1024) -> Any:
    """Returns a transformers tokenizer: the 256 bytes, `<pad>`, `<eos>`, `<mask>` and the most frequent merges.

    documents: what yields {"text": ...}. vocab_size: ids in all. The same texts give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 256 + len(SPECIAL):
        raise ConfigError(f"vocab_size: {vocab_size}, expected at least {256 + len(SPECIAL)}: bytes and special tokens")
    texts = [text for _, text in texts_of(documents)]
    key = hashlib.blake2b(repr((vocab_size, texts)).encode("utf-8", "surrogatepass")).hexdigest()
    if key not in _trained:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        _trained[key] = core.to_str()
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained[key]), pad_token="<pad>", eos_token="<eos>", mask_token="<mask>"
    )
