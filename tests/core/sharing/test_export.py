"""`mmdiff export`: the folder is the same model for mmdiff and a plain one for others; nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from huggingface_hub import ModelCard
from models import multimodal as small
from safetensors.torch import load_file, save_file

from mmdiff import train
from mmdiff.backbones import load_backbone, new_backbone
from mmdiff.backbones.family import FAMILIES, find_family
from mmdiff.backbones.load import toy_backbone
from mmdiff.commands import cli
from mmdiff.errors import ConfigError
from mmdiff.files import check_sums
from mmdiff.model import MMDiff
from mmdiff.model.params import add_adapters
from mmdiff.model.saving import save_model
from mmdiff.session import load
from mmdiff.sharing.export import export
from mmdiff.sharing.inspection.inspect import inspect

LORA = [{"match": "backbone", "lora": {"r": 2, "alpha": 8}}, {"match": "*", "train": True}]
ROWS = [toy.Corners(n=6, seed=3)[i] for i in range(6)]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with LoRA factors in the backbone, and an encoder and a connector that were trained."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(toy.config("adapted", stage={"steps": 6, "lr": 0.03, "params": LORA}))
    return folder / "runs/adapted"


def said(folder: Path) -> list[Any]:
    return [(out["prediction"], out["canvas"]) for out in load(folder, trust=True).predict_many(ROWS)]


@pytest.mark.parametrize("merge", [False, True])
def test_the_folder_predicts_as_the_run(adapted: Path, tmp_path: Path, merge: bool) -> None:
    found = export(adapted, tmp_path / "out", merge=merge)
    assert found["merged"] == (14 if merge else 0)
    before, after = said(adapted), said(tmp_path / "out")
    assert [p for p, _ in before] == [p for p, _ in after]
    for (_, a), (_, b) in zip(before, after, strict=True):
        assert [x[:2] for x in a] == [x[:2] for x in b]
        assert [x[2] for x in a] == pytest.approx([x[2] for x in b], abs=2e-4 if merge else 0)
    m, again = (MMDiff.from_pretrained(f, trust=True) for f in (adapted / "model", tmp_path / "out"))
    assert again.adapters == ([] if merge else m.adapters)
    if not merge:
        state = again.state_dict()
        assert state.keys() == m.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in m.state_dict().items())


FOLDERS = sorted({next(iter(found)) for name in FAMILIES if (found := find_family(name).PUBLISHED)})


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (n % 4 > 0)) for n, one in enumerate(FOLDERS)]
)
def test_every_family_is_a_plain_published_folder(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = MMDiff(toy_backbone(name, reserve={"action": 3}))
    model.save_pretrained(tmp_path / "saved")
    export(tmp_path / "saved", tmp_path / "out")
    found = inspect(tmp_path / "out")
    assert found["loads"] and found["vocabulary"]["reserved"] == {"action": 3}
    plain = load_backbone(tmp_path / "out")
    ids_RL = torch.arange(3, 11)[None]
    assert torch.equal(plain(ids_RL), model.backbone(ids_RL)) and plain.facts == model.backbone.facts
    again = MMDiff.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_causal_model_keeps_what_was_chosen_for_it(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = find_family("llama").toy_tokenizer()
    sizes = {"tokenizer": tokenizer, "hidden_size": 32, "layers": 1, "heads": 2}
    MMDiff(new_backbone(**sizes, family="llama", options={"shift": 0})).save_pretrained(tmp_path / "saved")
    export(tmp_path / "saved", tmp_path / "out")
    assert load_backbone(tmp_path / "out").facts == MMDiff.from_pretrained(tmp_path / "saved").backbone.facts


def test_a_multimodal_checkpoint_stays_one(tmp_path: Path) -> None:
    """As its authors lay it out while it has only their parts; otherwise as any other model."""
    small.write_folder(tmp_path / "theirs", name := next(iter(small.NAMES)))
    model = MMDiff.from_pretrained(tmp_path / "theirs")
    save_model(model, tmp_path / "saved", extra={"task": {"target": "mmdiff.tasks.vqa.VQA"}})
    export(tmp_path / "saved", tmp_path / "out")
    before, after = (load_file(tmp_path / x / "model.safetensors") for x in ("theirs", "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before), name
    assert not (tmp_path / "out/mmdiff_parts.safetensors").exists() and inspect(tmp_path / "out")["loads"]
    adapter = {"part": "backbone", "r": 2, "alpha": 4.0, "dropout": 0.0, "modules": "q_proj"}
    add_adapters(model, adapter)
    save_model(model, tmp_path / "adapted", extra={"task": {"target": "mmdiff.tasks.vqa.VQA"}})
    for merge in (False, True):
        export(tmp_path / "adapted", tmp_path / f"out{merge}", merge=merge)
        found = inspect(tmp_path / f"out{merge}")
        assert found["loads"] and found["task"] == "mmdiff.tasks.vqa.VQA"
        again = load(tmp_path / f"out{merge}").model
        assert again.adapters == ([] if merge else [adapter])
        assert torch.equal(again.connectors["image"].image_newline, model.connectors["image"].image_newline)


def test_what_others_read_is_there(adapted: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    (tmp_path / "terms.txt").write_text("Do what you like.\n")
    export(adapted, tmp_path / "out", licence=str(tmp_path / "terms.txt"))
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.to_dict()["license"] == "other" and "toy.Corners" in card.text
    assert 'mmdiff.load("out")' in card.text and (tmp_path / "out/LICENSE").read_text() == "Do what you like.\n"
    vocab = MMDiff.from_pretrained(adapted / "model", trust=True).vocab
    defaults = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (defaults.eos_token_id, defaults.pad_token_id) == (vocab.eos_id, vocab.pad_id)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == vocab.tokenizer.get_vocab()
    raw = json.loads((tmp_path / "out/config.json").read_text())
    assert raw["model_type"] == "llada" and raw["torch_dtype"] == "float32" and raw["d_model"] == 32
    check_sums(tmp_path / "out")
    again = train_on(tmp_path)
    assert again.state_dict().keys() == MMDiff.from_pretrained(tmp_path / "out", trust=True).state_dict().keys()


def train_on(folder: Path) -> MMDiff:
    """The model of `model.weights: out`, which a further training begins with."""
    from mmdiff.config.settings import ModelConfig
    from mmdiff.model import build_model

    return build_model(ModelConfig(weights=str(folder / "out")))


def test_a_damaged_part_is_named(adapted: Path, tmp_path: Path) -> None:
    export(adapted, tmp_path / "out")
    (tmp_path / "out/SHA256SUMS").unlink()
    held = load_file(tmp_path / "out/mmdiff_parts.safetensors")
    del held["encoders.image.conv.bias"]
    save_file(held | {"heads.x.y": torch.zeros(2)}, tmp_path / "out/mmdiff_parts.safetensors")
    assert inspect(tmp_path / "out")["unexpected"] == ["heads.x.y"]
    with pytest.raises(ConfigError, match=r"missing encoders\.image\.conv\.bias, unexpected heads\.x\.y"):
        MMDiff.from_pretrained(tmp_path / "out", trust=True)


def test_what_is_there_is_not_overwritten(adapted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["export", str(adapted), "--out", str(out)]
    assert cli.main([*command, "--licence", "mit"]) == 0
    before = {file: file.read_bytes() for file in out.rglob("*")}
    assert cli.main(command) == 2
    for name, text in (("notes.txt", "mine"), ("README.md", "mine"), ("config.json", "{}")):
        kept = (out / name).read_bytes() if (out / name).exists() else None
        (out / name).write_text(text)
        assert cli.main([*command, "--force"]) == 2 and (out / name).read_text() == text
        (out / name).unlink() if kept is None else (out / name).write_bytes(kept)
    assert before == {file: file.read_bytes() for file in out.rglob("*")}
    assert cli.main([*command, "--force", "--merge", "--licence", "apache-2.0"]) == 0
    assert "license: apache-2.0" in (out / "README.md").read_text() and load(out, trust=True).model.adapters == []
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_the_old_folder(adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(adapted, tmp_path / "out")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for name in ("_read_back", "write_sums", "write_exported", "marked"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mmdiff.sharing.export.{name}", lambda *a, **k: 1 / 0)
            for out, force in (("out", True), ("new", False)):
                with pytest.raises(ZeroDivisionError):
                    export(adapted, tmp_path / out, force=force)
        assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "--out", "x"], "nowhere: no such folder"),
        (["{run}", "--out", "file"], "file: is a file, expected a folder"),
        (["{run}", "--out", "{run}/model"], "is the model itself, expected another folder"),
        (["{run}", "--out", "x", "--licence", "apache2"], 'identifier (did you mean "apache-2.0"?)'),
        (["{run}", "--out", "x", "--merged"], "unknown argument '--merged'"),
        (["{run}"], "out"),
    ],
)
def test_slips_are_one_line(
    adapted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert cli.main(["export", *(word.format(run=adapted) for word in words)]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("mmdiff: error: ") and said in line and not Path("x").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "mmdiff_config.json: not JSON"),
        ("[]", "mmdiff_config.json: "),
        ('{"mmdiff_format": 2}', "mmdiff_format is 2, expected 1"),
        (None, "task.target: os.system is not made to be part of a model; it was not called"),
    ],
)
def test_a_folder_of_a_strangers_is_read_as_any_other(
    adapted: Path, tmp_path: Path, text: str | None, said: str
) -> None:
    """Nothing that it names is called, and what is no description is one line."""
    export(adapted, tmp_path / "out")
    file = tmp_path / "out/mmdiff_config.json"
    own = json.dumps(json.loads(file.read_text()) | {"task": {"target": "os.system", "command": "touch x"}})
    file.write_text(own if text is None else text)
    (tmp_path / "out/SHA256SUMS").unlink()
    for read in (load, inspect):
        with pytest.raises(ConfigError) as error:
            read(tmp_path / "out")
        assert said in str(error.value) and "\n" not in str(error.value)
    assert not Path("x").exists()
