"""How many positions of its block a row commits at each step (`sampler.schedule`).

Shape letters: R rows of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

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


UNMASK_SCHEDULES: dict[str, UnmaskSchedule] = {"linear": linear, "cosine": cosine}
