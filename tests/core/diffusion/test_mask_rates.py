"""Schedules and mask levels against their closed forms.

Shape letters: B rows, L positions.
"""

from __future__ import annotations

from itertools import permutations
from math import comb, factorial, log
from typing import Any

import numpy as np
import pytest
import torch
from oracle import VOCAB, canvas

from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount, Levels, Masked
from mmdiff.diffusion.schedule import (
    Array,
    Cosine,
    CosineMDLM,
    CosineSquared,
    Discrete,
    Geometric,
    Linear,
    Logarithmic,
    Partly,
    Polynomial,
    Schedule,
)
from mmdiff.errors import ConfigError
from mmdiff.objectives.denoise import Denoise

SCHEDULES = [
    Linear(),
    Cosine(),
    CosineMDLM(),
    CosineSquared(),
    Polynomial(2.0),
    Polynomial(0.7),
    Logarithmic(),
    Geometric(1e-10, 40.0),
]


def draw(levels: Levels, rows: int, length: int, seed: int = 0) -> Masked:
    rng = np.random.default_rng(seed)
    target_BL = np.ones((rows, length), dtype=bool)
    return levels.mask(target_BL, rng.random(rows), rng.random(rows), rng.random((rows, length)))


def losses(drawn: Masked) -> Array:
    """The loss per position of rows whose cross-entropy is 1 nat everywhere."""
    return (drawn.masked_BL * drawn.weight_BL).mean(1)


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weight_is_the_log_derivative_of_the_mask_rate(schedule: Schedule) -> None:
    t, h = np.linspace(0.01, 0.99, 99), 1e-6
    slope = (schedule.mask_rate(t + h) - schedule.mask_rate(t - h)) / (2 * h)
    np.testing.assert_allclose(schedule.weight(t), slope / schedule.mask_rate(t), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mask_rate_rises_from_0_to_1(schedule: Schedule) -> None:
    np.testing.assert_allclose(schedule.mask_rate(np.array([0.0, 1.0])), [0, 1], atol=1e-9)
    rate = schedule.mask_rate(np.linspace(0, 1, 101))
    assert (np.diff(rate)[rate[1:] < 1 - 1e-12] > 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("length", [1, 4, 7])
def test_every_schedule_weighs_a_set_of_masked_positions_the_same(schedule: Schedule, length: int) -> None:
    """integral of w(t) m^k (1 - m)^(L - k) dt = (k-1)! (L-k)! / L!."""
    for k in range(1, length + 1):
        expected = factorial(k - 1) * factorial(length - k) / factorial(length)
        assert weight_of_a_set(schedule, k, length) == pytest.approx(expected, rel=2e-6)


def weight_of_a_set(schedule: Schedule, k: int, length: int) -> float:
    x, weight = np.polynomial.legendre.leggauss(400)
    t = ((x + 1) / 2) ** 4  # nodes are close where a power of t is steep
    m = schedule.mask_rate(t)
    slope = 4 * ((x + 1) / 2) ** 3
    return float((weight / 2 * slope * schedule.weight(t) * m**k * (1 - m) ** (length - k)).sum())


def test_a_schedule_that_does_not_end_at_1_loses_its_share_of_the_bound() -> None:
    """What is checked above sees a schedule that leaves tokens unmasked: it keeps 63 % of one position's weight."""
    assert weight_of_a_set(Geometric(1e-10, 1.0), 1, 1) == pytest.approx(1 - np.exp(-1), rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_near_the_end_of_noise_are_analytic(schedule: Schedule) -> None:
    """At t = 1e-9 a difference quotient is 0 / 0; the weight times t is there the power of t that the rate goes by."""
    found = schedule.weight(np.array([1e-9, 1e-12])) * np.array([1e-9, 1e-12])
    assert np.isfinite(found).all()
    if not isinstance(schedule, Geometric):
        square = isinstance(schedule, CosineSquared | CosineMDLM)
        expected = schedule.power if isinstance(schedule, Polynomial) else 1 + square
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(2.0)])
def test_even_steps_are_the_bound_of_discrete_time(schedule: Schedule) -> None:
    """The weight is MD4's T expm1(gamma_t - gamma_s) alpha_s with its sign, gamma the log odds of being kept."""
    steps, end, s = Discrete(8, schedule), np.arange(1, 9) / 8, np.arange(8) / 8
    a_t, a_s = 1 - schedule.mask_rate(end)[1:-1], 1 - schedule.mask_rate(s)[1:-1]  # at 0 and 1 log odds are infinite
    expected = -8 * np.expm1(np.log(a_t / (1 - a_t)) - np.log(a_s / (1 - a_s))) * a_s
    for t in (end, end - 1 / 16):  # a time within a step counts as its end
        np.testing.assert_allclose(steps.weight(t)[1:-1], expected, rtol=1e-9)
        np.testing.assert_allclose(steps.mask_rate(t), schedule.mask_rate(end))
    np.testing.assert_allclose(steps.weight(end)[[0, -1]], [8, 8 * (1 - schedule.mask_rate(s)[-1])], rtol=1e-9)
    fine = Discrete(4000, schedule)
    t = np.linspace(1 / 4000, 1, 4000)
    m = fine.mask_rate(t)
    assert (fine.weight(t) * m * (1 - m)).mean() == pytest.approx(0.5, rel=1e-3)  # one of two positions: 0! 1! / 2!


def test_a_schedule_that_begins_part_way() -> None:
    schedule = Partly(0.4, Cosine())
    np.testing.assert_allclose(schedule.mask_rate(np.array([0.0, 1.0])), [0.6, 1])
    t, h = np.linspace(0.01, 0.99, 99), 1e-6
    slope = (schedule.mask_rate(t + h) - schedule.mask_rate(t - h)) / (2 * h)
    np.testing.assert_allclose(schedule.weight(t), slope / schedule.mask_rate(t), rtol=1e-7)
    assert weight_of_a_set(schedule, 1, 1) == pytest.approx(0.4, rel=1e-6)  # the share that diffusion reveals


# Bernoulli ------------------------------------------------------------------------------------------------------------


def test_bernoulli_is_the_published_recipe_bit_for_bit() -> None:
    """LLaDA, GUIDELINES.md: p = (1 - eps) t + eps, a position is masked where its number is below p, loss / p."""
    rng = np.random.default_rng(1)
    u, r, eps = rng.random(500), rng.random((500, 6)), 1e-3
    drawn = Bernoulli().mask(np.ones((500, 6), dtype=bool), u, rng.random(500), r)
    p = (1 - eps) * u + eps
    np.testing.assert_array_equal(drawn.masked_BL, r < p[:, None])
    np.testing.assert_array_equal(drawn.weight_BL[:, 0], 1 / p)
    np.testing.assert_array_equal(drawn.rate_B, p)


EPS = 0.05  # the tail of 1/t is too heavy at 1e-3 to measure a spread by drawing


def has_the_spread(loss: Array, length: int) -> bool:
    """C5: whether the 1/t loss of tokens that cost 1 nat varies as its closed form says."""
    return bool(loss.std() == pytest.approx(((log(1 / EPS) - 1 + EPS) / ((1 - EPS) * length)) ** 0.5, rel=0.02))


def has_the_share(empty: Array, length: int, eps: float) -> bool:
    """C5: whether as many rows have no mask, and so a loss of 0, as the closed form says."""
    share = 1 / (length + 1)
    sigma = (share * (1 - share) / len(empty)) ** 0.5
    return bool(empty.mean() == pytest.approx(share * (1 - eps) ** length, abs=4 * sigma))


@pytest.mark.parametrize("length", [1, 4, 16])
def test_spread_of_the_bernoulli_loss(length: int) -> None:
    loss = losses(draw(Bernoulli(eps=EPS), 200_000, length))
    assert loss.mean() == pytest.approx(1, abs=4 * loss.std() / 200_000**0.5)
    assert has_the_spread(loss, length)


@pytest.mark.parametrize("length", [1, 4, 16])
def test_share_of_bernoulli_rows_without_a_mask(length: int) -> None:
    assert has_the_share(~draw(Bernoulli(), 100_000, length).masked_BL.any(1), length, 1e-3)


class MoreAtTheEnd:
    """Bernoulli whose times are the root of uniform ones, and whose weights are as if they were uniform."""

    stratified = False

    def mask(self, inside: Any, level: Array, coin: Array, order: Array, ids: Any = None) -> Masked:
        return Bernoulli(eps=EPS).mask(inside, level**0.5, coin, order)


@pytest.mark.parametrize("wrong", [MoreAtTheEnd(), Bernoulli(Cosine(), eps=EPS), ExactCount(), Bernoulli(eps=2 * EPS)])
def test_another_law_of_levels_has_neither(wrong: Any) -> None:
    """The deliberately wrong parts of C5. With twice the floor the share of zeros is hardly another."""
    drawn = draw(wrong, 200_000, 4)
    assert not has_the_spread(losses(drawn), 4)
    if wrong != Bernoulli(eps=2 * EPS):
        assert not has_the_share(~drawn.masked_BL.any(1), 4, EPS)


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_bernoulli_masks_at_the_rate_of_its_schedule(schedule: Schedule) -> None:
    level = np.full(2000, 0.4)
    rng = np.random.default_rng(0)
    drawn = Bernoulli(schedule).mask(np.ones((2000, 20), dtype=bool), level, level, rng.random((2000, 20)))
    rate = float(schedule.mask_rate(np.array(0.999 * 0.4 + 1e-3)))
    assert drawn.masked_BL.mean() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 40_000) ** 0.5)
    np.testing.assert_allclose(drawn.rate_B, rate)


