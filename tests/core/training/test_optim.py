"""How weights are moved: averages, optimizers, learning rates, and moments in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from failures.runs import HELD_OUT, apart, cut_at, lines, same, small, weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff import load, train
from mmdiff.config import check_nodes
from mmdiff.config.settings import Config, StageConfig
from mmdiff.errors import ConfigError
from mmdiff.files import write_sums
from mmdiff.model.params import apply_rules, layers_below, read_rules
from mmdiff.runs.moments import load_moments, moments
from mmdiff.training.engines.ema import Average
from mmdiff.training.optim import Muon, lr_factor, make_optimizer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
