"""Emphasis: a factor on the loss of a token that depends on how well the model predicts it.

Shape letters: P masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mmdiff.parts import part
from mmdiff.parts.ranges import NotNegative, Positive


class Emphasis(Protocol):
    """What `mmdiff.objectives.denoise.Denoise` multiplies the cross-entropy of a token with."""

    def factor(self, nll_P: Tensor) -> Tensor:
        """Returns the factors of tokens of these cross-entropies, which have no gradient."""
        ...


@part
@dataclass(frozen=True)
class HardTokens:
    """scale * (1 - p) ** power, p the probability of the right token: hard ones weigh more (MGDM, arXiv 2410.14157).

    Published: scale 0.25, power 1 for Sudoku and 2 for Countdown. At power 0, the plain loss times `scale`.
    """

    scale: Positive = 0.25
    power: NotNegative = 1.0

    def factor(self, nll_P: Tensor) -> Tensor:
        factor_P: Tensor = self.scale * (-(-nll_P).expm1()) ** self.power
        return factor_P
