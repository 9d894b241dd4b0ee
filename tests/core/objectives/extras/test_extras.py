"""Extras of a model: built, trained, frozen, adapted, saved, loaded, reused, grown and guarded like its other parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor, nn

from mmdiff import check, train
from mmdiff.config import check_nodes, load_config
from mmdiff.config.saveable import saveable
from mmdiff.config.settings import Config, ModelConfig
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff, build_model
from mmdiff.model.params import apply_rules, read_rules
from mmdiff.objectives.terms import Term
from mmdiff.parts import part

HERE = __name__
WORDS = "mmdiff.objectives.heads.WordHead"
EXTRA = {"target": f"{HERE}.Table", "hidden": 3}


@saveable
class Table(nn.Module):
    """A row of numbers for every id of the vocabulary, which `Rows` sums."""

    node: dict[str, Any]

    def __init__(self, width: int, vocab_size: int, hidden: int = 2) -> None:
        super().__init__()
        self.rows, self.up = nn.Embedding(vocab_size, hidden), nn.Linear(hidden, width)

    def grow(self, source_V: Tensor) -> None:
        new = nn.Embedding(len(source_V), self.rows.embedding_dim)
        with torch.no_grad():
            new.weight[source_V >= 0] = self.rows.weight[source_V[source_V >= 0]]
        self.rows, self.node["vocab_size"] = new, len(source_V)


@saveable
class Plain(nn.Module):
    """Takes neither a width nor a vocabulary."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))


