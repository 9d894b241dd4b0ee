"""Estimators of log p, with the exact conditionals of a joint distribution in place of a model, and without.

Each claim that one is unbiased is a test that a biased one of its kind fails. Shape letters: B samples, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch
import toy
from oracle import MASK, SEQUENCES, WORDS, Oracle, canvas
from torch import Tensor

from mmdiff.canvas.patterns import BlockCausal
from mmdiff.canvas.sample import Sample, Target, Text
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError
from mmdiff.model import MMDiff
from mmdiff.model.likelihood.drawn import Drawn
from mmdiff.model.likelihood.elbo import AnyOrder, Elbo, Quadrature, UpperBound
from mmdiff.model.likelihood.estimates import bound, estimate
from mmdiff.model.likelihood.orders import (
    AlongSteps,
    Coupled,
    LeftToRight,
    MeanField,
    PartlyMasked,
    RandomOrder,
    RightToLeft,
)
from mmdiff.model.likelihood.passes import Estimator, Pass, Targets
from mmdiff.samplers.links.guidance import Guidance

X = (2, 0, 1, 1)


class Crooked(Oracle):
    """Conditionals that are those of no joint distribution: of every canvas their own."""

    def _conditionals(self, ids: list[int]) -> Tensor:
        number = sum((token + 1) * 5**i for i, token in enumerate(ids))
        logits = torch.randn(len(ids), WORDS, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        return logits.log_softmax(1)


def along(oracle: Oracle, x: tuple[int, ...], groups: list[list[int]]) -> float:
    """-log p of a generation that commits the positions of a group at once, group after group."""
    out, ids = 0.0, [MASK] * len(x)
    for group in groups:
        out -= sum(float(oracle._conditionals(ids)[p, x[p]]) for p in group)
        for p in group:
            ids[p] = x[p]
    return out


def nll(oracle: Any, estimator: Estimator, rows: Any, seed: int = 0) -> np.ndarray:
    return estimate(oracle, canvas(rows), estimator, seed=seed).nll_B.numpy()


def z_of(estimator: Estimator, true: float, rows: int = 3000) -> float:
    found = nll(Oracle.random(), estimator, [X] * rows)
    return float((found.mean() - true) / max(found.std() / rows**0.5, 1e-6))


# Bounds --------------------------------------------------------------------------------------------------------------


def test_all_sets_together_give_minus_log_p_of_every_sequence() -> None:
    oracle = Oracle.random()
    found = nll(oracle, AnyOrder(), SEQUENCES)
    np.testing.assert_allclose(found, [oracle.nll(x) for x in SEQUENCES], rtol=1e-6)


def test_of_any_model_they_are_the_mean_over_orders_which_bounds_their_mixture() -> None:
    model = Crooked.random()
    orders = [[[p] for p in order] for order in permutations(range(4))]
    for x in SEQUENCES[::7]:
        by_order = [along(model, x, groups) for groups in orders]
        found = float(nll(model, AnyOrder(), [x])[0])
        assert found == pytest.approx(float(np.mean(by_order)), rel=1e-6)
        mixture = -log(np.mean([exp(-value) for value in by_order]))
        assert found > mixture + 1e-3


def test_rows_of_unequal_length_are_enumerated_each_by_itself() -> None:
    oracle = Oracle.random()
    batch = canvas([X, X])
    batch.target_BL[1, 2:] = False  # given: the first two positions are scored
    found = estimate(oracle, batch, AnyOrder()).nll_B  # type: ignore[arg-type]
    assert float(found[1]) == pytest.approx(oracle.nll(X) + float(oracle.joint.sum((0, 1))[1, 1].log()), rel=1e-6)


def test_too_many_sets_are_refused() -> None:
    m = model()
    with pytest.raises(ConfigError, match="13 targets have too many sets"):
        estimate(m, collate([[Target([4] * 13)]], m.vocab), AnyOrder())


@dataclass(frozen=True)
class Middle:
    """A biased estimator: of every stretch of counts the middle one."""

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        for one in Elbo(1).passes(targets, key):
            order = targets.uniforms(key).argsort(axis=1)
            masked = np.zeros_like(one.hidden_BL)
            np.put_along_axis(masked, order[:, :2], True, axis=1)
            yield Pass(masked, masked * 2.0)  # four counts, weighted 1 / 2


@pytest.mark.parametrize("estimator", [Elbo(1), Elbo(2), Quadrature(2), Quadrature(3), RandomOrder()])
def test_sampled_bounds_are_unbiased(estimator: Estimator) -> None:
    assert abs(z_of(estimator, Oracle.random().nll(X))) < 3.5


@pytest.mark.parametrize("estimator", [Middle(), Quadrature(1), MeanField(), Coupled()])
def test_the_check_of_bias_sees_a_bias(estimator: Estimator) -> None:
    assert abs(z_of(estimator, Oracle.random().nll(X))) > 5


def test_more_counts_vary_less() -> None:
    spread = [nll(Oracle.random(), Elbo(levels), [X] * 600).std() for levels in (1, 2, 4)]
    assert spread[0] > 1.5 * spread[1] > 2 * spread[2]


def test_from_below_and_from_above() -> None:
    """-log p lies between the two; with one position both are exact; a larger power is further away."""
    oracle = Oracle.random()
    for x in SEQUENCES[::9]:
        above = float(nll(oracle, AnyOrder(), [x])[0])
        below = [float(nll(oracle, UpperBound(AnyOrder(), power=power), [x])[0]) for power in (1.0, 2.0)]
        assert below[1] < below[0] < above - 1e-3
    batch = canvas([X])
    batch.target_BL[:, 1:] = False
    one = [float(estimate(oracle, batch, e).nll_B) for e in (Elbo(4), UpperBound(), UpperBound(power=3.0))]  # type: ignore[arg-type]
    assert one == pytest.approx([one[0]] * 3, rel=1e-6)


def test_the_value_from_below_by_hand() -> None:
    """The sum over positions of -log of the mean, over counts and sets, of the probability of the position."""
    oracle, expected = Oracle.random(), 0.0
    for position in range(4):
        mean = 0.0
        for bits in range(1, 16):
            if bits >> position & 1:
                k = bin(bits).count("1")
                ids = [MASK if bits >> p & 1 else X[p] for p in range(4)]
                weight = {1: 1 / 4, 2: 1 / 12, 3: 1 / 12, 4: 1 / 4}[k]  # (k-1)! (4-k)! / 4!
                mean += weight * exp(float(oracle._conditionals(ids)[position, X[position]]))
        expected -= log(mean)
    assert float(nll(oracle, UpperBound(AnyOrder()), [X])[0]) == pytest.approx(expected, rel=1e-6)
    sampled = nll(oracle, UpperBound(Elbo(4), samples=150), [X] * 20)
    assert sampled.mean() == pytest.approx(expected, abs=0.03) and sampled.std() > 1e-4


# Orders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "order"), [(LeftToRight(), [0, 1, 2, 3]), (RightToLeft(), [3, 2, 1, 0])])
def test_one_order_is_exact(estimator: Estimator, order: list[int]) -> None:
    for oracle in (Oracle.random(), Crooked.random()):
        found = nll(oracle, estimator, SEQUENCES[::5])
        np.testing.assert_allclose(found, [along(oracle, x, [[p] for p in order]) for x in SEQUENCES[::5]], rtol=1e-6)


def test_random_orders_are_orders() -> None:
    model = Crooked.random()
    by_order = [along(model, X, [[p] for p in order]) for order in permutations(range(4))]
    found = nll(model, RandomOrder(), [X] * 200)
    assert all(min(abs(value - e) for e in by_order) < 1e-6 for value in found)
    assert len(set(found.round(6))) == 24


def test_a_recorded_generation_is_scored_step_by_step() -> None:
    model = Crooked.random()
    batch = collate([[Target(X, steps=[2, 0, 5, 2])]], Oracle.vocab)
    for merge, groups in ((1, [[1], [0, 3], [2]]), (3, [[0, 1, 3], [2]])):
        found = estimate(model, batch, AlongSteps(merge)).nll_B  # type: ignore[arg-type]
        assert float(found) == pytest.approx(along(model, X, groups), rel=1e-6)
    with pytest.raises(DataError, match="has no `steps`"):
        estimate(model, canvas([X]), AlongSteps())  # type: ignore[arg-type]


# Estimates of policy gradients ----------------------------------------------------------------------------------------


def test_the_mean_field_adds_the_total_correlation() -> None:
    """In the mean over the law of the data: sum of the entropies of single positions, minus that of all together."""
    oracle = Oracle.random()
    p = torch.tensor([float(oracle.joint[x]) for x in SEQUENCES], dtype=torch.float64)
    single = [oracle.joint.sum([d for d in range(4) if d != position]) for position in range(4)]
    entropies = sum(-float((q * q.log()).sum()) for q in single)
    found = torch.from_numpy(nll(oracle, MeanField(), SEQUENCES))
    assert float((p * found).sum()) == pytest.approx(entropies, rel=1e-6)
    assert entropies > oracle.entropy() + 0.05


def test_coupled_forwards_by_hand() -> None:
    model, coupled = Crooked.random(), Coupled(0.3, 0.6)
    targets = Targets.of(canvas([X]), Oracle.vocab)
    whole, first, second = coupled.passes(targets, NoiseKey(0, stream="bound"))
    assert (first.hidden_BL ^ second.hidden_BL).all() and whole.hidden_BL.all()
    expected = 0.0
    rate = 0.5 / float(first.weight_BL.max()) if first.hidden_BL.any() else 1 - 0.5 / float(second.weight_BL.max())
    assert 0.3 <= rate <= 0.6
    for hidden, weight in ((whole, 0.5), (first, 0.5 / rate), (second, 0.5 / (1 - rate))):
        ids = [MASK if h else t for h, t in zip(hidden.hidden_BL[0], X, strict=True)]
        expected -= weight * sum(float(model._conditionals(ids)[p, X[p]]) for p in range(4) if ids[p] == MASK)
    assert float(nll(model, coupled, [X])[0]) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ConfigError, match=r"estimator\.low"):
        Coupled(0.5, 0.5)


def test_tokens_that_are_masked_at_a_drawn_rate_by_hand() -> None:
    model, partly = Crooked.random(), PartlyMasked(0.3, 0.6)
    targets = Targets.of(canvas([X] * 3000), Oracle.vocab)
    targets.index[:] = range(3000)
    (one,) = partly.passes(targets, NoiseKey(0, stream="bound"))
    assert one.hidden_BL.any(1).all() and np.array_equal(one.weight_BL, one.hidden_BL.astype(float))
    share = 0.45 + (0.7**5 - 0.4**5) / 5 / 0.3  # of a row without a mask, all
    assert one.hidden_BL.mean() == pytest.approx(share, abs=4 * 0.5 / 12000**0.5)
    hidden = one.hidden_BL[0]
    ids = [MASK if h else t for h, t in zip(hidden, X, strict=True)]
    expected = -sum(float(model._conditionals(ids)[p, X[p]]) for p in range(4) if hidden[p])
    assert float(nll(model, partly, [X])[0]) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ConfigError, match=r"estimator\.low"):
        PartlyMasked(0.5, 0.5)


def test_a_masked_context_is_masked_in_its_share_and_never_scored() -> None:
    targets = Targets.of(collate([[Text([0] * 10), Target([1, 2])]] * 400, Oracle.vocab), Oracle.vocab)
    (one,) = MeanField(0.15).passes(targets, NoiseKey(0))
    assert one.hidden_BL[:, 10:].all() and not one.weight_BL[:, :10].any()
    assert one.hidden_BL[:, :10].mean() == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 4000) ** 0.5)


# A model -------------------------------------------------------------------------------------------------------------

ALL_OF_THEM = [Elbo(3), Quadrature(2), AnyOrder(), UpperBound(), LeftToRight(), RightToLeft(), RandomOrder()]
ALL_OF_THEM += [MeanField(0.3), Coupled(), PartlyMasked(), Drawn(times=2)]  # type: ignore[list-item]


def model(seed: int = 0) -> MMDiff:
    torch.manual_seed(seed)
    out = MMDiff(toy.backbone())
    with torch.no_grad():
        for p in out.parameters():
            p.mul_(3)
    return out.eval()


def samples(*lengths: int) -> list[Sample]:
    rng = np.random.default_rng(5)
    return [[Text(rng.integers(4, 9, 2).tolist()), Target(rng.integers(4, 9, n).tolist())] for n in lengths]


@pytest.mark.parametrize("estimator", ALL_OF_THEM, ids=lambda e: type(e).__name__)
def test_rows_do_not_depend_on_what_they_are_batched_with(estimator: Estimator) -> None:
    m, rows = model(), samples(4, 1, 3)
    whole = estimate(m, collate(rows, m.vocab, index=[3, 4, 5], side="left"), estimator)
    for b, row in enumerate(rows):
        alone = estimate(m, collate([row], m.vocab, index=[3 + b]), estimator)
        torch.testing.assert_close(alone.nll_B[0], whole.nll_B[b], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.nll_BL.sum(1), whole.nll_B)
    assert whole.positions_B.tolist() == [4, 1, 3]


@pytest.mark.parametrize("estimator", ALL_OF_THEM, ids=lambda e: type(e).__name__)
def test_guidance_of_scale_zero_is_the_model_and_other_scales_are_not(estimator: Estimator) -> None:
    m = model()
    batch = collate([[Text([4, 7]), Target([5, 4, 5], allow=((4, 6),))], *samples(2)], m.vocab)
    plain = estimate(m, batch, estimator).nll_B
    torch.testing.assert_close(estimate(m, batch, estimator, links=[Guidance(0.0)]).nll_B, plain, rtol=1e-5, atol=1e-6)
    assert (estimate(m, batch, estimator, links=[Guidance(1.5)]).nll_B - plain).abs().max() > 1e-3


def test_guidance_by_hand() -> None:
    m = model()
    batch = collate([[Text([4, 7]), Target([5])]], m.vocab)
    mask = m.vocab.mask_id
    given, bare = (m.backbone(torch.tensor([ids]))[0, -1].double() for ids in ([4, 7, mask], [mask] * 3))
    expected = -(bare + 2.5 * (given - bare)).log_softmax(0)[5]
    found = estimate(m, batch, Elbo(), links=[Guidance(1.5)]).nll_B
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_links_and_several_blocks_are_refused() -> None:
    m = model()
    m.attention = BlockCausal(1, "targets")
    with pytest.raises(ConfigError, match="several blocks of targets, expected no links"):
        estimate(m, collate(samples(3), m.vocab), Elbo(), links=[Guidance(1.0)])


def test_shared_random_numbers_cancel_in_a_difference() -> None:
    """Of a model and itself the difference is 0 to the bit; of near models it varies far less than with other masks."""
    m, near = model(), model()
    with torch.no_grad():
        for p in near.parameters():
            p.add_(0.002 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    batch = collate(samples(*[12] * 40), m.vocab)
    batch = replace(batch, ids_BL=batch.ids_BL[:1].expand(40, -1), index_B=torch.arange(40))
    for estimator in (Elbo(2), Coupled(), Quadrature(2)):
        own, other = (estimate(one, batch, estimator, seed=0).nll_B for one in (m, near))
        assert torch.equal(own, estimate(m, batch, estimator, seed=0).nll_B)
        apart = estimate(near, batch, estimator, seed=1).nll_B
        assert 3 * float((other - own).std()) < float((apart - own).std())


def test_the_bound_is_the_elbo() -> None:
    m = model()
    batch = collate(samples(5, 20), m.vocab)
    assert torch.equal(bound(m, batch, levels=3, seed=2).nll_B, estimate(m, batch, Elbo(3), seed=2).nll_B)
