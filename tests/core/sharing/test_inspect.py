"""`mmdiff inspect` against what loading the same folder gives, and the work it takes for 16 GB."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from models.sparse import sparse
from paths import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff.backbones import load_backbone, new_backbone
from mmdiff.backbones.families.llada import toy_tokenizer
from mmdiff.backbones.family import FAMILIES, find_family, model_type_of
from mmdiff.backbones.load import toy_backbone
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.commands import cli
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.params import apply_rules, read_rules
from mmdiff.model.saving import save_model
from mmdiff.sharing.inspection.inspect import inspect

KEYS = set("family parameters mask_id attention block_length shift noise missing unexpected memory".split())
PUBLISHED = {
    name: next((i for i, raw in find_family(name).PUBLISHED.items() if model_type_of(raw) == name), None)
    for name in FAMILIES
}


def published(folder: Path, **more: Any) -> Path:
    """A small LLaDA as it is published."""
    torch.manual_seed(0)
    backbone = new_backbone(tokenizer=toy_tokenizer(), hidden_size=32, layers=2, heads=2, vocab_size=300, **more)
    backbone.save_pretrained(folder, original_format=True)
    return folder


HUB_IDS = [hub_id for hub_id in PUBLISHED.values() if hub_id]


@pytest.mark.parametrize(
    "hub_id", [pytest.param(one, marks=[pytest.mark.slow] * (n % 3 > 0)) for n, one in enumerate(HUB_IDS)]
)
@pytest.mark.parametrize("original_format", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_family_is_described_as_it_loads(hub_id: str, original_format: bool, tmp_path: Path) -> None:
    toy_backbone(hub_id).save_pretrained(tmp_path, original_format=original_format)
    found, loaded = inspect(tmp_path, length=16), load_backbone(tmp_path)
    facts = loaded.facts
    assert KEYS <= found.keys()
    assert found["family"] == loaded.family and found["loads"]
    assert found["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert (found["mask_id"], found["shift"], found["max_length"]) == (facts.mask_id, facts.shift, facts.max_length)
    assert found["end_ids"] == list(facts.end_ids) and found["special_ids"]["eos"] == facts.eos_id
    assert found["block_length"] == getattr(facts.attention, "size", None)
    assert found["attention"] == "full" if facts.attention is None else found["attention"] != "full"
    assert found["missing"] == found["unexpected"] == found["problems"] == []
    rows = found["vocabulary"]
    assert rows["rows"] == loaded.vocab_size and rows["tokenizer"] + rows["free"] == rows["rows"]


Damage = Callable[[dict[str, Tensor]], Any]
DAMAGE: dict[str, Damage] = {
    "nothing": lambda t: None,
    "one is missing": lambda t: t.pop("model.transformer.blocks.1.q_proj.weight"),
    "one is unexpected": lambda t: t.update({"model.transformer.blocks.1.q_proj.bias": torch.zeros(32)}),
    "one is misspelt": lambda t: t.update({"model.transformer.lnf.weight": t.pop("model.transformer.ln_f.weight")}),
    "a tower": lambda t: t.update({"model.vision_tower.x.weight": torch.zeros(4, 4)}),
    "another shape": lambda t: t.update({"model.transformer.ln_f.weight": torch.zeros(31)}),
    "whole numbers": lambda t: t.update({"model.transformer.ln_f.weight": torch.zeros(32, dtype=torch.int32)}),
    "under both names": lambda t: t.update({"model.norm.weight": torch.zeros(32)}),
    "factors": lambda t: t.update(
        {f"model.transformer.blocks.0.q_proj.lora_{x}.weight": torch.zeros(s) for x, s in (("A", 32), ("B", 32))}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_it_finds_what_loading_refuses(damage: str, tmp_path: Path) -> None:
    published(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    DAMAGE[damage](tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    found = inspect(tmp_path, length=8)
    try:
        load_backbone(tmp_path)
    except ConfigError as error:
        named = any(repr(name) in str(error) for name in [*found["missing"], *found["unexpected"]])
        assert not found["loads"] and (named or str(error) in found["problems"] or damage == "one is missing")
    else:
        assert found["loads"]
    assert found["elsewhere"] == (["model.vision_tower.x.weight"] if damage == "a tower" else [])
    assert found["parts"].get("model.vision_tower") == (16 if damage == "a tower" else None)


def test_what_is_missing_and_unexpected_is_named_as_it_is_published(tmp_path: Path) -> None:
    published(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.transformer.lnf.weight"] = tensors.pop("model.transformer.ln_f.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    found = inspect(tmp_path)
    assert found["missing"] == ["model.transformer.ln_f.weight"]
    assert found["unexpected"] == ["model.transformer.lnf.weight"]


def test_a_folder_without_tokenizer_has_the_ids_of_its_configuration(tmp_path: Path) -> None:
    published(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    found = inspect(tmp_path)
    assert found["mask_id"] == 261 and found["special_ids"]["eos"] == 257 and not found["loads"]
    assert "no tokenizer" in found["problems"][0]


# Models of mmdiff


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = new_backbone(
        tokenizer=word_tokenizer(toy.WORDS), hidden_size=32, layers=2, heads=2, dtype="bfloat16", reserve={"action": 5}
    )
    model = MMDiff(backbone, {"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)})
    rules = read_rules([{"match": "backbone", "lora": {"r": 4}}, {"match": "*"}])
    apply_rules(model, rules, lr=1e-3, weight_decay=0.0)
    folder = tmp_path_factory.mktemp("runs") / "x"
    save_model(model, folder / "model", extra={"task": {"target": "toy.Where"}, "sampler": {"steps": 1}})
    return folder


def test_a_run_and_its_model_are_described_by_part(saved: Path) -> None:
    found = inspect(saved)
    model = MMDiff.from_pretrained(saved / "model")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert found["loads"] and found["dtype"] == "bfloat16" and found["task"] == "toy.Where"
    assert found["parts"]["encoders.image"] == sum(n for name, n in sizes.items() if name.startswith("encoders."))
    assert found["parts"]["connectors.image"] == sum(n for name, n in sizes.items() if name.startswith("connectors."))
    assert found["parts"]["lora"] == sum(n for name, n in sizes.items() if ".lora_" in name)
    assert found["parts"]["backbone"] == found["parameters"]
    assert found["vocabulary"]["reserved"] == {"action": 5}
    assert inspect(saved / "model") == {**found, "path": str(saved / "model")}


def test_a_tensor_of_no_part_of_a_saved_model_is_unexpected(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "model", tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    tensors["encoders.sound.weight"] = torch.zeros(2)
    del tensors["backbone.model.model.norm.weight"]
    save_file(tensors, tmp_path / "m/model.safetensors")
    found = inspect(tmp_path / "m")
    assert found["unexpected"] == ["encoders.sound.weight"]
    assert found["missing"] == ["backbone.model.model.norm.weight"]


def test_a_hub_id_is_looked_up_in_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--GSAI-ML--LLaDA-8B-Base"
    published(repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    assert inspect("GSAI-ML/LLaDA-8B-Base")["mask_id"] == 261
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.setblocking(False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
        with pytest.raises(ConfigError, match="no model of that name in the hub's cache"):
            inspect("GSAI-ML/LLaDA-1.5")
        with pytest.raises(BlockingIOError):
            hub.accept()


# The work


def llada_8b(folder: Path) -> Path:
    """LLaDA-8B as it is published: six files of 16 GB together, and an index."""
    width, wide, rows = 4096, 12288, 126464
    layer = {
        **dict.fromkeys(["q_proj", "k_proj", "v_proj", "attn_out"], [width, width]),
        **{"ff_proj": [wide, width], "up_proj": [wide, width], "ff_out": [width, wide]},
        **{"attn_norm": [width], "ff_norm": [width]},
    }
    shapes = {f"blocks.{i}.{name}": shape for i in range(32) for name, shape in layer.items()}
    shapes |= {"wte": [rows, width], "ln_f": [width], "ff_out": [rows, width]}
    tensors = {f"model.transformer.{name}.weight": shape for name, shape in shapes.items()}
    index = {name: f"model-{1 + 6 * i // len(tensors):05}-of-00006.safetensors" for i, name in enumerate(tensors)}
    for file in set(index.values()):
        sparse(folder / file, {name: tensors[name] for name in tensors if index[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(
        json.dumps(
            {k: v for k, v in find_family("llada").PUBLISHED["GSAI-ML/LLaDA-8B-Base"].items() if "token_id" not in k}
        )
    )
    toy_tokenizer().save_pretrained(folder)
    return folder


WORK = """
import re, sys
from mmdiff.sharing.inspection.inspect import inspect

