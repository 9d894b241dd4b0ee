"""Verbs of robots that are killed at any change of their files, or whose disk is full, are given again and end well."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failures import disks, kills

from mmdiff.commands.cli import main
from mmdiff.errors import ConfigError
from mmdiff.tasks.vla.data.dataset import LeRobot

pytest.importorskip("gymnasium")
pytestmark = [pytest.mark.needs("pyarrow", "PIL", "av")]

RECORD = [
    "vla",
    "record",
    "--world",
    "reach",
    "--tasks",
    "reach-red",
    "--episodes",
    "1",
    "--out",
    "data",
    "world.size=16",
]
CONVERT = ["vla", "convert", "source", "--out", "data", "--fps", "10", "--instruction", "go"]


def source() -> None:
    Path("source/0").mkdir(parents=True)
    np.save("source/0/action.npy", np.zeros((4, 3)))
    np.save("source/0/front.npy", np.zeros((4, 16, 16, 3), np.uint8))


def recorded() -> None:
    main(RECORD)


def evaluated() -> None:
    from mmdiff.tasks.vla.rollout.evaluate import evaluate_policy
    from mmdiff.tasks.vla.rollout.policies import ExpertPolicy

    spec = {"name": "reach", "max_steps": 3}
    evaluate_policy(ExpertPolicy(), spec, ["reach-red"], out=Path("out"), episodes=1, ablations=(), latency=0)


CALLS: dict[str, tuple[Any, Callable[[], None] | None]] = {
    "record": ([*RECORD, "--video"], None),
    "convert": (CONVERT, source),
    "stats": (["vla", "stats", "data", "--out", "stats.json"], recorded),
    "codec": (["vla", "codec", "data", "--chunk", "2", "--out", "fast.json"], recorded),
    "eval": (evaluated, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_kill_at_every_change(name: str, tmp_path: Path) -> None:
    call, prepare = CALLS[name]
    assert kills.everywhere(call, tmp_path, prepare=prepare, ignore=["eval_info.json"]) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("disk", [disks.full, disks.small])
def test_a_full_disk(disk: Callable[..., int], name: str, tmp_path: Path) -> None:
    call, prepare = CALLS[name]
    assert disk(call, tmp_path, prepare=prepare, ignore=["eval_info.json"]) > 0


@pytest.mark.parametrize("name", ["stats", *(pytest.param(n, marks=pytest.mark.slow) for n in CALLS if n != "stats")])
def test_a_folder_without_permission(name: str, tmp_path: Path) -> None:
    call, prepare = CALLS[name]
    disks.read_only(call, tmp_path, prepare=prepare, ignore=["eval_info.json"])


def test_a_recording_is_whole_or_not_there(tmp_path: Path) -> None:
    """The last changes: what says which layouts they were is there when the data set is."""
    kills.everywhere(RECORD, tmp_path, first=13, every=9)
    assert (tmp_path / "whole/data/meta/world.json").is_file()


@pytest.mark.parametrize("room", [100, 5000])
@pytest.mark.parametrize("video", [False, True])
def test_a_disk_that_is_full(
    room: int, video: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file grows to so many bytes at most: one line, nothing is left, and once there is room it is recorded."""
    monkeypatch.chdir(tmp_path)
    words = [*RECORD, "--video"] if video else RECORD
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        assert main(words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "mmdiff: error: data: cannot be written (" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert main(words) == 0
    assert LeRobot("data").frames > 0


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    words = [str(tmp_path / "file/data") if word == "data" else word for word in RECORD]
    assert main(words) == 2
    assert "cannot be written (Not a directory)" in capsys.readouterr().err


def test_errors_of_writers_name_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robots.demos import episodes

    from mmdiff.tasks.vla.data.writer import LeRobotWriter

    def full(*args: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(ConfigError, match="a: cannot be written .No space left"),
        LeRobotWriter(tmp_path / "a", fps=10) as writer,
    ):
        writer.add(episodes()[0])
        monkeypatch.setattr("mmdiff.tasks.vla.data.writer.commit", full)
    assert list(tmp_path.iterdir()) == []
