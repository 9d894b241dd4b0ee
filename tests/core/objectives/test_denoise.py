"""The denoising loss: an oracle it must price exactly, reductions by hand, and what it must not depend on.

Shape letters: B samples, L positions, R rows, P masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from oracle import MASK, SEQUENCES, VOCAB, Oracle, canvas
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Media, Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount, Levels, Masked
from mmdiff.diffusion.schedule import Array, Cosine
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.objectives.denoise import Denoise, by_level
from mmdiff.objectives.heads import WordHead
from mmdiff.objectives.noising.change import replaced
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.objectives.readout import Readout

KEY = NoiseKey(7, step=2, stream="s", batch=4)
BERNOULLI = Bernoulli(eps=0.1)


def model() -> MMDiff:
    torch.manual_seed(0)
    out = MMDiff(toy.backbone(), {"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=32)})
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)  # far from uniform predictions, so that a wrong position or label shows
    return out.eval()


def words(*lengths: int, image: bool = False, prompt: int = 2) -> list[Sample]:
    """Prompts of `prompt` words and answers of the given lengths."""
    rng = np.random.default_rng(5)
    return [
        [
            *([Media("image", rng.normal(size=(1, 8, 8)).astype(np.float32))] if image else []),
            Text(rng.integers(4, 9, prompt).tolist()),
            Target(rng.integers(4, 9, n).tolist()),
        ]
        for n in lengths
    ]


def row_losses(objective: Denoise, m: Any, plan: NoisedBatch) -> Array:
    """The loss of each row: the derivative of the weighted sum by a weight is the cross-entropy at its position."""
    weight_RL = plan.weight_RL.clone().requires_grad_()
    value = objective.terms(m, replace(plan, weight_RL=weight_RL))["denoise"].value
    (nll_RL,) = torch.autograd.grad(value, weight_RL)
    return (nll_RL.double() * plan.weight_RL).sum(1).numpy()


# The bound -----------------------------------------------------------------------------------------------------------


class Enumerated:
    """In the place of a key: sample s draws the s-th of all pairs of a count and an order of the positions."""

    batch = 1
    draws = [((k - 0.5) / 4, order) for k in range(1, 5) for order in permutations(range(4))]

    def uniform(self, sample: int, n: int, copy: int = 0) -> Array:
        level, order = self.draws[sample % len(self.draws)]
        return np.array([level, 0.5, *(np.array(order) / 4)])


def test_the_loss_summed_over_all_masks_is_minus_log_p_of_every_sequence() -> None:
    oracle, n = Oracle.random(), len(Enumerated.draws)
    objective = Denoise(levels=ExactCount(stratified=False))
    batch = canvas([x for x in SEQUENCES for _ in range(n)])
    loss = row_losses(objective, oracle, objective.plan(batch, Enumerated(), VOCAB))  # type: ignore[arg-type]
    np.testing.assert_allclose(loss.reshape(-1, n).mean(1), [oracle.nll(x) for x in SEQUENCES], rtol=1e-6)


@dataclass(frozen=True)
class Clipped:
    """A biased estimator: weights above 2 are cut."""

    stratified: bool = False

    def mask(self, *draws: Any) -> Masked:
        out = Bernoulli().mask(*draws)
        return out._replace(weight_BL=np.minimum(out.weight_BL, 2))


@dataclass(frozen=True)
class AllButOne:
    """A biased estimator: a count of 1 is never drawn."""

    stratified: bool = False

    def mask(self, target_BL: Any, level_B: Array, *rest: Array) -> Masked:
        return ExactCount().mask(target_BL, 0.25 + 0.75 * level_B, *rest)


def z_and_spread(levels: Levels, rows: int = 12_000) -> tuple[float, float]:
    oracle, x = Oracle.random(), (2, 0, 1, 1)
    objective = Denoise(levels=levels)
    plan = objective.plan(canvas([x] * rows), NoiseKey(3, batch=rows), VOCAB)
    loss = row_losses(objective, oracle, plan)
    return float((loss.mean() - oracle.nll(x)) / (loss.std() / rows**0.5)), float(loss.std())


@pytest.mark.parametrize(
    "levels", [Bernoulli(), Bernoulli(Cosine()), Bernoulli(stratified=True), ExactCount(stratified=False), ExactCount()]
)
def test_drawn_masks_are_unbiased(levels: Levels) -> None:
    assert abs(z_and_spread(levels)[0]) < 3.5


@pytest.mark.parametrize("levels", [Clipped(), AllButOne(), ExactCount(full=0.5)])
def test_the_check_of_bias_sees_a_bias(levels: Levels) -> None:
    assert abs(z_and_spread(levels)[0]) > 5


def test_order_of_the_spreads() -> None:
    """Exact counts spread less than Bernoulli; with levels spread evenly, the losses of whole steps less again."""
    assert 1.5 * z_and_spread(ExactCount(stratified=False))[1] < z_and_spread(Bernoulli())[1]
    oracle, x = Oracle.random(), (2, 0, 1, 1)
    steps = {}
    for levels in (ExactCount(stratified=False), ExactCount()):
        objective = Denoise(levels=levels)
        of = []
        for step in range(150):
            plan = objective.plan(canvas([x] * 8), NoiseKey(0, step, batch=8), VOCAB)
            of.append(row_losses(objective, oracle, plan).mean())
        steps[levels.stratified] = np.std(of)
    assert 1.3 * steps[True] < steps[False]


# Reductions ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(m: MMDiff, batch: Batch, key: NoiseKey, denominator: str) -> float:
    """LLaDA's pseudo-code, a row at a time: p = (1 - eps) u + eps, then cross-entropy over p."""
    total, rows, tokens, masked = 0.0, 0, 0, 0
    for b in range(len(batch)):
        positions = batch.target_BL[b].nonzero().squeeze(1).tolist()
        u = key.uniform(int(batch.index_B[b]), 2 + len(positions))
        p = 0.9 * u[0] + 0.1
        noisy = batch.ids_BL[b].clone()
        hit = [position for position, r in zip(positions, u[2:], strict=True) if r < p]
        noisy[hit] = m.vocab.mask_id
        attend = batch.attend_BL[b]
        logits = m.backbone(noisy[attend][None])[0]
        kept = attend.nonzero().squeeze(1).tolist()
        ce = sum(float(F.cross_entropy(logits[kept.index(i)], batch.ids_BL[b, i])) / p for i in hit)
        total += ce / len(positions) if denominator == "sequences" else ce
        rows, tokens, masked = rows + 1, tokens + len(positions), masked + len(hit)
    return total / {"sequences": rows, "tokens": tokens, "masked": masked}[denominator]


