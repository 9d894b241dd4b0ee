"""Noise schedules: the share of a canvas that is masked at time t in [0, 1], and the weight of a masked position then.

`mask_rate(t)` is 1 - alpha_t; `weight(t)` is -alpha'_t / (1 - alpha_t), analytic, for the difference quotient is 0/0
near t = 0. Every schedule with alpha from 1 to 0 weighs a set of k masked positions of L by (k-1)! (L-k)! / L! in all
(MDLM, arXiv 2406.07524; MD4, arXiv 2406.04329), so schedules differ in variance, not in what they bound.
All in float64: bfloat16 draws t = 0 exactly once in 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Schedule(Protocol):
    def mask_rate(self, t: Array) -> Array:
        """Returns the share that is masked, 0 at t = 0 and 1 at t = 1."""
        ...

    def weight(self, t: Array) -> Array:
        """Returns the weight of a masked position in the bound."""
        ...


@dataclass(frozen=True)
class Linear:
    """alpha = 1 - t, weight 1/t (LLaDA, arXiv 2502.09992, eq. 3)."""

    def mask_rate(self, t: Array) -> Array:
        return t

    def weight(self, t: Array) -> Array:
        return 1 / t


@dataclass(frozen=True)
class Cosine:
    """alpha = 1 - cos(pi/2 (1 - t)) (MD4, arXiv 2406.04329, table 1); MDLM's "cosine" is another schedule."""

    def mask_rate(self, t: Array) -> Array:
        return np.cos(np.pi / 2 * (1 - t))

    def weight(self, t: Array) -> Array:
        return np.pi / 2 * np.tan(np.pi / 2 * (1 - t))