def read():
    return int(open("/proc/self/io").read().split()[1])  # bytes of read()

def most():  # kilobytes; not those of getrusage, which begin with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

inspect(sys.argv[1])  # imports what there is to import
before, memory = read(), most()
found = inspect(sys.argv[1], batch=64)
print(found["bytes"], found["parameters"], found["loads"], read() - before, most() - memory)
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
@pytest.mark.slow
def test_of_16_gb_only_heads_are_read(tmp_path: Path) -> None:
    folder = llada_8b(tmp_path)
    done = subprocess.run([sys.executable, "-c", WORK, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, parameters, loads, read, kilobytes = done.stdout.split()
    assert int(size) > 16e9 and int(parameters) == 8_015_581_184 and loads == "True"
    small = sum(f.stat().st_size for f in folder.iterdir() if f.suffix != ".safetensors")
    assert int(read) < 500_000 + 5 * small
    assert int(kilobytes) < 50_000


# The command


def test_the_command_prints_tables_and_json(tmp_path: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published(tmp_path / "m")
    assert cli.main(["inspect", str(tmp_path / "m"), "--length", "64", "--batch", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert KEYS <= found.keys() and found["memory"]["length"] == 64 and found["memory"]["batch"] == 2
    assert cli.main(["inspect", str(tmp_path / "m")]) == 0
    out = capsys.readouterr().out
    assert "mask 261 <|mdm_mask|>" in out and "which is not run" in out and "in all, checkpointed" in out
    assert max(map(len, out.splitlines())) <= 120
    assert cli.main(["inspect", str(saved)]) == 0
    assert "5 reserved (action)" in capsys.readouterr().out
