"""`mmdiff vla ...` from a data set to a policy that acts, in a world of numpy; and what it says to wrong words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmdiff.commands.cli import main

pytest.importorskip("gymnasium")
pytest.importorskip("pyarrow")

TASKS = "reach-red,reach-green,reach-blue"


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON object of a command, or the line of its error."""
    capsys.readouterr()
    assert main([*words, *(["--json"] if not code else [])]) == code
    out, err = capsys.readouterr()
    if code:
        assert "Traceback" not in err
        return err.strip().splitlines()[-1]
    return json.loads(out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded data set and a policy of two steps."""
    home = tmp_path_factory.mktemp("vla")
    patch = pytest.MonkeyPatch()
    patch.chdir(home)
    try:
        record = ["record", "--world", "reach", "--tasks", TASKS, "--episodes", "3", "--out", "runs/reach-data"]
        assert main(["vla", *record]) == 0
        assert (
            main(
                [
                    "train",
                    "vla-reach",
                    *(f"train.stages.{name}.steps=2" for name in ("look", "join")),
                    "train.workers=0",
                ]
            )
            == 0
        )
    finally:
        patch.undo()
    return home


@pytest.fixture(autouse=True)
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def test_data_and_statistics(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = said(capsys, "vla", "data", "runs/reach-data")
    assert found["episodes"] == 9 and found["action"] == ["dx", "dy", "gripper"] and len(found["instructions"]) == 3
    file = tmp_path / "stats.json"
    brief = said(capsys, "vla", "stats", "runs/reach-data", "--out", str(file))
    assert brief["reach-data"]["action"]["count"] == found["frames"] and "grid" not in brief["reach-data"]["action"]
    assert len(json.loads(file.read_text())["reach-data"]["action"]["grid"]) == 257
    before = file.read_text()
    assert "there already" in said(capsys, "vla", "stats", "runs/reach-data", "--out", str(file), code=2)
    assert file.read_text() == before


def test_replay_by_a_run_and_by_settings(capsys: pytest.CaptureFixture[str]) -> None:
    by_run = said(capsys, "vla", "replay", "runs/reach-data", "--run", "runs/vla-reach", "--episodes", "2")
    assert by_run["raw"]["success"] == by_run["codec"]["success"] == 1.0 and by_run["drift"] < 1e-6
    words = ["task.chunk=4", "task.binary=[gripper]", "task.codec.target=mmdiff.tasks.vla.codecs.bins.UniformBins"]
    fine = said(capsys, "vla", "replay", "runs/reach-data", *words, "task.codec.bins=256", "--episodes", "2")
    assert fine["mae"] < by_run["mae"]


def test_a_run_acts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "seen.png"
    Image.new("RGB", (32, 32), (10, 20, 30)).save(picture)
    words = ["vla", "act", "runs/vla-reach", "--image", str(picture), "--instruction", "reach the red disc"]
    out = said(capsys, *words, "--state", "[0.1, 0.2]", "--strategy", "hierarchical")
    assert len(out["actions"]) == 4 and len(out["actions"][0]) == 3 and out["forwards"] == 8
    assert said(capsys, *words, "--state", "[0.1, 0.2]", "sampler.steps=1")["forwards"] == 1


def test_a_run_is_evaluated_where_it_was_made_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "closed-loop"
    words = ["vla", "eval", "runs/vla-reach", "--episodes", "1", "--videos", "0", "--out", str(out)]
    found = said(capsys, *words, "--ablations", "random,expert")
    assert found["n"] == 3 and found["ablations"]["expert"]["success"] == 1.0
    assert found["settings"]["execute"] == 2  # the task's own
    assert (out / "eval_info.json").is_file() and (out / "report.html").is_file()
    assert "is there already" in said(capsys, *words, code=2)
    one = said(
        capsys, *words[:-1], str(tmp_path / "two"), "--ablations", "", "--tasks", "reach-yellow", "--execute", "1"
    )
    assert list(one["by_task"]) == ["reach-yellow"] and one["settings"]["execute"] == 1


WRONG = {
    "no such run": (["eval", "runs/absent"], "runs/absent"),
    "no world": (["record", "--world", "reech", "--tasks", "reach-red", "--out", "x"], '"reech".*reach'),
    "no task": (["record", "--world", "reach", "--tasks", "reach-rod", "--out", "x"], "reach-rod.*reach-red"),
    "no tasks": (["record", "--world", "reach", "--out", "x"], "--tasks: name tasks of reach.*reach-red"),
    "an option of the world": (
        ["record", "--world", "reach", "--tasks", "reach-red", "--out", "x", "world.sise=3"], "sise.*size"
    ),
    "a data set that is there": (
        ["record", "--world", "reach", "--tasks", "reach-red", "--out", "runs/reach-data"], "runs/reach-data"
    ),
    "no data": (["data", "runs"], "runs"),
    "no numbers": (["stats", "runs/absent"], "no such file"),
    "a word": (["eval", "runs/vla-reach", "fast"], "'fast'"),
    "a strategy": (["eval", "runs/vla-reach", "--strategy", "hierarchic"], "hierarchical"),
    "an ablation": (["eval", "runs/vla-reach", "--ablations", "no_imag"], '"no_imag".*no_image'),
    "a swap": (["eval", "runs/vla-reach", "--swap", "reach-red"], "--swap: 'reach-red' is not NAME=NAME"),
    "too many actions": (["eval", "runs/vla-reach", "--execute", "9", "--ablations", ""], "execute: 9"),
    "films": (["eval", "runs/vla-reach", "--videos", "-1"], "-1.*--videos.*>= 0"),
    "no picture": (["act", "runs/vla-reach", "--instruction", "reach the red disc", "--state", "[0,0]"], "0 pictures"),
    "a state": (["act", "runs/vla-reach", "--instruction", "x", "--state", "1 2"], "--state: '1 2' is not JSON"),
    "a source": (["convert", "absent", "--out", "y"], "absent"),
    "an unknown option": (["eval", "runs/vla-reach", "--episode", "2"], "--episodes"),
    "a port": (["serve", "runs/vla-reach", "--port", "99999"], "port: 99999"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words_end_in_one_line(name: str, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    import re

    before = sorted(str(f) for f in home.rglob("*"))
    words, message = WRONG[name]
    line = said(capsys, "vla", *words, code=2)
    assert re.search(message, line) and line.startswith("mmdiff: error: "), line
    assert sorted(str(f) for f in home.rglob("*")) == before  # nothing is left behind, nothing is gone


def test_a_run_of_another_task_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import toy

    from mmdiff.training.train import train

    train(toy.config("other"))
    assert "expected mmdiff.tasks.vla.task.VLA" in said(capsys, "vla", "eval", "runs/other", "--tasks", "a", code=2)


def test_a_saved_policy_names_no_simulator_of_its_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make_world` takes any dotted path; from a folder that may come from anyone it must not."""
    import shutil

    folder = home / "stranger"
    shutil.copytree(home / "runs/vla-reach/model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["task"]["world"] = {"name": "os.mkdir", "tasks": ["called"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "SHA256SUMS").unlink()
    assert "--world: name a simulator" in said(capsys, "vla", "eval", str(folder), code=2)
    assert not (home / "called").exists()
    shutil.rmtree(folder)


def test_codecs_are_fitted_to_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import numpy as np

    from mmdiff.tasks.vla.data.dataset import LeRobot
    from mmdiff.tasks.vla.fit_codecs import chunks_of

    data = LeRobot("runs/reach-data")
    chunks_NKD, units = chunks_of("runs/reach-data", 4, binary=("gripper",))
    assert chunks_NKD.shape == (data.frames, 4, 3)
    first = data.episode(0).action
    predict_KD = units.forward(np.concatenate([first[-2:], first[-1:], first[-1:]]))
    assert np.allclose(chunks_NKD[len(first) - 2], predict_KD)  # the end of an episode repeats its last action
    assert np.allclose(chunks_NKD[len(first)][0], units.forward(data.episode(1).action[0]))

    file = str(tmp_path / "fast.json")
    words = ["vla", "codec", "runs/reach-data", "--chunk", "4", "--binary", "gripper"]
    found = said(capsys, *words, "--out", file, "--vocab", "200")
    assert found["tokens"] < found["tokens_of_bins"] == 12 and found["mae"] < 0.05
    assert "is there already" in said(capsys, *words, "--out", file, code=2)
    settings = ["task.chunk=4", "task.binary=[gripper]", "task.codec.target=mmdiff.tasks.vla.codecs.fast.FAST"]
    played = said(capsys, "vla", "replay", "runs/reach-data", *settings, f"task.codec.table={file}", "--episodes", "2")
    assert played["codec"]["success"] == 1.0 and played["mae"] < 0.05

    fitted = said(capsys, *words, "--kind", "dct", "--keep", "2")
    assert len(fitted["ranges"]) == 2 and fitted["tokens"] == 4 and fitted["mae"] <= fitted["mae_without"] + 1e-3
    assert "--out" in said(capsys, *words, code=2)
    assert "quantiles" in said(capsys, *words, "--kind", "dct", "--normalise", "quantiles", code=2)
