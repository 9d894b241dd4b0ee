"""A folder from a stranger: nothing that it names is imported or called, whatever form it was written in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from paths import ROOT

from mmdiff.backbones import new_backbone
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.commands import cli
from mmdiff.config import load_config
from mmdiff.errors import ConfigError
from mmdiff.evaluation.evaluate import evaluate_run
from mmdiff.files import write_sums
from mmdiff.model import MMDiff
from mmdiff.model.published.described import read_config
from mmdiff.model.saving import save_model
from mmdiff.session import load

called: list[str] = []


def payload(*args: Any, **named: Any) -> bool:
    called.append("here")
    return True


HERE = f"{__name__}.payload"
AFTER = "evil_module.anything"  # a file beside the folder that writes `imported` when it is imported


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    backbone = new_backbone(tokenizer=word_tokenizer(toy.WORDS), hidden_size=32, layers=2, heads=2)
    model = MMDiff(backbone, {"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)}).eval()
    save_model(model, tmp_path / "model", extra={"task": {"target": "toy.Where"}, "sampler": {"steps": 1}})
    (tmp_path / "evil_module.py").write_text("open('imported', 'w').close()\ndef anything(*a, **k): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    called.clear()
    return tmp_path / "model"


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    (file.parent / "SHA256SUMS").unlink(missing_ok=True)


def at(*keys: str) -> Callable[[dict[str, Any], Any], None]:
    def put(tree: dict[str, Any], value: Any) -> None:
        for key in keys[:-1]:
            tree = tree.setdefault(key, {})
        tree[keys[-1]] = value

    return put


PLACES = {
    "task": at("task"),
    "encoder": at("encoders", "image"),
    "connector": at("connectors", "image"),
    "head": at("heads", "image"),
    "extra": at("extras", "table"),
    "select": at("sampler", "select"),
    "revise": at("sampler", "revise"),
    "draft": at("sampler", "draft"),
    "remasking": at("sampler", "remasking"),
    "link": at("sampler", "denoise"),
    "energy of a link": lambda tree, value: at("sampler", "denoise")(
        tree, [{"target": "mmdiff.samplers.links.energy.Resample", "energy": value}]
    ),
    "argument of the task": at("task", "image"),
    "argument of a connector": at("connectors", "image", "width_in"),
    "inner connector": lambda tree, value: at("connectors", "image")(
        tree, {"target": "mmdiff.connectors.anyres.AnyRes", "width_in": 16, "width_out": 32, "inner": value}
    ),
    "inner mix": lambda tree, value: at("connectors", "image")(
        tree,
        dict(target="mmdiff.connectors.frames.LayerMix", width_in=16, width_out=32, layers=1, inner=value),
    ),
}
TARGETS = [HERE, AFTER, "os.abort", "pytest.main", "mmdiff.files.remove", "mmdiff.runs.folder.Run"]
FORMS = {
    "string": lambda target: target,
    "node": lambda target: {"target": target},
    "listed": lambda target: [{"target": target}],
    "deep": lambda target: {"target": "toy.Where", "image": {"a": [{"b": {"target": target}}]}},
}


@pytest.mark.parametrize(
    ("form", "place", "target"),
    [  # `make test` tries one target, by turns, in every form at every place
        pytest.param(form, place, target, marks=[pytest.mark.slow] * ((n + p) % len(TARGETS) != t))
        for n, form in enumerate(FORMS)
        for p, place in enumerate(PLACES)
        for t, target in enumerate(TARGETS)
    ],
)
def test_no_place_and_no_form_of_a_saved_model_is_called(saved: Path, place: str, form: str, target: str) -> None:
    text = ("argument of the task", "argument of a connector", "energy of a link")
    plain = form == "string" and place in text  # text, and no node
    change(saved / "config.json", lambda tree: PLACES[place](tree, FORMS[form](target)))
    try:
        load(saved)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert plain
    assert not called and not Path("imported").exists() and "evil_module" not in sys.modules


def test_own_folders_may_name_anything(saved: Path) -> None:
    change(saved / "config.json", lambda tree: tree["task"].update(image={"target": HERE}))
    with pytest.raises(ConfigError, match=r"task\.image\.target: .*payload is not made to be part of a model"):
        load(saved)
    load(saved, trust=True)
    assert called == ["here"]
    write_sums(saved)  # signed by this user
    load(saved)
    assert called == ["here", "here"]


def test_a_signature_of_somebody_else_is_none(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    change(saved / "config.json", lambda tree: tree["task"].update(image={"target": HERE}))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
    write_sums(saved)
    load(saved)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "me"))
    with pytest.raises(ConfigError, match="is not made to be part"):
        load(saved)
    assert called == ["here"] and (tmp_path / "stranger" / "mmdiff" / "key").stat().st_mode & 0o777 == 0o600


def test_a_part_in_the_wrong_place_is_one_line(saved: Path) -> None:
    change(saved / "config.json", lambda tree: tree.update(task={"target": "toy.Patches"}))
    with pytest.raises(ConfigError, match="is no task, it has no method `sample`"):
        load(saved)
    change(saved / "config.json", lambda tree: tree["encoders"].update(image={"target": "toy.Where"}))
    with pytest.raises(ConfigError, match="is no part of a model"):
        MMDiff.from_pretrained(saved)


# Runs


@pytest.fixture
def run(saved: Path) -> Path:
    """A stranger's run: a model that is fine, and a configuration to write."""
    folder = saved.parent / "runs" / "x"
    folder.mkdir(parents=True)
    saved.rename(folder / "model")
    (folder / "metrics.json").write_text("{}")
    return folder


