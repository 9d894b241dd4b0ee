"""Revise: committed positions that are masked again."""

from __future__ import annotations

import torch
from torch import Tensor

from .state import Written

# Revise --------------------------------------------------------------------------------------------------------------


class RunningConfidence:
    """Keep the positions with the highest confidence ever recorded, open the others again (RCR, arXiv 2508.13148).

    With `Everything` selected, as many positions stay masked after each step as under `Quota`. Only the current block is
    revised; the published code also returns to earlier ones.
    """

    def __call__(self, written: Written) -> Tensor:
        keys_RL = written.confidence_RL.masked_fill(~written.written_RL, torch.inf)
        # rank 0: the least confident; of equals the rightmost, as `order` would have taken the leftmost first
        rank_RL = keys_RL.flip(1).argsort(dim=1, stable=True).argsort(dim=1).flip(1)
        return (rank_RL < (written.open_R - written.quota_R)[:, None]) & written.written_RL
