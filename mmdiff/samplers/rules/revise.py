"""Revise: which committed positions are masked again. Shape letters: R rows of a step, L canvas length."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdiff.parts import part

from .state import Committed


@part
class RunningConfidence:
    """Keeps the positions with the highest confidence ever recorded, masks the others again (RCR, arXiv 2508.13148).

    With `Everything` selected, as many positions stay masked after each step as under `Quota`. Only the current block
    is revised; the published code also returns to earlier ones.
    """

    def __call__(self, committed: Committed) -> Tensor:
        keys_RL = committed.confidence_RL.masked_fill(~committed.committed_RL, torch.inf)
        # rank 0: the least confident; of equals the rightmost, as `order` would have taken the leftmost first
        rank_RL = keys_RL.flip(1).argsort(dim=1, stable=True).argsort(dim=1).flip(1)
        return (rank_RL < (committed.n_masked_R - committed.quota_R)[:, None]) & committed.committed_RL
