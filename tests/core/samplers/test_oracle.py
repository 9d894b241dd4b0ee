"""The sampler's output law where the right one is known: a small joint distribution and its exact conditionals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from logit_tables import by_query
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.samplers.loop import sample
from mmdiff.samplers.options import generation_config

WORDS, LENGTH, ROWS = 3, 4, 4_000
MASK, END = 3, 4
VOCAB = Vocab(tokenizer=None, size=5, mask_id=MASK, eos_id=END, pad_id=END, slot_id=MASK)
SEQUENCES_SL = torch.tensor(list(itertools.product(range(WORDS), repeat=LENGTH)))


def chain() -> Tensor:
    """A Markov chain: the next word is the last one plus 1 with probability 0.8; the first is 0 with 0.5."""
    step = torch.full((WORDS, WORDS), 0.1, dtype=torch.float64)
    for word in range(WORDS):
        step[word, (word + 1) % WORDS] = 0.8
    p_S = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[SEQUENCES_SL[:, 0]]
    for position in range(1, LENGTH):
        p_S = p_S * step[SEQUENCES_SL[:, position - 1], SEQUENCES_SL[:, position]]
    return p_S


def marginals(p_S: Tensor, ids_RL: Tensor) -> Tensor:
    """p(word at position | given words), (R, L, WORDS)."""
    agrees_RS = ((ids_RL[:, None] == MASK) | (ids_RL[:, None] == SEQUENCES_SL)).all(-1)
    p_RS = agrees_RS * p_S
    words_SLV = torch.nn.functional.one_hot(SEQUENCES_SL, WORDS).double()
    return torch.einsum("rs,slv->rlv", p_RS / p_RS.sum(1, keepdim=True), words_SLV)


def exact(p_S: Tensor) -> Any:
    @by_query
    def denoise(ids_RL: Tensor, predict_RL: Tensor, row_R: Tensor, media_R: Tensor | None = None) -> Tensor:
        seen, back_R = ids_RL.unique(dim=0, return_inverse=True)
        log_p_RLV = marginals(p_S, seen).log()[back_R]
        return torch.nn.functional.pad(log_p_RLV, (0, 2), value=-torch.inf)[predict_RL].float()

    return denoise


def law(ids_BL: Tensor) -> Tensor:
    """How often each sequence was sampled."""
    number_B = (ids_BL * WORDS ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    return torch.bincount(number_B, minlength=len(SEQUENCES_SL)).double() / len(ids_BL)


def distance(p_S: Tensor, q_S: Tensor) -> float:
    """Total variation."""
    return float((p_S - q_S).abs().sum() / 2)


def floor(p_S: Tensor, rows: int = ROWS) -> float:
    """The distance that 200 true samples of the same size stay within."""
    rng = np.random.default_rng(0)
    return max(distance(p_S, torch.from_numpy(rng.multinomial(rows, p_S.numpy()) / rows)) for _ in range(200))


def canvas(ids: list[int], rows: int = ROWS) -> Batch:
    return collate([[Target(ids)]] * rows, VOCAB)


def sampled(p_S: Tensor, ids: list[int] | None = None, rows: int = ROWS, **named: Any) -> Tensor:
    config = generation_config(temperature=1.0, early_stop=False, **named)
    return law(sample(exact(p_S), canvas(ids or [MASK] * LENGTH, rows), VOCAB, config).ids_BL)


@pytest.mark.parametrize("rows", [ROWS, pytest.param(200_000, marks=pytest.mark.slow)])
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
