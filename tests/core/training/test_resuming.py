"""Going on with a run: after a kill at every change, longer, with other settings, in another number of processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from failures import kills
from failures.runs import FROZEN_TOWER, HELD_OUT, cut_at, lines, same, weights
from safetensors.torch import load_file
from torch import Tensor, nn

from mmdiff import train
from mmdiff.canvas.batch import MediaBatch
from mmdiff.canvas.sample import Item
from mmdiff.config import load_config
from mmdiff.config.saveable import saveable
from mmdiff.config.settings import Config
from mmdiff.errors import ConfigError, DataError
from mmdiff.files import read_json
from mmdiff.training import held_out, stage
from mmdiff.training import step as step_module
from mmdiff.training.engines.ema import Average
from mmdiff.training.stage import Stage
from mmdiff.training.step import Stepper

FORK = multiprocessing.get_context("fork")  # torch is imported already, and has one thread


class Broken(toy.Corners):
    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 2:
            raise DataError("no picture")
        return super().__getitem__(index)


class Fields(toy.Where):
    """A task that names fields that are not there."""

    def sample(self, row: Any, vocab: Any) -> Any:
        if "answer" not in row:
            raise DataError("no 'answer'")
        return super().sample(row, vocab)


class Limited(toy.Where):
    """A task that refuses a word."""

    def sample(self, row: Any, vocab: Any) -> Any:
        if len(row["answer"].split()) == 3:
            raise DataError("answer: 'abc' is not a word of this model")
        return super().sample(row, vocab)


@saveable
class Forgetful(nn.Module):
    """A connector with dropout, and a buffer that training moves."""

    def __init__(self, *, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.drop = nn.Dropout(0.2)
        self.register_buffer("calls", torch.zeros(()))

    def slots(self, tokens: int, item: Item) -> int:
        return tokens * len(item.values)

    def forward(self, features_NTE: Tensor, media: MediaBatch) -> Tensor:
        if self.training:
            self.calls += 1
        out: Tensor = self.drop(self.linear(features_NTE)).flatten(0, 1)
        return out


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def small(name: str = "toy", **more: Any) -> Config:
    fields = {"steps": 3, "batch_size": 2, "eval": HELD_OUT, "params": FROZEN_TOWER, **more.pop("stage", {})}
    return toy.config(name, stage=fields, **more)


# Kills


def test_training_heals_after_a_kill(tmp_path: Path) -> None:
    """A few of the kills; all of them are below."""
    train(small("imports"))  # once, and not in each process
    changes = kills.everywhere(lambda: train(small()), tmp_path / "kills", first=17, every=33)
    assert changes > 80


@pytest.mark.slow
def test_training_heals_after_a_kill_at_every_change(tmp_path: Path) -> None:
    train(small("imports"))
    config = small(stage={"cache_features": True})
    kills.everywhere(lambda: train(config), tmp_path / "kills", ignore=["*.sqlite"])


@pytest.mark.slow
def test_longer_training_heals_after_a_kill_at_every_change(tmp_path: Path) -> None:
    train(small("imports"))
    longer = small(stage={"steps": 5})
    kills.everywhere(lambda: train(longer), tmp_path / "kills", prepare=lambda: train(small()))


# Kills at any moment


def two_stages(name: str) -> Config:
    data = {
        "near": {"rows": {"target": "toy.Corners", "n": 6, "lengths": [1, 3]}},
        "far": {"rows": {"target": "toy.Corners", "n": 9, "seed": 1}, "weight": 2},
    }
    lora = {"r": 2, "alpha": 4, "dropout": 0.1, "modules": "q_proj|up_proj"}
    align = toy.config(stage={"steps": 5, "data": data, "cache_features": True, "params": FROZEN_TOWER})
    stage = align.train.stages["only"]
    rules = [{"match": "encoders", "train": False}, {"match": "connectors"}, {"match": "backbone", "lora": lora}]
    tune = replace(stage, steps=6, params=rules, eval={"target": "toy.Corners", "n": 3, "seed": 2})
    config = toy.config(name, stages={"align": stage, "tune": tune}, keep=2)
    config.model.connectors = {"image": {"target": f"{__name__}.Forgetful"}}
    return config


def live(config: Config, events: int, seconds: float) -> None:
    """Train until the `events`-th change of the run's folder, or for so long, then die at once."""
    left = events
    folder = str(Path("runs").resolve())

    def die(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.scandir") or event == "open"
        if writes and (str(args[0]).startswith(("runs", folder)) or "step-" in str(args[0])):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if events:
        sys.addaudithook(die)
    if seconds:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    sys.stderr = open(os.devnull, "w")
    train(config)


def until_done(config: Config, life: Callable[[], tuple[int, float]]) -> int:
    """Deaths until the run has its result."""
    for deaths in range(120):
        child = FORK.Process(target=live, args=(config, *life()))
        child.start()
        child.join()
        if child.exitcode == 0:
            return deaths
        assert child.exitcode in (-signal.SIGKILL, -signal.SIGALRM), f"died of itself: {child.exitcode}"
    raise AssertionError("the run does not come to its end")


def test_a_killed_run_ends_as_one_that_was_not() -> None:
    whole = train(two_stages("whole"))
    dice = random.Random(0)
    assert until_done(two_stages("killed"), lambda: (dice.randint(60, 130), 0.0)) >= 2
    assert same(weights("whole"), weights("killed"))
    assert float(weights("whole")["connectors.image.calls"]) == 11
    assert lines("whole") == lines("killed")
    for kept in ("step-00000010", "step-00000011"):
        for file in ("optimizer.safetensors", "trained.safetensors", "frozen.safetensors"):
            a, b = (load_file(f"runs/{run}/checkpoints/{kept}/{file}") for run in ("whole", "killed"))
            assert same(a, b) and (a or file == "optimizer.safetensors")
    killed = json.loads(Path("runs/killed/metrics.json").read_text())
    assert {k: killed[k] for k in ("steps", "tokens", "loss")} == {k: whole[k] for k in ("steps", "tokens", "loss")}
    assert no_leftovers("killed")


@pytest.mark.slow
def test_a_run_killed_at_each_change_of_its_folder_goes_on() -> None:
    """Every checkpoint, link, rename and removal of the run is cut short once."""
    train(two_stages("whole"))
    for first in range(20, 190, 3):
        config = two_stages(f"killed-{first}")
        budget = iter([first])
        deaths = until_done(config, lambda left=budget: (next(left, 0), 0.0))
        assert same(weights("whole"), weights(config.name or "")) and no_leftovers(config.name or "")
        assert lines("whole") == lines(config.name or "")
        if deaths == 0:
            return


@pytest.mark.slow
def test_a_run_killed_by_the_clock_goes_on() -> None:
    train(two_stages("whole"))
    dice = random.Random(1)
    until_done(two_stages("killed"), lambda: (0, dice.uniform(0.3, 0.9)))
    assert same(weights("whole"), weights("killed")) and lines("whole") == lines("killed")


def no_leftovers(run: str) -> bool:
    folder = Path("runs", run)
    names = [p.name for p in folder.rglob("*") if ".part-" in p.name or p.name.startswith("frozen-")]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-00000010", "step-00000011"]
    return not names


# Held-out rows


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ({"target": f"{__name__}.Broken", "n": 3}, {}, r"row 2: no picture"),
        (
            {"target": "toy.Corners", "n": 3, "lengths": [2, 40000]},
            {},
            r"row 1: a canvas of 40005 positions, expected at most 32768",
        ),
        (
            {"target": "toy.Corners", "n": 3, "lengths": [2, 2, 3]},
            {"target": f"{__name__}.Limited"},
            r"row 2: answer: 'abc' is not a word of this model",
        ),
        ({"target": "toy.Corners", "n": 0}, {}, r"no rows"),
    ],
)
def test_held_out_rows_are_checked_before_the_first_step(
    rows: dict[str, Any], task: dict[str, Any], message: str
) -> None:
    config = small(stage={"eval": rows})
    config = replace(config, task=task or config.task)
    with pytest.raises(DataError, match=f"^train.stages.only.eval: .*{message}"):
        train(config)
    assert not Path("runs/toy/metrics.jsonl").exists()
    train(small())  # nothing was begun: the name is free
    assert len(lines("toy")) == 4