# Exact counts ---------------------------------------------------------------------------------------------------------


def test_exact_count_enumerated() -> None:
    """Over all levels and orders of 4 positions, every set of k positions has the same share, and weighs 4 / k."""
    orders = np.array(list(permutations(range(4)))) / 4
    for k in range(1, 5):
        level = np.full(24, (k - 0.5) / 4)
        drawn = ExactCount().mask(np.ones((24, 4), dtype=bool), level, level, orders)
        assert (drawn.masked_BL.sum(1) == k).all()
        np.testing.assert_allclose(drawn.weight_BL, 4 / k)
        np.testing.assert_allclose(drawn.rate_B, k / 4)
        sets, times = np.unique(drawn.masked_BL, axis=0, return_counts=True)
        assert len(sets) == comb(4, k) and (times == 24 / comb(4, k)).all()


def test_exact_count_has_no_spread_where_all_positions_cost_the_same() -> None:
    np.testing.assert_allclose(losses(draw(ExactCount(), 1000, 5)), 1)


def test_counts_are_uniform_and_full_adds_to_the_last() -> None:
    for full in (0.0, 0.5):
        count = draw(ExactCount(full=full), 40_000, 4).masked_BL.sum(1)
        share = np.bincount(count, minlength=5) / 40_000
        expected = np.array([0, *[(1 - full) / 4] * 4]) + np.array([0, 0, 0, 0, full])
        np.testing.assert_allclose(share, expected, atol=4 * 0.5 / 40_000**0.5)
        assert share[0] == 0


