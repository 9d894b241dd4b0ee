"""Which interval of levels gives a loss of least variance? The search of BD3LM (arXiv 2503.09573, section 5).

Shape letters: R rows, L canvas length, G groups of targets of all rows: blocks, or documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.spread import Clipped, Independent, Spread, Stratified
from mmdiff.errors import ConfigError
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.protocols import Model

Interval = tuple[float, float]
T = TypeVar("T", bound=Denoise | BlockDenoise)
WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9)


def intervals_of(widths: Sequence[float] = WIDTHS, step: float = 0.05) -> list[Interval]:
    """Returns all levels, and then the intervals of each width that begin at a multiple of `step`, as published."""
    out = [(0.0, 1.0)]
    for width in widths:
        count = math.floor((1 - width) / step + 1e-9) + 1
        out += [(round(n * step, 9), round(min(n * step + width, 1.0), 9)) for n in range(count)]
    return list(dict.fromkeys(out))


def clip_variances(
    model: Model,
    batches: Sequence[Batch],
    objective: T,
    intervals: Sequence[Interval] | None = None,
    seed: int = 0,
) -> dict[Interval, float]:
    """Returns the variance over blocks (or documents) of the loss per target, by interval of levels, the least first.

    It is that within a batch, as published, pooled over batches; of equals, the first interval comes first. batches: on
    the CPU, of held-out rows. The same random numbers are used for every interval. The first is what
    `objective.spread: {target: mmdiff.diffusion.spread.Clipped, low: ..., high: ...}` is to be. Raises ConfigError
    where no batch has two blocks.
    """
    out: dict[Interval, float] = {}
    for low, high in intervals_of() if intervals is None else intervals:
        one, total, count = clipped(objective, low, high), 0.0, 0
        for number, batch in enumerate(batches):
            plan = one.plan(batch, NoiseKey(seed, number, "clip", batch=len(batch)), model.vocab)
            loss_G = group_losses(model, one, to_device(plan, _device(model)))
            if len(loss_G):
                total, count = total + float((loss_G - loss_G.mean()).square().sum()), count + len(loss_G) - 1
        if not count:
            raise ConfigError("objective: the variance of a loss needs batches of two targets that are masked apart")
        out[low, high] = total / count if math.isfinite(total) else math.inf
    return dict(sorted(out.items(), key=lambda item: item[1]))


def best_clip(model: Model, batches: Sequence[Batch], objective: T, seed: int = 0) -> T:
    """Returns the objective with the interval of least variance among the published ones."""
    return clipped(objective, *next(iter(clip_variances(model, batches, objective, seed=seed))))


def clipped(objective: T, low: float, high: float) -> T:
    """Returns the objective with its levels in an interval, spread in it as they were spread."""
    spread: Spread | None = objective.spread
    if isinstance(spread, Clipped):
        spread = spread.spread
    return replace(objective, spread=Clipped(low, high, spread or (EVEN if objective.levels.stratified else ALONE)))


EVEN, ALONE = Stratified(), Independent()


def group_losses(model: Model, objective: Denoise | BlockDenoise, plan: NoisedBatch) -> Tensor:
    """Returns float64 (G,), the loss per target of each group, without a gradient of the model.

    The loss is linear in the weights of masked positions, so its derivative by them is their cross-entropy.
    """
    weight_RL = plan.weight_RL.clone().requires_grad_()
    value = objective.terms(model, replace(plan, weight_RL=weight_RL))["denoise"].value
    (nll_RL,) = torch.autograd.grad(value, weight_RL)
    at_N, cost_N = plan.group_RL[plan.scored_RL], (nll_RL.double() * plan.weight_RL)[plan.scored_RL]
    count_G = torch.bincount(at_N)
    cost_G = torch.zeros(len(count_G), dtype=torch.float64, device=at_N.device).index_add(0, at_N, cost_N)
    return (cost_G / count_G).cpu()


def _device(model: Model) -> torch.device:
    found: torch.device = getattr(model, "device", torch.device("cpu"))
    return found