def test_held_out_rows_of_a_later_stage_are_checked_at_the_start() -> None:
    first = small().train.stages["only"]
    broken = replace(first, eval={"target": f"{__name__}.Broken", "n": 3})
    with pytest.raises(DataError, match="^train.stages.second.eval: row 2: no picture"):
        train(toy.config(stages={"first": first, "second": broken}))
    assert not Path("runs/toy/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"rows.jsonl: no such file"),
        ("", r"rows.jsonl: no rows"),
        ('{"question": "where", "answer"', r"train.stages.second: row 0: .*rows.jsonl line 1: not JSON: .*"),
        ('{"question": "where"}', r"train.stages.second: row 0: .*'answer'.*"),
    ],
)
def test_rows_of_a_later_stage_are_looked_at_before_the_first_step(content: str | None, message: str) -> None:
    if content is not None:
        Path("rows.jsonl").write_text(content)
    first = small().train.stages["only"]
    second = replace(first, data={"target": "mmdiff.data.formats.rows.Rows", "source": "rows.jsonl"}, eval=None)
    config = toy.config(image=False, stages={"first": replace(first, eval=None, params=[]), "second": second})
    with pytest.raises(DataError, match=f"^{message}$"):
        train(replace(config, task={"target": f"{__name__}.Fields", "image": False}))
    assert not Path("runs/toy/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": [{"match": "encoder"}, {"match": "*"}]}, "params: the rule 'encoder' matches no parameter"),
        ({"params": [{"match": "connectors"}]}, "params: no rule matches backbone.model.lm_head.weight"),
        (
            {"objective": {"target": "mmdiff.objectives.extras.learned_rates.LearnedRates", "extra": "rates"}},
            "model.extras.rates: the model has no such extra",
        ),
    ],
)
def test_what_a_later_stage_asks_of_the_model_is_looked_at_too(change: dict[str, Any], message: str) -> None:
    first = replace(small().train.stages["only"], eval=None, params=[])
    with pytest.raises(ConfigError, match=message):
        train(toy.config(stages={"first": first, "second": replace(first, **change)}))
    assert not Path("runs/toy/metrics.jsonl").exists()


