"""Noise on the order of positions (MaskGIT, Dream), and Discrete Diffusion VLA's remasking of what was committed.

Their number of positions per step is `sampler.schedule: cosine`, their cooling `sampler.temperature_end: 0`.
Shape letters: R rows of a step, L canvas length, P predicted positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import NotNegative, Share

from .select import Quota
from .state import Committed, Proposal


@part
@dataclass(frozen=True)
class RandomTopK:
    """Selects the row's quota by log p + temperature * (1 - s/T) * Gumbel noise, at step s of T.

    This is MaskGIT's choice (arXiv 2202.04200). p is the confidence, whatever the score. A block's first positions are
    drawn more freely than its last.
    """

    temperature: NotNegative = 4.5

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        u_P = proposal.noise.uniform("select")
        scale_R = self.temperature * (1 - proposal.state.progress_R)
        noisy_P = proposal.confidence_P.double().log() - scale_R[proposal.row_P] * u_P.log().neg().log()
        return Quota()(noisy_P, proposal)


@part
@dataclass(frozen=True)
class DrawnOrder:
    """Draws the row's quota without replacement from softmax(score / temperature), whatever the score.

    This is Dream's `alg_temp` (arXiv 2508.15487), done as the best of score / temperature + Gumbel noise. 0: the best
    scores.
    """

    temperature: NotNegative

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        if self.temperature:
            u_P = proposal.noise.uniform("select")
            score_P = score_P.double() - self.temperature * u_P.log().neg().log()
        return Quota()(score_P, proposal)


@part
@dataclass(frozen=True)
class Remask:
    """Masks a committed token again when the model, which now sees it, no longer finds it likely (arXiv 2508.20072).

    threshold: a token of an earlier step is masked when its probability at this step is below it; 0: none is.
    threshold_end: the threshold at a block's last step, reached in a straight line; None: the threshold is constant.
    drop: tokens whose probability fell by more than this since they were committed are masked too; None: none are.

    This costs no forward: the one that predicts the masked positions scores the others. The schedule divides what is
    masked again among the steps that are left. A model that was trained on masked positions only never learnt to score
    those it can see.
    """

    threshold: Share
    threshold_end: Share | None = None
    drop: Share | None = None

    rescore: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.threshold or self.threshold_end or self.drop is not None):
            raise ConfigError("sampler.revise: Remask(threshold=0) masks nothing; give a threshold or a drop")

    def __call__(self, committed: Committed) -> Tensor:
        if committed.rescored_RL is None:
            raise ConfigError("sampler.revise: Remask needs the present probabilities of committed tokens")
        end = self.threshold if self.threshold_end is None else self.threshold_end
        masked_RL = committed.rescored_RL < committed.state.between(self.threshold, end)[:, None]
        if self.drop is not None:
            masked_RL |= committed.confidence_RL - committed.rescored_RL > self.drop
        return masked_RL
