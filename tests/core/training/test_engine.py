"""What a stage may be asked for besides: early ends, best checkpoints, searches, skipped steps, graphs, trackers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toy
from failures.runs import HELD_OUT, apart, cut_at, lines, same, small, weights
from torch import Tensor

from mmdiff import load, train
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config.settings import Config
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, MissingExtra, UserError
from mmdiff.objectives.denoise import Denoise
from mmdiff.runs import trackers
from mmdiff.training import stage as stages
from mmdiff.training.divergence import IN_A_ROW
from mmdiff.training.stage import Stage


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Ends, best checkpoints


def bounds_of(values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bound take these values, one after the other."""

    def next_one(model: Any, *_: Any, **__: Any) -> dict[str, float]:
        return {
            "bound_per_sample": 1.0,
            "bound_per_token": values[len([x for x in lines("toy") if "bound_per_token" in x])],
        }

    monkeypatch.setattr(stages, "evaluate_bound", next_one)


def test_a_stage_ends_early_and_keeps_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds_of([5.0, 3.0, 2.0, 4.0, 2.5, 1.0], monkeypatch)
    often = {"eval_every": 1, "save_every": 50, "keep": 1, "keep_best": 2, "log_every": 50}
    config = small(stage={"steps": 9, "eval": HELD_OUT, "patience": 2}, **often)
    cut_at(4, config, monkeypatch)  # behind the bound that is no better
    kept = sorted(p.name for p in Path("runs/toy/checkpoints").iterdir() if p.name.startswith("step"))
    assert kept == ["step-00000002", "step-00000003", "step-00000004"]
    result = train(config)
    assert result["steps"] == 5 and result["planned_steps"] == 9  # two bounds behind the lowest
    assert result["best"] == {"step": 3, "bound_per_token": 2.0}
    kept = sorted(p.name for p in Path("runs/toy/checkpoints").iterdir())
    assert kept == ["step-00000003", "step-00000005"]  # the two lowest, one of them the newest
    assert train(config) == result and load("runs/toy")
    assert [line["step"] for line in lines("toy") if "bound_per_token" in line] == [1, 2, 3, 4, 5]


def test_a_bound_of_nothing_is_the_best_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 nats, of a model that is always right; what is not a number is never the best (`test_bounds.py`)."""
    bounds_of([5.0, 0.0, math.nan, 4.0], monkeypatch)
    often = {"eval_every": 1, "save_every": 50, "keep": 1, "keep_best": 1, "log_every": 50}
    result = train(small(stage={"steps": 4, "eval": HELD_OUT}, on_divergence="skip", **often))
    assert result["best"] == {"step": 2, "bound_per_token": 0.0}
    assert (Path("runs/toy/checkpoints") / "step-00000002").is_dir()


# A search on held-out rows


def searching(name: str, **more: Any) -> Config:
    objective = {"target": "mmdiff.objectives.composed.least_variance.LeastVariance", "widths": [0.2, 0.5], "step": 0.1}
    levels = {"target": "mmdiff.diffusion.mask_rates.Bernoulli"}
    inner = {"of": {"target": "mmdiff.objectives.denoise.Denoise", "levels": levels, "copies": 2}, "batches": 2}
    stage = {"steps": 8, "lr": 0.05, "eval": {**HELD_OUT, "n": 12, "lengths": [8]}, "objective": {**objective, **inner}}
    rows = {"data": {"target": "toy.Corners", "lengths": [8]}}
    fields = {"stage": {**stage, **rows, **more.pop("stage", {})}, "eval_every": 2, "save_every": 3, "ema": 0.5}
    return small(name, **{**fields, **more})


def found(run: str) -> dict[int, tuple[float, float]]:
    return {x["step"]: (x["clip_low"], x["clip_high"]) for x in lines(run) if "clip_low" in x}


@pytest.mark.parametrize("cut", [2, 3, 5, 7])
def test_levels_of_least_variance_resume_bit_for_bit(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut right behind a search, behind a checkpoint that is older than one, and where both stand at the same step."""
    train(searching("whole", save_every=cut))
    assert list(found("whole")) == [2, 4, 6] and len(set(found("whole").values())) > 1
    cut_at(cut, searching("cut", save_every=cut), monkeypatch)
    train(searching("cut", save_every=cut))
    assert lines("cut") == lines("whole") and same(weights("cut"), weights("whole"))
    saved = json.loads(Path("runs/whole/checkpoints/step-00000008/trainer.json").read_text())["found"]["only"]
    assert (saved["clip_low"], saved["clip_high"]) == found("whole")[6]


def test_a_search_that_is_forgotten_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    train(searching("whole", save_every=2))
    cut_at(4, searching("cut", save_every=2), monkeypatch)
    original = Stage._search
    monkeypatch.setattr(Stage, "_search", lambda self: {} if self.progress.step == 4 else original(self))
    train(searching("cut", save_every=2))
    assert not same(weights("cut"), weights("whole"))


def test_processes_find_the_same_levels() -> None:
    """The process that has the held-out rows searches, and the other trains on what it has found."""
    rows = {"steps": 4, "batch_size": 4, "eval": {**HELD_OUT, "n": 4, "lengths": [8]}}
    train(searching("one", stage={**rows, "accumulate": 2}))
    toy.in_processes(2, searching("two", stage=rows))
    assert list(found("one")) == [2]
    for a, b in zip(lines("one"), lines("two"), strict=True):
        assert a.keys() == b.keys()
        assert all(a[key] == pytest.approx(b[key], rel=1e-3) for key in {"loss", "clip_low", "clip_high"} & a.keys())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_every": 0}, "train.eval_every: 0, expected the number of steps after which the objective searches"),
        ({"stage": {"eval": None}}, "train.stages.only.eval: none; LeastVariance searches on held-out rows"),
        ({"sharding": "full"}, "train.stages.only.objective: searches with the whole model; expected train.sharding"),
    ],
)
def test_searches_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(searching("toy", **settings))


