"""Scores, predictions and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from mmdiff import evaluate, load, train
from mmdiff.errors import ConfigError, DataError
from mmdiff.evaluation.evaluate import evaluate_run, mean_scores
from mmdiff.evaluation.page import evenly
from mmdiff.evaluation.report import picture, write_report
from mmdiff.runs.folder import Run

RGB = np.zeros((4, 4, 3), dtype=np.uint8)


class Pictured(toy.Corners):
    """Rows as applications have them: fields of all kinds, some with markup in them."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        return row | {"question": "where <b>", "row": "mine", "frames": [RGB], "tags": ["a", 1]}


class Seen(toy.Where):
    def prompt(self, row: Any, vocab: Any) -> Any:
        return super().prompt(row | {"question": "where"}, vocab)

    def score(self, prediction: str, row: Any) -> dict[str, float]:
        if row["answer"] == "never":
            raise DataError("no reference")
        return super().score(prediction, row) | ({"north": 1.0} if row["kind"] == "north" else {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    config = toy.config(stage={"steps": 4})
    config.task = {"target": f"{__name__}.Seen"}
    config.eval = replace(config.eval, data={"held": {"target": f"{__name__}.Pictured", "n": 10}}, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(config)
    return folder / "runs" / "toy"


def test_means_in_closed_form() -> None:
    records = [
        {"scores": {"exact": 1.0, "f1": 0.5}, "kind": "a", "forwards": 2},
        {"scores": {"exact": 0.0}, "kind": "b", "forwards": 4},
        {"scores": {"exact": 0.0, "f1": 1.0}, "kind": "a", "forwards": 3},
    ]
    assert mean_scores(records) == {
        "n": 3,
        "exact": pytest.approx(1 / 3),
        "f1": 0.75,
        "by_kind": {"a": {"n": 2, "exact": 0.5, "f1": 0.75}, "b": {"n": 1, "exact": 0.0}},
        "forwards": 3.0,
    }
    assert "by_kind" not in mean_scores([{"scores": {"exact": 1.0}, "forwards": 1}])
    assert evenly([{"i": i} for i in range(10)], 3) == [{"i": 0}, {"i": 3}, {"i": 6}]
    assert len(evenly([{"i": 1}], 5)) == 1 and evenly([{"i": 1}], 0) == []


def test_a_run_is_scored_and_shown(run: Path) -> None:
    out = evaluate_run(str(run))
    held = out["eval"]["held"]
    records = [json.loads(line) for line in (run / "predictions-held.jsonl").read_text().splitlines()]
    assert held["n"] == len(records) == 10 and [r["row"] for r in records] == list(range(10))
    assert held["exact"] == sum(r["prediction"] == r["answer"] for r in records) / 10
    assert sum(kind["n"] for kind in held["by_kind"].values()) == 10
    assert records[0]["tags"] == ["a", 1] and "frames" not in records[0] and "image" not in records[0]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["eval"]["held"] == held and metrics["steps"] == 4
    html = (run / "report.html").read_text()
    assert html.count("data:image/png;base64,") >= 1 and "where &lt;b&gt;" in html and "where <b>" not in html
    assert 'src="http' not in html and "<link" not in html
    again = evaluate_run(str(run), ["eval.limit=3", "eval.batch_size=1", "sampler.steps=1"])["eval"]["held"]
    assert again["n"] == 3 and again["forwards"] == 1.0


class Whole(Seen):
    """Longer answers weigh more: a figure that is no mean of rows."""

    def score_all(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self.records = records
        words = sum(len(r["answer"].split()) for r in records)
        right = sum(len(r["answer"].split()) * r["scores"]["exact"] for r in records)
        return {"exact": right / words, "words": words, "ends": [0.0, 1.0]}


def test_a_task_sums_a_set_up(run: Path) -> None:
    rows = Pictured(10, lengths=[1, 4])
    session = load(run, f"task={__name__}.Whole")
    figures, records = evaluate(session, rows, batch_size=4)
    plain, _ = evaluate(load(run), rows, batch_size=4)
    assert session.task.records == records  # type: ignore[attr-defined]
    assert {"question", "answer", "row", "prediction", "scores", "forwards"} <= records[0].keys()
    words = [len(r["answer"].split()) for r in records]
    right = [n for n, r in zip(words, records, strict=True) if r["prediction"] == r["answer"]]
    assert sum(right) / sum(words) != plain["exact"] == len(right) / 10  # the set is one that tells them apart
    told = {"exact": sum(right) / sum(words), "words": sum(words), "ends": [0.0, 1.0]}
    speed = {"rows_per_second": figures["rows_per_second"]}
    assert figures == {**plain, **told, **speed} and list(figures)[-1] == "rows_per_second"
    evaluate_run(str(run), [f"task={__name__}.Whole"])
    assert json.loads((run / "metrics.json").read_text())["eval"]["held"]["words"] == 20
    assert "held.<wbr>words" in (run / "report.html").read_text()


def test_a_task_with_the_old_name_of_its_hook_is_refused(run: Path) -> None:
    session = load(run)
    session.task.summary = lambda records: {}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="has `summary`, which is `score_all`"):
        evaluate(session, Pictured(2))


def test_batches_do_not_change_answers(run: Path) -> None:
    session = load(run)
    for rows in (Pictured(6, lengths=[1, 4]),):
        one, many = (evaluate(session, rows, batch_size=size)[1] for size in (1, 6))
        assert [r["prediction"] for r in one] == [r["prediction"] for r in many]


def test_errors_name_set_and_row(run: Path) -> None:
    class Odd(toy.Corners):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return super().__getitem__(index) | ({"answer": "never"} if index == 5 else {})

    with pytest.raises(DataError, match=r"^data odd row 5: no reference$"):
        evaluate(load(run), Odd(8), name="odd", batch_size=4)
    with pytest.raises(ConfigError, match="eval.data.none: no rows"):
        evaluate(load(run), toy.Corners(0), name="none")
    with pytest.raises(ConfigError, match="eval.data names no set of rows"):
        evaluate_run(str(run), ["eval.data.held=null"])


def test_the_report_holds_its_pictures_and_escapes_what_models_say(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    record = {"prediction": evil, "scores": {"exact": 0.0}, "canvas": [('"><i>', 1, 0.5)], "forwards": 1}
    row = {"image": RGB, "question": evil, "answer": evil}
    file = write_report(Run(tmp_path), title=evil, results={"a": {evil: 0.5}}, examples={evil: [(row, record)]})
    html = file.read_text()
    assert "alert" in html and "<script>alert" not in html and '"><i>' not in html
    assert picture(RGB) in html  # type: ignore[operator]
    assert picture(None) is None and picture([RGB]) == picture(RGB)
    assert picture(RGB.astype(np.float32)) is None  # numbers that an encoder reads, and no eye


def test_right_in_a_report_is_an_exact_match_where_there_are_error_rates() -> None:
    from mmdiff.evaluation.report import is_right

    assert is_right({"wer": 0.0, "cer": 0.0, "exact_match": 1.0}) and not is_right({"wer": 2.0, "exact_match": 0.0})
    assert is_right({"vqa_accuracy": 1.0}) and not is_right({"vqa_accuracy": 0.3, "anls": 1.0})
