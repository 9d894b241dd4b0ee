"""A sampler layer: several tokens per call that are drawn given each other, and what it is trained towards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor

from mmdiff import check
from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import Full, PrefixCausal
from mmdiff.canvas.sample import Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.mask_rates import ExactCount
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.denoiser import Denoiser
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.extras.joint import AdjustLayer
from mmdiff.objectives.extras.sampler_layer import SamplerLayer
from mmdiff.samplers.links.caches import Prefix
from mmdiff.samplers.processes.joint import Joint
from tests.core.objectives.extras.pairs import (
    DIGITS,
    FIRST,
    KEY,
    WIDTH,
    empty,
    fit,
    longer,
    model_with,
    pairs,
    sampled,
    valid,
)


def model(attention: Any = None, layers: int = 2, moved: bool = True) -> MMDiff:
    """moved: whether the layer is as if trained, at random, so that it does something."""
    made = model_with(lambda size: {"sampler": SamplerLayer(width=WIDTH)}, layers, attention)
    layer: Any = made.extras["sampler"]
    for linear in (layer.out[1], layer.token[1]) if moved else ():
        torch.nn.init.normal_(linear.weight)
    return made


@pytest.mark.slow
def test_tokens_of_one_call_are_drawn_given_each_other() -> None:
    """Two tokens in one call: independent ones are a pair one time in ten, those of the layer nearly always."""
    one = model(layers=1, moved=False)
    fit(one, [(Denoise(), 1e-2, 100), (Denoise(), 2e-3, 150)])
    one.backbone.requires_grad_(False)
    before = {name: value.clone() for name, value in one.backbone.state_dict().items()}
    objective = AdjustLayer(count=2, denoise=Denoise(ExactCount(full=1.0)))
    fit(one, [(objective, 5e-3, 200), (objective, 1e-3, 60)])
    assert all(torch.equal(value, before[name]) for name, value in one.backbone.state_dict().items())
    batch, options = empty(1000, one.vocab), {"temperature": 1.0, "early_stop": False, "seed": 3}
    joint = one.generate(batch, process=Joint(count=2), **options)
    plain = one.generate(batch, steps=1, **options)
    assert joint.calls == plain.calls == 1
    assert valid(joint.ids_BL) > 0.95 and valid(plain.ids_BL) < 0.15
    exact = one.generate(batch, **options)
    assert exact.calls == 2 and abs(valid(joint.ids_BL) - valid(exact.ids_BL)) < 0.05
    share_K = torch.bincount(joint.ids_BL[:, -2] - FIRST, minlength=DIGITS)[:DIGITS] / 1000
    assert (share_K > 0.03).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_length": 2, "remasking": "random"},
        {"temperature": 0.0, "remasking": "margin", "eos_policy": "last"},
        {"confidence": "vocabulary", "top_k": 3},
    ],
)
def test_one_token_per_call_is_the_plain_sampler(options: dict[str, Any]) -> None:
    one = model().eval()
    ids_BL, spy = sampled(one, longer(one), process=Joint(count=1), **options)
    plain_BL, other = sampled(one, longer(one), **options)
    assert torch.equal(ids_BL, plain_BL) and len(spy.seen) == len(other.seen)


@pytest.mark.parametrize("eos_policy", ["none", "last"])
def test_a_layer_that_changes_nothing_commits_the_best_of_a_call(eos_policy: str) -> None:
    one = model(moved=False).eval()
    options: dict[str, Any] = {"temperature": 0.0, "eos_policy": eos_policy}
    plain_BL, other = sampled(one, longer(one), steps=3, **options)
    ids_BL, spy = sampled(one, longer(one), process=Joint(count=2), **options)
    assert len(spy.seen) == len(other.seen) == 3 and torch.equal(ids_BL, plain_BL)
    moved_BL, _ = sampled(model().eval(), longer(one), process=Joint(count=2), **options)
    assert not torch.equal(moved_BL, plain_BL)


def by_hand(one: MMDiff, ids_L: Tensor, at: list[int], first: Tensor, new: list[int]) -> Tensor:
    """The layer's logits (N, V) of one row alone. first: the states (N, D) of the call. new: which of `at` are new."""
    flags = torch.tensor([[position in new for position in at]])
    tokens = one.backbone.embed(ids_L[None])[:, at]
    padding = torch.zeros(1, len(at), dtype=torch.bool)
    h_RND = one.extras["sampler"](first[None], tokens, flags, torch.tensor([at]), padding)  # type: ignore[operator]
    return one.backbone.head(h_RND)[0]


