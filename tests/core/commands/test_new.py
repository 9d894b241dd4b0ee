"""`mmdiff new`: what it writes passes its own tests, `mmdiff check` and a linter, and can be installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from mmdiff.commands import cli
from mmdiff.commands.start.new import KINDS, class_name, new
from mmdiff.errors import UserError


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One command in a folder, where nothing but mmdiff is on the path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_tests_pass_and_it_checks(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["new", kind, f"own_{kind}", "--out", str(tmp_path)]) == 0
    folder = tmp_path / f"own_{kind}"
    assert capsys.readouterr().out.startswith(f"{folder}\ncd {folder} && pytest && mmdiff check own_{kind}.yaml")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    own = {"task": {"task.py", "rows.py"}, "encoder": {"encoder.py"}}[kind]
    assert files == {
        "pyproject.toml",
        "README.md",
        f"own_{kind}.yaml",
        f"tests/test_own_{kind}.py",
        *(f"own_{kind}/{name}" for name in {"__init__.py", *own}),
    }
    assert not any("{{" in (folder / file).read_text() for file in files)
    assert yaml.safe_load((folder / f"own_{kind}.yaml").read_text())["name"] == f"own_{kind}"
    tested = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert tested.returncode == 0 and "5 passed" in tested.stdout, tested.stdout + tested.stderr
    rules = ["--isolated", "--select", "E,F,UP,B", "--line-length", "110"]
    linted = run(folder, "-m", "ruff", "check", "--no-cache", *rules)
    assert linted.returncode == 0, linted.stdout
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the working folder is added, as in a process of its own
    assert cli.main(["check", f"own_{kind}.yaml"]) == 0
    assert capsys.readouterr().out.startswith("loss.")
    for module in [name for name in sys.modules if name.partition(".")[0] == f"own_{kind}"]:
        del sys.modules[module]


@pytest.mark.slow
def test_the_task_is_learned(tmp_path: Path) -> None:
    folder = new("task", "own_digits", tmp_path)
    assert run(folder, "-m", "mmdiff", "train", "own_digits.yaml").returncode == 0
    found = run(folder, "-m", "mmdiff", "eval", "runs/own_digits")
    figures = dict(line.split() for line in found.stdout.splitlines())
    assert float(figures["eval.heldout.exact_match"]) > 0.5  # by chance: one in a thousand


@pytest.mark.needs("build")
@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_installed(kind: str, tmp_path: Path) -> None:
    folder = new(kind, f"own_{kind}", tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"own_{kind}" and project["dependencies"][0].startswith("mmdiff")
    built = run(folder, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name}
    assert names == {str(file.relative_to(folder)) for file in (folder / f"own_{kind}").glob("*.py")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Birds", "'Birds' is no name of a package, expected small letters, digits and _, such as bird_songs"),
        ("my-task", "'my-task' is no name of a package"),
        ("1task", "is no name of a package"),
        ("_task", "is no name of a package"),
        ("task_", "is no name of a package"),
        ("a b", "is no name of a package"),
        ("../x", "is no name of a package"),
        ("a\n", r"'a\\n' is no name of a package"),
        ("ünder", "is no name of a package"),
        ("", "is no name of a package"),
        ("x" * 51, "has 51 letters, expected at most 50"),
        ("class", "'class' is a word of Python"),
        ("match", "'match' is a word of Python"),
        ("json", "there is a module 'json' already"),
        ("torch", "there is a module 'torch' already"),
        ("mmdiff", "there is a module 'mmdiff' already"),
        ("tests", "there is a module 'tests' already"),
    ],
)
def test_names_that_cannot_be(name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=message.replace("(", "\\(")):
        new("task", name, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["new", "encoder", "--out", str(tmp_path), "--", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_birds").mkdir()
    Path("own_link").symlink_to("nowhere")
    for name in ("own_birds", "own_link"):
        with pytest.raises(UserError, match=f"{name}: is there already, nothing was written"):
            new("task", name)
    with pytest.raises(UserError, match="--out: none is no folder"):
        new("task", "own_other", Path("none"))
    with pytest.raises(UserError, match=r'\'tsk\' is neither a task nor an encoder \(did you mean "task"\?\)'):
        new("tsk", "own_other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own_birds", "own_link"]
    assert class_name("bird_songs_2") == "BirdSongs2"
