"""Select rules that keep the positions of one step apart: what is far apart is nearly independent.

Shape letters: P predicted positions of a step, R rows, L canvas length, T rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, AtLeast2, Share

from .select import order
from .state import Proposal, Select, State


@part
@dataclass(frozen=True)
class Dilated:
    """Selects a comb of the block, then ever denser ones: B positions in log B rounds (DUS, arXiv 2506.19037).

    Round t takes the positions whose number in the block divides by max(1, B // base^t), less those of earlier rounds;
    rounds without masked positions are left out. The order looks at no score, so `sampler.steps` plays no part.

    skip: a position that scores below it waits for a later round, to the last one, which takes all. None: none waits.
    """

    base: AtLeast2 = 2
    skip: Share | None = None

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        row_P = proposal.row_P
        last = proposal.state.target_RL.shape[1] + 1
        round_P = self._rounds(proposal.state)[row_P, proposal.position_P]
        first_R = proposal.canvas(round_P, last).amin(1)
        if self.skip is None:
            return round_P == first_R[row_P]
        # every step that is taken is a round that is over; the rounds end where the stride is 1
        now_R = torch.maximum(first_R, proposal.state.step_R)
        due_P = round_P <= now_R[row_P]
        ends_R = self._rounds(proposal.state).masked_fill(~proposal.state.block_RL, 0).amax(1)
        keep_P = due_P & ((score_P >= self.skip) | (now_R >= ends_R)[row_P])
        best_P = order(score_P.masked_fill(~due_P, -torch.inf), row_P) == 0
        return keep_P | best_P

    def _rounds(self, state: State) -> Tensor:
        """Returns int64 (R, L), the round of each position of the block, from 1."""
        size_R = state.block_RL.sum(1)
        rank_RL = state.rank_RL
        first_R = rank_RL.masked_fill(~state.block_RL, rank_RL.shape[1]).amin(1)
        last = 1
        while self.base**last < rank_RL.shape[1]:  # until the stride of the longest block is 1
            last += 1
        power_T = self.base ** torch.arange(1, last + 1, device=rank_RL.device)
        stride_RT = (size_R[:, None] // power_T).clamp(min=1)
        on_comb_RLT = (rank_RL - first_R[:, None])[:, :, None] % stride_RT[:, None] == 0
        return on_comb_RLT.byte().argmax(2) + 1  # the first comb that has it


@part
@dataclass(frozen=True)
class MinimumGap:
    """Selects from what another rule selects, best first, a position only if it is `gap` away from those taken.

    The filter that DUS gives adaptive rules (arXiv 2506.19037). Gaps are counted on the canvas. Where the other rule
    may commit nothing at a step, the last step keeps no gaps.

    select: the other rule. gap: the least distance. stride: the distance while all of a block is masked; it falls with
    the share that is still masked, to `gap`. most: the most positions of a row that one step takes.
    """

    select: Select
    gap: AtLeast2 = 2
    stride: AtLeast1 = 1
    most: AtLeast1 = 32

    @property
    def may_wait(self) -> bool:
        return bool(getattr(self.select, "may_wait", False))

    @property
    def of_score(self) -> type | None:
        return getattr(self.select, "of_score", None)

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        state, row_P, position_P = proposal.state, proposal.row_P, proposal.position_P
        n_masked_R = proposal.canvas(torch.ones_like(row_P), 0).sum(1)
        gap_R = (n_masked_R * self.stride // state.block_RL.sum(1).clamp(min=1)).clamp(min=self.gap)
        length = state.target_RL.shape[1]
        selected_P = self.select(score_P, proposal)
        rank_P = order(score_P, row_P).where(selected_P, length)
        left_RL = proposal.canvas(rank_P, length)  # rank of what may still be taken, `length` elsewhere
        taken_RL = torch.zeros_like(state.target_RL)
        position_L = torch.arange(length, device=row_P.device)
        for _ in range(min(self.most, -(-length // self.gap))):
            best_R = left_RL.argmin(1)
            near_RL = (position_L - best_R[:, None]).abs() < gap_R[:, None]
            taken_RL |= (position_L == best_R[:, None]) & (left_RL < length)
            left_RL = left_RL.masked_fill(near_RL, length)
        taken_P = taken_RL[row_P, position_P]
        if self.may_wait:
            taken_P |= selected_P & (state.step_R >= state.steps_R)[row_P]
        return taken_P
