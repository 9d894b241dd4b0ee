"""Estimates of log p: the bound that evaluation reports, and -log p itself of a model that reads from left to right.

Shape letters: B samples, L canvas length, P masked positions, J blocks of a sample, G copies of one, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.canvas.pattern import All
from mmdiff.canvas.patterns import Causal, units
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.schedule import Array
from mmdiff.errors import ConfigError, DataError
from mmdiff.protocols import Model

from . import MMDiff
from .scorer import Scores


@dataclass
class Bound:
    """Upper bounds of -log p in nats, with the number of target positions they cover."""

    nll_B: Tensor  # float64
    positions_B: Tensor


@torch.no_grad()
def bound(model: MMDiff, batch: Batch, *, levels: int = 16, seed: int = 0) -> Bound:
    """Returns an upper bound of -log p(targets | rest), in nats per sample.

    It is the sum over k = 1..n of (1/k) * E[cross-entropy of k masked positions], the any-order form of LLaDA's eq. 3
    (RADD, arXiv 2406.03736). There is one copy for each k while n <= levels, else `levels` values of k, each drawn from
    its own part of 1..n and weighted for that part. Positions and k depend on (seed, sample) only: the same rows always
    give the same figure. Where the model's attention has several blocks of targets, it is the sum of that over blocks,
    each behind the clean ids of earlier ones: for blocks of one position, -log p itself. batch: on the CPU.
    """
    key = NoiseKey(seed, stream="bound")
    target_BL = (batch.target_BL & (batch.ids_BL != model.vocab.mask_id)).numpy()  # an empty position is not scored
    n_B = target_BL.sum(1)
    blockwise = model.attention.exact_prefix and not model.attention.one_target_block
    unit_BL = units(model.attention, batch).numpy() if blockwise else np.zeros(target_BL.shape)
    # one part for each block of a sample: its target positions, and the pairs of a count and its weight
    parts: list[tuple[int, NDArray[np.int64], list[tuple[int, float]]]] = []
    for b, sample in enumerate(batch.index_B.tolist()):
        blocks = [np.flatnonzero(target_BL[b] & (unit_BL[b] == unit)) for unit in np.unique(unit_BL[b, target_BL[b]])]
        part_JG = key.fold("level").uniform(sample, len(blocks) * levels).reshape(len(blocks), levels)
        parts += [(b, at, grid(len(at), part_G)) for at, part_G in zip(blocks, part_JG, strict=True)]
    on_device = to_device(batch, model.device)
    features = model.encode(on_device.media)
    nll_B = torch.zeros(len(batch), dtype=torch.float64)
    for copy in range(max((len(pairs) for *_, pairs in parts), default=0)):
        masked_BL, weight_BL = np.zeros(target_BL.shape, dtype=bool), np.zeros(target_BL.shape)
        draws_BL = np.zeros(target_BL.shape)
        for b, sample in enumerate(batch.index_B.tolist()):
            draws_BL[b, target_BL[b]] = key.uniform(sample, int(n_B[b]), copy)
        for b, at, pairs in parts:
            if copy < len(pairs):
                k, weight = pairs[copy]
                at = at[draws_BL[b, at].argsort(kind="stable")[:k]]
                masked_BL[b, at], weight_BL[b, at] = True, weight
        masked = torch.from_numpy(masked_BL)
        scores, row_P = score_masked(model, on_device, features, masked.to(model.device), blockwise=blockwise)
        weight_P = torch.from_numpy(weight_BL)[masked]
        nll_B.index_add_(0, row_P.cpu(), scores.nll_P.double().cpu() * weight_P)
    return Bound(nll_B, torch.from_numpy(n_B))


def grid(n: int, part_G: Array) -> list[tuple[int, float]]:
    """Returns pairs (k, weight): the sum of weight * f(k), f the cross-entropy of k masked, estimates sum f(k)/k.

    With fewer levels than positions, 1..n is cut into as many stretches, and `part_G` (in [0, 1)) says where in its
    stretch a k lies: its weight is (length of the stretch) / k, so that the mean over uniform `part_G` is exact. A
    fixed k (the middle) is not: cross-entropy rises towards k = n, where it may be all there is.
    """
    if n <= len(part_G):
        return [(k, 1 / k) for k in range(1, n + 1)]
    edges = np.linspace(0, n, len(part_G) + 1).round().astype(int).tolist()
    return [
        (k := a + 1 + int(part * (b - a)), (b - a) / k)
        for part, a, b in zip(part_G, edges[:-1], edges[1:], strict=True)
    ]


def next_token(model: Model, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what a causal model makes of clean ids: nll_P in nats, correct_P, and the row of each target position.

    -log p(id | all ids before it), one forward, from the state to the left (arXiv 2410.17891 calls that shift). What a
    target holds in place of an id, the mask, is not scored. Raises ConfigError where attention is not causal, DataError
    for a target with which a document begins: nothing stands before it.
    """
    parts = model.attention.patterns if isinstance(model.attention, All) else (model.attention,)
    if not any(isinstance(one, Causal) for one in parts):
        raise ConfigError(f"model.attention: {model.attention}; the next token is predicted under Causal only")
    scored_BL = batch.target_BL & (batch.ids_BL != model.vocab.mask_id)
    if bool((scored_BL & batch.attend_BL & (batch.position_ids_BL == 0)).any()):
        raise DataError("a document begins with a target, which a causal model cannot predict: put a token before it")
    h_BLD = model.hidden(
        batch.ids_BL, batch, model.encode(batch.media), torch.arange(len(batch), device=batch.ids_BL.device)
    )
    if not model.backbone.facts.shift:  # of shifted logits, `score` takes the state to the left itself
        h_BLD = torch.cat([h_BLD[:, :1], h_BLD[:, :-1]], 1)
    scores = model.score(h_BLD, batch, scored_BL)
    return scores.nll_P, scores.correct_P, scored_BL.nonzero()[:, 0]


def score_masked(
    model: MMDiff, batch: Batch, features: dict[str, Tensor], masked_BL: Tensor, *, blockwise: bool = False
) -> tuple[Scores, Tensor]:
    """Returns the scores of the masked positions given everything else, and the row of each (P,).

    blockwise: given, of earlier blocks, the clean ids. Raises ConfigError for scores that are not numbers.
    """
    ids_BL = batch.ids_BL.masked_fill(masked_BL, model.vocab.noise_id)
    if blockwise:
        h_BLD = model.hidden_copies(ids_BL, batch, features, 1, blockwise=True)
    else:
        h_BLD = model.hidden(ids_BL, batch, features, torch.arange(len(batch), device=ids_BL.device))
    scores, row_P = model.score(h_BLD, batch, masked_BL), masked_BL.nonzero()[:, 0]
    if bool((wrong_P := scores.nll_P.isnan()).any()):
        raise ConfigError(
            f"the model's likelihood of row {int(row_P[wrong_P][0])} is not a number: its weights have diverged"
        )
    return scores, row_P