@pytest.mark.parametrize("denominator", ["tokens", "sequences", "masked"])
@pytest.mark.parametrize("padding", ["ignore", "eos"])
def test_denominators_on_a_ragged_batch(denominator: str, padding: Any) -> None:
    """`sequences` with `eos` is LLaDA's tuning loss: (1/B) sum of (1/L_b) sum of CE / p_b, padding answered."""
    m = model()
    batch = collate(words(1, 5, 3), m.vocab, padding=padding, index=[4, 9, 2])
    assert batch.target_BL.sum(1).tolist() == ([5, 5, 5] if padding == "eos" else [1, 5, 3])
    objective = Denoise(levels=BERNOULLI, denominator=denominator)
    plan = objective.plan(batch, KEY, m.vocab)
    assert plan.masked_RL.any(1).sum() >= 2
    loss = objective.terms(m, plan)["denoise"].value / plan.counts["denoise"]
    assert float(loss.detach()) == pytest.approx(by_hand(m, batch, KEY, denominator), rel=1e-5)


def test_the_three_denominators_differ() -> None:
    m = model()
    batch = collate(words(1, 5, 3), m.vocab, index=[4, 9, 2])
    assert len({round(by_hand(m, batch, KEY, d), 4) for d in ("tokens", "sequences", "masked")}) == 3


