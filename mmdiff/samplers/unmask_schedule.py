"""How many positions of its block a row commits at each step (`sampler.schedule`).

Shape letters: R rows of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import Positive

from .rules.state import State

UnmaskSchedule = Callable[[Tensor, Tensor, State], Tensor]
"""(n_masked_R, n_start_R, state) -> quota_R, int64 of at least 1: how many positions each row commits at this step.

n_masked_R: masked positions of the row's block now. n_start_R: those it began with.
"""


def linear(n_masked_R: Tensor, n_start_R: Tensor, state: State) -> Tensor:
    """Divides the masked positions evenly among the steps that are left, rounded up: the first take the remainder.

    Where an end id has taken positions out, the division of the block's start holds, and the block ends earlier.
    """
    left_R = (state.steps_R - state.step_R + 1).clamp(min=1)
    steps_R = state.steps_R.clamp(min=1)
    planned_R = n_start_R // steps_R + (state.step_R <= n_start_R % steps_R)
    return torch.maximum(-(-n_masked_R // left_R), torch.minimum(planned_R, n_masked_R))


def cosine(n_masked_R: Tensor, n_start_R: Tensor, state: State) -> Tensor:
    """Leaves floor(n cos(pi/2 s/T)) of the n positions that a block began with masked after step s of T.

    It commits few at first, when little is known, and ever more (MaskGIT, arXiv 2202.04200). Positions that a `revise`
    rule has masked again count as masked.
    """
    masked_R = (n_start_R * (state.progress_R * (math.pi / 2)).cos() + 1e-9).long()  # n/2 may fall just below it
    return (n_masked_R - masked_R).clamp(min=1)


def ascending(n_masked_R: Tensor, n_start_R: Tensor, state: State) -> Tensor:
    """Commits 1, 2, 4, ... positions of a block, and all that are left at step floor(log2 n) (ASS, arXiv 2509.23924).

    n: the positions that the block began with. If `sampler.steps` gives the block fewer steps, its last takes the rest.
    The published code gives blocks of unequal lengths one power each instead.
    """
    power_R = 2 ** (state.step_R - 1).clamp(max=60)
    last_R = (4 * power_R > n_start_R) | (state.step_R >= state.steps_R)
    return n_masked_R.where(last_R, power_R)


@part
@dataclass(frozen=True)
class Shifted:
    """Commits many positions at first and ever fewer, or the other way about (LaViDa, arXiv 2505.16839).

    After step s of T, floor(n shift x / (1 + (shift - 1) x)) of a block's n positions are masked, x = 1 - s/T, and as
    many as there are steps left at least. shift: below 1 commits more at first, 1 is an even division, above 1 commits
    fewer. The published code makes room for its late steps of one position elsewhere among them.
    """

    shift: Positive = 1 / 3

    def __call__(self, n_masked_R: Tensor, n_start_R: Tensor, state: State) -> Tensor:
        left_R = 1 - state.progress_R
        masked_R = (n_start_R * self.shift * left_R / (1 + (self.shift - 1) * left_R) + 1e-9).long()
        return (n_masked_R - masked_R.maximum(state.steps_R - state.step_R)).clamp(min=1)


UNMASK_SCHEDULES: dict[str, UnmaskSchedule] = {
    "linear": linear,
    "cosine": cosine,
    "shifted": Shifted(),
    "ascending": ascending,
}