@torch.no_grad()
def test_the_next_token_is_drawn_from_the_layers_logits() -> None:
    one = model().eval()
    batch = longer(one)
    banned = [one.vocab.mask_id, one.vocab.slot_id, *range(FIRST + DIGITS, one.vocab.size)]
    ids_BL, spy = sampled(one, batch, process=Joint(count=3), temperature=0.0, steps=99)
    for row in range(3):
        ids_L, whole = spy.queries[0].ids_RL[row].clone(), batch.attend_BL[row]
        at = (ids_L == one.vocab.mask_id).nonzero()[:, 0].tolist()
        first = one.backbone.hidden(one.backbone.embed(ids_L[None, whole]))[0][at]
        new, logits = list[int](), one.backbone.head(first)
        for _ in range(3):
            logits[:, banned] = -torch.inf
            p, token = logits.softmax(-1).max(-1)
            p[[at.index(position) for position in new]] = -1
            best = int(p.argmax())
            ids_L[at[best]] = token[best]
            new.append(at[best])
            logits = by_hand(one, ids_L[whole], at, first, new)
        assert torch.equal(spy.queries[1].ids_RL[row], ids_L)


def ragged(one: MMDiff, row: int | None = None) -> Batch:
    """Rows of unequally many masked positions, one of them fewer than a call commits."""
    made = [[Text([FIRST]), Target(length=6)], [Text([FIRST] * 3), Target(length=2)], [Target(length=5)]]
    batch = collate(made if row is None else [made[row]], one.vocab)
    batch.index_B = torch.arange(3) if row is None else torch.tensor([row])
    return batch


