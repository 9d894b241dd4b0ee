"""The packaged configurations of text, every stage at toy width; the causal twin is the demonstration otherwise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from mmdiff import check
from mmdiff.config import flatten, load_config

SMALL = ["model.backbone.hidden_size=32", "model.backbone.layers=1", "model.backbone.heads=2"]
SMALLER = {"text-demo": SMALL, "text-demo-causal": SMALL, "text-pretrain": [*SMALL, "train.stages.fit.data.length=64"]}


def test_files_of_documents_that_are_there_give_way_to_toys(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    path = tmp_path / "a.jsonl"
    places = ("model.backbone.tokenizer", "train.stages.fit.data", "train.stages.fit.data.tokenizer")
    paths = [f"{at}.documents.documents.path={path}" for at in places]
    assert check(load_config("text-pretrain", [*SMALLER["text-pretrain"], *paths]))["loss"].keys() == {"fit"}


@pytest.mark.parametrize("name", ["text-demo", "text-demo-causal", "text-pretrain", "text-llada-chat", "text-convert"])
def test_every_stage_runs_at_toy_width(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMDIFF_REAL_WEIGHTS", raising=False)
    config = load_config(name, SMALLER.get(name, []))
    found = check(config)
    assert found["loss"].keys() == config.train.stages.keys()


def test_the_causal_twin_differs_in_attention_and_objective_alone() -> None:
    one, other = (flatten(asdict(load_config(name))) for name in ("text-demo", "text-demo-causal"))
    differ = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert differ - {"name", "demo", "base"} == {
        "model.attention.target",
        *(key for key in one if ".objective." in key),
    }
