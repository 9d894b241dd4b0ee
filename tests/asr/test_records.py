"""Figures from records by hand, and what a page of them shows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from spoken import VOCAB, row

from mmdiff.errors import DataError
from mmdiff.tasks.asr.records import figures
from mmdiff.tasks.asr.report import drafted, example, page
from mmdiff.tasks.asr.task import ASR

pytestmark = pytest.mark.needs("jiwer", "soundfile", "torchaudio")


def record(text: str, said: str, first: str | None = None, **fields: Any) -> dict[str, Any]:
    seconds = {"read": 0.1, "encoder": 0.2, "decoder": 0.3}
    after = [*said.split(), *["<eos>"] * 9][: len((first or said).split()) + 2]  # the draft's places and two
    canvas = [(word, n, 0.5) for n, word in enumerate(after, 1)]
    out = {"text": text, "pred_text": said, "duration": 2.0, "seconds": seconds, "forwards": 3, "canvas": canvas}
    return {**out, **({} if first is None else {"first_pass": first}), **fields}


MENDED = [
    record("call one two three", "call one two three", "call one two"),  # 1 -> 0
    record("four five", "four six", "four nine"),  # 1 -> 1
    record("six seven", "six seven", "six seven eight nine"),  # 2 -> 0
]


def test_figures_by_hand() -> None:
    found = figures(ASR(), MENDED)
    assert found["wer"] == 1 / 8 and found["words"] == 8 and found["n"] == 3
    assert [found[k] for k in ("substitutions", "deletions", "insertions")] == [1, 0, 0]
    assert found["cer"] == pytest.approx(3 / (18 + 9 + 9))  # five -> six: i stays
    first = found["first_pass"]
    assert first["wer"] == 4 / 8 and first["deletions"] == 1 and first["insertions"] == 2
    assert found["reduction"] == 0.75
    assert found["paired"]["difference"] == -3 / 8
    for of in (found, first):
        assert of["wer_low"] <= of["wer"] <= of["wer_high"]
    assert found["rtf"] == pytest.approx({"read": 0.05, "encoder": 0.1, "decoder": 0.15, "total": 0.3, "forwards": 3})


def test_figures_without_a_first_pass_of_all() -> None:
    found = figures(ASR(), [*MENDED, record("one", "one")])
    assert not {"first_pass", "reduction", "paired"} & set(found)
    assert math.isnan(figures(ASR(), [record("one", "one", "one")])["reduction"])
    assert figures(ASR(case="lower"), [record("ONE", "one")])["wer"] == 0


def test_records_that_cannot_be_counted() -> None:
    with pytest.raises(DataError, match="^m line 3: no text$"):
        figures(ASR(), [{"pred_text": "one", "where": "m line 3"}])
    with pytest.raises(DataError, match="no utterance to score"):
        figures(ASR(), [])


def test_the_draft_is_shown_as_it_stood_on_the_canvas() -> None:
    given = row(0.2, text="One two", hypothesis="of another pass")
    said = record("One two", "one two", "one", words=[{"word": "one", "start": 0, "end": 1, "confidence": 0.5}])
    shown = example(ASR(6, draft=True, case="lower"), given, said, VOCAB)
    assert (shown.text, shown.first_pass, shown.prediction) == ("one two", "one", "one two")
    assert shown.draft == ["one", "<eos>", "<eos>"] and shown.words[0].word == "one"
    assert drafted(ASR(4), given, VOCAB) == [None] * 4
    assert drafted(ASR(4, draft=True), {"hypothesis": "two"}, VOCAB) == ["two", "<eos>", "<eos>"]
    assert example(ASR(2), row(0.2, text="one"), record("one", "one"), VOCAB).first_pass is None


def test_a_page_of_figures_and_utterances(tmp_path: Path) -> None:
    task = ASR(6, draft=True)
    rows = [row(0.3, n, text=r["text"]) for n, r in enumerate(MENDED)]
    found = figures(task, MENDED)
    found["standalone"] = figures(task, [{**r, "first_pass": None, "pred_text": "call"} for r in MENDED])
    text = page(tmp_path / "a.html", task, rows, MENDED, VOCAB, found).read_text()  # type: ignore[arg-type]
    assert text.count("data:audio/") == 3
    for figure in ("50.00", "12.50", "87.50"):  # first pass, result, and seven errors of eight words
        assert figure in text
    assert "3 utterances, 8 words" in text and "first pass" in text and "standalone" in text