@saveable
class Small(nn.Module):
    """Is of one vocabulary and cannot grow."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(vocab_size))


@part
class Sum:
    """An objective of the extra alone."""

    def plan(self, batch: Any, key: Any, vocab: Any) -> Any:
        from mmdiff.objectives.denoise import Denoise

        plan = Denoise().plan(batch, key, vocab)
        plan.counts = {"sum": 1.0}
        return plan

    def terms(self, model: Any, plan: Any) -> dict[str, Term]:
        table = model.extras["table"]
        return {"sum": Term(table.up(table.rows(plan.batch.ids_BL)).square().sum())}


def table_of(model: MMDiff) -> Any:
    return model.extras["table"]


def described(**extras: Any) -> ModelConfig:
    return ModelConfig({"target": "toy.backbone", "width": 16, "layers": 1}, extras=extras)


def test_an_extra_is_given_the_widths_that_it_takes() -> None:
    model = build_model(described(table=EXTRA, plain={"target": f"{HERE}.Plain"}, gone=None))
    assert set(model.extras) == {"table", "plain"}
    assert table_of(model).node == {**EXTRA, "width": 16, "vocab_size": model.vocab.size}
    assert table_of(model).rows.weight.shape == (model.vocab.size, 3)


@pytest.mark.parametrize("importing", [True, False])
@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"target": WORDS, "wrds": 3}, 'model.extras.x.wrds: .* takes no such argument .did you mean "words"'),
        ({"target": WORDS, "vocab_size": 9}, "model.extras.x.vocab_size: set at run time, leave it out"),
        ({"target": WORDS}, 'WordHead needs "width_in"'),
        (3, "model.extras.x: 3 is not a node"),
    ],
)
def test_a_node_that_is_wrong_is_one_line(node: Any, message: str, importing: bool) -> None:
    with pytest.raises(ConfigError, match=message):
        check_nodes(Config(model=described(x=node)), importing=importing)


def test_it_is_trained_checked_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rules = [
        {"match": "extras.table.rows", "lr": 0.5},
        {"match": "extras.table", "lora": {"r": 2, "modules": "up"}},
        {"match": "*", "train": False},
    ]
    config = toy.config(image=False, stage={"steps": 3, "objective": {"target": f"{HERE}.Sum"}, "params": rules})
    config.model.extras["table"] = EXTRA
    assert check(config)["loss"]["only"] > 0
    torch.manual_seed(0)
    train(config)
    assert load_config("runs/toy").model.extras == {"table": EXTRA}
    loaded = MMDiff.from_pretrained("runs/toy/model")
    trained = {name for name in loaded.state_dict() if "lora" in name}
    assert trained == {f"extras.table.up.lora_{x}.default.weight" for x in "AB"}
    assert float(loaded.state_dict()["extras.table.up.lora_B.default.weight"].abs().sum()) > 0


def test_rules_name_it_like_other_parts() -> None:
    model = build_model(described(table=EXTRA))
    rules = read_rules([{"match": "backbone", "train": False}, {"match": "extras", "lr": 0.25}])
    (group, *_), lines = apply_rules(model, rules, lr=1.0, weight_decay=0.0)
    assert group["base_lr"] == 0.25 and all(name.startswith("extras.table.") for name in group["names"])
    assert [line.what for line in lines] == ["frozen", "trained"]
    with pytest.raises(ConfigError, match="no rule matches extras.table.rows.weight"):
        apply_rules(build_model(described(table=EXTRA)), read_rules([{"match": "backbone"}]), lr=1.0, weight_decay=0.0)


def test_the_same_weights_come_back_and_in_another_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build_model(described(table=EXTRA))
    model.save_pretrained(tmp_path / "model")
    loaded = MMDiff.from_pretrained(tmp_path / "model")
    assert table_of(loaded).node == table_of(model).node
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    torch.manual_seed(2)
    reused = build_model(described(table={"target": EXTRA["target"], "weights": str(tmp_path / "model")}))
    assert torch.equal(table_of(reused).rows.weight, table_of(model).rows.weight)
    assert not torch.equal(
        reused.backbone.model.get_input_embeddings().weight, model.backbone.model.get_input_embeddings().weight
    )
    with pytest.raises(ConfigError, match="model.extras.table.hidden: 4, but the part of"):
        build_model(described(table={**EXTRA, "hidden": 4, "weights": str(tmp_path / "model")}))
    with pytest.raises(ConfigError, match="has no extras.tables .did you mean"):
        build_model(described(tables={**EXTRA, "weights": str(tmp_path / "model")}))
    twin = build_model(ModelConfig(weights=str(tmp_path / "model")), toy=True)
    assert table_of(twin).node["width"] == twin.backbone.dim
    with pytest.raises(ConfigError, match="model.extras: the model comes whole from model.weights"):
        build_model(ModelConfig(weights=str(tmp_path / "model"), extras={"table": EXTRA}))


def test_it_grows_with_the_vocabulary() -> None:
    model = build_model(described(table=EXTRA, plain={"target": f"{HERE}.Plain"}))
    before = table_of(model).rows.weight.clone()
    model.grow(["zebra"])
    assert torch.equal(table_of(model).rows.weight[: len(before)], before)
    assert table_of(model).node["vocab_size"] == model.vocab.size
    other = build_model(described(table={"target": f"{HERE}.Small"}))
    with pytest.raises(ConfigError, match="extras.table: Small has no method `grow`"):
        other.grow(["zebra"])


def edited(folder: Path, edit: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "SHA256SUMS").unlink()  # a stranger wrote it


def test_folders_of_before_have_none(tmp_path: Path) -> None:
    build_model(described()).save_pretrained(tmp_path / "model")
    edited(tmp_path / "model", lambda config: config.pop("extras"))
    assert not MMDiff.from_pretrained(tmp_path / "model").extras


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"table": {"target": "os.system", "command": "touch called"}}, "is not made to be part of a model"),
        ({"table": {**EXTRA, "width": {"target": "os.abort"}, "vocab_size": 9}}, "is not made to be part of a model"),
        ({"table": {"target": "toy.Where"}}, "is no part of a model"),
        ({"table": {**EXTRA, "width": 16, "vocab_size": 10**9}}, "a larger model than the weights"),
        ({"table": 3}, "extras.table: 3 is not a node"),
        ([], "extras is \\[\\], expected a dict"),
    ],
)
def test_a_strangers_extra_is_guarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extras: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    build_model(described(table=EXTRA)).save_pretrained(tmp_path / "model")
    edited(tmp_path / "model", lambda config: config.update(extras=extras))
    with pytest.raises(ConfigError, match=message) as raised:
        MMDiff.from_pretrained(tmp_path / "model")
    assert "\n" not in str(raised.value) and not (tmp_path / "called").exists()
