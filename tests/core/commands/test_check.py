"""`mmdiff check`: a sound configuration passes at toy size, an unsound one is refused before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from mmdiff import check
from mmdiff.canvas.batch import MediaBatch
from mmdiff.config.saveable import saveable
from mmdiff.errors import ConfigError


@saveable
class Broken(toy.Project):
    def forward(self, features_NTE: torch.Tensor, media: MediaBatch) -> torch.Tensor:
        return super().forward(features_NTE, media) * torch.nan


def test_a_sound_configuration_passes_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = toy.config(precision="bf16", stage={"steps": 10**6, "batch_size": 256})
    config.eval.data = {"held": {"target": "toy.Corners", "n": 10**6}}
    said: list[str] = []
    out = check(config, progress=said.append)
    assert out["loss"]["only"] > 0 and out["forwards"] == [2, 2]
    assert said[0] == "targets and arguments: fine" and said[-1] == "saved, loaded again" and len(said) == 4
    assert list(tmp_path.iterdir()) == []
    assert config.train.stages["only"].steps == 10**6  # the configuration itself is not changed


@pytest.mark.parametrize(
    ("model", "stage", "message"),
    [
        ({"encoders": {"image": {"target": "toy.Patch"}}}, {}, 'toy has no "Patch" (did you mean "Patches"?)'),
        ({"connectors": {"image": {"target": "toy.Project", "depth": 2}}}, {}, "toy.Project takes no such argument"),
        (
            {"connectors": {"image": {"target": f"{__name__}.Broken"}}},
            {},
            "is not a finite number at step 1",
        ),
        ({}, {"objective": {"target": "mmdiff.objectives.denoise.Denoise", "copie": 2}}, 'did you mean "copies"?'),
        ({}, {"params": [{"match": "encoder"}]}, "no rule matches"),
    ],
)
def test_unsound_ones_are_refused_in_one_line(model: dict[str, Any], stage: dict[str, Any], message: str) -> None:
    config = toy.config(stage=stage)
    for name, value in model.items():
        setattr(config.model, name, value)
    with pytest.raises(ConfigError) as error:
        check(config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_there_must_be_a_stage() -> None:
    config = toy.config()
    config.train.stages = {}
    with pytest.raises(ConfigError, match="there is no stage to train"):
        check(config)


def test_a_task_may_stand_in_the_mixture_alone() -> None:
    config = toy.config()
    stage = config.train.stages["only"]
    stage.data, config.task = {"corners": {"rows": stage.data, "task": config.task}}, None
    assert list(check(config)) == ["loss"]
