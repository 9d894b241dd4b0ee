"""Preferences: margins by hand, what cancels and what does not, gradients without bias, a preference that is learnt.

C8 and C10 of the known-answer checks. Shape letters: B pairs, D answers, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.patterns import BlockCausal, PrefixCausal
from mmdiff.canvas.relayout import by_document
from mmdiff.canvas.sample import Break, Media, Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import estimate
from mmdiff.model.likelihood.drawn import Drawn
from mmdiff.model.likelihood.elbo import AnyOrder, Elbo, UpperBound
from mmdiff.model.likelihood.orders import LeftToRight, MeanField
from mmdiff.model.likelihood.passes import Estimator, Pass, Targets
from mmdiff.model.params import Lora, Rule, apply_rules
from mmdiff.objectives.policy.estimate import nll_of, planned
from mmdiff.objectives.policy.preference import Logistic, Preference, Squared
from mmdiff.objectives.policy.reference import AdaptersOff, Copied, Saved
from tests.core.objectives.extras.pairs import FIRST, fit, model_with

KEY = NoiseKey(3, step=1, stream="s", batch=4)
PAIR: Sample = [Text([4, 5]), Target([5, 6]), Break(), Text([4, 5]), Target([6, 6, 7])]


def model(seed: int = 0, scale: float = 3.0, **options: Any) -> MMDiff:
    torch.manual_seed(seed)
    out = MMDiff(toy.backbone(), **options)
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(scale)
    return out.eval()


def lora(m: MMDiff) -> list[Tensor]:
    groups, _ = apply_rules(m, [Rule("backbone", lora=Lora(r=4))], lr=1e-2, weight_decay=0.0)
    return [p for group in groups for p in group["params"]]


def margin(objective: Preference, m: MMDiff, batch: Batch, key: NoiseKey = KEY) -> float:
    term = objective.terms(m, objective.plan(batch, key, m.vocab))["preference"]
    return float(term.sums["margin"][0])


# Documents -----------------------------------------------------------------------------------------------------------


def test_documents_are_rows_again() -> None:
    """Laid out together and told apart they are what they are laid out one by one, slots and allow-sets included."""
    m = toy.model()
    image = np.zeros((1, 8, 8), dtype=np.float32)
    first: Sample = [Media("image", image), Text([4]), Target([5, 6], allow=((4, 8),))]
    second: Sample = [Media("image", image + 1), Text([4, 4]), Target([7])]
    packed = collate([[*first, Break(), *second], [*second, Break(), *first]], m.vocab, m.readers, index=[3, 9])
    laid, row_D = by_document(packed)
    alone = collate([first, second, second, first], m.vocab, m.readers, index=[3, 3, 9, 9])
    assert row_D.tolist() == [0, 0, 1, 1]
    for name in ("ids_BL", "target_BL", "attend_BL", "index_B", "segment_BL", "allow_BL"):
        assert torch.equal(getattr(laid, name), getattr(alone, name)), name
    assert torch.equal(laid.position_ids_BL[laid.attend_BL], alone.position_ids_BL[alone.attend_BL])
    for kind, slot_BL in alone.slots.items():
        assert torch.equal(laid.slots[kind], slot_BL)
    found = [estimate(m, one, Elbo(3)).nll_B for one in (laid, alone)]
    torch.testing.assert_close(*found)


# Estimates with a gradient -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [None, PrefixCausal(), BlockCausal(1, "targets")], ids=str)
@pytest.mark.parametrize("estimator", [Elbo(2), Drawn(times=2), MeanField(0.3), LeftToRight()], ids=str)
def test_it_is_the_estimate(estimator: Estimator, attention: Any) -> None:
    m = model(attention=attention)
    batch = collate([[Text([4, 5]), Target([5, 6, 7])], [Text([4]), Target([6])]], m.vocab)
    key = NoiseKey(0, stream="bound")
    found = nll_of(m, planned(batch, estimator, key, m.vocab, m.attention))
    torch.testing.assert_close(found.double(), estimate(m, batch, estimator).nll_BL, rtol=1e-5, atol=1e-6)
    assert found.requires_grad


def test_what_is_no_sum_is_refused() -> None:
    m = model()
    with pytest.raises(ConfigError, match="UpperBound is no sum of log p"):
        planned(collate([[Target([5])]], m.vocab), UpperBound(), KEY, m.vocab)


@dataclass(frozen=True)
class Never1:
    """A biased estimator: a count of 1 is never drawn."""

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        for one in Drawn(ExactCount(), times=1).passes(targets, key):
            few_B1 = one.hidden_BL.sum(1, keepdims=True) == 1
            yield Pass(one.hidden_BL & ~few_B1, np.where(few_B1, 0.0, one.weight_BL))


def gradient_z(estimator: Estimator, draws: int = 4000) -> float:
    """How many standard errors a component of the gradient of log p, of the embedding of a word, lies from the exact
    one of all sets; of many components the largest."""
    m = model(scale=2.0)
    table = m.backbone.model.get_input_embeddings().weight
    rows = 50
    of = []
    batch = collate([[Text([4]), Target([5, 6, 7])]] * rows, m.vocab)

    def gradient(estimator: Estimator, step: int, batch: Batch) -> Tensor:
        value = nll_of(m, planned(batch, estimator, NoiseKey(5, step), m.vocab)).sum() / len(batch)
        (grad,) = torch.autograd.grad(value, table)
        out: Tensor = grad[4:9, :8].flatten()
        return out

    exact = gradient(AnyOrder(), 0, replace(batch, **{n: getattr(batch, n)[:1] for n in SLICED}))
    for step in range(draws // rows):
        of.append(gradient(estimator, step, batch))
    found = torch.stack(of)
    z = (found.mean(0) - exact) / (found.std(0) / len(found) ** 0.5).clamp(min=1e-9)
    return float(z.abs().max())


SLICED = ("ids_BL", "target_BL", "attend_BL", "position_ids_BL", "segment_BL", "index_B")


@pytest.mark.parametrize("estimator", [Elbo(1), Drawn(times=1), Drawn(ExactCount(), times=1)], ids=str)
def test_its_gradient_is_unbiased(estimator: Estimator) -> None:
    """The largest of 40 correlated components: 4.2 standard errors are exceeded once in about 1,000 such tests."""
    assert gradient_z(estimator) < 4.2


def test_the_check_of_bias_sees_a_bias() -> None:
    assert gradient_z(Never1()) > 7


# Margins -------------------------------------------------------------------------------------------------------------


def test_a_margin_by_hand() -> None:
    m, other = model(), model(1)
    objective = Preference(estimator=AnyOrder(), reference=Fixed(other), beta=0.3, chosen=0.5).for_model(m)
    plan = objective.plan(collate([PAIR], m.vocab), KEY, m.vocab)
    terms = objective.terms(m, plan)
    halves = [[Text([4, 5]), Target([5, 6])], [Text([4, 5]), Target([6, 6, 7])]]
    nll = {
        (name, n): float(estimate(one, collate([half], m.vocab), AnyOrder()).nll_B)
        for name, one in (("own", m), ("base", other))
        for n, half in enumerate(halves)
    }
    expected = (nll["base", 0] - nll["own", 0]) - (nll["base", 1] - nll["own", 1])
    assert float(terms["preference"].sums["margin"][0]) == pytest.approx(expected, rel=1e-4)
    assert float(terms["preference"].value.detach()) == pytest.approx(np.log1p(np.exp(-0.3 * expected)), rel=1e-4)
    assert float(terms["chosen"].value.detach()) == pytest.approx(nll["own", 0], rel=1e-4)
    assert (terms["chosen"].coefficient, plan.counts) == (0.5, {"preference": 1.0, "chosen": 2.0})
    free = Preference(estimator=AnyOrder(), reference=None, per_token=True).for_model(m)
    expected = -nll["own", 0] / 2 + nll["own", 1] / 3
    assert margin(free, m, collate([PAIR], m.vocab)) == pytest.approx(expected, rel=1e-4)


@dataclass(frozen=True)
class Fixed:
    """The reference of a test: another model."""

    model: Any

    def of(self, model: Any) -> Any:
        def call(function: Any, model: Any) -> Any:
            with torch.no_grad():
                return function(self.model)

        return call


def test_losses_of_a_margin() -> None:
    found = Logistic(0.25)(torch.tensor([2.0]), 0.5)
    assert float(found) == pytest.approx(0.75 * np.log1p(np.exp(-1)) + 0.25 * np.log1p(np.exp(1)))
    assert float(Squared()(torch.tensor([2.0]), 0.5)) == pytest.approx(1.0)


@pytest.mark.parametrize("reference", [AdaptersOff(), Copied()])
def test_a_model_that_is_its_reference_has_a_margin_of_nothing(reference: Any) -> None:
    """To the bit, for both see the same masks; under masks of its own it would not be."""
    m = model()
    lora(m)
    batch = collate([PAIR] * 4, m.vocab)
    objective = Preference(reference=reference).for_model(m)
    term = objective.terms(m, objective.plan(batch, KEY, m.vocab))["preference"]
    assert [float(term.sums[n][0]) for n in ("margin", "chosen_gain")] == [0.0, 0.0]
    assert float(term.value.detach()) == pytest.approx(4 * np.log(2))
    forwards = [planned(by_document(batch)[0], Elbo(8), replace(KEY, step=s), m.vocab) for s in (1, 2)]
    apart = [float(nll_of(m, one).sum().detach()) for one in forwards]
    assert apart[0] != apart[1]


def test_adapters_off_is_the_model_before_and_on_again_the_model_after() -> None:
    m = model()
    batch = collate([PAIR] * 2, m.vocab)
    laid = planned(by_document(batch)[0], Elbo(4), KEY, m.vocab)
    before = nll_of(m, laid).detach()
    factors = lora(m)
    reference = AdaptersOff().of(m)
    m.train()
    with torch.no_grad():
        for p in factors:
            p.add_(0.3)
    moved = nll_of(m, laid).detach()
    assert torch.equal(reference(lambda one: nll_of(one, laid), m), before)
    assert m.training and all(p.requires_grad for p in factors)
    assert torch.equal(nll_of(m, laid).detach(), moved) and not torch.equal(moved, before)


def test_a_saved_reference(tmp_path: Path) -> None:
    m = model()
    m.save_pretrained(tmp_path / "sft")
    batch = collate([PAIR] * 2, m.vocab)
    with torch.no_grad():
        base = nll_of(m, planned(by_document(batch)[0], Elbo(4), KEY, m.vocab))
        for p in m.parameters():
            p.add_(0.05)
    frozen = Saved(str(tmp_path / "sft")).of(m)
    found = frozen(lambda one: nll_of(one, planned(by_document(batch)[0], Elbo(4), KEY, m.vocab)), m)
    assert torch.equal(found, base) and not found.requires_grad
    with pytest.raises(ConfigError, match=r"has 9 ids, expected 14"):
        Saved(str(tmp_path / "sft")).of(model_with())


def test_a_reference_that_would_move_is_refused() -> None:
    m = model()
    with pytest.raises(ConfigError, match="the model has no adapters; expected LoRA alone"):
        AdaptersOff().of(m)
    lora(m)
    m.backbone.model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"backbone\..*weight is trained; expected LoRA alone"):
        AdaptersOff().of(m)


def test_samples_that_are_no_pairs_are_refused() -> None:
    m = model()
    objective = Preference(reference=None)
    with pytest.raises(DataError, match="sample 0 of the batch: 1 answers, expected a chosen and a rejected"):
        objective.plan(collate([[Text([4]), Target([5])]], m.vocab), KEY, m.vocab)
    with pytest.raises(DataError, match="sample 0 of the batch: the rejected answer has no target"):
        objective.plan(collate([[Text([4]), Target([5]), Break(), Text([4])]], m.vocab), KEY, m.vocab)


# The variance of a margin --------------------------------------------------------------------------------------------


def spread(estimator: Estimator, shared: bool = True) -> float:
    """The variance, over draws of masks, of the margin of a model near its reference, of answers of 12 tokens."""
    base, own = model(scale=3.0), model(scale=3.0)
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    rng = np.random.default_rng(2)
    row = [[Text([4]), Target(rng.integers(4, 9, 12).tolist())]] * 200
    batch = collate(row, own.vocab)
    keys = NoiseKey(1, stream="a"), NoiseKey(1, stream="a" if shared else "b")
    with torch.no_grad():
        nll = [nll_of(m, planned(batch, estimator, k, m.vocab)).sum(1) for m, k in zip((own, base), keys, strict=True)]
    return float((nll[1] - nll[0]).double().var())


def test_what_makes_a_margin_vary_less() -> None:
    """VRPO's theorems, in their order: many times before many masks of one time, and one set of masks for both models.

    Exact counts that are spread over 1..n vary less than drawn times.
    """
    times, masks = spread(Drawn(times=8)), spread(Drawn(times=1, masks=8))
    apart, even = spread(Drawn(times=8), shared=False), spread(Elbo(8))
    print(f"variance: {times:.4f} eight times, {masks:.4f} eight masks, {apart:.2f} own masks, {even:.4f} even counts")
    assert 1.2 * times < masks and 10 * times < apart and 1.5 * even < times


def test_the_loss_of_a_sigmoid_is_biased_by_the_variance() -> None:
    """Its mean over draws lies above the loss of the mean margin (Jensen), and the further the fewer the forwards."""
    gaps = []
    m, other = model(), model(1)
    batch = collate([PAIR] * 300, m.vocab)
    for times in (1, 8):
        objective = Preference(estimator=Drawn(times=times), reference=Fixed(other), beta=1.0).for_model(m)
        plan = objective.plan(batch, KEY, m.vocab)
        with torch.no_grad():
            gain_D = [-nll_of(one, plan).sum(1) for one in (m, other)]
        margin_B = (gain_D[0] - gain_D[1])[::2] - (gain_D[0] - gain_D[1])[1::2]
        gaps.append(float(Logistic()(margin_B, 1.0).mean() - Logistic()(margin_B.mean()[None], 1.0)))
    assert gaps[0] > 2 * gaps[1] > 0


# Learning ------------------------------------------------------------------------------------------------------------


def rise(beta: float, *, swapped: bool = False) -> float:
    """How much log p(a)/p(b) rises over the reference's where people choose a over b 3 times in 4.

    Prompts that are told apart by nothing: the model is one number. Answers are one token, so estimates are exact.
    swapped: the answer that was chosen is said to be the rejected one.
    """
    m = model_with()
    pairs = [(1, 2), (1, 2), (1, 2), (2, 1)]
    rows = [[Text([FIRST]), Target([FIRST + x]), Break(), Text([FIRST]), Target([FIRST + y])] for x, y in
            ([(y, x) for x, y in pairs] if swapped else pairs)]  # fmt: skip
    batch = collate(rows * 10, m.vocab)
    objective = Preference(estimator=MeanField(), beta=beta, reference=Copied()).for_model(m)
    one = collate([[Text([FIRST]), Target([FIRST + x])] for x in (1, 2)], m.vocab)

    def log_ratio() -> float:
        nll_B = estimate(m, one, MeanField()).nll_B
        return float(nll_B[1] - nll_B[0])

    before = log_ratio()
    fit(m, [(objective, 3e-3, 60), (objective, 3e-4, 60)], batch)
    return log_ratio() - before


def test_the_optimum_of_two_answers_is_bradley_and_terrys() -> None:
    """C10: log(3) / beta."""
    assert rise(1.0) == pytest.approx(np.log(3), abs=0.03)


@pytest.mark.parametrize(("beta", "swapped"), [(2.0, False), (1.0, True)])
def test_another_beta_and_swapped_pairs_have_another_optimum(beta: float, swapped: bool) -> None:
    """The deliberately wrong parts of C10, each with the optimum that it should have."""
    found = rise(beta, swapped=swapped)
    assert found != pytest.approx(np.log(3), abs=0.3)
    assert found == pytest.approx((-1 if swapped else 1) * np.log(3) / beta, abs=0.03)


def test_what_people_prefer_becomes_likelier_and_the_base_stays() -> None:
    """A pair of words, of which the ascending one is preferred; LoRA, and its base as the reference."""
    m = model_with(layers=1)
    lora(m)
    base = {n: p.clone() for n, p in m.named_parameters() if ".lora_" not in n}
    rows = [
        [Text([FIRST]), Target([FIRST + k, FIRST + (k + 1) % 10]), Break(),
         Text([FIRST]), Target([FIRST + k, FIRST + (k + 9) % 10])]
        for k in range(10)
    ]  # fmt: skip
    objective = Preference(estimator=Elbo(2), beta=0.5).for_model(m)
    batch = collate(rows * 4, m.vocab)
    fit(m, [(objective, 1e-2, 100)], batch)
    term = objective.terms(m, objective.plan(batch, KEY, m.vocab))["preference"]
    preferred, mean = (float(a / b) for a, b in (term.sums["preferred"], term.sums["margin"]))
    print(f"preferred {preferred:.2f}, margin {mean:.2f} nats")
    assert preferred > 0.97 and mean > 0.4
    assert all(torch.equal(p, base[n]) for n, p in m.named_parameters() if n in base)


def test_levels_of_a_trained_bound_are_unbiased_as_estimates() -> None:
    """`Drawn` is the bound that `Denoise` trains: with eps, a share of eps above it at most."""
    m = model()
    batch = collate([[Text([4]), Target([5, 6, 7])]] * 3000, m.vocab)
    exact = float(estimate(m, collate([[Text([4]), Target([5, 6, 7])]], m.vocab), AnyOrder()).nll_B)
    for levels in (Bernoulli(), ExactCount()):
        found = estimate(m, batch, Drawn(levels, times=2)).nll_B
        assert abs(float((found.mean() - exact) / (found.std() / 3000**0.5))) < 3.5
