"""Which positions of a canvas are masked in training, and the weight of a masked position.

Both classes estimate the same bound on -log p: sum over masked positions of `weight * cross-entropy`. `Bernoulli` is
the published recipe. `ExactCount` has no draw without a masked position and far less variance on short answers
(k-DCE of RADD, arXiv 2406.03736; std of the 1/t weight is sqrt((ln(1/eps) - 1 + eps) / ((1 - eps) L))). Others stand in
`mmdiff.diffusion.spans` and `mmdiff.diffusion.token_rates`.

Shape letters: B rows, L canvas length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmdiff.parts import part
from mmdiff.parts.ranges import BetweenZeroAndOne, PositiveShare, Share

from .schedule import Array, Linear, Schedule

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Masked(NamedTuple):
    """One masking of a batch."""

    masked_BL: Bools
    weight_BL: Array  # of each target position, if it is masked; broadcasts to (B, L)
    rate_B: Array  # the share that is masked, nominal for Bernoulli, exact for ExactCount


class Levels(Protocol):
    """How many positions are masked. A level is a uniform number in [0, 1) from which a row's mask rate follows."""

    @property
    def stratified(self) -> bool:
        """Whether the levels of a step are spread evenly over its samples and copies, where no spread is named."""
        ...

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        """Returns a masking of some of `target_BL`. level_B, coin_B, position_BL: independent uniforms in [0, 1).

        ids_BL: the clean ids, for maskings that depend on what stands at a position. Rows are one document, or one
        block, each: their targets in order.
        """
        ...


@part
@dataclass(frozen=True)
class Bernoulli:
    """Masks each position with probability mask_rate(t), t = (1 - eps) u + eps, at weight(t) (LLaDA GUIDELINES.md).

    eps bounds the weight; the estimate is then of t in [eps, 1] without the factor 1 - eps, as published.
    """

    schedule: Schedule = field(default_factory=Linear)
    eps: BetweenZeroAndOne = 1e-3
    stratified: bool = False

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        t_B = (1 - self.eps) * level_B + self.eps
        rate_B = self.schedule.mask_rate(t_B)
        return Masked((position_BL < rate_B[:, None]) & target_BL, self.schedule.weight(t_B)[:, None], rate_B)


@part
@dataclass(frozen=True)
class ExactCount:
    """Masks k positions of n, k uniform in 1..n, at weight n / k.

    full: the probability that all n positions are masked instead (weight 1). That is no longer a bound, but trains the
        state in which generation starts; half of the draws is right for answers of a few tokens.
    most: k is uniform in 1..ceil(most * n) instead. That is no bound either, but a small model that begins from nothing
        sees sooner that neighbours matter, if most of them are there; a first stage of 0.2 for example.
    none: k is uniform in 0..n, at weight (n + 1) / k: the bound, too, and that of what is not masked, for
        `mmdiff.objectives.noising.change.Complement`.
    """

    full: Share = 0.0
    most: PositiveShare = 1.0
    stratified: bool = True
    none: bool = False

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        n_B = target_BL.sum(1)
        most_B = np.ceil(self.most * n_B - 1e-9) + self.none  # 0.3 * 10 lies just above 3
        k_B = np.where(coin_B < self.full, n_B, 1 - self.none + np.floor(level_B * most_B).astype(np.int64))
        k_B = np.minimum(k_B, n_B)  # a row without targets masks nothing
        share_B = np.maximum(k_B / np.maximum(n_B, 1), 1e-12)
        weight_B = (1 + self.none / np.maximum(n_B, 1)) / share_B
        return Masked(ranks(target_BL, position_BL) < k_B[:, None], weight_B[:, None], share_B)


def ranks(target_BL: Bools, order_BL: Array) -> Ints:
    """Returns int64 (B, L), how many targets of its row have a smaller number than a target; others are last."""
    by_order_BL = np.where(target_BL, order_BL, np.inf).argsort(axis=1, kind="stable")
    rank_BL = np.empty(by_order_BL.shape, dtype=np.int64)
    np.put_along_axis(rank_BL, by_order_BL, np.arange(by_order_BL.shape[1])[None], axis=1)
    return rank_BL