@pytest.mark.parametrize("attention", [Full(), PrefixCausal()])
def test_a_row_is_what_it_is_alone(attention: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, logits = list[Tensor](), Denoiser.logits
    monkeypatch.setattr(Denoiser, "logits", lambda self, h: made.append(logits(self, h)) or made[-1].clone())
    one = model(attention).eval()
    batch, process = ragged(one), Joint(count=4)
    ids_BL, spy = sampled(one, batch, process=process)
    assert [len(query.row_R) for query in spy.queries] == [3, 2]
    assert not (ids_BL[batch.target_BL] == one.vocab.mask_id).any()
    together = [call.split([6, 2, 5]) for call in made[:2]]
    for row in range(3):
        made.clear()
        alone = ragged(one, row)
        alone_BL, _ = sampled(one, alone, process=process)
        assert torch.equal(alone_BL[alone.target_BL], ids_BL[row, batch.target_BL[row]])
        assert all(torch.allclose(a, b[row], atol=1e-4) for a, b in zip(made[:2], together, strict=True))
    blocks_BL, spy = sampled(one, batch, process=Joint(count=2), block_length=3)
    assert len(spy.seen) == 4 and not torch.equal(blocks_BL, ids_BL)  # blocks of three: two tokens, then one


@torch.no_grad()
def test_the_loss_is_the_divergence_along_roll_outs_of_the_model() -> None:
    """Row by row: exact one-token steps of the model, the layer beside them, KL over the ids that may stand there."""
    one = model().eval()
    rows = longer(one)
    rows.ids_BL = torch.where(
        rows.target_BL, FIRST + torch.arange(rows.ids_BL.numel()).view_as(rows.ids_BL) % 10, rows.ids_BL
    )
    objective = AdjustLayer(count=3, denoise=Denoise(copies=2))
    plan = objective.plan(rows, replace(KEY, batch=3), one.vocab)
    allowed = [*range(FIRST, FIRST + DIGITS), one.vocab.eos_id]
    total, count = 0.0, 0
    for r in range(6):
        whole = rows.attend_BL[r % 3]
        ids_L, order = plan.ids_RL[r, whole].clone(), plan.drawn["rank"][r, whole]
        at = (order >= 0).nonzero()[:, 0].tolist()
        assert sorted(order[at].tolist()) == list(range(len(at)))
        first = now = one.backbone.hidden(one.backbone.embed(ids_L[None]))[0]
        for number in range(1, min(3, len(at))):
            position = int((order == number - 1).nonzero())
            p = one.backbone.head(now[position])[allowed].double().softmax(-1)
            by_id = torch.zeros(one.vocab.size, dtype=torch.float64).index_put((torch.tensor(allowed),), p)
            ids_L[position] = int((by_id.cumsum(0) <= plan.drawn["token"][r, number - 1]).sum())
            now = one.backbone.hidden(one.backbone.embed(ids_L[None]))[0]
            new = [i for i in at if order[i] < number]
            made = by_hand(one, ids_L, at, first[at], new)
            for i in at:
                if i not in new:
                    log_p = one.backbone.head(now[i])[allowed].log_softmax(-1)
                    log_q = made[at.index(i)][allowed].log_softmax(-1)
                    total, count = total + float((log_p.exp() * (log_p - log_q)).sum()), count + 1
    assert count == plan.counts["adjust"] > 5
    assert float(objective.terms(one, plan)["adjust"].value) == pytest.approx(total, rel=1e-4)


def test_rows_of_one_masked_position_train_nothing() -> None:
    one, objective = model(), AdjustLayer(denoise=Denoise(ExactCount(full=0.0)))
    plan = objective.plan(pairs(one.vocab, 4), KEY, one.vocab)
    plan.masked_RL[:, 1], plan.drawn["rank"][:, 1:] = False, torch.tensor([-1, 0])
    plan.masked_RL[:, 2] = True
    term = objective.terms(one, plan)["adjust"]
    term.value.backward()
    assert float(term.value.detach()) == 0
    assert all(not parameter.grad.any() for parameter in one.extras["sampler"].parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": Joint("other")}, "model.extras.other: the model has no such extra"),
        ({"process": Joint(), "guidance_scale": 1.0}, "sampler.guidance_scale: Joint has a way of its own"),
        ({"process": Joint(), "threshold": 0.5}, "sampler.threshold: Joint has a way of its own"),
        ({"process": Joint(), "denoise": [Prefix()]}, "sampler.denoise: Joint has a way of its own"),
    ],
)
def test_what_does_not_fit_is_one_line(options: Any, message: str) -> None:
    one = model()
    with pytest.raises(ConfigError, match=message):
        one.generate(longer(one), **options)


def test_a_layer_that_is_missing_or_cannot_be_made_is_one_line() -> None:
    one = model()
    objective = AdjustLayer("samplers")
    with pytest.raises(ConfigError, match="model.extras.samplers: the model has no such extra .did you mean"):
        objective.terms(one, objective.plan(pairs(one.vocab, 4), KEY, one.vocab))
    with pytest.raises(ConfigError, match="a width of 30 is no multiple of heads 4"):
        SamplerLayer(width=30)


def test_a_configuration_trains_and_samples_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objective = {"target": "mmdiff.objectives.extras.joint.AdjustLayer", "count": 2}
    rules = [{"match": "extras.sampler"}, {"match": "*", "train": False}]
    config = toy.config(image=False, stage={"objective": objective, "params": rules})
    config.model.extras["sampler"] = {"target": "mmdiff.objectives.extras.sampler_layer.SamplerLayer"}
    config.sampler.process = {"target": "mmdiff.samplers.processes.joint.Joint", "count": 2}
    config.eval.data["all"] = {"target": "toy.Corners", "n": 4}
    result = check(config)
    assert result["loss"]["only"] > 0 and result["forwards"] == [1, 1]
