"""Training whose disk is full, or whose folder cannot be written: one line, and it is resumed with nothing lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from failures import disks
from failures.kills import in_a_child

from mmdiff import train
from mmdiff.training.stage import Stage

STAGE = {"steps": 2, "batch_size": 2, "eval": {"target": "toy.Corners", "n": 3, "seed": 2}}


def run() -> None:
    train(toy.config(stage=STAGE))


def cached() -> None:
    frozen = [{"match": "encoders", "train": False}, {"match": "*"}]
    train(toy.config(stage={**STAGE, "params": frozen, "cache_features": True}))


@pytest.mark.slow
@pytest.mark.parametrize("call", [run, cached])
@pytest.mark.parametrize("disk", [disks.full, disks.small])
def test_a_full_disk(disk: Callable[..., int], call: Callable[[], None], tmp_path: Path) -> None:
    assert disk(call, tmp_path, ignore=["*.sqlite"]) > 10


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    disks.read_only(run, tmp_path)


def test_the_error_has_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar of the steps is closed before."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a")

    monkeypatch.setattr(Stage, "_save", full)
    code, said = in_a_child(lambda: disks.code_of(run), tmp_path / "a")
    assert code == 2 and said.splitlines()[-1] == "mmdiff: error: a: No space left on device"
