"""A small folder cannot ask for much memory or time: each is refused in one line, before anything large is made."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from mmdiff.backbones import load_backbone, new_backbone
from mmdiff.backbones.bounds import FILE_BYTES, check_files
from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.errors import DataError, UserError
from mmdiff.model import MMDiff
from mmdiff.model.saving import save_model
from mmdiff.objectives.heads import WordHead
from mmdiff.session import load

MEGABYTES = 200


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    backbone = new_backbone(tokenizer=word_tokenizer(toy.WORDS), hidden_size=32, layers=2, heads=2)
    size = backbone.vocab.size
    model = MMDiff(
        backbone,
        {"image": toy.Patches()},
        {"image": toy.Project(width_in=16, width_out=32)},
        {"image": WordHead(width_in=16, vocab_size=size)},
    )
    save_model(model.eval(), tmp_path / "model", extra={"task": {"target": "toy.Where"}, "sampler": {"steps": 1}})
    (tmp_path / "model" / "SHA256SUMS").unlink()
    return tmp_path / "model"


def changed(name: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(tree | fields))

    return change


def replaced(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nested(path: Path) -> None:
    path.write_text('{"mmdiff_format":' + "[" * 3000 + "]" * 3000 + "}")


def words(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text())
    tree["heads"]["image"]["words"] = 200_000
    (folder / "config.json").write_text(json.dumps(tree))


def adapter(modules: str, r: int = 2) -> Callable[[Path], None]:
    node = {"part": "backbone", "r": r, "alpha": 4.0, "dropout": 0.0, "modules": modules}
    return changed("config.json", adapters=[node])


LARGE = "larger model than the weights"
HARMS = {
    "a backbone's config.json that never ends": (replaced("backbone/config.json", zeros), "a device or pipe"),
    "a backbone's config.json that is a pipe": (replaced("backbone/config.json", os.mkfifo), "a device or pipe"),
    "a config.json that never ends": (replaced("config.json", zeros), "a device or pipe"),
    "a tokenizer that never ends": (replaced("backbone/tokenizer.json", zeros), "a device or pipe"),
    "weights that never end": (replaced("model.safetensors", zeros), "a device or pipe"),
    "an index that is a pipe": (replaced("model.safetensors.index.json", os.mkfifo), "a device or pipe"),
    "checksums that are a pipe": (replaced("SHA256SUMS", os.mkfifo), "a device or pipe"),
    "a link to itself": (replaced("config.json", lambda p: p.symlink_to(p)), "cannot be read"),
    "300,000 layers": (changed("backbone/config.json", num_hidden_layers=300_000), "expected at most 4096"),
    "4,000 layers": (changed("backbone/config.json", num_hidden_layers=4000), LARGE),
    "a wide backbone": (
        changed("backbone/config.json", hidden_size=65536, head_dim=32768),
        "larger model than the weights",
    ),
    "a large table": (changed("backbone/config.json", vocab_size=2**40), LARGE),
    "200,000 words": (words, LARGE),
    "adapters of a large rank": (adapter(".*proj", r=10**8), LARGE),
    "nested repetition": (adapter("(([a-z_.]+)*)*!"), "takes too long|matches no linear layer"),
    "no expression": (adapter("(["), "no regular expression"),
    "nested JSON": (replaced("config.json", nested), "mmdiff_format|nested too deeply"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_asks_for_too_much_is_refused(saved: Path, harm: str) -> None:
    change, message = HARMS[harm]
    change(saved)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as error:
        load(saved)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


def test_only_weights_may_be_large(tmp_path: Path) -> None:
    def sparse(name: str) -> None:
        with open(tmp_path / name, "wb") as file:
            file.truncate(FILE_BYTES + 1)

    sparse("model.safetensors")
    check_files(tmp_path)
    sparse("tokenizer.json")
    with pytest.raises(UserError, match="tokenizer.json"):
        check_files(tmp_path)


def test_a_backbone_cannot_ask_for_more_than_its_weights(saved: Path) -> None:
    backbone = new_backbone(tokenizer=word_tokenizer(toy.WORDS), hidden_size=32, layers=2, heads=2)
    folder = saved.parent / "backbone"
    backbone.save_pretrained(folder)
    load_backbone(folder)
    changed("config.json", vocab_size=2**40)(folder)
    with pytest.raises(UserError, match="larger model than the weights"):
        load_backbone(folder)


def test_answers_have_a_longest(saved: Path) -> None:
    with pytest.raises(DataError, match="an answer of 1000000 positions"):
        Target(length=1_000_000)
    with pytest.raises(DataError, match="an answer of -1 positions"):
        Target(length=-1)
    row = toy.Corners()[0]
    with pytest.raises(DataError, match="a canvas of 100006 positions, expected at most 32768"):
        load(saved).predict({**row, "answer": "x " * 100_001})


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("backbone/config.json", {"pad_token_id": {"a": 1}}),
        ("backbone/config.json", {"eos_token_id": "x"}),
        ("backbone/config.json", {"rope_parameters": []}),
        ("backbone/config.json", {"hidden_size": "wide"}),
        ("backbone/tokenizer_config.json", {"model_max_length": "\u2028"}),
        ("backbone/tokenizer_config.json", {"eos_token": {"target": "x"}}),
    ],
)
def test_fields_of_another_kind_are_one_line(saved: Path, name: str, fields: dict[str, Any]) -> None:
    changed(name, **fields)(saved)
    with pytest.raises(UserError) as error:
        load(saved)
    assert "\n" not in str(error.value) and ("config.json" in str(error.value) or "tokenizer" in str(error.value))
