"""A template whose files are not there says which settings name them, and which page has their format."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT

from mmdiff.commands import cli
from mmdiff.commands.own_files.missing import hint_of

VALUES = {
    "train.stages.fit.data.target": "mmdiff.tasks.vqa.llava.LlavaJSON",
    "train.stages.fit.data.path": "data/rows.json",
    "train.stages.fit.eval.path": "data/rows.json",
    "model.weights": "data/saved",
    "name": "rows",
    "train.seed": 3,
}


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        (
            "data/rows.json: no such file",
            "set train.stages.fit.data.path, train.stages.fit.eval.path (docs/data/llava.md)",
        ),
        ("data/saved/config.json: no such file", "set model.weights (docs/backbones.md)"),
        ("data/rows.json5: no such file", ""),
        (
            "../data/rows.json: no such file",
            "set train.stages.fit.data.path, train.stages.fit.eval.path (docs/data/llava.md)",
        ),
        ("rows: 3 of them", ""),
    ],
)
def test_the_keys_of_a_missing_path_are_named(
    message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hint_of(message, VALUES) == hint
    (tmp_path / "data").mkdir()
    for name in ("rows.json", "saved"):
        (tmp_path / "data" / name).touch()
    assert hint_of(message, VALUES) == "", "what is there is not to be set"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vqa-own", "data/rows.json: no such file; set train.stages.tune.data.path (docs/data/llava.md)"),
        (
            "protein-family",
            "data/family.a3m: No such file or directory; set train.stages.fit.data.path, train.stages.fit.eval.path, "
            "eval.data.test.rows.path (docs/data/fasta.md)",
        ),
        (
            "protein-own",
            "data/sequences.fasta: No such file or directory; set train.stages.fit.data.path (docs/data/fasta.md)",
        ),
        (
            "vla-own",
            "statistics: data/robot: no such file; set train.stages.look.data.path (docs/data/lerobot.md)",
        ),
        (
            "vla-reach",
            "statistics: runs/reach-data: no such file; set train.stages.look.data.path (docs/data/lerobot.md)",
        ),
        (
            "vqa-llada-v",
            "data/LLaDA-V: no saved model here (config.json is missing); set model.weights (docs/backbones.md)",
        ),
    ],
)
def test_a_template_says_what_to_set(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", name]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"mmdiff: error: {line}"


def test_a_path_of_the_command_line_is_not_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "vqa-own", "train.stages.tune.data.path=mine/rows.json"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "mmdiff: error: mine/rows.json: no such file"


def test_pages_that_parts_name_exist() -> None:
    found = {
        line.split('"')[1]
        for room in ("mmdiff", "tasks")
        for file in (ROOT / room).rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("    page") and '= "docs/' in line
    }
    assert len(found) > 5 and all((ROOT / page).is_file() for page in found)
