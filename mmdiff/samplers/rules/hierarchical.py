"""Hierarchical decoding: groups of positions, such as the numbers of one action, are committed one after the other.

Shape letters: R rows of a step, P predicted positions, L canvas length, G groups of a row, S positions of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1

from .select import order
from .state import Proposal, State


@part
@dataclass(frozen=True)
class Hierarchical:
    """LLaDA-VLA's action-structured decoding (arXiv 2509.06932): the surest group first, in it the surest positions.

    A group is `size` target positions of a row that follow each other, wherever they lie. The confidence of a group is
    the sum over its positions: of proposed tokens now, of committed tokens when they were committed, of given ones 1.
    The group committed to last goes on until it is complete, and a complete one leaves the ranking. After iteration k
    of a group ceil(size * k / iterations) of its positions hold tokens, given ones among them; a canvas of K empty
    groups takes K * iterations steps, and one that is partly given no more. `sampler.steps` then decides no quota, but
    a changing temperature and a `revise` rule take it for the length of a block: set it to K * iterations.

    Groups are ranked by confidence, positions within one by the score (`sampler.remasking`). Whole groups in order of
    time are `sampler.block_length: size`, without this rule.

    Raises ConfigError for target positions of a row, or a block, that groups do not divide.
    """

    size: AtLeast1
    iterations: AtLeast1 = 1

    def __post_init__(self) -> None:
        if self.iterations > self.size:
            most = f"a group of {self.size} takes no more than {self.size}"
            raise ConfigError(f"sampler.select.iterations={self.iterations}: {most}")

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        state, row_P, at_P = proposal.state, proposal.row_P, (proposal.row_P, proposal.position_P)
        if "groups" not in state.extras:  # once: it waits for the device, and all blocks but the last are alike
            self._check(state)
            state.extra("groups", 1.0)
        confidence_RL = state.confidence_RL.double().index_put(at_P, proposal.confidence_P.double())
        masked_RL = proposal.canvas(torch.ones_like(row_P, dtype=torch.bool), False)

        n_masked_RG = self._groups(masked_RL.long(), state).sum(-1)
        latest_RG = self._groups(state.step_RL, state).amax(-1) * (n_masked_RG > 0)
        confidence_RG = self._groups(confidence_RL, state).sum(-1).masked_fill(n_masked_RG == 0, -1.0)
        group_R = torch.where(latest_RG.any(1), latest_RG.argmax(1), confidence_RG.argmax(1))

        n_held_R = self.size - n_masked_RG.gather(1, group_R[:, None]).squeeze(1)
        k_R = n_held_R * self.iterations // self.size + 1  # the first iteration that leaves more tokens than there are
        n_commit_R = -(-self.size * k_R // self.iterations) - n_held_R

        inside_P = state.rank_RL[at_P] // self.size == group_R[row_P]
        rank_P = order(score_P, row_P)
        by_rank_RL = torch.zeros_like(state.rank_RL).index_put((row_P, rank_P), inside_P.long())
        return inside_P & (by_rank_RL.cumsum(1)[row_P, rank_P] <= n_commit_R[row_P])  # its best, by the order of all

    def _groups(self, x_RL: Tensor, state: State) -> Tensor:
        """Returns (R, G, S), values at the target positions of every row, group by group; 0 where a row has fewer."""
        length = -(-x_RL.shape[1] // self.size) * self.size
        position_RL = state.rank_RL.masked_fill(~state.target_RL, length)  # the last column takes what is no target
        packed = x_RL.new_zeros(len(x_RL), length + 1).scatter(1, position_RL, x_RL)
        return packed[:, :-1].unflatten(1, (-1, self.size))

    def _check(self, state: State) -> None:
        count_R = state.target_RL.sum(1)
        wrong_R = count_R % self.size != 0
        if wrong_R.any():
            count = int(count_R[wrong_R][0])
            raise ConfigError(
                f"sampler.select.size: groups of {self.size} do not divide the {count} positions of a row"
            )
        in_block_RG = self._groups(state.block_RL.long(), state).sum(-1)
        if ((in_block_RG > 0) & (in_block_RG < self.size)).any():
            raise ConfigError(f"sampler.block_length: a block cuts a group of {self.size}; expected a multiple of it")
