"""Evaluation of runs that are not finished, of checkpoints, and by two processes at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from failures import kills

from mmdiff.errors import ConfigError
from mmdiff.evaluation.evaluate import alone, evaluate_run, home_of
from mmdiff.experiments.sweep import sweep
from mmdiff.files import read_json


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, whose last checkpoint is of step 4."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "runs/toy", symlinks=True)
    return Path("runs/toy")


LINE = "runs/toy is not finished: this is its checkpoint at step 4, in stage only"


def test_a_finished_run_says_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = evaluate_run(str(run))
    assert "unfinished" not in out and "warning" not in capsys.readouterr().err
    assert read_json(run / "metrics.json")["steps"] == 4 and read_json(run / "metrics.json")["eval"] == out["eval"]
    assert [p.name for p in Path("runs").iterdir()] == ["toy"]  # no lock is left


def test_only_a_checkpoint_of_a_run_belongs_to_the_folder_above(run: Path) -> None:
    def homes(folder: Path) -> tuple[Path, Path]:
        home, results = home_of(folder)
        return home, results.folder

    checkpoint = run / "checkpoints" / "step-00000004"
    assert homes(checkpoint) == (run, run / "evals" / checkpoint.name)
    for folder in (run, run / "checkpoints", run / "model"):
        assert homes(folder) == (folder, folder)
    (checkpoint / "trainer.json").unlink()  # a saved model that lies in a folder of this name
    assert homes(checkpoint) == (checkpoint, checkpoint)


def test_folders_of_an_evaluation_are_made_and_go_when_nothing_was_written(run: Path) -> None:
    with alone(run / "evals" / "of" / "a"):
        assert (run / "evals" / "of" / "a").is_dir()
    assert not (run / "evals" / "of").exists()


def test_an_unfinished_run_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "model")
    (run / "metrics.json").unlink()
    out = evaluate_run(str(run))
    assert out["unfinished"] == LINE == read_json(run / "metrics.json")["unfinished"]
    assert f"warning: {LINE}\n" in capsys.readouterr().err
    assert LINE in (run / "report.html").read_text()


def test_a_run_that_is_trained_further_says_so(run: Path) -> None:
    result = read_json(run / "metrics.json")
    (run / "metrics.json").write_text((run / "metrics.json").read_text().replace('"steps": 4', '"steps": 3'))
    note = evaluate_run(str(run))["unfinished"]
    assert note == "runs/toy is training on: this is its model of 3 steps, the newest checkpoint has 4"
    assert result["steps"] == 4


def test_a_checkpoint_is_evaluated_beside_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kills.files_in(run)
    out = evaluate_run("runs/toy/checkpoints/step-00000004/")
    assert out["report"] == "runs/toy/evals/step-00000004/report.html" and Path(out["report"]).is_file()
    after = kills.files_in(run)
    assert {name: content for name, content in after.items() if not name.startswith("evals")} == before
    figures = [
        {k: v for k, v in found.items() if k != "rows_per_second"} for found in _sets(out, evaluate_run(str(run)))
    ]
    assert figures[0] == figures[1]
    monkeypatch.chdir(run)
    assert evaluate_run(".")["eval"].keys() == {"a", "b"}


def _sets(*outs: dict[str, Any]) -> list[dict[str, Any]]:
    return [out["eval"]["a"] for out in outs]


def test_two_processes_do_not_evaluate_one_run(run: Path) -> None:
    def hold() -> None:
        with alone(run), pytest.MonkeyPatch.context():
            said.send("held")
            said.recv()

    here, said = kills.FORK.Pipe()
    child = kills.FORK.Process(target=hold)
    child.start()
    assert here.recv() == "held"
    with pytest.raises(ConfigError, match="^runs/toy: another process is writing its evaluation$"):
        evaluate_run(str(run))
    here.send("end")
    child.join()
    evaluate_run(str(run))


def test_a_sweep_of_another_model_under_the_same_name_is_run_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdiff.experiments.sweep.write_plot", lambda file, *_: file.touch())
    axes = {"sampler.steps": [1]}
    assert [sweep(run, axes)["evaluated"] for _ in range(2)] == [2, 0]
    sums = run / "model" / "SHA256SUMS"
    sums.write_text("".join(line + "\n" for line in reversed(sums.read_text().splitlines()[1:])))
    out = sweep(run, axes, ["eval.data.b=null"])
    assert out["evaluated"] == 1 and "unfinished" not in out