@pytest.mark.parametrize("levels", [Bernoulli(), ExactCount()])
def test_only_targets_are_masked(levels: Levels) -> None:
    rng = np.random.default_rng(0)
    target_BL = rng.random((300, 9)) < 0.4
    target_BL[0] = False
    drawn = levels.mask(target_BL, rng.random(300), rng.random(300), np.where(target_BL, rng.random((300, 9)), 0))
    assert not (drawn.masked_BL & ~target_BL).any() and drawn.masked_BL.any()
    assert not drawn.masked_BL[0].any() and np.isfinite(drawn.weight_BL).all()
    if isinstance(levels, ExactCount):
        n_B = target_BL.sum(1)[1:]
        has = n_B > 0
        np.testing.assert_allclose((drawn.weight_BL[1:, 0] * drawn.masked_BL.sum(1)[1:])[has], n_B[has])


def test_the_highest_level_masks_no_more_than_all() -> None:
    level = np.array([np.nextafter(1, 0)])
    assert ExactCount().mask(np.ones((1, 3), dtype=bool), level, level, np.array([[0.1, 0.2, 0.3]])).masked_BL.all()


@pytest.mark.parametrize("full", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(full: float) -> None:
    with pytest.raises(ConfigError, match=rf"ExactCount\.full={full}: expected a number from 0 to 1"):
        ExactCount(full=full)


# Stratification -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("split", [1, 2, 4])
def test_a_step_covers_the_levels_evenly_however_it_is_split(copies: int, split: int) -> None:
    """8 samples of step 3, as 1, 2 or 4 forwards: each of the equal parts of [0, 1] is drawn from once."""
    objective = Denoise(levels=Bernoulli(eps=1e-12, stratified=True), copies=copies)
    key = NoiseKey(0, step=3, batch=8)
    rates = []
    for part in np.arange(24, 32).reshape(split, -1):
        batch = canvas([(0, 1, 2, 0)] * len(part))
        batch.index_B[:] = torch.from_numpy(part)
        rates.append(objective.plan(batch, key, VOCAB).rate_R.numpy())
    rate = np.concatenate(rates)
    np.testing.assert_array_equal(np.sort(np.floor(rate * 8 * copies)), np.arange(8 * copies))


def test_the_views_of_a_sample_lie_far_apart() -> None:
    objective = Denoise(levels=Bernoulli(eps=1e-12, stratified=True), copies=2)
    rate = objective.plan(canvas([(0, 1, 2, 0)] * 8), NoiseKey(0, batch=8), VOCAB).rate_R.view(2, 8)
    assert (rate[0] < 0.5).all() and (rate[1] >= 0.5).all()


def test_without_stratification_the_levels_are_independent() -> None:
    objective = Denoise(levels=Bernoulli(eps=1e-12))
    rate = objective.plan(canvas([(0, 1, 2, 0)] * 64), NoiseKey(0, batch=64), VOCAB).rate_R
    assert len(np.unique(np.floor(rate.numpy() * 64))) < 64
