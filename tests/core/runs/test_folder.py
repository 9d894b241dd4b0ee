"""A run's folder: its name, its lock, and what may change between the parts of a run."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from failures import kills

from mmdiff.config import load_config, to_yaml
from mmdiff.config.settings import Config
from mmdiff.errors import ConfigError
from mmdiff.files import lock, unlock
from mmdiff.runs.changes import changed, with_kept_batch
from mmdiff.runs.folder import open_run, run_name


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


NAMES = [
    "",
    ".",
    "..",
    "a/b",
    "/tmp/x",
    "../x",
    ".hidden",
    "a\nb",
    "a\x00b",
    "a\x1b[2Jb",
    "\udc80",
    "x" * 201,
    "é" * 101,
]


@pytest.mark.parametrize("name", [*NAMES, None, 5])
def test_names_that_are_no_plain_folder_name(name: Any) -> None:
    Path("runs/precious").mkdir(parents=True)
    with pytest.raises(ConfigError, match="^name: ") as error:
        open_run(replace(toy.config(), name=name), fresh=True)
    assert str(error.value).isprintable() and len(str(error.value)) < 600
    assert [str(p) for p in Path().rglob("*")] == ["runs", "runs/precious"]


@pytest.mark.parametrize("name", ["a", "é好", "a b", "x" * 200, "-x", "a.b", "demo-vqa"])
def test_plain_names(name: str) -> None:
    assert run_name(toy.config(name)) == name
    open_run(toy.config(name)).close()
    assert [p.name for p in Path("runs").iterdir()] == [name]  # the lock is gone with the run


def elsewhere(call: Callable[[], Any]) -> str:
    """What another process says to a call: the error, or nothing."""
    said = Path("said.txt")

    def live() -> None:
        try:
            call()
            said.write_text("")
        except ConfigError as error:
            said.write_text(str(error))
        os._exit(0)

    child = kills.FORK.Process(target=live)
    child.start()
    child.join()
    return said.read_text()


@pytest.mark.parametrize("fresh", [True, False])
def test_the_lock_comes_before_anything_is_moved(fresh: bool) -> None:
    run = open_run(toy.config(), fresh=True)
    before = kills.files_in(Path("runs"))
    busy = "runs/toy: another process is training this run"
    assert elsewhere(lambda: open_run(toy.config(), fresh=fresh)) == busy
    assert kills.files_in(Path("runs")) == before
    run.folder.rename("runs/moved")  # by hand, or by --fresh: the name is held all the same
    assert elsewhere(lambda: open_run(toy.config(), fresh=fresh)) == busy and not run.folder.exists()
    run.close()
    assert elsewhere(lambda: open_run(toy.config(), fresh=fresh)) == ""
    open_run(toy.config()).close()  # the lock of a process that is gone is no lock


def test_a_lock_whose_file_is_taken_away_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, original, calls = tmp_path / "x", fcntl.lockf, []

    def late(handle: Any, how: int) -> None:
        original(handle, how)
        calls.append(how)
        if len(calls) == 1:
            file.unlink()  # by the process that held it until now

    monkeypatch.setattr(fcntl, "lockf", late)
    held = lock(file, "busy")
    assert len(calls) == 2 and file.exists()
    unlock(held)
    assert not file.exists()


def test_folders_moved_aside_in_one_second_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260102-030405")
    for _ in range(3):
        open_run(toy.config(), fresh=True).close()
    names = sorted(p.name for p in Path("runs").iterdir())
    assert names == ["toy", "toy.20260102-030405", "toy.20260102-030405-1"]


def test_opening_a_run_heals_after_a_kill_at_every_change(tmp_path: Path) -> None:
    changes = kills.everywhere(lambda: open_run(toy.config()).close(), tmp_path)
    assert changes >= 9


def test_fresh_heals_after_a_kill_at_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun() -> None:
        run = open_run(toy.config())
        run.log(1, {"loss": 1.0})
        run.close()

    monkeypatch.setattr(time, "strftime", lambda *_: "then")
    kills.everywhere(
        lambda: open_run(toy.config(), fresh=not Path("runs/toy.then").exists()).close(),
        tmp_path,
        prepare=begun,
        every=2,
    )


def test_a_run_that_took_no_step_gives_its_name_back() -> None:
    run = open_run(toy.config(stage={"lr": 1.0}))
    run.checkpoints.mkdir()
    (run.checkpoints / "frozen-only.safetensors").touch()
    run.close()
    open_run(toy.config(stage={"lr": 2.0})).close()
    assert load_config("runs/toy").train.stages["only"].lr == 2.0
    run.log(1, {"loss": 1.0})
    with pytest.raises(ConfigError, match="lr was 2.0, is 1.0"):
        open_run(toy.config(stage={"lr": 1.0}))
    assert load_config("runs/toy").train.stages["only"].lr == 2.0


def test_a_file_in_place_of_the_folder_is_one_line() -> None:
    Path("runs").mkdir()
    Path("runs/toy").write_text("mine")
    with pytest.raises(ConfigError, match="runs/toy: is there and is no folder"):
        open_run(toy.config())
    assert Path("runs/toy").read_text() == "mine"


def with_stage(**fields: Any) -> Config:
    return toy.config(stage=fields)


SAME = [
    (toy.config(), toy.config(log_every=3, save_every=7, keep=5, workers=2, tensorboard=True, eval_every=4)),
    (toy.config(), toy.config(threads=1, gradient_checkpointing=True, logit_chunk=8, sample_cache_mb=5)),
    (with_stage(), with_stage(eval={"target": "toy.Corners"})),
    (with_stage(steps=6), with_stage(steps=9)),
    (toy.config(), replace(toy.config(), eval=replace(toy.config().eval, batch_size=3, data={"a": {"target": "b"}}))),
]
OTHER = [
    (toy.config(seed=0), toy.config(seed=1), "train.seed was 0, is 1"),
    (toy.config(), toy.config(precision="bf16"), "train.precision was 'fp32', is 'bf16'"),
    (with_stage(steps=6), with_stage(steps=5), "train.stages.only.steps was 6, is 5"),
    (with_stage(), with_stage(batch_size=8), "train.stages.only.batch_size was 4, is 8"),
    (
        with_stage(data={"eval": {"rows": {"target": "a"}}}),
        with_stage(data={"eval": {"rows": {"target": "b"}}}),
        "train.stages.only.data.eval.rows.target was 'a', is 'b'",
    ),
]


@pytest.mark.parametrize(("old", "new"), SAME)
def test_settings_that_change_no_training_do_not_bar(old: Config, new: Config) -> None:
    assert changed(old, new, {}, 1) == []


@pytest.mark.parametrize(("old", "new", "message"), OTHER)
def test_settings_that_do(old: Config, new: Config, message: str) -> None:
    assert changed(old, new, {"only": 4}, 1)[0] == message


def test_a_first_stage_of_more_steps_is_another_run() -> None:
    first = toy.config().train.stages["only"]
    old, new = (toy.config(stages={"first": replace(first, steps=n), "second": first}) for n in (3, 4))
    assert changed(old, new, {}, 1) == ["train.stages.first.steps was 3, is 4"]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world", "bucket", "bars"),
    [
        (4, 2, 1, 0, 0),
        (2, 4, 1, 0, 0),
        (4, 1, 2, 0, 0),
        (2, 1, 4, 0, 0),
        (4, 2, 2, 0, 0),
        (4, 1, 1, 0, 1),
        (2, 2, 1, 0, 1),
        (2, 4, 1, 3, 1),
    ],
)
def test_another_division_of_a_step_is_no_change(
    batch_size: int, accumulate: int, world: int, bucket: int, bars: int
) -> None:
    old = with_stage(batch_size=4, accumulate=2, bucket=bucket)
    new = with_stage(batch_size=batch_size, accumulate=accumulate, bucket=bucket)
    found = changed(old, new, {"only": 8}, world)
    assert not bucket or found[0].startswith("train.stages.only.batch_size was 4")  # buckets are dealt by it
    assert len(found) == bars


def test_the_batch_is_kept_by_another_number_of_processes() -> None:
    stage = with_stage(batch_size=2, accumulate=4).train.stages["only"]
    for world, accumulate in ((1, 4), (2, 2), (4, 1)):
        assert with_kept_batch("only", stage, 8, world) == replace(stage, accumulate=accumulate)
    assert with_kept_batch("only", stage, None, 3) is stage
    for world in (3, 8):
        with pytest.raises(
            ConfigError, match=f"train.stages.only: the run's steps have 8 samples, which {world} processes"
        ):
            with_kept_batch("only", stage, 8, world)


def test_the_configuration_is_that_of_the_last_training() -> None:
    run = open_run(toy.config())
    run.log(1, {"loss": 1.0})
    run.close()
    open_run(toy.config(log_every=3)).close()
    assert to_yaml(load_config("runs/toy")) == to_yaml(toy.config(log_every=3))


def test_a_run_is_resumed_unless_it_is_asked_for_afresh() -> None:
    for _ in range(2):
        run = open_run(toy.config())
        run.log(1, {"loss": 1.0})
        run.close()
    assert [p.name for p in Path("runs").iterdir()] == ["toy"]
    assert len(run.metrics.read_text().splitlines()) == 2


def test_steps_behind_a_checkpoint_are_dropped_from_the_log_when_they_come_again() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, steps in ((0, [1, 2, 3, 4]), (2, [3])):
        run = open_run(toy.config())
        run.begin_log(begin, tensorboard=True)
        for step in steps:
            run.log(step, {"loss": float(begin + step)})
        run.close()
    assert [(line["step"], line["loss"]) for line in map(json.loads, run.metrics.read_text().splitlines())] == [
        (1, 1.0), (2, 2.0), (3, 5.0),
    ]  # fmt: skip
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("run/loss")] == [(1, 1.0), (2, 2.0), (3, 5.0)]
