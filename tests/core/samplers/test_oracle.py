"""The sampler's output law where the right one is known: a small joint distribution and its exact conditionals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from joint import (
    LENGTH,
    MASK,
    ROWS,
    SEQUENCES_SL,
    VOCAB,
    WORDS,
    canvas,
    chain,
    distance,
    exact,
    floor,
    law,
    marginals,
)
from torch import Tensor

from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config


def sampled(p_S: Tensor, ids: list[int] | None = None, rows: int = ROWS, **named: Any) -> Tensor:
    config = generation_config(temperature=1.0, early_stop=False, **named)
    return law(sample(exact(p_S), canvas(ids or [MASK] * LENGTH, rows), VOCAB, config).ids_BL)


@pytest.mark.parametrize("rows", [ROWS, pytest.param(20_000, marks=pytest.mark.slow)])
def test_one_position_per_step_in_random_order_samples_the_joint(rows: int) -> None:
    p_S = chain()
    assert distance(p_S, sampled(p_S, rows=rows, remasking="random")) < floor(p_S, rows)


def test_all_at_once_samples_the_product_of_marginals() -> None:
    p_S = chain()
    one_LV = marginals(p_S, torch.full((1, LENGTH), MASK))[0]
    product_S = one_LV[torch.arange(LENGTH), SEQUENCES_SL].prod(1)
    q_S = sampled(p_S, steps=1)
    assert distance(product_S, q_S) < floor(product_S)
    assert distance(p_S, q_S) > 0.3


def test_blocks_of_one_position_sample_the_joint_left_to_right() -> None:
    p_S = chain()
    assert distance(p_S, sampled(p_S, block_length=1)) < floor(p_S)


def test_given_words_condition_the_others() -> None:
    p_S = chain()
    given_S = p_S * (SEQUENCES_SL[:, 1] == 2) * (SEQUENCES_SL[:, 3] == 0)
    given_S /= given_S.sum()
    assert distance(given_S, sampled(p_S, [MASK, 2, MASK, 0], remasking="random")) < floor(given_S)


def test_temperature_draws_from_the_tempered_marginal() -> None:
    p_S = chain()
    config = generation_config(temperature=0.5, steps=1, early_stop=False)
    ids_BL = sample(exact(p_S), canvas([MASK] * LENGTH), VOCAB, config).ids_BL
    predict_V = torch.tensor([0.25, 0.09, 0.04]) / 0.38  # squares of the first word's probabilities
    share_V = torch.bincount(ids_BL[:, 0], minlength=WORDS) / ROWS
    assert share_V.tolist() == pytest.approx(predict_V.tolist(), abs=4 * 0.5 / ROWS**0.5)


def test_low_confidence_order_does_not_sample_the_joint() -> None:
    """The order depends on the drawn words: known of the published rule, and why `random` is there."""
    p_S = chain()
    assert distance(p_S, sampled(p_S)) > 3 * floor(p_S)
