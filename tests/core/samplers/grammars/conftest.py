"""Tokens of one byte, and tokens of two bytes."""

from __future__ import annotations

import pytest

from mmdiff.backbones.load import toy_backbone
from mmdiff.canvas.vocab import Vocab


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    """One id per byte, and LLaDA's special tokens."""
    return toy_backbone("GSAI-ML/LLaDA-8B-Instruct").vocab


@pytest.fixture(scope="module")
def pieces() -> Vocab:
    """Pairs of bytes of JSON are tokens: they straddle its parts, and the bytes of a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    texts = ['{"name": "ant é日本", "age": 12, "tall": true, "kind": "bée", "marks": [1.5, -2e9]}'] * 9
    texts += ['{"name": "日 é", "age": 120, "tall": false, "kind": "ant", "marks": []}', "((1+2)*3)-(4/5)"] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", mask_token="<mask>")
    n = len(fast)
    return Vocab(fast, n + 3, mask_id=n - 1, eos_id=n - 2, pad_id=n - 2, slot_id=n - 2, end_ids=(n - 2,))
