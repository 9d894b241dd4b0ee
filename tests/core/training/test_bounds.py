"""What is not finite is never success, wherever it enters: a bound on held-out rows, weights of any kind, averages,
moments, buffers, what objectives log, a teacher, a margin.

The run ends in one line that names stage and step; what was sound is kept, nothing that is not becomes the best, and no
file of JSON holds a NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from failures.runs import HELD_OUT
from torch import Tensor, nn

from mmdiff import load, train
from mmdiff.config.saveable import saveable
from mmdiff.config.settings import Config
from mmdiff.errors import ConfigError
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.policy.reference import Beside
from mmdiff.objectives.terms import Term
from mmdiff.runs.checkpoint import checkpoints_in, prune
from mmdiff.runs.folder import Run
from mmdiff.runs.summary import summary_of
from mmdiff.training import stage as stages
from mmdiff.training.held_out import since_lowest
from mmdiff.training.step import Stepper

OFTEN = {"eval_every": 1, "save_every": 1, "keep": 1, "keep_best": 1, "log_every": 1}
NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bounds_of(values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bound at step n be the n-th value."""

    def at_step(model: Any, stage: Any, *_: Any, **__: Any) -> dict[str, float]:
        steps = [c.name for c in checkpoints_in(Path("runs/toy/checkpoints"))]
        value = values[int(steps[-1].removeprefix("step-")) - 1]
        return {"bound_per_sample": 2 * value, "bound_per_token": value}

    monkeypatch.setattr(stages, "evaluate_bound", at_step)


def small(steps: int = 4, **more: Any) -> Config:
    stage = {"steps": steps, "batch_size": 2, "eval": HELD_OUT, **more.pop("stage", {})}
    return toy.config(stage=stage, **{**OFTEN, **more})


def kept() -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints_in(Path("runs/toy/checkpoints"))]


