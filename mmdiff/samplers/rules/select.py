"""Select: the proposals that a step commits. Shape letters: P predicted positions of a step, R rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import NotNegative, PositiveShare

from .state import Proposal


def order(score_P: Tensor, row_P: Tensor) -> Tensor:
    """Returns int64 (P,), ranks within each row: 0 for the highest score; of equal scores the leftmost comes first."""
    by_score_P = score_P.argsort(descending=True, stable=True)
    sorted_P = by_score_P[row_P[by_score_P].argsort(stable=True)]
    first_P = torch.searchsorted(row_P, row_P)  # row_P ascends: where each row begins
    rank_P = torch.empty_like(row_P)
    rank_P[sorted_P] = torch.arange(len(row_P), device=row_P.device)
    return rank_P - first_P


@part
@dataclass(frozen=True)
class Quota:
    """Selects as many positions as the schedule gives the row at this step, those with the highest scores (LLaDA)."""

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        return order(score_P, proposal.row_P) < proposal.quota_R[proposal.row_P]


@part
@dataclass(frozen=True)
class Threshold:
    """Selects every position whose score reaches the threshold, and always the best (Fast-dLLM, arXiv 2505.22618).

    least: one | quota: at least as many as the schedule gives the row, as LLaDA2.0 does.
    """

    threshold: PositiveShare
    least: Literal["one", "quota"] = "one"

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        least_P = proposal.quota_R[proposal.row_P] if self.least == "quota" else 1
        return (score_P >= self.threshold) | (order(score_P, proposal.row_P) < least_P)


@part
@dataclass(frozen=True)
class Factor:
    """Selects the n best positions while the n-th scores at least 1 - factor / (n + 1); always the best (Fast-dLLM).

    Scores fall with n and the bound rises, so these are the n best for the largest n for which that holds.
    """

    factor: NotNegative

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        rank_P = order(score_P, proposal.row_P)  # rank 0 is n = 1
        return (score_P >= 1 - self.factor / (rank_P + 2)) | (rank_P == 0)


@part
@dataclass(frozen=True)
class Everything:
    """Selects all positions; `RunningConfidence` masks some of them again."""

    def __call__(self, score_P: Tensor, proposal: Proposal) -> Tensor:
        return torch.ones_like(score_P, dtype=torch.bool)
