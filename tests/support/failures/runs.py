"""What runs of training have left below `runs/`, to compare them, and a run that ends after so many steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file
from torch import Tensor

from mmdiff import train
from mmdiff.config.settings import Config
from mmdiff.training.stage import Stage

FROZEN_TOWER = [{"match": "encoders", "train": False}, {"match": "*"}]
HELD_OUT = {"target": "toy.Corners", "n": 3, "seed": 2}


def small(name: str = "toy", **more: Any) -> Config:
    """Returns the toy's configuration of six steps with a frozen tower, a checkpoint after each."""
    fields = {"steps": 6, "batch_size": 2, "params": FROZEN_TOWER, **more.pop("stage", {})}
    return toy.config(name, stage=fields, **{"save_every": 1, "keep": 9, **more})


def weights(run: str, at: str = "model/model") -> dict[str, Tensor]:
    return load_file(f"runs/{run}/{at}.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((float((a[k].float() - b[k].float()).abs().max()) for k in a), default=0.0)


def lines(run: str) -> list[dict[str, Any]]:
    """Returns what a run logged, without what a clock says."""
    clock = ("seconds", "tokens_per_second")
    found = [json.loads(line) for line in Path(f"runs/{run}/metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clock} for line in found]


class Cut(Exception):
    """The run ends here."""


def cut_at(step: int, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train so many steps of a run."""
    original, calls = Stage._step, [0]

    def counted(self: Stage, *args: Any) -> None:
        calls[0] += 1
        if calls[0] > step:
            raise Cut
        original(self, *args)

    with monkeypatch.context() as m:
        m.setattr(Stage, "_step", counted)
        with pytest.raises(Cut):
            train(config)
