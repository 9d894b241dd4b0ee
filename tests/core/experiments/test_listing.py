"""`mmdiff runs` and `mmdiff note`: every state is told, whatever lies in the folder, and nothing is believed twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import toy

from mmdiff import train
from mmdiff.commands import cli
from mmdiff.config import to_yaml
from mmdiff.errors import ConfigError
from mmdiff.evaluation.evaluate import evaluate_run
from mmdiff.experiments.listing import list_runs, read_condition
from mmdiff.files import lock, unlock
from mmdiff.runs.notes import read_note, write_note
from mmdiff.runs.summary import summary_of


def fake(root: Path, name: str, *, seed: int = 0, lr: float = 0.01, score: float | None = None, steps: int = 6) -> Path:
    """A folder as a finished run leaves it, or one that has only begun where there is no score."""
    config = toy.config(name, seed=seed, stage={"lr": lr, "steps": 6})
    folder = root / name
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    if score is not None:
        (folder / "model/config.json").write_text("{}")
        result = {"steps": steps, "seconds_training": 2.5, "loss": {"only": 1 - score}}
        (folder / "metrics.json").write_text(json.dumps({**result, "eval": {"a": {"n": 3, "exact": score}}}))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fake(tmp_path, "low", seed=1, lr=0.1, score=0.25)
    fake(tmp_path, "high", seed=2, score=0.75)
    fake(tmp_path, "none", seed=3)
    for age, name in enumerate(("low", "high", "none")):
        for file in (tmp_path / name).iterdir():
            os.utime(file, (1000 * (age + 1),) * 2)
    return tmp_path


def names(root: Path, **how: Any) -> list[str]:
    return [run.name for run in list_runs(root, **how)[0]]


def test_sorting(root: Path) -> None:
    assert names(root) == ["none", "high", "low"]  # the newest first
    assert names(root, reverse=True) == ["low", "high", "none"]
    assert names(root, sort="exact") == ["low", "high", "none"]  # what lacks it is last, either way
    assert names(root, sort="eval.a.exact", reverse=True) == ["high", "low", "none"]
    assert names(root, sort="train.seed", reverse=True) == ["none", "high", "low"]
    assert names(root, sort="only.lr") == ["high", "none", "low"]
    assert names(root, sort="state") == ["high", "low", "none"]
    assert list_runs(root, sort="exact")[1] == ["eval.a.exact"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["train.seed=2"], ["high"]),
        (["train.seed!=2"], ["none", "low"]),
        (["train.seed>=2"], ["none", "high"]),
        (["exact>0.5"], ["high"]),
        (["exact=null"], ["none"]),
        (["exact!=0.25"], ["none", "high"]),
        (["only.lr=1e-2", "state = finished"], ["high"]),
        (["name~O"], ["none", "low"]),
        (["state=not begun"], ["none"]),
        (["task=Where"], ["none", "high", "low"]),
        (["model.encoders.image.target=toy.Patches"], ["none", "high", "low"]),
        (["train.tensorboard=false"], ["none", "high", "low"]),
        (["only.steps>=7"], []),
    ],
)
def test_filters(filters: list[str], expected: list[str], root: Path) -> None:
    assert names(root, filters=filters) == expected


def test_times_are_filtered_as_text(root: Path) -> None:
    assert names(root, filters=["when>2000-01-01"]) == []  # the files are of 1970
    assert len(names(root, filters=["when<2000-01-01"])) == 3


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"sort": "exct"}, r'--sort: no run has \'exct\' \(did you mean "exact"\?\)'),
        ({"sort": "seed"}, "--sort: seed may be sampler.seed, train.seed: give the whole key"),
        ({"filters": ["train.sed=1"]}, r'--filter: no run has \'train.sed\' \(did you mean "train.seed"\?\)'),
        ({"filters": ["train.seed"]}, "--filter: 'train.seed' is not KEY<op>VALUE"),
        ({"filters": ["=3"]}, "is not KEY<op>VALUE"),
        ({"filters": ["train.seed=[1"]}, "value: '\\[1' is not YAML"),
        ({"filters": ["exact>high"]}, "--filter: exact: 'high' is not a number"),
    ],
)
def test_refusals(how: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        list_runs(root, **how)


def test_a_root_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list_runs() == ([], [])
    with pytest.raises(ConfigError, match="--root: nope is no folder"):
        list_runs("nope")
    assert read_condition("a.b >= 3").value == 3 and read_condition("a~b=c").text == "b=c"


def test_a_run_from_its_beginning_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of a real run, also while another process holds its lock."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/toy")
    train(toy.config(stage={"steps": 4}, save_every=2), note="a first try")
    found = summary_of(folder)
    assert (found.state, found.step, found.total, found.task) == ("finished", 4, 4, "Where")
    assert found.note == "a first try" and found.seconds is not None and found.figures["loss.only"] > 0
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("steps: 4", "steps: 9"))
    assert (summary_of(folder).state, summary_of(folder).total) == ("unfinished", 9)
    code = "import sys, time\nfrom pathlib import Path\nfrom mmdiff.files import lock\n"
    code += "held = lock(Path('runs/.toy.lock'), 'busy')\nprint('held', flush=True)\ntime.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        assert summary_of(folder).state == "training"
    finally:
        child.kill()
        child.communicate()
    assert summary_of(folder).state == "unfinished"  # the file of the lock is still there
    held = lock(Path("runs/.toy.lock"), "busy")  # looking took nothing away from anybody
    unlock(held)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints/step-00000004")
    (folder / "metrics.json").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    assert (summary_of(folder).state, summary_of(folder).step) == ("unfinished", 3)


def test_a_run_that_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is not a finite number at step"):
        train(toy.config(stage={"lr": 1e30}))
    found = summary_of(Path("runs/toy"))
    assert found.state == "diverged" and found.step == 2


def test_evaluated_figures_are_listed(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "runs" / "toy")
    figures = evaluate_run(str(tmp_path / "runs" / "toy"))["eval"]
    (run,), _ = list_runs(tmp_path / "runs")
    assert run.figures["eval.a.exact"] == figures["a"]["exact"]
    assert run.figures["eval.b.forwards"] == figures["b"]["forwards"]


DOUBLED = [b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40)]
TRAINER = "checkpoints/step-1/trainer.json"
BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "empty": ({}, "config.yaml is missing"),
    "not-yaml": ({"config.yaml": b"a: [1"}, "config.yaml: not YAML: while parsing"),
    "list": ({"config.yaml": b"[1, 2]"}, "config.yaml: holds a list, expected a mapping"),
    "nothing": ({"config.yaml": b""}, "config.yaml: holds a NoneType, expected a mapping"),
    "bytes": ({"config.yaml": b"\xff\xfe\x00"}, "config.yaml: is no text in UTF-8"),
    "control": ({"config.yaml": b"a: \x07"}, "config.yaml: not YAML"),
    "object": ({"config.yaml": b"a: !!python/object/apply:os.abort []"}, "could not determine a constructor"),
    "bomb": ({"config.yaml": b"a0: &a0 [1]\n" + b"".join(DOUBLED)}, "config.yaml: holds more than 100,000 values"),
    "circle": ({"config.yaml": b"a: &a [*a]"}, "values, or refers to itself"),
    "deep": ({"config.yaml": b"[" * 100_000}, ""),
    "result": ({"config.yaml": b"task: x.Y\n", "metrics.json": b"{"}, "metrics.json: not JSON"),
    "figures": ({"config.yaml": b"task: x.Y\n", "metrics.json": b"[]"}, "metrics.json: expected an object"),
    "progress": ({"config.yaml": b"a: 1\n", TRAINER: b'{"b": 1}'}, "not a checkpoint of this"),
    "note": ({"config.yaml": b"a: 1\n", "note.txt": b"x" * 90_000}, "note.txt: has 90,000 bytes, expected"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_a_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, message = BROKEN[name]
    fake(tmp_path, "fine", score=0.5)
    (tmp_path / name).mkdir()
    for file, content in files.items():
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_bytes(content)
    assert cli.main(["runs", "--root", str(tmp_path), "--sort", "name", "--json"]) == 0
    found = {run["name"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert found["fine"]["state"] == "finished" and found[name]["state"] == "broken"
    assert message in found[name]["problem"] and "\n" not in found[name]["problem"]
    assert str(tmp_path) not in found[name]["problem"]
    assert cli.main(["runs", "--root", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_odd_contents_of_a_run_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fake(tmp_path, "odd\n\x1b[31m", score=0.5)
    (folder / "metrics.jsonl").write_bytes(b"\xff\n[1]\n{}\nnull\n" + b"x" * 70_000)
    (folder / "metrics.json").write_text('{"steps": 6, "loss": {"only": NaN}, "text": "x", "yes": true, "big": 1e999}')
    (tmp_path / "a-file").write_text("")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "toy-sweep").mkdir()
    (tmp_path / "toy-sweep/cells.jsonl").write_text("")  # the results of a sweep are no run
    assert cli.main(["runs", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2 and "odd\\n\\x1b[31m" in out
    assert list_runs(tmp_path)[0][0].figures == {"steps": 6}


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    folder = fake(tmp_path, "fine", score=0.5)
    os.mkfifo(tmp_path / ".fine.lock")
    os.mkfifo(folder / "metrics.jsonl")
    os.mkfifo(fake(tmp_path, "piped", score=0.5) / "note.txt")
    for name in ("config.yaml", "note.txt"):
        (tmp_path / f"zero-{name}").mkdir()
        (tmp_path / f"zero-{name}" / "config.yaml").write_text("a: 1\n")
        (tmp_path / f"zero-{name}" / name).unlink(missing_ok=True)
        (tmp_path / f"zero-{name}" / name).symlink_to("/dev/zero")
    (tmp_path / "round").symlink_to("round")
    states = {run.name: run.state for run in list_runs(tmp_path)[0]}
    assert states == {"fine": "finished", **dict.fromkeys(["piped", "zero-config.yaml", "zero-note.txt"], "broken")}


def test_a_thousand_runs_are_listed_in_seconds_and_without_torch(tmp_path: Path) -> None:
    first = fake(tmp_path, "run0", score=0.5)
    for i in range(1, 1000):
        shutil.copytree(first, tmp_path / f"run{i}")
    code = (
        "import sys; from mmdiff.commands.cli import main\n"
        f"assert main(['runs', '--root', {str(tmp_path)!r}, '--sort', 'exact']) == 0\n"
        "print([n for n in ('torch', 'transformers', 'numpy', 'jinja2') if n in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 20  # two on an idle core
    lines = done.stdout.splitlines()
    assert len(lines) == 1002 and lines[-1] == "[]" and "finished  6/6" in lines[500]


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[Path]:
    yield fake(tmp_path, "toy", score=0.5)


def test_notes(noted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def note(*words: str) -> Sequence[str]:
        assert cli.main(["note", str(noted), *words]) == 0
        return capsys.readouterr().out.splitlines()

    assert note() == [""]
    assert note("lr is too high") == ["lr is too high"] == note()
    assert note("or is it?", "--add") == ["lr is too high", "or is it?"] == note()
    before = (noted / "note.txt").stat().st_mtime_ns
    assert note() and (noted / "note.txt").stat().st_mtime_ns == before  # looking writes nothing
    assert cli.main(["runs", "--root", str(noted.parent), "--filter", "note~is it"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("lr is too high")
    assert note("") == [""] and not (noted / "note.txt").exists() and read_note(noted) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [("x" * 10_001, "note: has 10,001 characters, expected at most 10,000"), ("a\x00b", "'\\\\x00' stands in it")],
)
def test_notes_that_cannot_be(text: str, message: str, noted: Path) -> None:
    write_note(noted, "kept")
    with pytest.raises(ConfigError, match=message):
        write_note(noted, text)
    assert read_note(noted) == "kept"
    with pytest.raises(ConfigError, match=message):
        train(toy.config(), note=text)
    with pytest.raises(ConfigError, match='to: no run is here .*did you mean ".*toy"'):
        write_note(noted.with_name("to"), "x")
