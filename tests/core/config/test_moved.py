"""Dotted paths of 0.1: runs and models that were saved before the modules had rooms still load and answer.

`tests/data/before_rooms` was written by the commit before the move: a run of questions about pictures, trained for 175
steps and evaluated, and a policy with the actions it drew for four rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import DATA

from mmdiff import load, load_config
from mmdiff.config import build, locate
from mmdiff.config.moved import MOVED, renewed

BEFORE = DATA / "before_rooms"


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_saved_before_the_move_answers_as_it_did() -> None:
    assert "mmdiff.samplers.rules.Margin" in (BEFORE / "vqa" / "model" / "config.json").read_text()
    session, rows = load(BEFORE / "vqa"), build(load_config(str(BEFORE / "vqa")).eval.data["overall"])
    answers = session.predict_many([rows[i] for i in range(len(rows))])
    saved = records(BEFORE / "vqa" / "predictions-overall.jsonl")
    assert [a["prediction"] for a in answers] == [record["prediction"] for record in saved]
    for answer, record in zip(answers, saved, strict=True):
        for (token, step, confidence), then in zip(answer["canvas"], record["canvas"], strict=True):
            assert [token, step] == then[:2] and confidence == pytest.approx(then[2], abs=1e-3)


def test_a_policy_saved_before_the_move_acts_as_it_did() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "image": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8),
            "state": [0.1 * i, -0.2],
            "instruction": "reach the red disc",
        }
        for i in range(4)
    ]
    answers = load(BEFORE / "vla").predict_many(rows, seed=3, temperature=0.0)
    saved = json.loads((BEFORE / "vla" / "answers.json").read_text())
    for answer, record in zip(answers, saved, strict=True):
        np.testing.assert_allclose(answer["prediction"], record["prediction"], atol=1e-9)
        for (token, step, confidence), then in zip(answer["canvas"], record["canvas"], strict=True):
            assert [token, step] == then[:2] and confidence == pytest.approx(then[2], abs=1e-3)


@pytest.mark.parametrize("name", ["vqa", "vla"])
def test_a_configuration_of_before_is_read_with_todays_names(name: str) -> None:
    config = load_config(str(BEFORE / name))
    assert config.train.stages and "levels." not in str(config.train.stages)
    if name == "vqa":
        assert locate(config.demo).__module__ == "mmdiff.tasks.vqa.demo"
        # a base of today under a file of before: the same class, so its arguments are laid over each other
        merged = load_config("vqa-demo", ["eval.data.overall.target=mmdiff.tasks.scenes.Scenes"])
        assert merged.eval.data["overall"]["seed"] == 2


@pytest.mark.parametrize("old", MOVED)
def test_every_path_of_the_table_leads_somewhere(old: str) -> None:
    from importlib import import_module

    path = renewed(f"mmdiff.{old}")
    assert path != f"mmdiff.{old}"
    head, _, name = path.rpartition(".")
    assert hasattr(import_module(head), name) or import_module(path)


def test_what_has_not_moved_stays() -> None:
    tree = {
        "target": "mmdiff.tasks.vqa.VQA",
        "more": ["mmdiff.connectors.mlp.MLP", 3, "see mmdiff.tasks.scenes.Scenes"],
    }
    assert renewed(tree) == tree
