"""Rules that follow the noising process in time: ancestral sampling, first hitting, and remasking that keeps its law.

Time falls from 1 to 0 along the steps of a block, t at a step's beginning and s at its end; a token is masked at time t
with probability t (log-linear noise, LLaDA's). Shape letters: P predicted positions of a step, R rows, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, BelowOne, Share

from .select import order
from .state import Committed, Proposal, State


def times(state: State, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns float64 (t_R, s_R), the times of the step, on a line from 1 to eps; from the last step on s is 0."""
    steps_R = state.steps_R.clamp(min=1).double()
    done_R = torch.minimum(state.step_R, state.steps_R).double()
    t_R = 1 - (1 - eps) * (done_R - 1).clamp(min=0) / steps_R
    s_R = 1 - (1 - eps) * done_R / steps_R
    return t_R, s_R.masked_fill(state.step_R >= state.steps_R, 0.0)


@part
@dataclass(frozen=True)
class Ancestral:
    """Selects each position by itself, with probability 1 - s/t: the reverse process step by step, whatever the score.

    A step may commit nothing; the last one commits all. With ever more steps the model's joint distribution is sampled.
    Dream's `origin` is eps=0.001 (arXiv 2508.15487); `eps` is where time ends before the last step.
    """

    eps: BelowOne = 0.0

    may_wait: ClassVar[bool] = True

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        t_R, s_R = times(proposal.state, self.eps)
        return _bernoulli(1 - s_R / t_R, proposal)


@part
@dataclass(frozen=True)
class FirstHitting:
    """Selects one position at random, whatever score and schedule: the events of the reverse process without its times.

    The model is not told the time, so only the order of the events counts, and each position is equally likely to be
    next: one forward per position samples the model's joint distribution (arXiv 2409.02908).

    count: positions per event. More than one is the published parallel variant, which is biased.
    """

    count: AtLeast1 = 1

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        return order(proposal.noise.uniform("select"), proposal.row_P) < self.count


@part
@dataclass(frozen=True)
class ReMDM:
    """Masks every token of an earlier step again with probability sigma, and commits as many more (arXiv 2503.00307).

    A position is masked after a step with probability s all the same, as in ancestral sampling. At the last step sigma
    is 0; a row without masked positions ends before it. The rule brings the select rule that belongs to it, so
    `sampler.select` is left out.

    kind: with sigma_max = min(1, s / (1 - t)), the most for which that can hold: cap: sigma = min(eta, sigma_max).
        rescale: sigma = eta sigma_max. conf: rescale, divided among the block's tokens by softmax(-confidence), the
        confidence when they were committed, and nothing more is committed; on average no more than eta tokens per
        step are masked again.
    """

    kind: Literal["cap", "rescale", "conf"]
    eta: Share

    @property
    def select(self) -> ReMDMCommits:
        """The select rule that commits more where this one masks again."""
        return ReMDMCommits(self)

    def __call__(self, committed: Committed) -> Tensor:
        state = committed.state
        earlier_RL = committed.committed_RL & (state.step_RL > 0)
        sigma_RL = self.sigma(state)[:, None].expand(earlier_RL.shape)
        if self.kind == "conf":
            unsure_RL = (-committed.confidence_RL.double()).masked_fill(~earlier_RL, -torch.inf)
            sigma_RL = sigma_RL * unsure_RL.softmax(1).nan_to_num()  # a row without tokens has no softmax
        assert committed.noise is not None
        # a number for each target position of the row: where it lies on the canvas must not count
        u_RL = committed.noise.table("remask", sigma_RL.shape[1]).gather(1, state.rank_RL)
        return earlier_RL & (u_RL < sigma_RL)

    def sigma(self, state: State) -> Tensor:
        """Returns float64 (R,), the probability of being masked again; of `conf`: before it is divided."""
        t_R, s_R = times(state)
        # in a block of one step s / (1 - t) is 0 / 0
        most_R = (s_R / (1 - t_R)).clamp(max=1).masked_fill(s_R == 0, 0.0)
        return most_R.clamp(max=self.eta) if self.kind == "cap" else self.eta * most_R


@dataclass(frozen=True)
class ReMDMCommits:
    """Selects each position with probability (t - s + sigma (1 - t)) / t: makes up for the remasking of `rule`."""

    rule: ReMDM

    may_wait: ClassVar[bool] = True

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        t_R, s_R = times(proposal.state)
        sigma_R = self.rule.sigma(proposal.state) if self.rule.kind != "conf" else torch.zeros_like(t_R)
        return _bernoulli((t_R - s_R + sigma_R * (1 - t_R)) / t_R, proposal)


def _bernoulli(p_R: Tensor, proposal: Proposal) -> Tensor:
    return proposal.noise.uniform("select") < p_R[proposal.row_P]