def test_a_row_without_targets_counts_for_nothing() -> None:
    m = model()
    samples = words(2, 4)
    for denominator in ("tokens", "sequences"):
        objective = Denoise(denominator=denominator)
        losses = []
        for more in ([], [[Text([4, 5, 6])]]):
            plan = objective.plan(collate([*samples, *more], m.vocab), replace(KEY, batch=4), m.vocab)
            losses.append(float(objective.terms(m, plan)["denoise"].value.detach()) / plan.counts["denoise"])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_without_targets_has_a_loss_of_zero() -> None:
    m = model()
    plan = Denoise().plan(collate([[Text([4, 5, 6])]], m.vocab), KEY, m.vocab)
    value = Denoise().terms(m, plan)["denoise"].value
    value.backward()
    assert float(value.detach()) == 0 and plan.counts == {"denoise": 0.0}


# What is masked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [BERNOULLI, ExactCount()])
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_pictures_and_padding_are_never_masked(levels: Levels, side: Any) -> None:
    m = model()
    batch = collate(words(1, 6, 3, image=True), m.vocab, m.readers, side=side)
    clean_BL = batch.ids_BL.clone()
    for step in range(20):
        plan = Denoise(levels=levels).plan(batch, NoiseKey(0, step), m.vocab)
        assert not (plan.masked_RL & ~batch.target_BL).any()
        torch.testing.assert_close(plan.ids_RL[~plan.masked_RL], clean_BL[~plan.masked_RL], rtol=0, atol=0)
        assert (plan.ids_RL[plan.masked_RL] == m.vocab.mask_id).all()
    torch.testing.assert_close(batch.ids_BL, clean_BL, rtol=0, atol=0)


def test_noise_does_not_depend_on_mates_order_or_padding() -> None:
    m, samples = model(), words(3, 6, 1, 4)
    levels = ExactCount()

    def masks(order: list[int], **how: Any) -> dict[int, list[bool]]:
        batch = collate([samples[i] for i in order], m.vocab, index=[10 + i for i in order], **how)
        plan = Denoise(levels=levels).plan(batch, KEY, m.vocab)
        return {i: plan.masked_RL[b, batch.target_BL[b]].tolist() for b, i in enumerate(order)}

    whole = masks([0, 1, 2, 3])
    assert masks([3, 1, 0, 2]) == whole
    assert masks([0, 1, 2, 3], side="left") == whole
    assert {**masks([2, 3]), **masks([0]), **masks([1])} == whole
    other = Denoise(levels=levels).plan(
        collate(samples, m.vocab, index=[10, 11, 12, 13]), replace(KEY, step=3), m.vocab
    )
    assert other.masked_RL[1, 2:8].tolist() != whole[1] or other.masked_RL[3, 2:6].tolist() != whole[3]


@pytest.mark.parametrize("side", ["left", "right"])
def test_random_length_cuts_its_share_uniformly(side: Any) -> None:
    vocab = model().vocab
    batch = collate([[Target([4] * n)] for n in [10] * 4000 + [20]], vocab, side=side)
    plan = Denoise(random_length=0.25).plan(batch, KEY, vocab)
    length_B = plan.batch.attend_BL[:-1].sum(1)
    assert 1 <= length_B.min() and length_B.max() == 10
    share_cut = 0.25 * 0.9  # a cut to all ten positions is none
    assert float((length_B < 10).float().mean()) == pytest.approx(share_cut, abs=4 * (0.18 / 4000) ** 0.5)
    counts = torch.bincount(length_B, minlength=11)[1:10].double()
    assert (counts - 100).abs().max() < 5 * 10
    assert (
        torch.equal(plan.batch.target_BL, plan.batch.attend_BL) and not (plan.masked_RL & ~plan.batch.attend_BL).any()
    )
    first = batch.attend_BL.int().argmax(1)
    assert torch.equal(plan.batch.attend_BL.int().argmax(1), first)  # what remains is the beginning
    assert plan.counts["denoise"] == float(plan.batch.target_BL.sum())


def test_nothing_cut_leaves_no_padding_mask() -> None:
    vocab = model().vocab
    plan = Denoise(random_length=1e-9).plan(collate(words(3, 3), vocab), KEY, vocab)
    assert not plan.batch.padded


# Copies --------------------------------------------------------------------------------------------------------------


