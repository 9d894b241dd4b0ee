"""How many positions of its block a row writes at each step (`sampler.schedule`).

Shape letters: R rows of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from .rules.state import State

Share = Callable[[Tensor, Tensor, State], Tensor]
"""(open_R, start_R, state) -> quota_R, at least one: the open positions of each row's block now, and when it began."""


def linear(open_R: Tensor, start_R: Tensor, state: State) -> Tensor:
    """What is open, shared out evenly over the steps that are left; rounded up, so the first take the remainder."""
    left_R = (state.steps_R - state.step_R + 1).clamp(min=1)
    return -(-open_R // left_R)


def cosine(open_R: Tensor, start_R: Tensor, state: State) -> Tensor:
    """All but floor(n cos(pi/2 s/T)), n the positions that the block began with (MaskGIT, arXiv 2202.04200).

    Few at first, when little is known, and ever more. Positions that were opened again are among those that count as open.
    """
    masked_R = (start_R * (state.progress_R * (math.pi / 2)).cos() + 1e-9).long()  # n/2 may fall just below it
    return (open_R - masked_R).clamp(min=1)


SHARES: dict[str, Share] = {"linear": linear, "cosine": cosine}
