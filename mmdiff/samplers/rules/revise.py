"""Revise: which committed positions are masked again. Shape letters: R rows of a step, L canvas length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, BetweenZeroAndOne

from .adaptive import MeanThreshold
from .select import Everything
from .state import Committed


def lowest(score_RL: Tensor, among_RL: Tensor, n_R: Tensor) -> Tensor:
    """Returns bool (R, L): the n_R lowest scores among some positions of a row; of equal scores the rightmost."""
    keys_RL = score_RL.masked_fill(~among_RL, torch.inf)
    # of equals the rightmost, as `order` would have taken the leftmost first
    rank_RL = keys_RL.flip(1).argsort(dim=1, stable=True).argsort(dim=1).flip(1)
    return (rank_RL < n_R[:, None]) & among_RL


@part
@dataclass(frozen=True)
class RunningConfidence:
    """Keeps the positions with the highest confidence ever recorded, masks the others again (RCR, arXiv 2508.13148).

    Every position is selected first, and as many stay masked after each step as under `Quota`. Only the current block
    is revised; the published code also returns to earlier ones.
    """

    select: ClassVar[Everything] = Everything()

    def __call__(self, committed: Committed) -> Tensor:
        n_R = committed.n_masked_R - committed.quota_R
        return lowest(committed.confidence_RL, committed.committed_RL, n_R)


@part
@dataclass(frozen=True)
class Reroute:
    """Keeps the positions whose tokens are likeliest now, masks the others again (RDM, arXiv 2302.05737).

    Every position is selected first, and as many stay masked after each step as under `Quota`. This is
    `RunningConfidence` with the confidence at this step in place of the highest ever: the model scores what it sees.

    only_worse: a token of an earlier step is masked only if its probability fell since it was committed: the published
        `cond`, without it `uncond`. Fewer positions then stay masked.
    """

    only_worse: bool = False

    select: ClassVar[Everything] = Everything()
    rescore: ClassVar[bool] = True

    def __call__(self, committed: Committed) -> Tensor:
        earlier_RL, now_RL = _now(committed)
        n_R = committed.n_masked_R - committed.quota_R
        masked_RL = lowest(now_RL, committed.committed_RL, n_R)
        if self.only_worse:
            masked_RL &= ~earlier_RL | (now_RL < committed.confidence_RL)
        return masked_RL


@part
@dataclass(frozen=True)
class Backtrack:
    """Masks the tokens again whose probability fell most since the last step (Saber, arXiv 2510.18165).

    Of D tokens that a step commits it takes r = max(least // 2, ceil(D / share)) back, D - 1 at most, so a row takes no
    more forwards than it has masked positions. Those that this step committed are not among them: their probability has
    not changed yet. The probabilities are of the committed tokens; the published code takes those of the likeliest.

    least: positions that a step commits at least, of `MeanThreshold`, which the rule brings unless `sampler.select`
        names another one. share: the published mu.
    """

    least: AtLeast1 = 2
    share: AtLeast1 = 8

    rescore: ClassVar[bool] = True

    @property
    def select(self) -> MeanThreshold:
        """Saber's select rule."""
        return MeanThreshold(self.least)

    def __call__(self, committed: Committed) -> Tensor:
        earlier_RL, now_RL = _now(committed)
        n_committed_R = (committed.committed_RL & ~earlier_RL).sum(1)
        n_R = (-(-n_committed_R // self.share)).clamp(min=self.least // 2).minimum(n_committed_R - 1)
        state = committed.state
        before_BL = state.extra("probability", 0.0)
        state.extras["probability"] = before_BL.index_copy(0, state.row_R, now_RL)
        return lowest(now_RL - before_BL[state.row_R], earlier_RL, n_R)


@part
@dataclass(frozen=True)
class Restart:
    """Once per block, masks the least confident share of what is committed; the steps that are left fill it again.

    Back&Refine (LaDiC, arXiv 2404.10763), which throws a third of all tokens back to the noise halfway.

    at: when, as a share of the block's steps. share: of the committed positions of the block, rounded up.
    """

    at: BetweenZeroAndOne = 0.5
    share: BetweenZeroAndOne = 1 / 3

    def __call__(self, committed: Committed) -> Tensor:
        state = committed.state
        due_R = state.step_R == (self.at * state.steps_R - 1e-9).ceil().clamp(min=1)
        n_R = (self.share * committed.committed_RL.sum(1) - 1e-9).ceil()
        return lowest(committed.confidence_RL, committed.committed_RL, n_R * due_R)


def _now(committed: Committed) -> tuple[Tensor, Tensor]:
    """Returns bool RL, what earlier steps committed, and fp32 RL, the probabilities at this step of all committed."""
    assert committed.rescored_RL is not None  # `rescore`
    earlier_RL = committed.committed_RL & (committed.state.step_RL > 0)
    return earlier_RL, committed.rescored_RL.where(earlier_RL, committed.confidence_RL)
