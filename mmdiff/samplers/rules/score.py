"""Score: which proposals are committed first. Shape letters: P predicted positions of a step, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, AtLeast1, BelowOne, NotNegative, PositiveShare

from .state import Proposal, Score


@part
@dataclass(frozen=True)
class LowConfidence:
    """The score is the probability of the proposed token: the least confident stay masked (LLaDA, arXiv 2502.09992).

    With a temperature the order then depends on what was drawn, so one position per step no longer samples the model's
    joint distribution; `Random` does.
    """

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        return proposal.confidence_P


@part
@dataclass(frozen=True)
class Random:
    """The score is a random number: positions are committed in random order."""

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        return proposal.noise.uniform("order")


@part
@dataclass(frozen=True)
class Margin:
    """The score is the probability of the best token minus that of the second best (arXiv 2502.06768)."""

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        top_P2 = (logits_PV.topk(2, dim=-1).values - logits_PV.logsumexp(-1, keepdim=True)).exp()
        return top_P2[:, 0] - top_P2[:, 1]


@part
@dataclass(frozen=True)
class NegativeEntropy:
    """The score is the sum of p log p, in nats: 0 where the model is certain, negative elsewhere (Dream)."""

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        log_p_PV = logits_PV.log_softmax(-1)
        return (log_p_PV.exp() * log_p_PV.masked_fill(log_p_PV == -torch.inf, 0.0)).sum(-1)


@part
@dataclass(frozen=True)
class LeftToRight:
    """The score falls from left to right: positions are committed in the order of the target."""

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        return -proposal.state.rank_RL[proposal.row_P, proposal.position_P].float()


@part
@dataclass(frozen=True)
class Listed:
    """The score follows an order that is given: any order of a row's target positions (u-PMLM, arXiv 2004.11579).

    positions: numbers of target positions of a row, from 0, the first to be committed first. Those that are not listed
        come after them, from left to right; numbers that a row does not have are passed over.
    """

    positions: list[AtLeast0]

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        rank_RL = proposal.state.rank_RL
        length = rank_RL.shape[1]
        turn = {position: n for n, position in reversed(list(enumerate(self.positions)))}
        turn_L = torch.tensor([turn.get(n, len(self.positions) + n) for n in range(length)], dtype=torch.float32)
        return -turn_L.to(rank_RL.device, non_blocking=True)[rank_RL[proposal.row_P, proposal.position_P]]


@part
@dataclass(frozen=True)
class EarlyEnds:
    """Another score, damped where the proposal is an end id, by ever less (EOSER, arXiv 2509.23924).

    The factor rises from `low` at a row's first step to `high` at its last, over all of its blocks; a negative score is
    divided by it. A canvas in one block then no longer fills up with end ids, of which a model is sure too early.

    progress: steps: i / (S - 1) at step i of S, from 0. positions: the share of the row's masked positions that are
        committed after the step if it keeps to the schedule, as published for `schedule=ascending`, with low=0.01. A
        rule that takes fewer steps than it is given reaches `high` by positions only.
    score: node of the other score. None: `LowConfidence`.
    """

    low: PositiveShare = 0.4
    high: PositiveShare = 1.0
    progress: Literal["steps", "positions"] = "steps"
    score: Score | None = None

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        score_P = (self.score or LowConfidence())(logits_PV, proposal)
        factor_P = self.factor(proposal)[proposal.row_P].to(score_P.dtype)
        damped_P = torch.where(score_P < 0, score_P / factor_P, score_P * factor_P)
        return damped_P.where(torch.isin(proposal.ids_P, proposal.state.end_ids_X), score_P)

    def factor(self, proposal: Proposal) -> Tensor:
        """Returns float64 (R,), the factor of this step."""
        state = proposal.state
        if self.progress == "steps":
            progress_R = (state.forward_R - 1).double() / (state.row_steps_R - 1).clamp(min=1)
        else:
            n_committed_R = (state.step_RL > 0).sum(1)
            n_all_R = n_committed_R + state.pending_RL.sum(1)
            progress_R = (n_committed_R + proposal.quota_R).double() / n_all_R.clamp(min=1)
        return self.low + (self.high - self.low) * progress_R.clamp(max=1)


@part
@dataclass(frozen=True)
class Credit:
    """The probability of the proposed token once tokens have credit for having been likeliest (arXiv 2510.06133).

    At every step a position's likeliest token gains credit p^boost, after all its credits have shrunk by `decay`; then
    log(1 + credit) counts `weight` in the logits (CreditDecoding, of dInfer). Use it with `sampler.threshold`: a
    position that keeps its mind is committed earlier. The token proposed stays the model's; the published code also
    proposes by the new logits.

    tokens: how many of them may have credit at one position; the least is dropped for a new one.
    """

    weight: NotNegative = 0.7
    boost: NotNegative = 0.2
    decay: BelowOne = 0.8
    tokens: AtLeast1 = 4

    def __call__(self, logits_PV: Tensor, proposal: Proposal) -> Tensor:
        state = proposal.state
        credit_BLK = state.extra("credit", 0.0, self.tokens)
        token_BLK = state.extra("credit_ids", -1, self.tokens)
        at_P = (state.row_R[proposal.row_P], proposal.position_P)
        log_all_P = logits_PV.logsumexp(-1)
        likeliest_P = logits_PV.max(-1)
        p_P = (likeliest_P.values - log_all_P).exp().nan_to_num()  # NaN: nothing but late end ids may stand there

        credit_PK, token_PK = credit_BLK[at_P] * self.decay, token_BLK[at_P]
        held_PK = token_PK == likeliest_P.indices[:, None]
        # a token's own column, or the one with the least credit, which is lost
        column_P = torch.where(held_PK.any(1), held_PK.byte().argmax(1), credit_PK.argmin(1))[:, None]
        kept_P1 = credit_PK.gather(1, column_P).where(held_PK.any(1, keepdim=True), 0.0)
        credit_PK = credit_PK.scatter(1, column_P, kept_P1 + p_P[:, None] ** self.boost)
        token_PK = token_PK.scatter(1, column_P, likeliest_P.indices[:, None])
        state.extras["credit"] = credit_BLK.index_put(at_P, credit_PK)
        state.extras["credit_ids"] = token_BLK.index_put(at_P, token_PK)

        gain_PK = (1 + credit_PK) ** self.weight
        p_PK = (logits_PV.gather(1, token_PK.clamp(min=0)) - log_all_P[:, None]).exp() * (token_PK >= 0)
        total_P = 1 + (p_PK * (gain_PK - 1)).sum(1)
        gain_P = gain_PK.where(token_PK == proposal.ids_P[:, None], 1.0).amax(1)
        return proposal.confidence_P * gain_P / total_P