def test_views_share_one_encoding_and_average_to_the_single_views() -> None:
    m, seen = model(), []
    m.encoders["image"].register_forward_hook(lambda *_: seen.append(1))
    batch = collate(words(2, 5, image=True), m.vocab, m.readers)
    objective = Denoise(levels=BERNOULLI, copies=3)
    plan = objective.plan(batch, KEY, m.vocab)
    loss = float(objective.terms(m, plan)["denoise"].value.detach()) / plan.counts["denoise"]
    assert seen == [1]
    single = []
    for v in range(3):
        rows = slice(2 * v, 2 * v + 2)
        one = replace(
            plan, ids_RL=plan.ids_RL[rows], masked_RL=plan.masked_RL[rows], weight_RL=plan.weight_RL[rows],
            rate_RL=plan.rate_RL[rows], row_R=torch.arange(2),
        )  # fmt: skip
        single.append(float(objective.terms(m, one)["denoise"].value.detach()) / 7)
    assert len({round(s, 4) for s in single}) == 3
    assert loss == pytest.approx(np.mean(single), rel=1e-5)
    first = Denoise(levels=BERNOULLI).plan(batch, KEY, m.vocab)
    assert torch.equal(plan.masked_RL[:2], first.masked_RL)


# Scores --------------------------------------------------------------------------------------------------------------


