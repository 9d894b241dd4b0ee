"""Surrogates: losses whose gradient, at the policy that made the generations, is that of advantage * log p.

Shape letters: B generations, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import BelowOne, NotNegative


class Surrogate(Protocol):
    """The loss whose gradient is that of the policy."""

    def __call__(self, logp_BL: Tensor, old_BL: Tensor, scored_BL: Tensor, advantage_B: Tensor) -> Tensor:
        """Returns the loss (B, L) of each scored position, 0 elsewhere.

        logp_BL: what each position adds to the estimate of log p, with a gradient. old_BL: at what generated.
        """
        ...


@part
@dataclass(frozen=True)
class Clipped:
    """-min(r A, clip(r, 1 - low, 1 + high) A) by position, r = exp(logp - old): PPO's and GRPO's (d1, UniGRPO).

    For estimates by token, such as `MeanField`, `Coupled` and `AlongSteps`. low, high: published are 0.2 and 0.2; a
    larger `high` lets rare tokens grow (DAPO: 0.28).
    """

    low: BelowOne = 0.2
    high: NotNegative = 0.2

    def __call__(self, logp_BL: Tensor, old_BL: Tensor, scored_BL: Tensor, advantage_B: Tensor) -> Tensor:
        ratio_BL = torch.where(scored_BL, logp_BL - old_BL, 0.0).exp()
        return torch.where(scored_BL, _worse(ratio_BL, advantage_B[:, None], self.low, self.high), 0.0)


@part
@dataclass(frozen=True)
class ClippedSequence:
    """The same of whole answers, r = exp(mean of logp - old over their positions): GSPO's, GDPO's (arXiv 2510.08554).

    For estimates of whole answers, such as `Elbo` and `Quadrature`, whose parts by position mean nothing alone.
    """

    low: BelowOne = 0.2
    high: NotNegative = 0.2

    def __call__(self, logp_BL: Tensor, old_BL: Tensor, scored_BL: Tensor, advantage_B: Tensor) -> Tensor:
        count_B = scored_BL.sum(1).clamp(min=1)
        ratio_B = (torch.where(scored_BL, logp_BL - old_BL, 0.0).sum(1) / count_B).exp()
        return torch.where(scored_BL, _worse(ratio_B, advantage_B, self.low, self.high)[:, None], 0.0)


@part
@dataclass(frozen=True)
class Plain:
    """-A log p, without a ratio (REINFORCE; wd1): linear in the estimate of log p, and so as unbiased as that is."""

    def __call__(self, logp_BL: Tensor, old_BL: Tensor, scored_BL: Tensor, advantage_B: Tensor) -> Tensor:
        return torch.where(scored_BL, -advantage_B[:, None] * logp_BL, 0.0)


def _worse(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
