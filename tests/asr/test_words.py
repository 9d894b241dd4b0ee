"""Words of a transcript: how sure the model is of each, and when each was said."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby, product
from typing import Any

import pytest
import torch
from spoken import VOCAB, ids, letters, planted

from mmdiff.canvas.generation import Generation
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import DataError
from mmdiff.tasks.asr.words import CONTEXT, word_confidences, word_times, words_begun

BLANK = VOCAB.mask_id


def generation(tokens: Sequence[int], sure: Sequence[float]) -> Generation:
    """One row; its first position is context."""
    n = len(tokens)
    return Generation(
        ids_BL=torch.tensor([[9, *tokens]]),
        target_BL=torch.tensor([[False] + [True] * n]),
        step_BL=torch.ones(1, n + 1, dtype=torch.int32),
        confidence_BL=torch.tensor([[0.01, *sure]]),
        forwards_B=torch.tensor([n]),
    )


def test_a_word_is_as_sure_as_its_least_sure_token() -> None:
    vocab = letters()
    tokens = vocab.encode("ab cde f")
    sure = [0.9, 0.8, 0.7, 0.9, 0.2, 0.9, 0.5, 0.6]
    #       a    b    ' '  c    d    e    ' '  f
    assert tokens and vocab.decode(tokens) == "ab cde f"
    assert word_confidences(generation(tokens, sure), 0, vocab) == pytest.approx([0.7, 0.2, 0.6])
    # ends, wherever they stand, are no part of a word
    mixed = generation([tokens[0], 1, tokens[1], 1], [0.9, 0.1, 0.8, 0.1])
    assert word_confidences(mixed, 0, vocab) == pytest.approx([0.8])
    assert word_confidences(generation([1, 1], [0.3, 0.3]), 0, vocab) == []
    whole = generation([*ids("one two"), 1], [0.4, 0.6, 0.1])
    assert word_confidences(whole, 0, VOCAB) == pytest.approx([0.4, 0.6])


def of_bytes() -> Vocab:
    """Byte-level BPE that splits letters of several bytes, and joins a space to what follows it."""
    return _trained("ByteLevel", add_prefix_space=False)


def of_pieces() -> Vocab:
    """Pieces as SentencePiece makes them, whose first space is left out of the text."""
    return _trained("Metaspace")


def _trained(kind: str, **options: Any) -> Vocab:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = getattr(pre_tokenizers, kind)(**options)
    core.decoder = getattr(decoders, kind)()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "ByteLevel" else [*"abcdé語 .'"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>", "<mask>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["abc dé bcd a é語 don't. ab"] * 9, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", mask_token="<mask>")
    return Vocab(made, len(made), mask_id=1, eos_id=0, pad_id=0, slot_id=1)


@pytest.mark.parametrize("make", [letters, of_bytes, of_pieces, lambda: VOCAB])
def test_words_begin_where_the_text_of_all_tokens_says_so(make: Any) -> None:
    """The words of the whole text so far, decoded again with every token, are the same in tokens of any order."""
    vocab, rng = make(), random.Random(0)
    known = vocab.encode("three four" if vocab is VOCAB else "abc dé bcd a  é語 don't . ab\u3000c")
    for drawn in (known, range(2, vocab.size if vocab is not VOCAB else 4 + 12)):
        for _ in range(20):
            tokens = [rng.choice(list(drawn)) for _ in range(12 * CONTEXT)]
            expected, count = [], 0
            for n in range(1, len(tokens) + 1):
                more = max(0, len(vocab.decode(tokens[:n]).split()) - count)
                expected.append(more)
                count += more
            assert list(words_begun(tokens, vocab)) == expected


def test_few_words_are_decoded_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    inner = Vocab.decode
    monkeypatch.setattr(Vocab, "decode", lambda self, tokens: decoded.append(len(tokens)) or inner(self, tokens))  # type: ignore[func-returns-value]
    assert sum(words_begun(ids("one two three four") * 100, VOCAB)) == 400
    assert max(decoded) == 2 * CONTEXT + 1 and len(decoded) < 500


def test_words_stand_where_they_were_planted() -> None:
    one, two = ids("one two")
    b = BLANK
    #        0  1    2    3  4    5  6    7    8    9
    path = [b, one, one, b, one, b, b, two, two, two]
    sure = [0.9, 0.8, 0.6, 0.9, 0.5, 0.9, 0.9, 0.9, 0.6, 0.3]
    words = word_times(planted(path, sure), "one one two", VOCAB, 2.0)
    assert [(w.word, w.start, w.end) for w in words] == [("one", 0.2, 0.6), ("one", 0.8, 1.0), ("two", 1.4, 2.0)]
    assert [w.confidence for w in words] == pytest.approx([0.7, 0.5, 0.6])


def test_a_word_of_several_tokens_spans_them_and_is_as_sure_as_the_least() -> None:
    vocab = letters()
    ab, cd = vocab.encode("ab"), vocab.encode(" cd")
    b = vocab.mask_id
    path = [ab[0], b, ab[1], ab[1], b, *cd, b, b]
    sure = [0.9, 0.9, 0.8, 0.4, 0.9, 0.9, 0.5, 0.7, 0.9, 0.9]
    words = word_times(planted(path, sure, vocab.size), "ab  cd", vocab, 1.0)
    assert [(w.word, w.start, w.end) for w in words] == [("ab", 0.0, 0.4), ("cd", 0.5, 0.8)]
    assert [w.confidence for w in words] == pytest.approx([0.6, 0.5])


@pytest.mark.parametrize("text", ["one", "one two", "two two"])
def test_alignment_is_the_likeliest_of_all_paths(text: str) -> None:
    expected = ids(text)
    log_p_TV = torch.randn(5, VOCAB.size, generator=torch.Generator().manual_seed(len(text))).log_softmax(1)
    symbols = [BLANK, *sorted(set(expected))]
    paths = [
        path for path in product(symbols, repeat=5) if [k for k, _ in groupby(path) if k != BLANK] == expected
    ]  # every path that collapses to the text
    best = max(paths, key=lambda path: float(log_p_TV[range(5), list(path)].sum()))
    spans, at = [], 0
    for symbol, run in groupby(best):
        n = len(list(run))
        if symbol != BLANK:
            spans.append((at / 5, (at + n) / 5))
        at += n
    assert [(w.start, w.end) for w in word_times(log_p_TV, text, VOCAB, 1.0)] == spans


def test_words_that_do_not_fit() -> None:
    log_p_TV = planted([BLANK] * 3)
    assert len(word_times(log_p_TV, "one two three", VOCAB, 1.0)) == 3
    assert word_times(log_p_TV, "one two three four", VOCAB, 1.0) == []
    assert len(word_times(log_p_TV, "one one", VOCAB, 1.0)) == 2  # three features: one, blank, one
    assert word_times(log_p_TV[:2], "one one", VOCAB, 1.0) == []
    assert word_times(log_p_TV, "", VOCAB, 1.0) == []
    for word in ("won", "<mask>"):
        with pytest.raises(DataError, match=f"does not know the word ' {word}'"):
            word_times(log_p_TV, f"one {word}", VOCAB, 1.0)
