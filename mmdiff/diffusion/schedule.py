"""Noise schedules: the share of a canvas that is masked at time t in [0, 1], and the weight of a masked position then.

`mask_rate(t)` is 1 - alpha_t; `weight(t)` is -alpha'_t / (1 - alpha_t), analytic, for the difference quotient is 0/0
near t = 0. Every schedule with alpha from 1 to 0 weighs a set of k masked positions of L by (k-1)! (L-k)! / L! in all
(MDLM, arXiv 2406.07524; MD4, arXiv 2406.04329), so schedules differ in variance, not in what they bound.
All in float64: bfloat16 draws t = 0 exactly once in 256.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Positive, Share

Array = NDArray[np.float64]


class Schedule(Protocol):
    """How the share of masked positions grows with time t in [0, 1], and what a masked position weighs in the bound."""

    def mask_rate(self, t: Array) -> Array:
        """Returns the share that is masked, 0 at t = 0 and 1 at t = 1."""
        ...

    def weight(self, t: Array) -> Array:
        """Returns the weight of a masked position in the bound."""
        ...


@part
@dataclass(frozen=True)
class Linear:
    """alpha = 1 - t, weight 1/t (LLaDA, arXiv 2502.09992, eq. 3)."""

    def mask_rate(self, t: Array) -> Array:
        return t

    def weight(self, t: Array) -> Array:
        return 1 / t


@part
@dataclass(frozen=True)
class Cosine:
    """alpha = 1 - cos(pi/2 (1 - t)) (MD4, arXiv 2406.04329, table 1); MDLM's "cosine" is another schedule."""

    def mask_rate(self, t: Array) -> Array:
        return np.sin(np.pi / 2 * t)  # cos(pi / 2 (1 - t)), without its loss of digits near 0

    def weight(self, t: Array) -> Array:
        return np.pi / 2 / np.tan(np.pi / 2 * t)


@part
@dataclass(frozen=True)
class CosineMDLM:
    """alpha = cos(pi/2 t): what MDLM (arXiv 2406.07524) calls cosine; few positions are masked for most of the time."""

    def mask_rate(self, t: Array) -> Array:
        return 2 * np.sin(np.pi / 4 * t) ** 2  # 1 - cos, without its loss of digits near 0

    def weight(self, t: Array) -> Array:
        return np.pi / 2 / np.tan(np.pi / 4 * t)


@part
@dataclass(frozen=True)
class CosineSquared:
    """alpha = cos^2(pi/2 t) (MDLM's "cosine squared")."""

    def mask_rate(self, t: Array) -> Array:
        return np.sin(np.pi / 2 * t) ** 2

    def weight(self, t: Array) -> Array:
        return np.pi / np.tan(np.pi / 2 * t)


@part
@dataclass(frozen=True)
class Polynomial:
    """alpha = 1 - t ** power, weight power / t (MD4, table 1)."""

    power: Positive = 2.0

    def mask_rate(self, t: Array) -> Array:
        return t**self.power

    def weight(self, t: Array) -> Array:
        return self.power / t


@part
@dataclass(frozen=True)
class Geometric:
    """alpha = exp(-sigma), sigma = low ** (1 - t) * high ** t (SEDD, arXiv 2310.16834; MD4, table 1).

    alpha ends at exp(-high): 1 - exp(-high) is the share of the bound that is kept where one position is masked, .63
    for high = 1. Raises ConfigError unless low < high.
    """

    low: Positive = 1e-5
    high: Positive = 20.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"schedule.low: {self.low}, expected a number below schedule.high, {self.high}")

    def mask_rate(self, t: Array) -> Array:
        return -np.expm1(-self._sigma(t))

    def weight(self, t: Array) -> Array:
        sigma = self._sigma(t)
        return sigma * np.log(self.high / self.low) / np.expm1(sigma)

    def _sigma(self, t: Array) -> Array:
        return np.asarray(self.low ** (1 - t) * self.high**t)


@part
@dataclass(frozen=True)
class Logarithmic:
    """alpha = 1 - log2(1 + t) (BD3LM, arXiv 2503.09573)."""

    def mask_rate(self, t: Array) -> Array:
        return np.log2(1 + t)

    def weight(self, t: Array) -> Array:
        return 1 / ((1 + t) * np.log1p(t))


@part
@dataclass(frozen=True)
class Discrete:
    """A schedule in even steps (D3PM's absorbing noise, MD4's discrete time): times are rounded up to k / steps.

    The weight at a step from s to t is steps * (m(t) - m(s)) / m(t): the bound of a generation in so many steps, which
    is above that of continuous time.
    """

    steps: AtLeast1 = 1000
    schedule: Schedule = field(default_factory=Linear)

    def mask_rate(self, t: Array) -> Array:
        return self.schedule.mask_rate(self._end(t))

    def weight(self, t: Array) -> Array:
        end = self._end(t)
        now, before = self.schedule.mask_rate(end), self.schedule.mask_rate(np.maximum(end - 1 / self.steps, 0))
        return self.steps * (now - before) / np.maximum(now, 1e-300)

    def _end(self, t: Array) -> Array:
        return np.ceil(np.asarray(t) * self.steps - 1e-9) / self.steps


@part
@dataclass(frozen=True)
class Partly:
    """alpha = share * alpha of another schedule: at time 0, only `share` of the positions is left to see (Eso-LM's
    alpha_0, arXiv 2506.01928). What is masked then is to be bounded by another term."""

    share: Share = 0.5
    schedule: Schedule = field(default_factory=Linear)

    def mask_rate(self, t: Array) -> Array:
        return 1 - self.share * (1 - self.schedule.mask_rate(t))

    def weight(self, t: Array) -> Array:
        slope = self.schedule.weight(t) * self.schedule.mask_rate(t)
        return self.share * slope / np.maximum(self.mask_rate(t), 1e-300)