# Steps that are not finite


class Spiky(Denoise):
    """Denoising whose loss, and with it the gradient, is not finite at some steps."""

    at: tuple[int, ...] = (1, 3)

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Any:
        self.__dict__["step"] = key.step
        return super().plan(batch, key, vocab)

    def terms(self, model: Any, plan: Any) -> dict[str, Any]:
        terms = super().terms(model, plan)
        if self.__dict__["step"] in self.at:
            terms["denoise"].value = terms["denoise"].value * math.inf
        return terms


class Lost(Spiky):
    at = tuple(range(2, 99))


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    objective = {"target": f"{__name__}.Spiky"}
    for log_every in (1, 50):
        run = f"every{log_every}"
        result = train(small(run, on_divergence="skip", stage={"objective": objective}, log_every=log_every, ema=0.5))
        assert result["skipped"] == 2 and lines(run)[-1]["skipped"] == 2 and math.isfinite(result["loss"]["only"])
        for before, after in ((1, 2), (3, 4)):
            pair = [weights(run, f"checkpoints/step-0000000{n}/ema") for n in (before, after)]
            assert same(*pair)
        assert not same(*(weights(run, f"checkpoints/step-0000000{n}/ema") for n in (2, 3)))
        for line in Path(f"runs/{run}/metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)
    assert same(weights("every1"), weights("every50"))


def test_a_run_that_skips_every_step_stops() -> None:
    config = small(on_divergence="skip", stage={"objective": {"target": f"{__name__}.Lost"}, "steps": 60})
    with pytest.raises(
        ConfigError, match=rf"{IN_A_ROW} times in a row, is not a finite number at step {IN_A_ROW + 2} "
    ):
        train(config)
    assert not Path("runs/toy/metrics.json").exists()
    last = sorted(Path("runs/toy/checkpoints").glob("step-*"))[-1]
    assert all(t.isfinite().all() for t in load(last).model.state_dict().values())


# Denominators


class Local(Denoise):
    """The mean of each forward, and then the mean over forwards."""

    def plan(self, batch: Batch, key: NoiseKey, vocab: Vocab) -> Any:
        plan = super().plan(batch, key, vocab)
        plan.counts.update(denoise=1.0, local=plan.counts["denoise"])
        return plan

    def terms(self, model: Any, plan: Any) -> dict[str, Any]:
        terms = super().terms(model, plan)
        terms["denoise"].value = terms["denoise"].value / plan.counts["local"]
        return terms


def test_a_local_denominator_would_be_seen() -> None:
    """C13: what splits of a batch are held to in test_train.py and test_sharding.py fails for a mean of means."""
    rows = {"target": "toy.Corners", "lengths": [1, 2, 7]}
    first: dict[str, list[dict[str, Tensor]]] = {"Denoise": [], "Local": []}
    for kind, found in first.items():
        node = {"target": f"{__name__}.{kind}"}
        for batch_size, accumulate in ((4, 1), (2, 2)):
            split = {"batch_size": batch_size, "accumulate": accumulate, "data": rows, "objective": node, "steps": 1}
            train(small(f"{kind}{accumulate}", clip=0.0, stage=split))
            found.append(weights(f"{kind}{accumulate}", "checkpoints/step-00000001/optimizer"))
    assert apart(*first["Denoise"]) < 1e-7 < 1e-4 < apart(*first["Local"])


# Graphs, trackers


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_layers_give_the_same_losses(backend: str) -> None:
    for name, compile_ in (("plain", "none"), ("graph", backend)):
        train(small(name, compile=compile_, stage={"lr": 1e-3, "steps": 4}))
    assert apart(weights("plain"), weights("graph")) < 1e-5
    for a, b in zip(lines("plain"), lines("graph"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_a_tracker_that_is_not_installed_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"^wandb is not installed: pip install 'mmdiff\[trackers\]'$"):
        trackers.started(["wandb"], Path("runs/x"), {})


def test_a_tracker_gets_the_settings_and_the_numbers_of_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's tracker of Weights & Biases, over a module in the place of that package."""
    import importlib.util
    import sys

    said: list[Any] = []
    run = SimpleNamespace(log=lambda values, step: said.append((step, values)), finish=lambda: said.append("finished"))
    fake = SimpleNamespace(
        init=lambda **kwargs: said.append(kwargs) or run,
        config=SimpleNamespace(update=lambda values, **_: said.append(values)),
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    made = trackers.started(["wandb"], Path("runs/x"), {"train.seed": 3})
    trackers.log(made, 7, {"stage": "only", "loss": 0.5, "nll_by_rate": [1.0], "accuracy": None})
    made[0].finish()
    assert said[0]["project"] == "mmdiff" and said[0]["id"] == "x" and said[0]["resume"] == "allow"
    assert said[1:] == [{"train.seed": 3}, (7, {"only/loss": 0.5}), "finished"]

    fake.init = lambda **kwargs: 1 / 0
    with pytest.raises(UserError, match="^train.trackers: wandb: division by zero$"):
        trackers.started(["wandb"], Path("runs/x"), {})
