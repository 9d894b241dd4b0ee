"""Spreads of levels: even over a whole step however it is split, the same after a resume, and their biases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracle import VOCAB, canvas

from mmdiff.canvas.sample import Break, Target
from mmdiff.data.collate import collate
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Bernoulli, ExactCount
from mmdiff.diffusion.schedule import Array
from mmdiff.diffusion.spread import (
    Antithetic,
    Clipped,
    Independent,
    Quadrature,
    SharedOffset,
    Spread,
    Stratified,
)
from mmdiff.errors import ConfigError
from mmdiff.objectives.denoise import Denoise

SPREADS: list[Spread] = [Independent(), Stratified(), SharedOffset(), Antithetic(), Antithetic(Stratified())]
WORD = (0, 1, 2, 0)


def levels(spread: Spread, step: int = 0, samples: int = 8, copies: int = 1, split: int = 1, seed: int = 0) -> Array:
    """Returns (copies, samples), the levels of a step that is planned in `split` forwards."""
    objective = Denoise(levels=Bernoulli(eps=1e-12), spread=spread, copies=copies)
    parts = []
    for index in np.arange(samples * step, samples * (step + 1)).reshape(split, -1):
        batch = canvas([WORD] * len(index))
        batch.index_B[:] = torch.from_numpy(index)
        plan = objective.plan(batch, NoiseKey(seed, step, batch=samples), VOCAB)
        parts.append(plan.rate_R.double().numpy().reshape(copies, -1))
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("spread", [*SPREADS, Clipped(0.2, 0.6), Quadrature(3)], ids=repr)
@pytest.mark.parametrize("copies", [1, 2])
def test_levels_do_not_depend_on_how_a_step_is_split_and_come_again(spread: Spread, copies: int) -> None:
    whole = levels(spread, step=3, copies=copies)
    for split in (2, 4, 8):
        np.testing.assert_array_equal(levels(spread, step=3, copies=copies, split=split), whole)
    if not isinstance(spread, Quadrature):
        assert not np.isclose(levels(spread, step=4, copies=copies), whole).all()
        assert not np.isclose(levels(spread, step=3, copies=copies, seed=1), whole).all()


def test_stratified_levels_lie_in_their_own_parts() -> None:
    found = levels(Stratified(), copies=2)
    np.testing.assert_array_equal(np.floor(found * 16).ravel(), np.arange(16))


def test_a_shared_offset_leaves_even_gaps() -> None:
    found = np.sort(levels(SharedOffset(), copies=2).ravel())
    np.testing.assert_allclose(np.diff(found), 1 / 16, atol=1e-6)


@pytest.mark.parametrize("inner", [Independent(), Stratified(), SharedOffset()], ids=repr)
def test_antithetic_pairs_sum_to_one(inner: Spread) -> None:
    found = levels(Antithetic(inner)).ravel()
    np.testing.assert_allclose(found[::2] + found[1::2], 1, atol=1e-6)
    assert len(np.unique(found.round(9))) == 8
    if isinstance(inner, Stratified):
        np.testing.assert_array_equal(np.floor(found[::2] * 4), np.arange(4))


@pytest.mark.parametrize("inner", [Independent(), Stratified()], ids=repr)
def test_clipped_levels_stay_inside(inner: Spread) -> None:
    found = np.concatenate([levels(Clipped(0.25, 0.5, inner), step) for step in range(30)]).ravel()
    assert 0.25 <= found.min() < 0.27 and 0.48 < found.max() <= 0.5


def mean_and_error(spread: Spread, of: Callable[[Array], Array], steps: int = 400) -> tuple[float, float, float]:
    """Returns the mean over steps of the mean of `of(level)` of a step, its standard error, and the spread of steps."""
    found = np.array([of(levels(spread, step)).mean() for step in range(steps)])
    return float(found.mean()), float(found.std() / steps**0.5), float(found.std())


@pytest.mark.parametrize("spread", SPREADS, ids=repr)
def test_every_spread_is_unbiased(spread: Spread) -> None:
    mean, error, _ = mean_and_error(spread, lambda u: u**2)
    assert abs(mean - 1 / 3) < 3.5 * error


def test_the_check_of_bias_sees_clipped_levels() -> None:
    mean, error, _ = mean_and_error(Clipped(0.1, 0.9), lambda u: u**2)
    assert abs(mean - 1 / 3) > 5 * error


def test_levels_that_are_spread_vary_less_from_step_to_step() -> None:
    """Of a monotone loss: pairs and parts less than independent levels, and pairs of parts less than either."""
    of = {repr(spread): mean_and_error(spread, lambda u: u**2, 150)[2] for spread in SPREADS}
    independent, parts, offset, pairs, both = of.values()
    assert 1.5 * pairs < independent and 1.5 * parts < pairs and both < pairs and 1.5 * offset < independent


def test_quadrature_is_exact_for_polynomials_below_its_degree_and_biased_above() -> None:
    """Nodes and weights of three points: exact up to the fifth power."""
    objective = Denoise(levels=Bernoulli(eps=1e-12), spread=Quadrature(3), copies=3)
    plan = objective.plan(canvas([WORD]), NoiseKey(0), VOCAB)
    level, weight = plan.rate_R.double(), (plan.weight_R * plan.rate_R).double()  # a position weighs 1 / level
    for power in range(8):
        found = float((weight * level**power).mean())
        assert (abs(found - 1 / (power + 1)) < 1e-6) == (power < 6)


def test_documents_of_a_packed_row_have_levels_of_their_own() -> None:
    """Spread evenly over the row, whatever the levels of other rows; counts and weights are those of the document."""
    rows = [[Target([0] * 6), Break(), Target([1] * 3), Break(), Target([2] * 8)]] * 4
    plan = Denoise(levels=ExactCount()).plan(collate(rows, VOCAB), NoiseKey(0, batch=4), VOCAB)
    for row in range(4):
        for begin, end in ((0, 6), (6, 9), (9, 17)):
            count, size = int(plan.masked_RL[row, begin:end].sum()), end - begin
            assert count >= 1
            assert plan.weight_RL[row, begin:end].unique().item() == pytest.approx(size / count)
            assert plan.rate_RL[row, begin:end].unique().item() == pytest.approx(count / size)
    assert plan.group_RL.unique().tolist() == list(range(12))
    rate = Denoise(levels=Bernoulli(eps=1e-12, stratified=True)).plan(collate(rows, VOCAB), NoiseKey(0, batch=4), VOCAB)
    level_R3 = rate.rate_RL[:, [0, 6, 9]].double()
    gaps = (level_R3[:, 1:] - level_R3[:, :-1]) % 1
    assert torch.allclose(gaps, torch.full_like(gaps, 1 / 3), atol=1e-6)
    assert torch.equal((level_R3[:, 0] * 4).floor(), torch.arange(4.0).double())


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.8, 0.2)])
def test_an_empty_interval_is_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match=r"spread\.low"):
        Clipped(low, high)