BAD = {
    "rows": {"eval": {"data": {"x": {"target": HERE, "command": "x"}}}},
    "rows by name": {"eval": {"data": {"x": HERE}}},
    "module": {"eval": {"data": {"x": AFTER}}},
    "backbone": {"model": {"backbone": HERE}},
    "objective": {"train": {"stages": {"a": {"data": "toy.Corners", "objective": HERE}}}},
    "mixture": {"train": {"stages": {"a": {"data": {"m": {"rows": HERE, "task": HERE}}}}}},
    "score": {"sampler": {"remasking": HERE}},
    "interpolated": {"eval": {"data": {"x": {"target": "toy.Corners", "n": "${oc.create:'{target: os.abort}'}"}}}},
    "environment": {"name": "${oc.env:HOME}"},
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("verb", ["eval", "check", "config", "sweep", "train"])
def test_no_command_calls_what_a_run_of_a_stranger_names(
    run: Path, bad: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "x", "task": {"target": "toy.Where"}, **BAD[bad]}))
    words = ["--axis", "sampler.steps=[1,2]"] if verb == "sweep" else []
    assert cli.main([verb, str(run), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "config.yaml" in error
    assert not called and not Path("imported").exists()


def test_a_folder_with_a_configuration_alone_is_no_own_one(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever names a folder takes what lies in it, and did not write it."""
    Path("bare").mkdir()
    Path("bare/config.yaml").write_text(yaml.safe_dump(BAD["backbone"]))
    for verb in ("check", "train", "config"):
        assert cli.main([verb, "bare"]) == 2
        assert "is not made to be part" in capsys.readouterr().err
    assert not called


@pytest.mark.parametrize("bad", ["rows", "rows by name", "module"])
def test_a_base_in_a_run_is_a_stranger_s_too(run: Path, bad: str) -> None:
    (run / "other.yaml").write_text(yaml.safe_dump(BAD[bad]))
    (run / "config.yaml").write_text("base: other.yaml\n")
    Path("mine.yaml").write_text(f"base: {run}\n")
    for name in (str(run), str(run / "config.yaml"), "mine.yaml"):
        with pytest.raises(ConfigError, match="is not made to be part of a model"):
            load_config(name)
    assert not Path("imported").exists()


def test_demo_runs_packaged_configurations_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.rename(run.with_name("x-demo"))
    (run.with_name("x-demo") / "config.yaml").write_text(f"demo: {HERE}\n")
    assert cli.main(["demo", "runs/x"]) == 2 and "no demonstration" in capsys.readouterr().err and not called


def test_trust_is_said_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "x", **BAD["rows"]}))
    assert cli.main(["config", str(run)]) == 2 and "--trust" in capsys.readouterr().err
    assert cli.main(["config", str(run), "--trust"]) == 0


def test_a_run_of_declared_parts_needs_no_trust(run: Path) -> None:
    node = {"target": "toy.Corners", "n": 2}
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "x", "eval": {"data": {"x": node}}}))
    assert evaluate_run(str(run))["eval"]["x"]["n"] == 2


# Files of the working folder


def start(*words: str, here: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(here), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mmdiff", *words]
    return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_modules_of_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("open('imported', 'w').close()\n")  # in the way of a package
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("class Rows:\n    def __init__(self, n: int = 1): ...\n")
    (tmp_path / "mine.yaml").write_text("eval: {data: {x: {target: mine.Rows, m: 1}}}\n")
    found = start("check", "mine.yaml", here=tmp_path)
    assert "mine.Rows takes no such argument" in found.stderr, found.stderr  # the module was found
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "mine.yaml").rename(elsewhere / "mine.yaml")
    away = tmp_path / "away"
    away.mkdir()
    (package).rename(away / "mine")
    found = start("check", str(elsewhere / "mine.yaml"), here=away)
    assert "there is no module 'mine'" in found.stderr, found.stderr
    assert not (tmp_path / "imported").exists()


def test_a_gate_that_is_left_open_is_noticed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests would see without the gate: the payload is called."""
    monkeypatch.setattr("mmdiff.model.published.described.check_parts", lambda *a: None)
    change(saved / "config.json", lambda tree: tree["task"].update(image={"target": HERE}))
    read_config(saved)
    load(saved)
    assert called == ["here"]
