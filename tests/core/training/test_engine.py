"""What a stage may be asked for besides: averages, optimizers, early ends, best checkpoints, skipped steps, graphs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff import load, train
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.vocab import Vocab
from mmdiff.config import check_nodes
from mmdiff.config.settings import Config, StageConfig
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, MissingExtra, UserError
from mmdiff.files import write_sums
from mmdiff.model.params import apply_rules, layers_below, read_rules
from mmdiff.objectives.denoise import Denoise
from mmdiff.runs import trackers
from mmdiff.runs.moments import load_moments, moments
from mmdiff.training import stage as stages
from mmdiff.training.divergence import IN_A_ROW
from mmdiff.training.engines.ema import Average
from mmdiff.training.optim import Muon, lr_factor, make_optimizer
from mmdiff.training.stage import Stage

FROZEN_TOWER = [{"match": "encoders", "train": False}, {"match": "*"}]
HELD_OUT = {"target": "toy.Corners", "n": 3, "seed": 2}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def small(name: str = "toy", **more: Any) -> Config:
    fields = {"steps": 6, "batch_size": 2, "params": FROZEN_TOWER, **more.pop("stage", {})}
    return toy.config(name, stage=fields, **{"save_every": 1, "keep": 9, **more})


def weights(run: str, at: str = "model/model") -> dict[str, Tensor]:
    return load_file(f"runs/{run}/{at}.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def lines(run: str) -> list[dict[str, Any]]:
    clock = ("seconds", "tokens_per_second")
    found = [json.loads(line) for line in Path(f"runs/{run}/metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clock} for line in found]


class Cut(Exception):
    """The run ends here."""


def cut_at(step: int, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
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


# Averages


def test_averages_in_closed_form() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    average = Average([{"names": ["p"], "params": [p]}], 0.5)
    expected = p.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            p.mul_(1.1)
        average.update(step)
        share = 1 - min(0.5, (1 + step) / (10 + step))
        expected += share * (p.detach() - expected)
    assert torch.allclose(average.averages["p"], expected)
    before = p.detach().clone()
    with average.in_place() as held:
        assert torch.equal(p, average.averages["p"]) and torch.equal(held["weight:p"], before)
    assert torch.equal(p, before)


def test_averages_do_not_touch_training_and_are_what_is_saved() -> None:
    train(small("plain"))
    train(small("averaged", ema=0.7, stage={"eval": HELD_OUT}))
    raw = weights("averaged", "checkpoints/step-00000006/ema")
    plain = weights("plain")
    trained = [name.removeprefix("weight:") for name in raw if name.startswith("weight:")]
    assert all(torch.equal(raw[f"weight:{name}"], plain[name]) for name in trained)
    kept = weights("averaged")
    assert all(torch.equal(raw[f"average:{name}"], kept[name]) for name in trained) and apart(kept, plain) > 1e-3
    own = load("runs/averaged/checkpoints/step-00000006").model.state_dict()
    assert all(torch.equal(own[name], kept[name]) for name in kept)


@pytest.mark.parametrize("step", [3, 5])
def test_a_run_with_averages_resumes_bitwise_in_the_middle_of_a_line_of_the_log(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C14: accumulated forwards, two stages, averages, Muon beside AdamW, a decay that has begun."""
    muon = {"optimizer": {"target": "torch.optim.Muon"}, "accumulate": 2, "lr_schedule": "wsd", "decay": 0.5}

    def two(name: str) -> Config:
        first = small(stage={"steps": 4, **muon, "weight_decay": 0.1}).train.stages["only"]
        return toy.config(name, stages={"a": first, "b": replace(first, steps=3)}, ema=0.9, save_every=1, log_every=4)

    train(two("whole"))
    cut_at(step, two("cut"), monkeypatch)
    train(two("cut"))
    assert same(weights("whole"), weights("cut"))
    for file in ("ema", "optimizer"):
        assert same(*(weights(run, f"checkpoints/step-00000007/{file}") for run in ("whole", "cut")))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.pop("average:connectors.image.linear.weight"),
            "average:connectors.image.linear.weight is missing",
        ),
        (lambda t: t.update(other=torch.zeros(1)), "other, which this stage does not train"),
        (lambda t: t["weight:connectors.image.linear.bias"].fill_(math.nan), "holds numbers that are not finite"),
    ],
)
def test_averages_that_do_not_fit_are_refused(
    edit: Callable[[dict[str, Tensor]], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(2, small(ema=0.9), monkeypatch)
    folder = Path("runs/toy/checkpoints/step-00000002")
    tensors = load_file(folder / "ema.safetensors")
    edit(tensors)
    save_file(tensors, folder / "ema.safetensors")
    write_sums(folder)
    with pytest.raises(ConfigError, match=f"ema.safetensors: .*{message}"):
        train(small(ema=0.9))


# Optimizers


@pytest.mark.parametrize(
    ("node", "more"),
    [
        pytest.param({"target": "torch.optim.Muon", "momentum": 0.9}, {}, marks=pytest.mark.slow),
        ({"target": "mmdiff.training.optim.Muon", "momentum": 0.9}, {"weight_decay": 0.1}),
        pytest.param({"target": "torch.optim.SGD", "momentum": 0.9, "nesterov": True}, {}, marks=pytest.mark.slow),
        pytest.param({"target": "torch.optim.Adafactor"}, {}, marks=pytest.mark.slow),
        pytest.param({"target": "torch.optim.AdamW", "amsgrad": True}, {"weight_decay": 0.1}, marks=pytest.mark.slow),
        pytest.param({"target": "torch.optim.RMSprop"}, {}, marks=pytest.mark.slow),
    ],
)
def test_an_optimizer_by_dotted_path_learns_and_resumes_bitwise(
    node: dict[str, Any], more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(stage={"optimizer": node, "lr": 1e-3, **more})
    check_nodes(config)
    cut_at(3, config, monkeypatch)
    train(config)
    train(replace(config, name="whole"))
    assert same(weights("toy"), weights("whole"))
    assert [line["step"] for line in lines("toy")] == [1, 2, 3, 4, 5, 6]
    train(small("still", stage={"lr": 0.0}))
    assert apart(weights("toy"), weights("still")) > 1e-5


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 6)])
def test_a_step_of_muon_by_its_singular_values(shape: tuple[int, int]) -> None:
    """Newton-Schulz keeps singular vectors, and maps each singular value by the same polynomial five times."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape))
    before, moment = weight.detach().clone(), torch.zeros(shape)
    muon = Muon([weight], lr=0.1, weight_decay=0.5, momentum=0.8)
    for _ in range(2):
        weight.grad = torch.randn(shape)
        moment = 0.8 * moment + 0.2 * weight.grad
        u, s, v = torch.linalg.svd(0.2 * weight.grad + 0.8 * moment, full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        assert s.median() > 0.6 and s.max() < 1.3  # one that was tiny may stay so
        before = before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * max(shape) ** 0.5 * (u * s) @ v
        muon.step()
        torch.testing.assert_close(weight.detach(), before, atol=1e-5, rtol=1e-4)


def test_muon_is_torchs_but_for_its_rounding() -> None:
    torch.manual_seed(0)
    start, grad = torch.randn(16, 40), torch.randn(16, 40)
    ends = []
    kinds: list[tuple[Any, dict[str, str]]] = [(Muon, {}), (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})]
    for kind, named in kinds:
        weight = torch.nn.Parameter(start.clone())
        weight.grad = grad.clone()
        kind([weight], lr=0.1, weight_decay=0.1, **named).step()
        ends.append(weight.detach())
    assert apart({"w": ends[0]}, {"w": ends[1]}) < 0.02 < apart({"w": ends[0]}, {"w": start})


def test_muon_trains_the_matrices_of_layers_and_adamw_the_rest() -> None:
    model = toy.model()
    groups, _ = apply_rules(model, [], lr=1e-3, weight_decay=0.1)
    stage = StageConfig(optimizer={"target": "torch.optim.Muon"})
    made = make_optimizer(stage, groups, betas=(0.9, 0.999), where="x")
    muon, adamw = made.parts  # type: ignore[attr-defined]
    names = {name for group in muon.param_groups for name in group["names"]}
    rest = {name for group in adamw.param_groups for name in group["names"]}
    assert names | rest == {name for name, _ in model.named_parameters()} and not names & rest
    assert "backbone.model.model.layers.0.self_attn.q_proj.weight" in names and all(".layers." in n for n in names)
    assert {"backbone.model.model.embed_tokens.weight", "connectors.image.linear.weight"} <= rest
    for group in made.param_groups:
        group["lr"] = 0.5
    assert all(group["lr"] == 0.5 for part in (muon, adamw) for group in part.param_groups)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"target": "torch.optim.Moun"}, 'optimizer.target: torch.optim has no "Moun"'),
        ({"target": "torch.optim.SGD", "momentun": 0.9}, 'torch.optim.SGD takes no such argument (did you mean "'),
        ({"target": "torch.optim.SGD", "momentum": -1.0}, "optimizer: Invalid momentum value: -1.0"),
        ({"target": "mmdiff.training.optim.Muon", "momentum": 1.0}, "optimizer: momentum 1.0, expected at least 0"),
        ({"target": "torch.optim.SGD", "lr": 0.1}, "optimizer.lr: set at run time, leave it out"),
        ({"target": "torch.optim.SGD", "weight_decay": 0.1}, "optimizer.weight_decay: set at run time, leave it out"),
        ({"target": "torch.optim.Rprop"}, "optimizer: torch.optim.Rprop has no weight decay, expected weight_decay 0"),
        ({"target": "torch.optim.LBFGS"}, "optimizer: torch.optim.LBFGS asks for the loss several times per step"),
        ({"target": "torch.nn.Linear"}, "torch.nn.Linear takes no such argument"),
    ],
)  # fmt: skip
def test_optimizers_that_are_refused(node: dict[str, Any], message: str) -> None:
    config = small(stage={"optimizer": node, "weight_decay": 0.1})
    with pytest.raises(ConfigError) as error:
        check_nodes(config)
        train(config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_learning_rates_by_layer_in_closed_form() -> None:
    model = toy.model()
    (rule, *_) = rules = read_rules([{"match": "backbone", "lr": 1.0, "lr_decay": 0.5}, {"match": "*"}])
    groups, _ = apply_rules(model, rules, lr=0.1, weight_decay=0.0)
    rate = {name: group["base_lr"] for group in groups for name in group["names"]}
    assert rate["backbone.model.model.norm.weight"] == 1.0  # above the last of two layers
    assert rate["backbone.model.model.layers.1.self_attn.q_proj.weight"] == 0.5
    assert rate["backbone.model.model.layers.0.self_attn.q_proj.weight"] == 0.25
    assert rate["backbone.model.model.embed_tokens.weight"] == 0.125
    assert rate["connectors.image.linear.weight"] == 0.1
    assert set(layers_below(model, rule).values()) == {0, 1, 2, 3}


def test_warm_up_stable_decay_in_closed_form() -> None:
    stage = StageConfig(steps=100, warmup=10, lr_schedule="wsd", decay=0.25, lr_end=0.1)
    assert [lr_factor(s, stage) for s in (0, 9, 10, 74, 75)] == pytest.approx([0.1, 1, 1, 1, 1])
    assert lr_factor(84, stage) == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(9 / 25)))
    assert lr_factor(99, stage) == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(24 / 25)))


def test_moments_of_a_fused_kernel_have_the_shape_of_their_parameter() -> None:
    p = torch.nn.Parameter(torch.zeros(3, 2))
    group = {"params": [p], "names": ["p"]}
    save_file(
        {"exp_avg:p": torch.zeros(3, 1), "exp_avg_sq:p": torch.zeros(3, 2), "step:p": torch.ones(())}, "m.safetensors"
    )
    for kind in (torch.optim.AdamW, torch.optim.Adam):
        with pytest.raises(ConfigError, match="exp_avg:p has shape"):
            load_moments(kind([group]), Path("m.safetensors"))
    assert moments(torch.optim.AdamW([group])) == {}


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
