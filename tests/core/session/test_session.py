"""Sessions: which model is found, what a prediction holds, overrides."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import toy

from mmdiff import load
from mmdiff.commands.cli import main
from mmdiff.errors import ConfigError
from mmdiff.session import find_model


@pytest.fixture
def run(trained: Path) -> Path:
    return trained


def test_the_finished_model_is_found_first_then_the_newest_checkpoint(run: Path, tmp_path: Path) -> None:
    assert find_model(run) == run / "model"
    assert find_model(run / "checkpoints" / "step-00000002") == run / "checkpoints" / "step-00000002"
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "checkpoints").symlink_to(run / "checkpoints")
    assert find_model(unfinished).name == "step-00000004"


def test_a_prediction_and_its_canvas(run: Path) -> None:
    session = load(run)
    rows = [toy.Corners(8, lengths=(2, 3))[i] for i in range(4)]
    out = session.predict_many(rows)
    for row, one in zip(rows, out, strict=True):
        positions = len(row["answer"].split())
        assert one["forwards"] == positions and len(one["canvas"]) == positions
        assert sorted(step for _, step, _ in one["canvas"]) == list(range(1, positions + 1))
        assert all(0 < confidence <= 1 for _, _, confidence in one["canvas"])
        assert one["prediction"] == " ".join(token for token, _, _ in one["canvas"] if not token.startswith("<"))
    assert [session.predict(row)["prediction"] for row in rows] == [one["prediction"] for one in out]


def test_a_stream_shows_the_canvas_as_it_fills(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session, file, row = load(run), io.StringIO(), toy.Corners()[0]
    answered = session.predict(row, stream=file)
    lines = file.getvalue().splitlines()
    assert answered == session.predict(row) and lines[0].count("░") == 1 and lines[-1].count("░") == 0
    assert len(lines) == answered["forwards"] + 1
    words = [str(run), "question=where", "answer=north east", f"image:={json.dumps(row['image'].tolist())}"]
    assert main(["generate", *words, "--stream"]) == 0
    said = capsys.readouterr()
    assert "   1 | " in said.err and "░" in said.err and "   1 | " not in said.out


def test_overrides_reach_sampler_and_task(run: Path) -> None:
    row = toy.Corners()[0]
    assert load(run, "sampler.steps=1").predict(row)["forwards"] == 1
    assert load(run).predict(row, steps=1)["forwards"] == 1
    assert load(run, "task.image=false", task=toy.Where).task.image is False
    for override, message in (
        ("train.seed=1", "train: a saved model takes settings of `task` and `sampler`"),
        ("sampler.step=1", 'sampler.step: no such field (did you mean "steps"?)'),
        ("sampler.steps=many", "sampler.steps: 'many' is not a whole number"),
        ("task.images=false", "task.images: toy.Where takes no such argument"),
    ):
        with pytest.raises(ConfigError) as error:
            load(run, override)
        assert str(error.value).startswith(message)


def test_folders_that_hold_no_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)
    with pytest.raises(ConfigError, match=r'runs/tou: no such folder \(did you mean "runs/toy"\?\)'):
        load("runs/tou")
    with pytest.raises(ConfigError, match="neither a saved model nor a run with one"):
        load(tmp_path)
    load(run).model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="the model was saved without a task"):
        load(tmp_path / "bare")


def test_a_session_is_of_the_task_that_was_asked_for(run: Path) -> None:
    assert load(run, "task.image=false", task=toy.Where).task.image is False
    with pytest.raises(ConfigError) as error:
        load(run, task=Path)
    assert str(error.value) == f"{run}: its task is toy.Where, expected pathlib.Path"
