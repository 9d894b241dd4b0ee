"""The recognition task: canvases for training and writing, drafts with room for more words, and figures by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from spoken import VOCAB, ids, letters

from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.canvas.vocab import Vocab
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.asr.task import ASR

EOS, MASK = VOCAB.eos_id, VOCAB.mask_id
BYTES = letters()
ROW = {"audio": "clip.wav", "text": "call one two", "hypothesis": "call nine", "where": "rows.jsonl line 3"}


def laid(sample: Any) -> list[Any]:
    """Parts as plain values: ("target", ids), ("text", ids), ("audio", data)."""
    out: list[Any] = []
    for part in sample:
        if isinstance(part, Media):
            out.append((part.kind, part.data))
        elif isinstance(part, Target):
            out.append(("target", [MASK] * part.length if part.ids is None else list(part.ids)))
        else:
            out.append(("text", list(part.ids)))
    return out


def test_a_training_canvas_is_sound_instruction_and_transcript() -> None:
    heard = ("audio", "clip.wav")
    assert laid(ASR().sample(ROW, VOCAB)) == [heard, ("target", [*ids("call one two"), EOS])]
    asked = ASR(6, instruction="transcribe", draft=True)  # training never shows the draft
    answer = [*ids("call one two"), EOS, EOS, EOS]
    assert laid(asked.sample(ROW, VOCAB)) == [heard, ("text", ids("transcribe")), ("target", answer)]
    assert laid(ASR(3).sample(ROW, VOCAB)) == [heard, ("target", ids("call one two"))]  # full, without an end
    other = laid(ASR(media="speech").sample(ROW, VOCAB))
    assert other[0] == ("speech", "clip.wav")
    silent = {"text": " call \n one", "audio": None}
    assert laid(ASR().sample(silent, VOCAB)) == [("target", [*ids("call one"), EOS])]
    assert laid(ASR(2).sample({"text": ""}, VOCAB)) == [("target", [EOS, EOS])]


def test_an_empty_canvas_has_the_length_of_training() -> None:
    assert laid(ASR(5).prompt(ROW, VOCAB))[-1] == ("target", [MASK] * 5)
    assert laid(ASR(max_new_tokens=7).prompt(ROW, VOCAB))[-1] == ("target", [MASK] * 7)
    without = {k: v for k, v in ROW.items() if k != "hypothesis"}
    assert laid(ASR(5, draft=True).prompt(without, VOCAB))[-1] == ("target", [MASK] * 5)


@pytest.mark.parametrize(
    ("n", "slack", "least", "room"),
    [
        (4, 0.15, 2, 2),
        (13, 0.15, 2, 2),
        (14, 0.15, 2, 3),
        (4, 0.5, 0, 2),
        (5, 0.5, 0, 3),
        (4, 0.0, 0, 0),
        (0, 0.5, 2, 2),
    ],
)
def test_a_draft_has_room_behind_it(n: int, slack: float, least: int, room: int) -> None:
    """max(min_slack, ceil(slack n)) positions, then closed EOS up to the length of training."""
    row = {**ROW, "hypothesis": "one " * n}
    task = ASR(20, slack=slack, min_slack=least, draft=True)
    *_, target, fill = laid(task.prompt(row, VOCAB))
    assert target == ("target", ids("one " * n) + [EOS] * room)
    assert fill == ("text", [EOS] * (20 - n - room))
    assert laid(ASR(slack=slack, min_slack=least, draft=True).prompt(row, VOCAB))[-1] == target  # no length: no fill


def test_a_draft_longer_than_the_training_canvas_is_kept_whole() -> None:
    row = {**ROW, "hypothesis": "one two three four five six"}
    parts = laid(ASR(4, draft=True).prompt(row, VOCAB))
    assert parts == [("audio", "clip.wav"), ("target", [*ids("one two three four five six"), EOS, EOS])]


class Marked:
    """A template that ends answers by an id of its own ("call")."""

    def end(self, vocab: Vocab) -> int:
        return ids("call")[0]

    def canvas(self, turns: Any, vocab: Vocab, *, train: bool) -> list[Any]:
        ((content, answer),) = turns
        return [Text([9]), *(c for c in content if isinstance(c, Media)), answer]


def test_templates_bring_their_own_end() -> None:
    task, end = ASR(6, template=Marked(), draft=True), ids("call")
    row = {"audio": "a", "text": "one two", "hypothesis": "one"}
    assert laid(task.sample(row, VOCAB)) == [
        ("text", [9]),
        ("audio", "a"),
        ("target", [*ids("one two"), *end, EOS, EOS, EOS]),
    ]
    assert laid(task.prompt(row, VOCAB))[2:] == [("target", [*ids("one"), *end, EOS]), ("text", [EOS] * 3)]
    assert task.parse([*ids("one"), *end, *ids("two"), EOS], VOCAB) == "one two"


def test_ends_are_left_out_wherever_they_stand() -> None:
    one, two, three = ids("one two three")
    assert ASR().parse([EOS, one, EOS, EOS, two, EOS, three, EOS], VOCAB) == "one two three"
    assert ASR().parse([EOS, EOS], VOCAB) == ""
    turn = Vocab(tokenizer=VOCAB.tokenizer, size=20, mask_id=2, eos_id=1, pad_id=0, slot_id=2, end_ids=(two,))
    assert ASR().parse([one, two, three], turn) == "one three"


def test_case_and_normaliser_reach_both_sides() -> None:
    written = laid(ASR(case="upper", draft=True).prompt({"hypothesis": "onE"}, BYTES))
    assert BYTES.decode(written[0][1][:3]) == "ONE"
    assert BYTES.decode(laid(ASR(case="lower").sample({"text": "ONE Two"}, BYTES))[0][1]) == "one two"
    assert BYTES.decode(laid(ASR().sample({"text": "ONE Two"}, BYTES))[0][1]) == "ONE Two"
    row = {"text": "One Two"}
    assert ASR(case="upper").pair(row, "one tWo") == ("ONE TWO", "ONE TWO")
    assert ASR(case="lower").score("ONE two", row) == {"wer": 0.0, "cer": 0.0, "exact_match": 1.0}
    assert ASR().score("one Two", row)["wer"] == 0.5
    assert ASR(normalise="lower").score("one tWO", row)["wer"] == 0.0


@pytest.mark.needs("jiwer")
def test_figures_against_counts_by_hand() -> None:
    task = ASR()
    # of 12 characters: o -> n, i comes, n and e stay, " two" goes
    assert task.score("call nine", ROW) == {"wer": 2 / 3, "cer": 6 / 12, "exact_match": 0.0}
    records = [
        {"text": "call one two", "prediction": "call one two"},
        {"text": "call one two", "prediction": "one nine"},  # a deletion, a substitution
        {"text": "one", "prediction": "one two three"},  # two insertions
        {"text": "", "prediction": ""},
    ]
    figures = task.score_all(records)
    assert figures["wer"] == 4 / 7 and figures["words"] == 7
    assert [figures[k] for k in ("substitutions", "deletions", "insertions")] == [1, 1, 2]
    assert 0 <= figures["wer_low"] <= 4 / 7 <= figures["wer_high"]
    mean = sum(task.score(r["prediction"], r)["wer"] for r in records) / 4
    assert mean == pytest.approx((0 + 2 / 3 + 2 + 0) / 4) and figures["wer"] != pytest.approx(mean)
    # "call " goes, "two" -> "nine" takes 4 changes; " two three" comes
    assert figures["cer"] == pytest.approx((5 + 4 + 10) / (12 + 12 + 3))


@pytest.mark.parametrize(
    ("call", "row", "message"),
    [
        ("sample", {"text": "call won"}, "the tokenizer does not know the word 'won'"),
        ("prompt", {"hypothesis": "call won"}, "the tokenizer does not know the word 'won'"),
        ("sample", {"text": "one two three four five"}, "takes 5 positions, answer_length is 4"),
        ("sample", {"text": None}, "text: None is not text"),
        ("sample", {"text": 7}, "text: 7 is not text"),
        ("prompt", {"hypothesis": ["call"]}, r"hypothesis: \['call'\] is not text"),
        ("score", {"text": None}, "text: None is not text"),
    ],
)
def test_rows_that_cannot_be_used_are_named(call: str, row: dict[str, Any], message: str) -> None:
    task = ASR(4, draft=True)
    with pytest.raises(DataError, match=f"^rows.jsonl line 3: .*{message}") as caught:
        task.score("", {**ROW, **row}) if call == "score" else getattr(task, call)({**ROW, **row}, VOCAB)
    assert "\n" not in str(caught.value)


def test_a_row_without_transcript() -> None:
    with pytest.raises(DataError, match="^no text$"):
        ASR().sample({"audio": "a.wav"}, VOCAB)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answer_length": 0}, "ASR.answer_length=0: expected a whole number of at least 1"),
        ({"answer_length": "12"}, "ASR.answer_length: '12' is not a whole number"),
        ({"answer_length": 2.5}, "ASR.answer_length: 2.5 is not a whole number"),
        ({"max_new_tokens": -1}, "ASR.max_new_tokens=-1: expected a whole number of at least 1"),
        ({"slack": -0.1}, "ASR.slack=-0.1: expected a number of at least 0"),
        ({"slack": math.nan}, "ASR.slack=nan: expected"),
        ({"slack": math.inf}, "ASR.slack=inf: expected"),
        ({"slack": "much"}, "ASR.slack: 'much' is not a number"),
        ({"min_slack": -1}, "ASR.min_slack=-1: expected a whole number of at least 0"),
        ({"case": "uper"}, "ASR.case: 'uper' is not one of keep, upper, lower"),
        ({"normalise": "englsh"}, "normalise: no normaliser 'englsh' (did you mean \"english\"?)"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ASR(**arguments)
    assert message in str(caught.value)
