"""Saved folders: the same logits to the bit, nothing from outside, and nothing of a stranger's is called."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from logit_tables import asked
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff.backbones import new_backbone
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.stream import canvases
from mmdiff.errors import ConfigError
from mmdiff.files import write_sums
from mmdiff.model import MMDiff
from mmdiff.model.params import apply_rules, read_rules
from mmdiff.model.saving import save_model
from mmdiff.parts import is_part
from mmdiff.session import load


def model(dtype: str = "float32") -> MMDiff:
    torch.manual_seed(0)
    words = word_tokenizer(toy.WORDS)
    backbone = new_backbone(tokenizer=words, hidden_size=32, layers=2, heads=2, dtype=dtype)
    return MMDiff(backbone, {"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)}).eval()


def logits(m: MMDiff) -> Tensor:
    batch = canvases([toy.Corners()[i] for i in range(3)], toy.Where(), m.vocab, m.readers)
    return asked(m.denoiser(batch), batch.ids_BL, batch.target_BL, torch.arange(3))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(model(), tmp_path / "model", extra={"task": {"target": "toy.Where"}, "sampler": {"steps": 1}})
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_come_back_to_the_bit(tmp_path: Path, dtype: str) -> None:
    m = model(dtype)
    rules = [{"match": "backbone", "lora": {"r": 2}}, {"match": "*", "train": False}]
    apply_rules(m, read_rules(rules), lr=0.1, weight_decay=0.0)
    with torch.no_grad():
        for name, p in m.named_parameters():
            if ".lora_B" in name:  # they begin at 0, where adapters could go missing unseen
                p.normal_(0, 0.1)
    m.eval()
    save_model(m, tmp_path / "a")
    os.rename(tmp_path / "a", tmp_path / "b")
    again = MMDiff.from_pretrained(tmp_path / "b")
    assert torch.equal(logits(m), logits(again)) and again.adapters == m.adapters
    assert {n: p.dtype for n, p in m.named_parameters()} == {n: p.dtype for n, p in again.named_parameters()}
    save_model(again, tmp_path / "c")
    kept = [f"{f}/model.safetensors" for f in ("b", "c")]
    a, b = (load_file(tmp_path / file) for file in kept)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_nothing_is_overwritten(saved: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in saved.rglob("*")}
    with pytest.raises(ConfigError, match="is there already and not empty; nothing was overwritten"):
        model().save_pretrained(saved)
    assert before == {p: p.stat().st_mtime_ns for p in saved.rglob("*")}
    (saved.parent / "empty").mkdir()
    model().save_pretrained(saved.parent / "empty")
    assert not [p for p in saved.parent.iterdir() if ".part-" in p.name]


def change(saved: Path, **tensors: Tensor | None) -> None:
    file = saved / "model.safetensors"
    held = load_file(file) | {name.replace("__", "."): t for name, t in tensors.items() if t is not None}
    for name in [name.replace("__", ".") for name, t in tensors.items() if t is None]:
        del held[name]
    save_file(held, file)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"encoders__image__conv__bias": None}, "missing encoders.image.conv.bias, unexpected none"),
        ({"encoders__extra": torch.ones(1)}, "missing none, unexpected encoders.extra"),
        ({"encoders__image__conv__bias": torch.ones(3)}, "encoders.image.conv.bias has shape (3,), expected (16,)"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved: Path, tensors: dict[str, Any], message: str) -> None:
    change(saved, **tensors)
    write_sums(saved)
    with pytest.raises(ConfigError) as error:
        MMDiff.from_pretrained(saved)
    assert message in str(error.value) and "\n" not in str(error.value)


def cut(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def uncounted(harm: Any) -> Any:
    """The harm done to a folder that never had checksums, such as one of version 0.1."""

    def change(saved: Path) -> None:
        harm(saved)
        (saved / "SHA256SUMS").unlink()

    return change


def configured(**changes: Any) -> Any:
    def change(saved: Path) -> None:
        file = saved / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "model.safetensors: is damaged or was changed"),
        (lambda saved: (saved / "model.safetensors").unlink(), "model.safetensors: is missing"),
        (uncounted(cut), "model.safetensors: not a safetensors file"),
        (uncounted(lambda saved: (saved / "model.safetensors").unlink()), "model.safetensors: not a safetensors file"),
        (lambda saved: (saved / "config.json").unlink(), "no saved model here (config.json is missing)"),
        (lambda saved: (saved / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda saved: (saved / "config.json").write_text("[]"), "mmdiff_format is [], expected 1"),
        (lambda saved: (saved / "model.safetensors.index.json").write_text("{}"), "not an index of weights"),
        (configured(mmdiff_format=2), "mmdiff_format is 2, expected 1"),
        (configured(encoders=None), "encoders is None, expected a dict"),
        (configured(backbone={"weights": "x"}), "backbone.weights: no such field"),
    ],
)
def test_a_broken_folder_is_one_line(saved: Path, harm: Any, message: str) -> None:
    harm(saved)
    with pytest.raises(ConfigError) as error:
        MMDiff.from_pretrained(saved)
    assert message in str(error.value) and "\n" not in str(error.value)


# A folder from a stranger

SHELL = {"target": "os.system", "command": "touch called"}
INHERITED = f"{__name__}.Inherited"


class Inherited(toy.Patches):
    """Not made with @saveable itself."""


@pytest.mark.parametrize(
    "changes",
    [
        {"encoders": {"image": SHELL}},
        {"connectors": {"image": {"target": "toy.Project", "width_in": SHELL, "width_out": 32}}},
        {"heads": {"image": {"target": "toy.Patches", "more": [[SHELL]]}}},
        {"encoders": {"image": {"target": "subprocess.Popen", "args": "touch called", "shell": True}}},
        {"encoders": {"image": {"target": "mmdiff.commands.cli.main", "argv": ["train", "x.yaml"]}}},
        {"encoders": {"image": {"target": INHERITED}}},
        {"task": SHELL},
        {"task": {"target": "toy.Where", "image": SHELL}},
        {"task": {"target": "toy.Where", "image": {"target": "mmdiff.files.write_text", "file": "called", "text": ""}}},
        {"sampler": {"select": SHELL}},
        {"sampler": {"revise": {"target": "pathlib.Path", "called": SHELL}}},
        {"sampler": {"remasking": "os.system"}},
    ],
)
def test_a_saved_folder_cannot_call_what_it_likes(
    saved: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    configured(**changes)(saved)
    with pytest.raises(ConfigError, match="is not made to be part of a model; it was not called"):
        load(saved)
    assert not Path("called").exists()


def test_what_is_a_part() -> None:
    assert is_part(toy.Patches) and not is_part(Inherited) and not is_part(os.system) and not is_part(toy.Patches())


def test_a_folder_works_without_the_sources_it_was_made_from(saved: Path, tmp_path: Path) -> None:
    shutil.move(saved, tmp_path / "elsewhere" / "model")
    session = load(tmp_path / "elsewhere" / "model")
    text = "".join(p.read_text() for p in (tmp_path / "elsewhere").rglob("*.json"))
    assert str(tmp_path) not in text and session.predict(toy.Corners()[0])["prediction"]
