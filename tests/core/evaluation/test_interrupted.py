"""`mmdiff eval` and `mmdiff sweep` that are killed, or whose disk is full or cannot be written, are given again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from failures import disks, kills

COMMANDS = {
    "eval": ["eval", "runs/toy", "eval.batch_size=8"],
    "eval of a checkpoint": ["eval", "runs/toy/checkpoints/step-00000004"],
    "sweep": ["sweep", "runs/toy", "--axis", "sampler.steps=[1,2]", "eval.limit=3"],
}
CLOCKED = ["report.html", "sweep.html", "sweep.png", "table.csv"]  # rows per second, as pictures and text


@pytest.fixture
def run(trained: Path) -> Callable[[], None]:
    return lambda: None if shutil.copytree(trained, "runs/toy") else None


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_every_change(name: str, run: Callable[[], None], tmp_path: Path) -> None:
    assert kills.everywhere(COMMANDS[name], tmp_path, prepare=run, ignore=CLOCKED) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("disk", [disks.full, disks.small])
def test_a_full_disk(disk: Callable[..., int], name: str, run: Callable[[], None], tmp_path: Path) -> None:
    assert disk(COMMANDS[name], tmp_path, prepare=run, ignore=CLOCKED) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written(name: str, run: Callable[[], None], tmp_path: Path) -> None:
    disks.read_only(COMMANDS[name], tmp_path, prepare=run, ignore=CLOCKED)