def test_restricted_softmax() -> None:
    """Rows may differ in what they allow; positions without `allow`, and restrict=False, use the whole vocabulary."""
    m = model()
    allowed = [[4, 5, 8], list(range(m.vocab.size))]
    batch = collate([[Text([4]), Target([5, 8, 4], allow=((4, 6), (8, 9)))], [Text([4]), Target([5, 6])]], m.vocab)
    for restrict in (True, False):
        objective = Denoise(levels=ExactCount(full=1.0), restrict=restrict)
        got = objective.terms(m, objective.plan(batch, KEY, m.vocab))["denoise"].value
        expected = 0.0
        for b, n in enumerate([3, 2]):
            ids = batch.ids_BL[b, : 1 + n].clone()
            ids[1:] = m.vocab.mask_id
            logits = m.backbone(ids[None])[0].double()
            for position in range(1, 1 + n):
                options = allowed[b] if restrict else allowed[1]
                label = int(batch.ids_BL[b, position])
                expected -= float((logits[position, label] - logits[position, options].logsumexp(0)).detach())
        assert float(got.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_longer_mates_change_neither_loss_nor_gradient(side: Any) -> None:
    """Each sample alone, summed, is the batch: padding is not seen, pictures do not change rows."""
    m = model().double()
    samples = words(1, 7, 3, image=True)
    objective = Denoise(levels=BERNOULLI)

    def run(rows: list[int]) -> tuple[Tensor, list[Tensor]]:
        batch = collate([samples[i] for i in rows], m.vocab, m.readers, index=[20 + i for i in rows], side=side)
        value = objective.terms(m, objective.plan(batch, KEY, m.vocab))["denoise"].value
        gradient = torch.autograd.grad(value, list(m.parameters()), allow_unused=True, materialize_grads=True)
        return value.detach(), list(gradient)

    whole, whole_gradient = run([0, 1, 2])
    alone = [run([i]) for i in range(3)]
    assert all(float(value) > 0 for value, _ in alone)
    torch.testing.assert_close(whole, sum(value for value, _ in alone), rtol=1e-6, atol=0)
    for i, gradient in enumerate(whole_gradient):
        torch.testing.assert_close(gradient, sum(g[i] for _, g in alone), rtol=1e-5, atol=1e-6)
    assert sum(float(g.abs().sum()) > 0 for g in whole_gradient) == len(whole_gradient)


# What is logged ------------------------------------------------------------------------------------------------------


def test_bins_of_the_mask_rate() -> None:
    """Bin j holds the rates above j/10 and up to (j+1)/10, whatever rounding does to k / n."""
    fractions = [(k, n) for n in range(1, 101) for k in range(1, n + 1)]
    rate_P = torch.tensor([k / n for k, n in fractions], dtype=torch.float64).float()
    sums = by_level(torch.ones(len(rate_P)), torch.ones(len(rate_P), dtype=torch.bool), rate_P)
    expected = np.bincount([-(-10 * k // n) - 1 for k, n in fractions], minlength=10)
    assert sums["nll_by_rate"][1].tolist() == expected.tolist()


def test_logged_sums() -> None:
    oracle = Oracle.random()
    objective = Denoise(levels=ExactCount(full=1.0))
    batch = canvas([(2, 0, 1, 1), (0, 1, 2, 2)])
    sums = objective.terms(oracle, objective.plan(batch, KEY, VOCAB))["denoise"].sums  # type: ignore[arg-type]
    marginals = [oracle.joint.sum([d for d in range(4) if d != position]) for position in range(4)]
    nll = -sum(float(marginals[i][x].log()) for row in batch.ids_BL.tolist() for i, x in enumerate(row))
    right = sum(int(marginals[i].argmax()) == x for row in batch.ids_BL.tolist() for i, x in enumerate(row))
    assert float(sums["nll"][0]) == pytest.approx(nll, rel=1e-5) and float(sums["nll"][1]) == 8
    assert float(sums["accuracy"][0]) == right
    assert sums["nll_by_rate"][1].tolist() == [0.0] * 9 + [8.0]
    assert not sums["nll"][0].requires_grad and oracle.encoded == 1 and int(batch.ids_BL.max()) < MASK


def test_impossible_options_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"Denoise\.denominator: 'token' .*\(did you mean \"tokens\"\?\)$"):
        Denoise(denominator="token")
    with pytest.raises(ConfigError, match=r"Denoise\.copies=0: expected a whole number of at least 1"):
        Denoise(copies=0)


# Readout -------------------------------------------------------------------------------------------------------------


def reader_model(words_a_feature: int = 1) -> MMDiff:
    torch.manual_seed(0)
    encoder, connector = toy.Patches(), toy.Project(width_in=16, width_out=32)
    head = WordHead(width_in=16, vocab_size=9, words=words_a_feature)
    return MMDiff(toy.backbone(), {"image": encoder}, {"image": connector}, {"image": head}).eval()


@pytest.mark.parametrize("n", [1, 2])
def test_readout_reads_its_own_words_from_each_feature(n: int) -> None:
    m, objective = reader_model(n), Readout(words=n)
    batch = collate(words(4 * n, 4 * n, image=True), m.vocab, m.readers)
    plan = objective.plan(batch, KEY, m.vocab)
    term = objective.terms(m, plan)["readout"]
    expected = 0.0
    for b in range(2):
        labels = batch.ids_BL[b, batch.target_BL[b]].tolist()
        feature_TE = m.encoders["image"](batch.media["image"].values_N[b : b + 1])[0]
        for i, label in enumerate(labels):
            logits = m.heads["image"](feature_TE[i // n])[9 * (i % n) : 9 * (i % n) + 9]
            expected -= float(logits.detach().log_softmax(0)[label])
    assert float(term.value.detach()) == pytest.approx(expected, rel=1e-5)
    assert plan.counts == {"readout": 8.0 * n} and float(term.sums["accuracy"][1]) == 8 * n


def test_readout_refuses_samples_that_do_not_fit() -> None:
    m = reader_model()
    with pytest.raises(DataError, match=r"samples have \[3, 4\] target words"):
        Readout().plan(collate(words(4, 3, image=True), m.vocab, m.readers), KEY, m.vocab)
    plan = Readout().plan(collate(words(3, 3, image=True), m.vocab, m.readers), KEY, m.vocab)
    with pytest.raises(DataError, match=r"features \(2, 4, 1\), words \(2, 3, 1\)"):
        Readout().terms(m, plan)


# Corrupted context, and the plain mean


def test_the_mean_weighs_every_masked_token_alike_whatever_its_level() -> None:
    m, samples = model(), words(2, 5, 3)
    batch = collate(samples, m.vocab)
    for levels in (Bernoulli(eps=0.1), ExactCount(), ExactCount(full=0.5)):
        plan = Denoise(levels=levels, denominator="mean").plan(batch, KEY, m.vocab)
        term = Denoise(levels=levels, denominator="mean").terms(m, plan)["denoise"]
        ids = batch.ids_BL.masked_fill(plan.masked_RL, m.vocab.mask_id)
        h = m.hidden(ids, batch, {}, torch.arange(3))
        logits = m.backbone.head(h)[plan.masked_RL]
        loss = F.cross_entropy(logits.float(), batch.ids_BL[plan.masked_RL])
        assert float(term.value.detach()) / plan.counts["denoise"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_corruption_replaces_visible_target_words_only_and_labels_stay() -> None:
    m = model()
    eos = m.vocab.eos_id
    samples = [[*s[:-1], Target([*s[-1].ids, eos, eos])] for s in words(*[40] * 200)]  # type: ignore[list-item]
    batch = collate(samples, m.vocab)
    clean = Denoise(levels=ExactCount()).plan(batch, KEY, m.vocab)
    plan = Denoise(levels=ExactCount(), corrupt=0.15).plan(batch, KEY, m.vocab)
    assert torch.equal(plan.masked_RL, clean.masked_RL), "what is masked does not depend on what is replaced"
    changed = plan.ids_RL != clean.ids_RL
    assert not changed[plan.masked_RL | ~batch.target_BL | (batch.ids_BL == eos)].any()
    assert torch.equal(plan.batch.ids_BL, batch.ids_BL)
    assert set(plan.ids_RL[changed].tolist()) <= set(m.vocab.text_ids.tolist())
    free = batch.target_BL & ~plan.masked_RL & (batch.ids_BL != eos)
    kept = 1 / len(m.vocab.text_ids)  # a draw may give the word that was there
    assert float(changed.sum() / free.sum()) == pytest.approx(0.15 * (1 - kept), abs=0.02)
    rates = (changed.sum(1) / free.sum(1).clamp(min=1))[free.sum(1) > 15]
    assert rates.min() < 0.03 and rates.max() > 0.22, "some rows are nearly clean, some are not"


def test_the_share_of_a_row_is_drawn_and_each_position_compared_with_it() -> None:
    """A visible position is replaced where its draw is below 2 * share * u, u being the row's draw."""
    m = model()
    batch = collate(words(*[30] * 40), m.vocab)
    share = 0.3
    clean = Denoise(levels=ExactCount()).plan(batch, KEY, m.vocab)
    ids = replaced(clean, KEY, share, m.vocab)
    for r in range(len(batch)):
        free = (batch.target_BL[r] & (clean.ids_RL[r] != m.vocab.mask_id)).nonzero().squeeze(1).tolist()
        u, *draws = KEY.uniform(int(batch.index_B[r]), 1 + 2 * len(free), 0).tolist()
        for i, position in enumerate(free):
            word = m.vocab.text_ids[int(draws[2 * i + 1] * len(m.vocab.text_ids))]
            expected = int(word) if draws[2 * i] < 2 * share * u else int(clean.ids_RL[r, position])
            assert int(ids[r, position]) == expected


def test_what_is_replaced_depends_on_the_sample_and_view_alone() -> None:
    m = model()
    batch = collate(words(20, 9, 14), m.vocab, index=[4, 5, 6])
    objective = Denoise(levels=ExactCount(stratified=False), corrupt=0.4, copies=2)
    whole = objective.plan(batch, KEY, m.vocab).ids_RL
    assert not torch.equal(whole[:3], whole[3:])
    alone = objective.plan(collate([words(20, 9, 14)[1]], m.vocab, index=[5]), KEY, m.vocab).ids_RL
    width = alone.shape[1]
    assert torch.equal(alone[0], whole[1, :width]) and torch.equal(alone[1], whole[4, :width])


def test_replacements_stay_within_what_a_position_may_hold() -> None:
    m = model()
    samples: list[Sample] = [[Text([4]), Target([5, 6] * 20, allow=((5, 7),))] for _ in range(20)]
    batch = collate(samples, m.vocab)
    plan = Denoise(levels=ExactCount(), corrupt=0.5).plan(batch, KEY, m.vocab)
    seen = plan.ids_RL[batch.target_BL & ~plan.masked_RL]
    assert set(seen.tolist()) == {5, 6}
    assert (plan.ids_RL != batch.ids_BL)[batch.target_BL & ~plan.masked_RL].any()


def test_a_share_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="corrupt=.*: expected a number from 0 to 0.5"):
        Denoise(corrupt=0.7)
