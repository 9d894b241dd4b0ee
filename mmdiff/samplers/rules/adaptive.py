"""Select rules whose number of positions follows how sure the model is: entropies, a running mean, runs of masks.

Shape letters: P predicted positions of a step, R rows, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, NotNegative, PositiveShare, Share

from .score import NegativeEntropy
from .select import order
from .state import Proposal


@part
@dataclass(frozen=True)
class EntropyThreshold:
    """Selects every position whose entropy, in nats, is at most the threshold; always the lowest (dParallel).

    arXiv 2509.26488, which uses 0.45 to 0.5. Needs `sampler.remasking=entropy`.
    """

    threshold: NotNegative

    of_score: ClassVar[type] = NegativeEntropy

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        return (score_P >= -self.threshold) | (order(score_P, proposal.row_P) == 0)


@part
@dataclass(frozen=True)
class EntropyBound:
    """Selects the most positions, of lowest entropy, whose entropies but the largest sum to at most the bound.

    The sum of entropies minus the largest bounds the mutual information that drawing the positions at once gives away,
    in nats: 0 commits one uncertain position at a time (EB-Sampler, arXiv 2505.24857; DiffusionGemma). Needs
    `sampler.remasking=entropy`.
    """

    bound: NotNegative

    of_score: ClassVar[type] = NegativeEntropy

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        entropy_RL = proposal.canvas(-score_P.double(), torch.inf).sort(dim=1).values
        # before the n-th lowest: the sum of the n-1 lower ones, without subtracting infinities from each other
        before_RL = torch.nn.functional.pad(entropy_RL[:, :-1].cumsum(1), (1, 0))
        return before_RL[proposal.row_P, order(score_P, proposal.row_P)] <= self.bound


@part
@dataclass(frozen=True)
class MeanThreshold:
    """Selects the positions surer than the row's committed tokens were on average, and the `least` best (Saber).

    The mean is over the confidences that the tokens now committed in the row had when they were committed; before
    there are any it is 1. Saber's adaptive acceleration; its backtracking is `mmdiff.samplers.rules.revise.Backtrack`.
    """

    least: AtLeast1 = 2

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        state = proposal.state
        held_RL = state.step_RL > 0
        n_held_R = held_RL.sum(1)
        sum_R = state.confidence_RL.double().where(held_RL, 0.0).sum(1)
        mean_R = torch.where(n_held_R > 0, sum_R / n_held_R.clamp(min=1), 1.0)
        certain_P = proposal.confidence_P > mean_R[proposal.row_P]
        few_R = proposal.canvas(certain_P, False).sum(1) < self.least
        return certain_P | (few_R[proposal.row_P] & (order(score_P, proposal.row_P) < self.least))


@part
@dataclass(frozen=True)
class BestOfRuns:
    """Selects the best of every run of masked positions, and all that is sure (dInfer's hierarchical decoder).

    A run is masked positions of the block that follow each other on the canvas. Its best is selected where its score is
    above `low`; every position above `threshold` is, and always the best of the row (arXiv 2510.08666).
    """

    threshold: PositiveShare = 0.9
    low: Share = 0.4

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        at_P = (proposal.row_P, proposal.position_P)
        masked_RL = proposal.canvas(torch.ones_like(proposal.row_P, dtype=torch.bool), False)
        starts_RL = masked_RL & ~torch.nn.functional.pad(masked_RL[:, :-1], (1, 0))
        run_RL = (starts_RL.cumsum(1) - 1).clamp(min=0)
        score_RL = proposal.canvas(score_P, -torch.inf)
        most_RL = torch.full_like(score_RL, -torch.inf).scatter_reduce(1, run_RL, score_RL, "amax")
        position_RL = torch.arange(score_RL.shape[1], device=score_P.device).expand_as(run_RL)
        # of equal scores in a run the leftmost
        best_RL = masked_RL & (score_RL == most_RL.gather(1, run_RL))
        candidate_RL = position_RL.where(best_RL, score_RL.shape[1])
        first_RL = torch.full_like(run_RL, score_RL.shape[1]).scatter_reduce(1, run_RL, candidate_RL, "amin")
        leads_P = (position_RL == first_RL.gather(1, run_RL))[at_P]
        above_P = score_P > torch.where(leads_P, min(self.low, self.threshold), self.threshold)
        return above_P | (order(score_P, proposal.row_P) == 0)
