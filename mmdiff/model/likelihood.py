"""Estimates of log p: the bound that evaluation reports.

Shape letters: B samples, L canvas length, P masked positions, G copies of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.schedule import Array
from mmdiff.errors import ConfigError

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
    give the same figure. batch: on the CPU.
    """
    key = NoiseKey(seed, stream="bound")
    target_BL = (batch.target_BL & (batch.ids_BL != model.vocab.mask_id)).numpy()  # an empty position is not scored
    n_B = target_BL.sum(1)
    part_BG = key.fold("level").uniforms(batch.index_B.tolist(), levels)
    grids = [grid(int(n), part_G) for n, part_G in zip(n_B, part_BG, strict=True)]
    rank_BL = np.full(target_BL.shape, target_BL.shape[1])
    on_device = to_device(batch, model.device)
    features = model.encode(on_device.media)
    nll_B = torch.zeros(len(batch), dtype=torch.float64)
    for copy in range(max((len(g) for g in grids), default=0)):
        k_B, weight_B = np.zeros(len(batch), dtype=np.int64), np.zeros(len(batch))
        for b, (sample, g) in enumerate(zip(batch.index_B.tolist(), grids, strict=True)):
            if copy < len(g):
                k_B[b], weight_B[b] = g[copy]
                draws = key.uniform(sample, int(n_B[b]), copy)
                rank_BL[b, target_BL[b]] = draws.argsort(kind="stable").argsort(kind="stable")
        masked_BL = torch.from_numpy((rank_BL < k_B[:, None]) & target_BL)
        scores, row_P = score_masked(model, on_device, features, masked_BL.to(model.device))
        weight_P = torch.from_numpy(weight_B)[row_P.cpu()]
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


def score_masked(model: MMDiff, batch: Batch, features: dict[str, Tensor], masked_BL: Tensor) -> tuple[Scores, Tensor]:
    """Returns the scores of the masked positions given everything else, and the row of each (P,).

    Raises ConfigError for scores that are not numbers.
    """
    ids_BL = batch.ids_BL.masked_fill(masked_BL, model.vocab.mask_id)
    rows_B = torch.arange(len(batch), device=ids_BL.device)
    h_BLD = model.hidden(ids_BL, batch, features, rows_B)
    scores, row_P = model.score(h_BLD, batch, masked_BL), masked_BL.nonzero()[:, 0]
    if bool((wrong_P := scores.nll_P.isnan()).any()):
        raise ConfigError(
            f"the model's likelihood of row {int(row_P[wrong_P][0])} is not a number: its weights have diverged"
        )
    return scores, row_P
