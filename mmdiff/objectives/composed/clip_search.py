"""Which interval of levels gives a loss of least variance? The search of BD3LM (arXiv 2503.09573, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.spread import Clipped
from mmdiff.objectives.blocks import BlockDenoise
from mmdiff.objectives.denoise import Denoise
from mmdiff.objectives.noising.noised import NoisedBatch
from mmdiff.protocols import Model

T = TypeVar("T", Denoise, BlockDenoise)
INTERVALS = [(low / 10, high / 10) for low in range(0, 9, 2) for high in range(low + 2, 11, 2)]


def clip_variances(
    model: Model,
    batches: Sequence[Batch],
    objective: T,
    intervals: Sequence[tuple[float, float]] = INTERVALS,
    seed: int = 0,
) -> dict[tuple[float, float], float]:
    """Returns the variance over samples of the loss per target, for each interval of levels, the least first.

    batches: on the CPU, of held-out rows. The same random numbers are used for every interval. The first is what
    `objective.spread: {target: mmdiff.diffusion.spread.Clipped, low: ..., high: ...}` is to be.
    """
    out = {}
    for low, high in intervals:
        clipped = replace(objective, spread=Clipped(low, high, objective.spread or Clipped().spread))
        losses = []
        for number, batch in enumerate(batches):
            plan = clipped.plan(batch, NoiseKey(seed, number, "clip", batch=len(batch)), model.vocab)
            losses.append(row_losses(model, clipped, to_device(plan, _device(model))))
        out[low, high] = float(torch.cat(losses).var())
    return dict(sorted(out.items(), key=lambda item: item[1]))


def best_clip(model: Model, batches: Sequence[Batch], objective: T, seed: int = 0) -> T:
    """Returns the objective with the interval of least variance among those of tenths."""
    low, high = next(iter(clip_variances(model, batches, objective, seed=seed)))
    return replace(objective, spread=Clipped(low, high, objective.spread or Clipped().spread))


def row_losses(model: Model, objective: Denoise | BlockDenoise, plan: NoisedBatch) -> Tensor:
    """Returns float64 (R,), the loss per target of each noised copy, without a gradient of the model.

    The loss is linear in the weights of masked positions, so its derivative by them is their cross-entropy.
    """
    weight_RL = plan.weight_RL.clone().requires_grad_()
    value = objective.terms(model, replace(plan, weight_RL=weight_RL))["denoise"].value
    (nll_RL,) = torch.autograd.grad(value, weight_RL)
    loss_R: Tensor = (nll_RL.double() * plan.weight_RL).sum(1) / plan.scored_RL.sum(1).clamp(min=1)
    return loss_R.cpu()


def _device(model: Model) -> torch.device:
    found: torch.device = getattr(model, "device", torch.device("cpu"))
    return found
