"""Metrics of whole sets by their names in `task.metrics`, through `mmdiff.evaluation.evaluate`; and POPE."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmdiff.backbones import new_backbone
from mmdiff.errors import ConfigError, DataError
from mmdiff.evaluation.evaluate import evaluate
from mmdiff.model import MMDiff
from mmdiff.model.saving import save_model
from mmdiff.protocols import Row
from mmdiff.session import Session, load
from mmdiff.tasks.vqa import scenes
from mmdiff.tasks.vqa.pope import pope, says_yes

pytestmark = pytest.mark.needs("rapidfuzz")

CAPTIONS = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions") / "model"
    backbone = new_backbone(tokenizer=scenes.tokenizer(), hidden_size=16, layers=1, heads=2)
    save_model(MMDiff(backbone), folder, extra={"task": {"target": "mmdiff.tasks.vqa.VQA", "answer_length": 3}})
    return folder


def figures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, metrics: Sequence[str], *rows: tuple[str, Any], **fields: Any
) -> dict[str, Any]:
    """The figures of a set of (prediction, answer) pairs."""
    predictions = iter([prediction for prediction, _ in rows])

    def predict_many(self: Session[Any], group: Sequence[Row], **named: Any) -> list[dict[str, Any]]:
        return [{"prediction": next(predictions), "forwards": 1, "canvas": []} for _ in group]

    monkeypatch.setattr(Session, "predict_many", predict_many)
    session = load(folder, f"task.metrics={json.dumps(list(metrics))}")
    source = [{"question": "what is it", "answer": answer, **fields} for _, answer in rows]
    found, records = evaluate(session, source, batch_size=2)
    assert len(records) == len(rows)
    return found


def test_captions_are_scored_over_the_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("a b c d e x", "a b c d e f"), ("g h i j", ["g h i j", "g h"]), ("k", "k")]
    found = figures(folder, monkeypatch, [*sorted(CAPTIONS), "exact_match"], *pairs)
    # found over made k-grams: 5 + 4 + 1 of 6 + 4 + 1; 4 + 3 of 5 + 3; 3 + 2 of 4 + 2; 2 + 1 of 3 + 1
    product = 1.0
    for n, precision in enumerate([10 / 11, 7 / 8, 5 / 6, 3 / 4], 1):
        product *= precision
        assert found[f"bleu_{n}"] == pytest.approx(product ** (1 / n))
    assert found["rouge_l"] == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert found["exact_match"] == pytest.approx(2 / 3) and found["n"] == 3
    # no k-gram is in two pictures: all weigh log 3, and the cosine of an order is found / made, but where one is longer
    # than the other; "g h" has no k-grams of orders 3 and 4, norms sqrt(4) sqrt(2) and sqrt(3) sqrt(1) before
    first = (5 / 6 + 4 / 5 + 3 / 4 + 2 / 3) / 4
    short = math.exp(-4 / 72) * (2 / math.sqrt(8) + 1 / math.sqrt(3)) / 4
    assert found["cider_d"] == pytest.approx(10 * (first + (1 + short) / 2 + 1 / 4) / 3)


def test_sets_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(folder, monkeypatch, ["bleu_1", "pope"], ("yes", "yes"), ("no", "no"), ("yes", "no"), kind="random")
    assert found["bleu_1"] == pytest.approx(2 / 3) and found["by_kind"] == {"random": {"n": 3}}
    assert {name: value for name, value in found.items() if name.startswith("pope_")} == {
        "pope_accuracy": pytest.approx(2 / 3),
        "pope_precision": 0.5,
        "pope_recall": 1.0,
        "pope_f1": pytest.approx(2 / 3),
        "pope_yes_share": pytest.approx(2 / 3),
    }


def test_rows_and_names_that_cannot_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="pope: answer 'maybe', expected yes or no"):
        figures(folder, monkeypatch, ["pope"], ("yes", "maybe"))
    with pytest.raises(DataError, match="no answer"):
        figures(folder, monkeypatch, ["bleu_4"], ("yes", None))
    with pytest.raises(ConfigError, match=r'task.metrics: no metric \'cider\' \(did you mean "cider_d"\?\)'):
        load(folder, "task.metrics=[cider]")
    task: Any = load(folder, "task.metrics=[rouge_l]").task
    with pytest.raises(DataError, match="no answer: task.metrics: rouge_l needs the field `answer` in every row"):
        task.score_all([{"prediction": "yes", "question": "what"}])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("yes", True),
        ("Yes, there is a dog.", True),
        ("a dog", True),  # all that is not a no
        ("", True),
        ("No, there is none", False),
        ("there is not a dog", False),
        ("no.", False),
        ("Yes. It is not a cat.", True),  # the first sentence counts
        ("NO", True),  # as the published tool has it
        ("nothing", True),
    ],
)
def test_what_counts_as_yes(text: str, expected: bool) -> None:
    assert says_yes(text) is expected


def test_pope_without_denominators() -> None:
    no = pope(["no", "no"], [["yes"], ["no"]])
    assert no == {"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_share": 0.0}
    assert pope(["yes"], [[" No "]])["recall"] == 0.0
    with pytest.raises(DataError, match="pope: no predictions"):
        pope([], [])