def test_an_error_of_the_evaluation_costs_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> dict[str, float]:
        raise DataError("gone meanwhile")

    monkeypatch.setattr(stage, "evaluate_bound", fails)
    with pytest.raises(DataError, match="gone meanwhile"):
        train(small())
    assert read_json(Path("runs/toy/checkpoints/step-00000003/trainer.json"))["stage_step"] == 3
    monkeypatch.setattr(stage, "evaluate_bound", held_out.evaluate_bound)
    with monkeypatch.context() as m:
        m.setattr(Stage, "_step", None)  # no step is left
        train(small())
    train(small("whole"))
    assert lines("toy") == lines("whole") and "bound_per_sample" in lines("toy")[-1]


@pytest.mark.parametrize("step", [1, 2])
def test_a_bound_that_is_there_is_not_computed_again(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    often = {"save_every": 1, "log_every": 1, "eval_every": 1}
    cut_at(step, small(**often), monkeypatch)
    train(small(**often))
    train(small("whole", **often))
    assert lines("toy") == lines("whole")
    assert sum("bound_per_sample" in line for line in lines("toy")) == 3


# Other settings


def test_other_settings_of_what_is_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_at(2, small(save_every=1, log_every=1), monkeypatch)
    train(small(save_every=2, log_every=2, keep=1, threads=1, stage={"eval": {**HELD_OUT, "n": 2}}))
    train(small("whole"))
    assert same(weights("toy"), weights("whole"))
    assert load_config("runs/toy").train.keep == 1


def test_a_finished_run_goes_on_to_more_steps() -> None:
    flat = {"lr_schedule": "constant", "warmup": 0.0}
    train(small(stage=flat))
    shorter = weights("toy")
    metrics = Path("runs/toy/metrics.json")
    metrics.write_text(json.dumps({**read_json(metrics), "eval": {"a": {"exact": 1.0}}}))
    assert train(small(stage=flat))["eval"]  # finished: nothing is done
    result = train(small(stage=flat | {"steps": 6}))
    whole = train(small("whole", stage=flat | {"steps": 6}))
    assert same(weights("toy"), weights("whole")) and not same(weights("toy"), shorter)
    assert {**result, "seconds_training": 0, "run": ""} == {**whole, "seconds_training": 0, "run": ""}
    assert read_json(metrics) == result  # figures of the shorter model are not those of this one
    assert [line["step"] for line in lines("toy")] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert not [p for p in Path("runs").rglob("*") if ".part-" in p.name or p.name.startswith("frozen-")]
    with pytest.raises(ConfigError, match="steps was 6, is 3"):
        train(small(stage=flat))


def test_a_run_that_was_renamed_resumes_under_its_new_name() -> None:
    """By its folder and by the configuration under that name; the old name is free."""
    train(small(stage={"eval": None}))
    Path("runs/toy").rename("runs/new")
    renamed = load_config("runs/new", ["train.stages.only.steps=4"])
    assert renamed.name == "new" and load_config("runs/new", ["name=other"]).name == "other"
    assert train(renamed)["run"] == "runs/new"
    assert train(small("new", stage={"eval": None, "steps": 5}))["steps"] == 5
    assert [run.name for run in Path("runs").iterdir()] == ["new"]


# Other processes


def test_the_batch_is_kept_by_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step has four samples: two processes take two each."""
    fields = {"batch_size": 2, "accumulate": 2, "lr": 1e-4, "steps": 3}
    config = small("kept", save_every=1, stage=fields)
    train(replace(config, name="whole"))
    cut_at(1, config, monkeypatch)
    toy.in_processes(2, config)
    assert "stage only: accumulate is 1, to keep the run's 4 samples" in Path("rank0.log").read_text()
    assert "accumulate is" not in Path("rank1.log").read_text()
    a, b = weights("whole"), weights("kept")
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-6
    assert [line["step"] for line in lines("kept")] == [line["step"] for line in lines("whole")]
    with pytest.raises(ConfigError, match="accumulate was 2, is 3"):
        train(small("kept", save_every=1, stage=fields | {"accumulate": 3}))


def test_another_division_of_the_batch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_at(1, small("kept", save_every=1, stage={"batch_size": 4, "lr": 1e-4}), monkeypatch)
    train(small("kept", save_every=1, stage={"batch_size": 2, "accumulate": 2, "lr": 1e-4}))
    train(small("whole", stage={"batch_size": 4, "lr": 1e-4}))
    a, b = weights("whole"), weights("kept")
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-6


# C14: what a resume may not leave out --------------------------------------------------------------------------------


def forget_moments(m: pytest.MonkeyPatch) -> None:
    m.setattr(stage, "load_moments", lambda *_: None)


def forget_averages(m: pytest.MonkeyPatch) -> None:
    m.setattr(Average, "load", lambda *_: None)


def forget_rows(m: pytest.MonkeyPatch) -> None:
    """The rows of the first steps come again."""
    original = stage.batches_of
    m.setattr(stage, "batches_of", lambda *args, first, **named: original(*args, first=0, **named))


def forget_noise(m: pytest.MonkeyPatch) -> None:
    """Random numbers begin anew: masks and dropout of the first steps come again."""
    original = Stepper.key
    m.setattr(Stepper, "key", lambda self, progress: replace(original(self, progress), step=progress.step - 2))


def forget_the_schedule(m: pytest.MonkeyPatch) -> None:
    original = step_module.lr_factor
    m.setattr(step_module, "lr_factor", lambda step, of: original(step - 2, of))


FORGOTTEN = [forget_moments, forget_averages, forget_rows, forget_noise, forget_the_schedule]


@pytest.mark.parametrize("forget", [None, *FORGOTTEN], ids=lambda f: getattr(f, "__name__", "nothing"))
def test_a_resume_that_leaves_something_out_is_another_run(forget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deliberately wrong parts of C14; with nothing left out the runs are the same bit for bit."""
    more: dict[str, Any] = {"ema": 0.5, "save_every": 1, "stage": {"steps": 4, "warmup": 0, "eval": None}}
    train(small("whole", **more))
    cut_at(2, small("cut", **more), monkeypatch)
    with monkeypatch.context() as m:
        if forget is not None:
            forget(m)
        train(small("cut", **more))
    assert same(weights("cut"), weights("whole")) == (forget is None)
