"""Localized special-token classification (arXiv 2509.06932) as settings of the one objective: the softmax over a
reserved range, its rows of the head sliced, the mean over each sequence's masked tokens; empty places stay out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from logit_tables import asked
from torch import Tensor

from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Target, Text
from mmdiff.canvas.vocab import word_tokenizer
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound
from mmdiff.model.scorer import LinearCrossEntropy, cross_entropy
from mmdiff.objectives.denoise import Denoise, each

LSC = Denoise(levels=Bernoulli(), denominator="each")
KEY = NoiseKey(0, 3, "x")


def model(dtype: str = "float64") -> MMDiff:
    torch.manual_seed(0)
    backbone = new_backbone(
        tokenizer=word_tokenizer(["open", "close"]),
        hidden_size=16,
        layers=1,
        heads=2,
        reserve={"state": 3, "action": 4},
        dtype=dtype,
    )
    return MMDiff(backbone).eval()


def chunks(m: MMDiff, *codes: list[int | None]):  # type: ignore[no-untyped-def]
    low, high = m.vocab.range("action")
    ids = [[m.vocab.mask_id if c is None else low + c for c in chunk] for chunk in codes]
    return collate([[Text([4, 5]), Target(i, allow=((low, high),))] for i in ids], m.vocab)


def loss(objective: Denoise, m: MMDiff, plan) -> Tensor:  # type: ignore[no-untyped-def]
    return objective.terms(m, plan)["denoise"].value / plan.counts["denoise"]


def test_the_loss_is_the_formula() -> None:
    """L = mean over sequences of (1 / |M|) sum over M of CE(logits[S], index in S), by hand from the full logits."""
    m = model()
    batch = chunks(m, [0, 3, 2, 1, 0, 3], [1, 1, 2, 2, 3, 0])
    plan = LSC.plan(batch, KEY, m.vocab)
    plan.masked_RL[0] = torch.tensor([0, 0, 1, 0, 0, 1, 0, 1], dtype=torch.bool)
    plan.masked_RL[1] = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0], dtype=torch.bool)
    plan.ids_RL = batch.ids_BL.masked_fill(plan.masked_RL, m.vocab.mask_id)
    plan.weight_RL, plan.counts["denoise"] = each(plan)
    low, high = m.vocab.range("action")
    with torch.no_grad():
        logits = m.backbone(plan.ids_RL).double().numpy()[:, :, low:high]
    want = 0.0
    for row, places in ((0, (2, 5, 7)), (1, (4,))):
        costs = []
        for place in places:
            z = logits[row, place]
            label = int(batch.ids_BL[row, place]) - low
            costs.append(np.log(np.exp(z).sum()) - z[label])
        want += sum(costs) / len(costs)
    assert loss(LSC, m, plan).item() == pytest.approx(want / 2, rel=1e-6)


def test_weights_are_one_over_the_masked_tokens_of_each_sequence() -> None:
    m = model()
    batch = chunks(m, [0, 3, 2, 1, 0, 3], [1, 1, 2, 2, 3, 0], [0, 1, 2, 3, 0, 1])
    plan = LSC.plan(batch, KEY, m.vocab)
    masked_R = plan.masked_RL.sum(1)
    assert plan.weight_R.tolist() == pytest.approx([1 / max(int(k), 1) for k in masked_R])
    assert plan.counts["denoise"] == int((masked_R > 0).sum())


def test_only_rows_of_the_range_are_multiplied_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    batch = chunks(m, [0, 3, 2, 1], [1, 1, 2, 2])
    low, high = m.vocab.range("action")
    assert batch.allowed_ids_N is not None and batch.allowed_ids_N.tolist() == list(range(low, high))
    plan = LSC.plan(batch, KEY, m.vocab)
    asked: list[int] = []
    whole = LinearCrossEntropy.apply
    spy = lambda h, table, *rest: (asked.append(len(table)), whole(h, table, *rest))[1]  # noqa: E731
    monkeypatch.setattr(LinearCrossEntropy, "apply", spy)
    sliced = loss(LSC, m, plan)
    masked = loss(LSC, m, replace(plan, batch=replace(batch, allowed_ids_N=None)))
    assert asked == [high - low, m.vocab.size] and sliced.item() == pytest.approx(masked.item(), rel=1e-6)
    weight = m.backbone.model.lm_head.weight
    (gradient,) = torch.autograd.grad(sliced, weight)
    assert not gradient[:low].any() and not gradient[high:].any() and gradient[low:high].any(1).all()


def test_without_restriction_the_whole_vocabulary_is_in_the_softmax() -> None:
    m = model()
    plan = LSC.plan(chunks(m, [0, 3, 2, 1]), KEY, m.vocab)
    free = Denoise(levels=Bernoulli(), denominator="each", restrict=False)
    assert loss(free, m, plan).item() > loss(LSC, m, plan).item() + 0.1


def test_ranges_that_differ_or_are_large_are_not_sliced() -> None:
    m = model()
    low, high = m.vocab.range("action")
    mixed = collate([[Target([low], allow=((low, high),)), Target([4])]], m.vocab)
    large = collate([[Target([low], allow=((0, high),))]], m.vocab)
    assert mixed.allowed_ids_N is None and large.allowed_ids_N is None


def test_labels_are_places_in_the_range() -> None:
    h_PD = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    allowed_ids_N = torch.tensor([2, 7, 9])
    weight = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))

    def head(h: Tensor, ids: Tensor | None = None) -> Tensor:
        return h @ (weight if ids is None else weight[ids]).T

    found = cross_entropy(head, h_PD, torch.tensor([9, 2, 7]), chunk=2, allowed_ids_N=allowed_ids_N)
    want = torch.nn.functional.cross_entropy(head(h_PD)[:, allowed_ids_N], torch.tensor([2, 0, 1]), reduction="none")
    assert torch.allclose(found.nll_P, want)
    assert found.correct_P.tolist() == (head(h_PD)[:, allowed_ids_N].argmax(1) == torch.tensor([2, 0, 1])).tolist()


def test_an_adapted_head_is_not_sliced_by_its_weight_alone() -> None:
    m = model("float32")
    layer = m.backbone.model.lm_head

    class Shifted(torch.nn.Linear):
        def forward(self, h: Tensor) -> Tensor:
            return super().forward(h) + 1

    shifted = Shifted(layer.in_features, layer.out_features, bias=False)
    shifted.weight = layer.weight
    m.backbone.model.lm_head = shifted
    h, ids = torch.randn(2, 16), torch.tensor([3, 5])
    assert torch.allclose(m.backbone.head(h, ids), m.backbone.head(h)[:, ids])


def test_empty_places_stay_empty_and_are_not_scored() -> None:
    m = model()
    batch = chunks(m, [0, 3, None, None], [1, 1, 2, 2])
    for copies in (1, 2):
        objective = Denoise(levels=Bernoulli(), denominator="tokens", copies=copies, corrupt=0.5)
        for step in range(8):
            plan = objective.plan(batch, NoiseKey(0, step, "x"), m.vocab)
            assert plan.counts["denoise"] == 6 * copies
            assert (plan.ids_RL[:: len(batch), 4:] == m.vocab.mask_id).all()
            assert not plan.masked_RL[:: len(batch), 4:].any()
    whole = chunks(m, [0, 3], [1, 1])
    figures = bound(m, batch)
    assert figures.positions_B.tolist() == [2, 4] and figures.nll_B.isfinite().all()
    assert bound(m, whole).positions_B.tolist() == [2, 2]


def test_generation_computes_no_other_logits_and_writes_the_same() -> None:
    m = model("float32")
    low, high = m.vocab.range("action")
    batch = collate([[Text([4, 5]), Target(length=5, allow=((low, high),))]], m.vocab)
    want, rows = batch.target_BL, torch.arange(1)
    some, full = (
        asked(m.denoiser(batch, restrict=True), batch.ids_BL, want, rows),
        asked(m.denoiser(batch), batch.ids_BL, want, rows),
    )
    assert torch.allclose(some[:, low:high], full[:, low:high], atol=1e-6)
    assert some[:, :low].isneginf().all() and some.shape == full.shape and full.isfinite().all()
    ids = m.generate(batch, steps=5).ids_BL
    assert ((ids[0, 2:] >= low) & (ids[0, 2:] < high)).all()
    assert m.generate(batch, steps=5, guidance_scale=1.0).ids_BL.shape == ids.shape


def test_an_unknown_denominator_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="each"):
        Denoise(denominator="eech")
