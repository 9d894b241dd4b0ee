"""A small joint distribution and its exact conditionals: the bed on which a sampler's law is known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from logit_tables import by_query
from torch import Tensor

from mmdiff.canvas.batch import Batch
from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate

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
