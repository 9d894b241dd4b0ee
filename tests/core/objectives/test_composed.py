"""Objectives made of others: unbiased against exact conditionals, equal to what they contain, gradients by enumeration.

Shape letters: B samples, L positions, R rows, P masked positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import toy
from oracle import VOCAB, Oracle, canvas
from torch import Tensor

from mmdiff.canvas.patterns import BlockCausal, Full
from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.config import build
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount
from mmdiff.diffusion.schedule import Cosine
from mmdiff.diffusion.spans import Mixture, Nothing
from mmdiff.diffusion.spread import Clipped, Independent, SharedOffset
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood import bound
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.objectives.composed.clip_search import best_clip, clip_variances, clipped, group_losses, intervals_of
from mmdiff.objectives.composed.consistency import MaskAgnostic
from mmdiff.objectives.composed.esoteric import ORDER, Esoteric
from mmdiff.objectives.composed.least_variance import LeastVariance
from mmdiff.objectives.composed.score_entropy import ScoreEntropy
from mmdiff.objectives.composed.together import Together
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.extras.learned_rates import LearnedRates
from mmdiff.objectives.extras.token_rates import TokenRates
from mmdiff.objectives.noising.change import Replaced
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.terms import Term
from tests.core.objectives.extras.pairs import fit, model_with, pairs

X = (2, 0, 1, 1)
ALL = ExactCount(full=1.0)


def model(attention: Any = None, image: bool = False, extras: Any = None) -> MMDiff:
    torch.manual_seed(0)
    parts: tuple[Any, ...] = ({"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)})
    out = MMDiff(toy.backbone(), *(parts if image else ()), attention=attention or Full(), extras=extras or {})
    with torch.no_grad():
        for p in out.backbone.parameters():
            p.mul_(3)
    return out.eval()


# Together ------------------------------------------------------------------------------------------------------------


def test_a_sum_is_its_parts_each_with_its_own_noise_and_count() -> None:
    m = model()
    batch = collate([[Text([4]), Target([5, 6, 7, 8, 4])], [Text([6]), Target([8, 8])]], m.vocab)
    masks, tokens = Denoise(levels=Mixture()), Denoise(levels=Nothing(), changes=[Replaced(0.5, scored=True)])
    objective = Together({"masks": masks, "tokens": tokens}, {"tokens": 0.5})
    key = NoiseKey(3, batch=2)
    plan = objective.plan(batch, key, m.vocab)
    terms = objective.terms(m, plan)
    for name, one, coefficient in (("masks", masks, 1.0), ("tokens", tokens, 0.5)):
        own = one.plan(batch, key.fold(name), m.vocab)
        term = one.terms(m, own)["denoise"]
        torch.testing.assert_close(terms[f"{name}_denoise"].value, term.value)
        assert terms[f"{name}_denoise"].coefficient == coefficient
        assert plan.counts[f"{name}_denoise"] == own.counts["denoise"]
    with pytest.raises(ConfigError, match="objective.weights.token: no such objective"):
        Together({"tokens": tokens}, {"token": 1.0})


def test_a_sum_is_built_from_nodes_and_knows_the_model() -> None:
    node = {
        "target": "mmdiff.objectives.composed.together.Together",
        "of": {
            "blocks": {"target": "mmdiff.objectives.blocks.BlockDenoise"},
            "plain": {"target": "mmdiff.objectives.denoise.Denoise"},
        },
    }
    made = build(node).for_model(model(BlockCausal(2, "targets")))
    assert made.of == {"blocks": BlockDenoise(BlockCausal(2, "targets")), "plain": Denoise()}


# Extra masks ---------------------------------------------------------------------------------------------------------


def test_copies_with_as_many_masks_do_not_differ_and_others_do() -> None:
    m = model(image=True)
    rng = np.random.default_rng(0)
    rows: list[Sample] = [
        [Media("image", rng.normal(size=(1, 8, 8)).astype(np.float32)), Text([4]), Target([5, 6, 7, 8, 4][:n])]
        for n in (3, 5)
    ]
    batch = collate(rows, m.vocab, m.readers)
    objective = MaskAgnostic(Denoise(levels=ALL), most=6, tv=0.5)
    plan = objective.plan(batch, NoiseKey(0, batch=2), m.vocab)
    lengths = [p.batch.attend_BL.sum(1).tolist() for p in plan.plans.values()]
    assert lengths[0] != lengths[1]
    terms = objective.terms(m, plan)
    assert terms["tv"].coefficient == 0.5 and plan.counts == {"denoise": 8.0, "tv": 8.0}
    alone = [Denoise(levels=ALL).terms(m, one)["denoise"].value for one in plan.plans.values()]
    torch.testing.assert_close(terms["denoise"].value, (alone[0] + alone[1]) / 2)
    p_2PV = []
    for one in plan.plans.values():
        h = m.hidden(one.ids_RL, one.batch, m.encode(one.batch.media), one.row_R)
        p_2PV.append(m.backbone.head(h[one.masked_RL]).float().softmax(-1))
    torch.testing.assert_close(terms["tv"].value, (p_2PV[0] - p_2PV[1]).abs().sum() / 2)  # at rate 1
    plan.plans["1"] = plan.plans["0"]
    assert float(objective.terms(m, plan)["tv"].value.detach()) == 0


def test_the_variation_is_weighted_by_the_rate() -> None:
    m = model()
    batch = collate([[Text([4]), Target([5, 6, 7, 8])]] * 6, m.vocab)
    plan = MaskAgnostic(Denoise(), most=3).plan(batch, NoiseKey(0, batch=6), m.vocab)
    m.logit_chunk = 4  # several chunks
    states = [torch.randn(int(one.masked_RL.sum()), 32) for one in plan.plans.values()]
    p_2PV = [m.backbone.head(h).float().softmax(-1) for h in states]
    first = plan.plans["0"]
    expected = ((p_2PV[0] - p_2PV[1]).abs().sum(1) / 2 * first.rate_RL[first.masked_RL]).sum()
    torch.testing.assert_close(MaskAgnostic().variation(m, first, states), expected)


# Score entropy -------------------------------------------------------------------------------------------------------


def test_score_entropy_is_the_bound_where_logits_are_normalised_and_above_it_elsewhere() -> None:
    m = model()
    batch = collate([[Text([4]), Target([5, 6], allow=((4, 8),))], [Text([4]), Target([7, 8, 4])]], m.vocab)
    objective, plain = ScoreEntropy(), Denoise(levels=Bernoulli())
    plan = objective.plan(batch, NoiseKey(5, batch=2), m.vocab)
    h_PD = m.gather(m.hidden(plan.ids_RL, batch, {}, plan.row_R), *plan.masked_RL.nonzero(as_tuple=True))
    sets_P = batch.allow_BL[plan.masked_RL]  # type: ignore[index]
    logits = m.backbone.head(h_PD).float().masked_fill(~batch.allow_KV[sets_P], -torch.inf)  # type: ignore[index]
    z_P, w_P = logits.exp().sum(1), plan.weight_RL[plan.masked_RL]
    expected = plain.terms(m, plan)["denoise"].value + (w_P * (z_P - z_P.log() - 1)).sum()
    found = objective.terms(m, plan)["denoise"].value
    torch.testing.assert_close(found, expected)
    assert float((found - plain.terms(m, plan)["denoise"].value).detach()) > 0.1

    head = m.backbone.head
    m.backbone.head = lambda h, ids=None: (
        head(h)
        .float()
        .masked_fill(  # type: ignore[method-assign]
            torch.arange(m.vocab.size) < 0, 0.0
        )
        .log_softmax(-1)
    )
    free = collate([[Text([4]), Target([5, 6])], [Text([4]), Target([7, 8, 4])]], m.vocab)
    plan = objective.plan(free, NoiseKey(5, batch=2), m.vocab)
    torch.testing.assert_close(objective.terms(m, plan)["denoise"].value, plain.terms(m, plan)["denoise"].value)


# Between diffusion and left to right ---------------------------------------------------------------------------------


def eso_losses(objective: Esoteric, rows: int) -> np.ndarray:
    oracle = Oracle.random()
    oracle.attention = ORDER
    plan = objective.plan(canvas([X] * rows), NoiseKey(1, batch=rows), VOCAB)
    total = np.zeros(rows)
    for name, noised in plan.plans.items():
        weight_RL = noised.weight_RL.clone().requires_grad_()
        plans = plan.plans | {name: replace(noised, weight_RL=weight_RL)}
        value = objective.terms(oracle, replace(plan, plans=plans))[name].value  # type: ignore[arg-type]
        (nll_RL,) = torch.autograd.grad(value, weight_RL)
        total += (nll_RL.double() * noised.weight_RL).sum(1).numpy()
    return total


@pytest.mark.parametrize("objective", [Esoteric(0.0), Esoteric(0.3), Esoteric(0.8, Cosine()), Esoteric(1.0)], ids=repr)
def test_the_bound_of_any_share_is_unbiased(objective: Esoteric) -> None:
    found = eso_losses(objective, 4000)
    error = max(found.std() / 4000**0.5, 1e-6)
    assert abs(found.mean() - Oracle.random().nll(X)) < 3.5 * error
    assert (found.std() < 1e-5) == (objective.share == 0)


@dataclass(frozen=True)
class Both(Esoteric):
    """A biased one: diffusion counts in full, as if nothing were left to be predicted in order."""

    def plan(self, *args: Any) -> Any:
        out = super().plan(*args)
        whole = Denoise(levels=Bernoulli()).plan(*args)
        out.plans["diffusion"] = replace(whole, batch=out.plans["diffusion"].batch)
        return out


def test_the_check_of_bias_sees_tokens_that_count_twice() -> None:
    found = eso_losses(Both(0.5), 2000)
    assert (found.mean() - Oracle.random().nll(X)) / (found.std() / 2000**0.5) > 5


def test_its_ends_are_left_to_right_and_masked_diffusion() -> None:
    m, full = model(ORDER), model()
    batch = collate([[Text([4, 5]), Target([5, 6, 7, 8, 4])], [Text([6]), Target([8, 8])]], m.vocab)
    key = NoiseKey(2, batch=2)
    terms = Esoteric(0.0).terms(m, Esoteric(0.0).plan(batch, key, m.vocab))
    blocks = BlockDenoise(ORDER, levels=ALL)
    expected = blocks.terms(m, blocks.plan(batch, key, m.vocab))["denoise"].value
    torch.testing.assert_close(terms["sequential"].value, expected)
    assert float(terms["diffusion"].value.detach()) == 0
    plan = Esoteric(1.0).plan(batch, key, m.vocab)
    terms = Esoteric(1.0).terms(m, plan)
    plain = Denoise(levels=Bernoulli(stratified=True))
    own = plain.plan(batch, key.fold("diffusion"), m.vocab)
    torch.testing.assert_close(terms["diffusion"].value, plain.terms(full, own)["denoise"].value, rtol=1e-5, atol=1e-6)
    assert float(terms["sequential"].value.detach()) == 0 and plan.counts == {"diffusion": 7.0, "sequential": 7.0}


def test_a_token_in_order_sees_all_that_is_not_masked_and_masked_ones_before_it_only() -> None:
    m = model(ORDER)
    batch = collate([[Text([4]), Target([5, 6, 7, 8, 4, 6])]], m.vocab)
    objective = Esoteric(0.5)
    plans = (objective.plan(batch, NoiseKey(step), m.vocab).plans["sequential"] for step in range(50))
    plan = next(plan for plan in plans if 2 <= int(plan.masked_RL.sum()) <= 4)
    masked = plan.masked_RL[0].nonzero().squeeze(1).tolist()
    base = m.hidden_copies(plan.ids_RL, plan.batch, {}, 1, blockwise=True)[0, masked]
    for changed in range(1, 7):
        ids = plan.batch.ids_BL.clone()
        ids[0, changed] = 4 + (int(ids[0, changed]) - 3) % 5
        noised = torch.where(plan.masked_RL, plan.ids_RL, ids)
        moved = m.hidden_copies(noised, replace(plan.batch, ids_BL=ids), {}, 1, blockwise=True)[0, masked]
        differs = (moved != base).any(-1).tolist()
        assert differs == [changed not in masked or changed < at for at in masked]


def test_another_pattern_is_refused() -> None:
    m = model()
    objective = Esoteric()
    with pytest.raises(ConfigError, match=r"model.attention: Full\(\), expected BlockCausal"):
        objective.terms(m, objective.plan(collate([[Target([4, 5])]], m.vocab), NoiseKey(0), m.vocab))


# Learned rates -------------------------------------------------------------------------------------------------------


def rated(powers: list[float] | None = None) -> MMDiff:
    m = model(extras={"rates": TokenRates(vocab_size=toy.backbone().vocab.size)})
    if powers is not None:
        with torch.no_grad():
            m.extras["rates"].log_power[4 : 4 + len(powers)] = torch.tensor(powers).log()  # type: ignore[index]
    return m


def test_equal_powers_are_the_linear_schedule() -> None:
    m = rated()
    batch = collate([[Text([4]), Target([5, 6, 7, 8, 4])]] * 3, m.vocab)
    objective = LearnedRates().for_model(m)
    plan = objective.plan(batch, NoiseKey(0, batch=3), m.vocab)
    found = objective.terms(m, plan)["denoise"].value
    torch.testing.assert_close(found, Denoise().terms(m, plan)["denoise"].value)
    time_R = plan.drawn["time"]
    torch.testing.assert_close(plan.rate_RL[:, 1], 0.999 * time_R)
    assert torch.equal(time_R[:3], time_R[3:]) and not torch.equal(plan.masked_RL[:3], plan.masked_RL[3:])


def test_the_gradient_of_the_powers_is_that_of_the_expected_loss() -> None:
    """At one time, over all pairs of masks with their probabilities, against the derivative of the enumerated mean."""
    m = rated([0.6, 1.5, 0.9])
    batch = collate([[Text([7]), Target([4, 5, 6])]], m.vocab)
    objective, eps = LearnedRates(eps=0.01).for_model(m), 0.01
    base = objective.plan(batch, NoiseKey(0), m.vocab)
    t = 0.45
    base.drawn["time"] = torch.full((2,), t)
    base.weight_RL = torch.full_like(base.weight_RL, 1 / t)
    sets = [torch.tensor([0, *bits], dtype=torch.bool) for bits in product([0, 1], repeat=3)]
    log_power = m.extras["rates"].log_power

    def planned(*masks: Tensor) -> Any:
        masked_RL = torch.stack(masks)
        ids_RL = batch.ids_BL.repeat(2, 1).masked_fill(masked_RL, m.vocab.mask_id)
        return replace(base, masked_RL=masked_RL, ids_RL=ids_RL)

    def law(mask: Tensor) -> Tensor:
        rate = (1 - eps) * t ** log_power[[4, 5, 6]].exp()  # type: ignore[index]
        return torch.where(mask[1:], rate, 1 - rate).prod()

    expected = sum(law(s) * objective.terms(m, planned(s, s))["denoise"].value / 2 for s in sets)
    (true,) = torch.autograd.grad(expected, log_power)  # type: ignore[arg-type]
    found, without = torch.zeros_like(true), torch.zeros_like(true)
    for first, second in product(sets, sets):
        terms = objective.terms(m, planned(first, second))
        share = float((law(first) * law(second)).detach()) / 2
        (both,) = torch.autograd.grad(terms["denoise"].value + terms["masks"].value, log_power, retain_graph=True)
        (direct,) = torch.autograd.grad(terms["denoise"].value, log_power, materialize_grads=True, allow_unused=True)
        found, without = found + share * both, without + share * direct
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)
    assert (without - true).abs().max() > 0.05  # what would be left out


def test_a_model_without_rates_is_refused() -> None:
    with pytest.raises(ConfigError, match="model.extras.rates: the model has no such extra"):
        LearnedRates().for_model(model())
    with pytest.raises(ConfigError, match="expected `for_model` before"):
        LearnedRates().plan(canvas([X]), NoiseKey(0), VOCAB)


# Variance search -----------------------------------------------------------------------------------------------------


def test_the_search_finds_the_interval_of_least_variance() -> None:
    """Where every token costs 1 nat, the loss per target at rate r has the variance of k / (r n)."""
    oracle = Oracle(torch.ones(3, 3, 3, 3))
    objective = Denoise(levels=Bernoulli(eps=1e-6))
    found = clip_variances(oracle, [canvas([X] * 800)] * 3, objective, [(0.0, 1.0), (0.2, 0.4), (0.8, 1.0)])  # type: ignore[arg-type]
    assert list(found) == [(0.8, 1.0), (0.2, 0.4), (0.0, 1.0)]
    u = np.linspace(0.2, 0.4, 1001)
    assert found[0.2, 0.4] == pytest.approx(np.log(3) ** 2 * float(((1 - u) / u / 4).mean()), rel=0.15)
    best = best_clip(oracle, [canvas([X] * 60)], replace(objective, spread=SharedOffset()))  # type: ignore[arg-type]
    assert best.spread == Clipped(0.5, 1.0, SharedOffset())  # the highest of the published ones
    assert clipped(best, 0.1, 0.4).spread == Clipped(0.1, 0.4, SharedOffset())


def test_the_intervals_are_the_published_ones() -> None:
    found = intervals_of()
    assert len(found) == 1 + 11 + 9 + 7 + 5 + 3 and found[0] == (0.0, 1.0)
    assert {(0.3, 0.8), (0.45, 0.95), (0.5, 1.0), (0.1, 1.0), (0.0, 0.5)} <= set(found)
    assert all(round(high - low, 9) in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0) and high <= 1 for low, high in found)
    assert intervals_of([1.0, 0.5], 0.5) == [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)]


class Valley(Denoise):
    """A token costs 1 nat at mask rates within .2 and .7, and more outside: what varies least is known."""

    def terms(self, model: Any, plan: NoisedBatch) -> dict[str, Any]:
        cost_RL = 1 + 20 * ((plan.rate_RL - 0.7).clamp(min=0) + (0.2 - plan.rate_RL).clamp(min=0))
        return {"denoise": Term((plan.weight_RL * cost_RL * plan.masked_RL).sum())}


def test_the_search_finds_an_interval_between() -> None:
    """Of 400 targets the masks vary little: the cost decides, and widths that do not fit into the valley lose."""
    objective = LeastVariance(Valley(levels=Bernoulli(eps=1e-6)), batches=3)
    oracle, batches = Oracle(torch.ones(3, 3, 3, 3)), [canvas([X * 100] * 60)] * 9
    found = objective.search(oracle, batches, seed=0)  # type: ignore[arg-type]
    assert (found["clip_low"], found["clip_high"]) == (0.2, 0.7)
    u = np.linspace(0.2, 0.7, 10001)
    assert found["clip_variance"] == pytest.approx(float(((1 - u) / u).mean()) / 400, rel=0.25)
    assert found == objective.search(oracle, batches[:3], seed=0)  # type: ignore[arg-type]
    narrow = objective.found(found)
    assert narrow.of.spread == Clipped(0.2, 0.7, Independent()) and narrow.found(found) == narrow
    plan = narrow.plan(batches[0], NoiseKey(0, batch=60), VOCAB)
    assert 0.2 <= float(plan.rate_RL[plan.scored_RL].min()) < float(plan.rate_RL[plan.scored_RL].max()) <= 0.7


def test_losses_of_groups_add_up() -> None:
    m = model(ORDER)
    batch = collate([[Text([4]), Target([5, 6, 7])], [Text([6]), Target([8])]], m.vocab)
    objective = BlockDenoise(ORDER, copies=2)
    plan = objective.plan(batch, NoiseKey(0, batch=2), m.vocab)
    found = group_losses(m, objective, plan) * plan.group_RL[plan.scored_RL].bincount()
    assert len(found) == 8  # blocks of one position
    assert float(found.sum()) == pytest.approx(float(objective.terms(m, plan)["denoise"].value.detach()), rel=1e-5)


# They learn ----------------------------------------------------------------------------------------------------------


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("agnostic", "entropy", "esoteric")]


@pytest.mark.parametrize("name", ["rates", *LONG])
def test_pairs_are_learned(name: str) -> None:
    """(k, k + 1 mod 10): log 10 in nats is all there is to know of a pair, 2.3 of 4.6 where halves are independent."""
    extras = (lambda size: {"rates": TokenRates(vocab_size=size)}) if name == "rates" else None
    one = model_with(extras, attention=ORDER if name == "esoteric" else None)
    made: dict[str, Any] = {
        "agnostic": MaskAgnostic(most=4),
        "entropy": ScoreEntropy(Denoise()),
        "esoteric": Esoteric(0.5),
        "rates": LearnedRates().for_model(one) if name == "rates" else None,
    }
    fit(one, [(made[name], 3e-3, 150 if name != "entropy" else 350)])  # that learns to normalise first
    assert float(bound(one, pairs(one.vocab, 40)).nll_B.mean()) < 3.0