def refused(config: Config, *parts: str) -> None:
    """Training ends in one line with these parts, leaves no result, and its files are JSON as the standard has it."""
    with pytest.raises(ConfigError) as raised:
        train(config)
    text = str(raised.value)
    assert "\n" not in text and text.startswith("train.stages.only: ")
    assert all(part in text for part in parts), text
    assert not Path("runs/toy/metrics.json").exists() and not Path("runs/toy/model").exists()
    for line in Path("runs/toy/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # called for NaN and Infinity


# The bound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_bound_that_is_not_finite_stops_the_run(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds_of([5.0, 4.0, value, 1.0], monkeypatch)
    where = "runs/toy/checkpoints/step-00000002, is as it was"
    parts = "the bound on held-out rows is not a finite number at step 3 (lr 0.01); the last checkpoint, ", where
    refused(small(), *parts)
    assert kept() == [2, 3]  # the last sound one is not removed for one whose bound is not finite
    assert summary_of(Path("runs/toy")).state == "diverged"
    refused(small(), *parts)  # nor is the run over when it is asked again
    result = train(small(on_divergence="skip"))
    assert result["best"] == {"step": 4, "bound_per_token": 1.0} and kept() == [4]


def test_the_first_bound_and_the_last_are_no_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds_of([math.nan] * 4, monkeypatch)
    refused(small(), "at step 1 (lr 0.01); nothing was saved yet")
    bounds_of([5.0, 4.0, 3.0, math.inf], monkeypatch)
    for setting in ("stop", "skip"):  # weights of such a bound are no result, whatever is asked for
        refused(small(on_divergence=setting), "the bound on held-out rows is not a finite number at step 4")
        assert kept() == [3, 4]


def test_patience_counts_what_is_not_finite_as_no_improvement(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds_of([5.0, math.nan, 4.0, math.inf, 4.5, 1.0], monkeypatch)
    result = train(small(6, on_divergence="skip", stage={"patience": 2}))
    assert result["steps"] == 5 and result["best"] == {"step": 3, "bound_per_token": 4.0}
    assert kept() == [3, 5]
    for line in Path("runs/toy/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_stage_that_patience_ends_at_such_a_bound_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds_of([5.0, math.nan, math.nan, 4.0], monkeypatch)
    refused(small(on_divergence="skip", stage={"patience": 2}), "at step 3 (lr 0.01)", "step-00000002")
    assert since_lowest({1: math.inf, 2: math.inf, 3: math.inf}) == 2 and since_lowest({1: 3.0, 2: math.inf}) == 1


def test_what_stands_in_the_metrics_may_be_anything(tmp_path: Path) -> None:
    run = Run(tmp_path)
    found: list[Any] = [3.0, None, math.nan, "1", True, -math.inf, 2.0]
    lines = [{"step": n, "stage": "only", "bound_per_token": v, "bound_per_sample": v} for n, v in enumerate(found)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run.best("only", 9) == [6, 0] and run.not_finite() == [1, 2, 3, 4, 5]
    assert [step for step in range(7) if run.has_bound(step)] == [0, 6]
    assert since_lowest(run.bounds("only")) == 0


def test_what_is_not_sound_counts_for_nothing_in_what_is_kept(tmp_path: Path) -> None:
    def left(keep: int, best: list[int], diverged: list[int]) -> list[int]:
        for step in range(1, 7):
            (tmp_path / f"step-{step:08d}").mkdir(exist_ok=True)
            (tmp_path / f"step-{step:08d}" / "trainer.json").write_text("{}")
        prune(tmp_path, keep, best, diverged)
        return [int(path.name.removeprefix("step-")) for path in checkpoints_in(tmp_path)]

    assert left(2, [], []) == [5, 6]
    assert left(1, [2], []) == [2, 6]
    assert left(1, [], [6]) == [5, 6]
    assert left(2, [], [3, 5, 6]) == [2, 4, 6]
    assert left(1, [], [1, 2, 3, 4, 5, 6]) == [6]


def test_finite_weights_without_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is judged by what it answers, not only by its weights."""
    original = Stepper.take

    def take(self: Stepper, window: Any, progress: Any) -> bool:
        out = original(self, window, progress)
        if progress.step == 2:
            with torch.no_grad():
                self.model.backbone.model.model.norm.weight.fill_(3e38)
        return out

    monkeypatch.setattr(Stepper, "take", take)
    refused(small(3), "the bound on held-out rows is not a finite number at step 3", "step-00000002, is as it was")
    assert kept() == [2, 3] and load("runs/toy/checkpoints/step-00000002").predict(toy.Corners()[0])["prediction"]


# Where it may enter --------------------------------------------------------------------------------------------------


@saveable
class Counting(nn.Module):
    """A connector with a buffer that training moves."""

    def __init__(self, *, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.register_buffer("mean", torch.zeros(width_in))

    def slots(self, tokens: int, item: Any) -> int:
        return tokens * len(item.values)

    def forward(self, features_NTE: Tensor, media: Any) -> Tensor:
        out: Tensor = self.linear(features_NTE).flatten(0, 1)
        return out


def poisoned(change: Callable[[Stepper], Tensor], value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind step 3 one number of a tensor is `value`."""
    original = Stepper.take

    def take(self: Stepper, window: Any, progress: Any) -> bool:
        out = original(self, window, progress)
        if progress.step == 2:
            with torch.no_grad():
                change(self).view(-1)[0] = value
        return out

    monkeypatch.setattr(Stepper, "take", take)


def named(name: str) -> Callable[[Stepper], Tensor]:
    return lambda stepper: dict([*stepper.model.named_parameters(), *stepper.model.named_buffers()])[name]


Q_PROJ = "backbone.model.model.layers.0.self_attn.q_proj"
LORA = [{"match": "encoders", "train": False}, {"match": "connectors"}, {"match": "backbone", "lora": {"r": 2}}]
PLACES: dict[str, tuple[Callable[[Stepper], Tensor], str]] = {
    "LoRA's factor": (named(f"{Q_PROJ}.lora_B.default.weight"), f"the weight {Q_PROJ}.lora_B"),
    "a connector": (named("connectors.image.linear.bias"), "the weight connectors.image.linear.bias"),
    "a buffer": (named("connectors.image.mean"), "the weight connectors.image.mean"),
    "learned rates": (named("extras.rates.log_power"), "the weight extras.rates.log_power"),
    "the average": (
        lambda s: s.average.averages["connectors.image.linear.bias"],  # type: ignore[union-attr]
        "the weight connectors.image.linear.bias",
    ),
    "a moment": (
        lambda s: s.optimizer.state[named(f"{Q_PROJ}.weight")(s)]["exp_avg_sq"],
        f"the weight exp_avg_sq:{Q_PROJ}.weight",
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_that_is_not_finite_is_saved(place: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the last step, when no loss shows it: the rows have no picture that a connector would turn into slots."""
    change, text = PLACES[place]
    poisoned(change, value, monkeypatch)
    rules = LORA if place == "LoRA's factor" else [{"match": "encoders", "train": False}, {"match": "*"}]
    objective = {"target": "mmdiff.objectives.denoise.Denoise"}
    if place == "learned rates":
        objective = {"target": "mmdiff.objectives.extras.learned_rates.LearnedRates"}
    config = toy.config(
        stage={"steps": 3, "batch_size": 2, "params": rules, "objective": objective},
        **{
            **OFTEN,
            "eval_every": 0,
            "keep_best": 0,
            "log_every": 50,
            "clip": 0.0,
            "ema": 0.5 * (place == "the average"),
        },
    )
    config.task = {"target": "toy.Where", "image": False}
    config.model.connectors["image"] = {"target": f"{__name__}.Counting"}
    if place == "learned rates":
        config.model.extras = {"rates": {"target": "mmdiff.objectives.extras.token_rates.TokenRates"}}
    refused(config, text, "is not a finite number at step 3", "step-00000002, is as it was")
    assert kept() == [2]
    assert all(t.isfinite().all() for t in load("runs/toy/checkpoints/step-00000002").model.state_dict().values())


class Logging(Denoise):
    """Denoising that logs a figure which is not finite from step 3 on, while loss and gradient are."""

    def plan(self, batch: Any, key: Any, vocab: Any) -> Any:
        self.__dict__["step"] = key.step
        return super().plan(batch, key, vocab)

    def terms(self, model: Any, plan: Any) -> dict[str, Term]:
        out = super().terms(model, plan)
        margin = torch.tensor(math.inf if self.__dict__["step"] >= 2 else 0.0)
        out["denoise"].sums["margin"] = (margin, torch.ones(()))
        return out


class Huge(Denoise):
    """Losses that are finite, of which two have no sum."""

    def terms(self, model: Any, plan: Any) -> dict[str, Term]:
        out = super().terms(model, plan)
        out["large"] = Term(torch.tensor(3e38))
        return out

    def plan(self, batch: Any, key: Any, vocab: Any) -> Any:
        out = super().plan(batch, key, vocab)
        out.counts["large"] = 1.0
        return out


class Teacher(Denoise):
    """Denoising, beside the cross-entropy of a frozen model that answers NaN."""

    def for_model(self, model: Any) -> Denoise:
        from copy import deepcopy

        out = Teacher()
        frozen = deepcopy(model)
        with torch.no_grad():
            frozen.backbone.model.model.norm.weight.fill_(3e38)
        out.__dict__["frozen"] = Beside(frozen)
        return out

    def terms(self, model: Any, plan: Any) -> dict[str, Term]:
        out = super().terms(model, plan)
        other = self.__dict__["frozen"](lambda one: Denoise.terms(self, one, plan)["denoise"].value, model)
        out["denoise"].value = out["denoise"].value + other
        return out


@pytest.mark.parametrize(("objective", "step"), [("Logging", 3), ("Huge", 2), ("Teacher", 1)])
def test_what_objectives_compute_besides(objective: str, step: int) -> None:
    stage = {"objective": {"target": f"{__name__}.{objective}"}, "steps": 4, "batch_size": 2}
    refused(toy.config(stage=stage, **{**OFTEN, "eval_every": 0, "log_every": 2, "save_every": 9}), f"at step {step} ")


# Several processes ---------------------------------------------------------------------------------------------------


def together(config: Config) -> list[str]:
    """Returns what each of two processes ends with."""
    with pytest.raises(AssertionError):
        toy.in_processes(2, config)
    return [Path(f"rank{rank}.log").read_text().splitlines()[-1] for rank in range(2)]


@pytest.mark.parametrize("sharding", ["full", "none"])
def test_what_one_process_finds_ends_all_by_the_same_name(sharding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is not finite is seen by the process that has it, the bound of replicas by one that evaluates."""
    original = Stepper.take

    def take(self: Stepper, window: Any, progress: Any) -> bool:
        out = original(self, window, progress)
        if progress.step == 2 and self.accelerator.process_index == 1:
            weight: Any = self.model.backbone.model.model.norm.weight  # type: ignore[union-attr]
            with torch.no_grad():
                (weight.to_local() if sharding == "full" else weight)[-1] = math.nan
        return out

    rules = [{"match": "encoders", "train": False}, {"match": "*"}]
    if sharding == "full":
        monkeypatch.setattr(Stepper, "take", take)
    else:
        bounds_of([5.0, 4.0, math.nan], monkeypatch)
    ends = together(small(3, sharding=sharding, stage={"params": rules}))
    what = {"full": "the weight ", "none": "the bound on held-out rows is not a finite number"}[sharding]
    for end in ends:
        assert end.startswith(f"mmdiff.errors.ConfigError: train.stages.only: {what}") and "at step 3" in end
    assert "step-00000002" in ends[0] and summary_of(Path("runs/toy")).state == "diverged"
