"""The CTC head as a recogniser: greedy transcripts, times of words by forced alignment, and first passes as rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from spoken import VOCAB, ids, letters, model, row, saved
from torch import Tensor

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.asr import ctc
from mmdiff.tasks.asr.ctc import FirstPass, emitted, encoded, first_pass, greedy, read_clip, word_times

pytestmark = pytest.mark.needs("torchaudio", "soundfile")

BLANK = VOCAB.mask_id
WORDS: Any = SimpleNamespace(vocab=VOCAB)


def planted(path: Sequence[int], sure: float | Sequence[float] = 0.9, size: int = VOCAB.size) -> Tensor:
    """Log-probabilities (T, V): each feature is `sure` of its id, and all others are as likely as each other."""
    p_T = torch.as_tensor(sure).expand(len(path)).clone()
    p_TV = ((1 - p_T) / (size - 1))[:, None].repeat(1, size)
    p_TV[torch.arange(len(path)), torch.tensor(path)] = p_T
    return p_TV.log()


def test_greedy_by_hand() -> None:
    one, two = ids("one two")
    b = BLANK
    assert greedy(planted([b, one, one, b, two, two, two, b]), VOCAB) == "one two"
    assert greedy(planted([one, b, one, one, two, b, two]), VOCAB) == "one one two two"  # a blank between: said twice
    assert greedy(planted([b, b, b]), VOCAB) == ""
    bytes_ = letters()
    spelled = [i for letter in bytes_.encode(" ab ba") for i in (letter, bytes_.mask_id)]
    assert greedy(planted(spelled, size=bytes_.size), bytes_) == "ab ba"


def test_words_stand_where_they_were_planted() -> None:
    one, two = ids("one two")
    b = BLANK
    #        0  1    2    3  4    5  6    7    8    9
    path = [b, one, one, b, one, b, b, two, two, two]
    sure = [0.9, 0.8, 0.6, 0.9, 0.5, 0.9, 0.9, 0.9, 0.6, 0.3]
    words = word_times(planted(path, sure), "one one two", WORDS, 2.0)
    assert [(w.word, w.start, w.end) for w in words] == [("one", 0.2, 0.6), ("one", 0.8, 1.0), ("two", 1.4, 2.0)]
    assert [w.confidence for w in words] == pytest.approx([0.7, 0.5, 0.6])


def test_a_word_of_several_tokens_spans_them_and_is_as_sure_as_the_least() -> None:
    vocab = letters()
    ab, cd = vocab.encode("ab"), vocab.encode(" cd")
    b = vocab.mask_id
    path = [ab[0], b, ab[1], ab[1], b, *cd, b, b]
    sure = [0.9, 0.9, 0.8, 0.4, 0.9, 0.9, 0.5, 0.7, 0.9, 0.9]
    words = word_times(planted(path, sure, vocab.size), "ab  cd", SimpleNamespace(vocab=vocab), 1.0)  # type: ignore[arg-type]
    assert [(w.word, w.start, w.end) for w in words] == [("ab", 0.0, 0.4), ("cd", 0.5, 0.8)]
    assert [w.confidence for w in words] == pytest.approx([0.6, 0.5])


@pytest.mark.parametrize("text", ["one", "one two", "two two"])
def test_alignment_is_the_likeliest_of_all_paths(text: str) -> None:
    wanted = ids(text)
    log_p_TV = torch.randn(5, VOCAB.size, generator=torch.Generator().manual_seed(len(text))).log_softmax(1)
    symbols = [BLANK, *sorted(set(wanted))]
    paths = [
        path for path in product(symbols, repeat=5) if [k for k, _ in groupby(path) if k != BLANK] == wanted
    ]  # every path that collapses to the text
    best = max(paths, key=lambda path: float(log_p_TV[range(5), list(path)].sum()))
    spans, at = [], 0
    for symbol, run in groupby(best):
        n = len(list(run))
        if symbol != BLANK:
            spans.append((at / 5, (at + n) / 5))
        at += n
    assert [(w.start, w.end) for w in word_times(log_p_TV, text, WORDS, 1.0)] == spans


def test_words_that_do_not_fit() -> None:
    log_p_TV = planted([BLANK] * 3)
    assert len(word_times(log_p_TV, "one two three", WORDS, 1.0)) == 3
    assert word_times(log_p_TV, "one two three four", WORDS, 1.0) == []
    assert len(word_times(log_p_TV, "one one", WORDS, 1.0)) == 2  # three features: one, blank, one
    assert word_times(log_p_TV[:2], "one one", WORDS, 1.0) == []
    assert word_times(log_p_TV, "", WORDS, 1.0) == []
    for word in ("won", "<mask>"):
        with pytest.raises(DataError, match=f"does not know the word ' {word}'"):
            word_times(log_p_TV, f"one {word}", WORDS, 1.0)


def test_first_passes_do_not_depend_on_the_batch() -> None:
    net = model()
    rows = [row(seconds, n) for n, seconds in enumerate((1.3, 0.4, 2.1, 0.9, 0.4))]
    alone = [first_pass(net, [one])[0] for one in rows]
    assert len(set(alone)) == 5 and all(alone)
    assert first_pass(net, rows) == first_pass(net, rows, batch_size=2) == alone
    log_p = emitted(net, encoded(net, [read_clip(net, one) for one in rows]))
    assert [len(log_p_TV) for log_p_TV in log_p] == [17, 6, 27, 12, 6]  # a feature to 80 ms, rounded up
    torch.testing.assert_close(log_p[1], emitted(net, encoded(net, [read_clip(net, rows[1])]))[0], atol=1e-4, rtol=0)
    assert [greedy(log_p_TV, net.vocab) for log_p_TV in log_p] == alone


def test_what_cannot_be_heard() -> None:
    with pytest.raises(ConfigError, match=r"model.heads.audio: there is no head"):
        first_pass(model(head=False), [row(0.4)])
    with pytest.raises(DataError, match="^m.jsonl line 2: no audio$"):
        first_pass(model(), [{"text": "one", "where": "m.jsonl line 2"}])
    with pytest.raises(ConfigError, match=r'model.encoders: none is for audi \(did you mean "audio"\?\)'):
        first_pass(model(), [row(0.4)], kind="audi")


class Counted:
    """Rows that count how often each was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return row(0.3 + 0.2 * index, index, text="one two three", id=str(index))


def test_first_pass_rows_have_what_the_run_hears_and_hold_no_sound(tmp_path: Path) -> None:
    rows = Counted()
    source = FirstPass(rows, saved(tmp_path / "model"))
    assert rows.asked == [0, 1, 2] and len(source) == 3
    assert source[1]["hypothesis"] == first_pass(model(), [rows[1]])[0] and source[1]["id"] == "1"
    rows.asked.clear()
    assert source[2]["text"] == "one two three" and rows.asked == [2]


def test_toy_hears_all_but_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc, "load", None)
    source = FirstPass.toy([{"text": "one two", "id": n} for n in range(20)], "runs/none")
    assert len(source) == 8 and source[7] == {"text": "one two", "id": 7, "hypothesis": "one"}
