"""MaskGIT's noise on the order of positions, and Discrete Diffusion VLA's second look at what was written.

Their share of positions a step is `sampler.schedule: cosine`, their cooling `sampler.temperature_end: 0`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmdiff.errors import ConfigError

from .select import Quota
from .state import Proposal, Written


@dataclass(frozen=True)
class RandomTopK:
    """The row's share, by log p + temperature * (1 - s/T) * Gumbel noise at step s of T (MaskGIT, arXiv 2202.04200).

    p is the confidence, whatever the score. A block's first positions are drawn more freely than its last.
    """

    temperature: float = 4.5

    def __post_init__(self) -> None:
        _check("select.temperature", self.temperature, math.inf)

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        u_P = torch.cat(list(proposal.draws.rows("select"))).clamp(min=1e-300)
        scale_R = self.temperature * (1 - proposal.state.progress_R)
        noisy_P = proposal.confidence_P.double().log() - scale_R[proposal.row_P] * u_P.log().neg().log()
        return Quota()(noisy_P, proposal)


@dataclass(frozen=True)
class Remask:
    """Open again what the model, asked once more with it in sight, no longer believes (arXiv 2508.20072).

    threshold: present probability below which a token of an earlier step is opened; 0: none is.
    threshold_end: the threshold at a block's last step, reached in a straight line; None: it stays.
    drop: tokens whose probability fell by more than this since they were committed are opened too; None: none are.

    It costs no forward: the one that fills the open positions scores the others. What is opened is shared out over the
    steps that are left. A model that was trained on masked positions only was never asked about those it can see.
    """

    threshold: float
    threshold_end: float | None = None
    drop: float | None = None

    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("threshold", "threshold_end", "drop"):
            value = getattr(self, name)
            if value is not None or name == "threshold":
                _check(f"revise.{name}", value, 1.0)
        if not (self.threshold or self.threshold_end or self.drop is not None):
            raise ConfigError("sampler.revise: Remask(threshold=0) opens nothing; give a threshold or a drop")

    def __call__(self, written: Written) -> Tensor:
        if written.now_RL is None:
            raise ConfigError("sampler.revise: Remask needs the present probabilities of what is written")
        end = self.threshold if self.threshold_end is None else self.threshold_end
        open_RL = written.now_RL < written.state.between(self.threshold, end)[:, None]
        if self.drop is not None:
            open_RL |= written.confidence_RL - written.now_RL > self.drop
        return open_RL


def _check(name: str, value: Any, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or math.isinf(value):
        expected = "of at least 0" if math.isinf(most) else f"from 0 to {most:g}"
        raise ConfigError(f"sampler.{name}={value!r}: expected a number {expected}")
