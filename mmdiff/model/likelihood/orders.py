"""Likelihoods along one order of the positions, and the estimates that policy gradients use.

Shape letters: B samples, L canvas length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.mask_rates import Ints, ranks
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, BetweenZeroAndOne, Share

from .passes import Pass, Targets


@part
@dataclass(frozen=True)
class LeftToRight:
    """-log p, exactly, of a generation from left to right, one token per forward: as many forwards as targets."""

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        return _in_order(targets, targets.target_BL.cumsum(1) - 1)


@part
@dataclass(frozen=True)
class RightToLeft:
    """-log p, exactly, of a generation from right to left."""

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        return _in_order(targets, targets.target_BL[:, ::-1].cumsum(1)[:, ::-1] - 1)


@part
@dataclass(frozen=True)
class RandomOrder:
    """-log p, exactly, of a generation in an order drawn for each sample; its mean over orders is the bound."""

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        return _in_order(targets, ranks(targets.target_BL, targets.uniforms(key.fold("order"))))


@part
@dataclass(frozen=True)
class AlongSteps:
    """-log p of each token when a recorded generation committed it, given what it had committed before (CJ-GRPO, MDPO).

    merge: so many steps count as one (TraceRL: 8). Raises DataError for targets without `Target.steps`.
    """

    merge: AtLeast1 = 1

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        if targets.step_BL is None or (targets.step_BL[targets.target_BL] < 0).any():
            raise DataError("a target of the batch has no `steps`, which say when each of its tokens was committed")
        step_BL = targets.step_BL // self.merge
        for step in np.unique(step_BL[targets.target_BL]).tolist():
            weight_BL = (targets.target_BL & (step_BL == step)).astype(float)
            yield Pass(targets.target_BL & (step_BL >= step), weight_BL)


@part
@dataclass(frozen=True)
class MeanField:
    """Every token as if all were generated at once: one forward (diffu-GRPO, arXiv 2504.12216). No bound: it adds the
    total correlation of the targets to -log p.

    context: the share of context positions that are masked, too (d1: 0.15), so that inner iterations see others.
    """

    context: Share = 0.0

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        hidden_BL = targets.target_BL.copy()
        for b, sample in enumerate(targets.index):
            here_L = targets.context_BL[b]
            hidden_BL[b, here_L] = key.fold("context").uniform(sample, int(here_L.sum())) < self.context
        yield Pass(hidden_BL, targets.target_BL.astype(float))


@part
@dataclass(frozen=True)
class PartlyMasked:
    """Tokens that are masked at a rate drawn for each sample, each at weight 1: one forward (UniGRPO's, MMaDA, arXiv
    2505.15809, without its even spacing of rates over inner steps). No bound: tokens that are not masked count nothing.

    low, high: what the rate is uniform between; 0.1 and 0.9 in published code. A sample without a mask has all masked.
    Raises ConfigError unless low < high.
    """

    low: BetweenZeroAndOne = 0.1
    high: BetweenZeroAndOne = 0.9

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"estimator.low: {self.low}, expected a number below estimator.high, {self.high}")

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        rate_B1 = self.low + (self.high - self.low) * key.fold("rate").uniforms(targets.index, 1)
        masked_BL = targets.target_BL & (targets.uniforms(key) < rate_B1)
        masked_BL = np.where(masked_BL.any(1, keepdims=True), masked_BL, targets.target_BL)
        yield Pass(masked_BL, masked_BL.astype(float))


@part
@dataclass(frozen=True)
class Coupled:
    """The mean of a token's cross-entropy with all masked, and with some masked at its weight 1 / rate (DiffuCoder,
    arXiv 2506.20639): three forwards, in the last two of which each token is masked once. No bound.

    low, high: what the mask rate of the second forward is uniform between; the third has 1 - rate.
    Raises ConfigError unless low < high.
    """

    low: BetweenZeroAndOne = 0.2
    high: BetweenZeroAndOne = 0.8

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"estimator.low: {self.low}, expected a number below estimator.high, {self.high}")

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        u_B1 = key.fold("rate").uniforms(targets.index, 1)
        rate_B1 = self.low + (self.high - self.low) * u_B1
        masked_BL = targets.target_BL & (targets.uniforms(key) < rate_B1)
        others_BL = targets.target_BL & ~masked_BL
        yield Pass(targets.target_BL, targets.target_BL / 2)
        yield Pass(masked_BL, masked_BL / rate_B1 / 2)
        yield Pass(others_BL, others_BL / (1 - rate_B1) / 2)


def _in_order(targets: Targets, rank_BL: Ints) -> Iterator[Pass]:
    for step in range(int(targets.target_BL.sum(1).max(initial=0))):
        weight_BL = (targets.target_BL & (rank_BL == step)).astype(float)
        yield Pass(targets.target_BL & (rank_BL >= step), weight_BL)
