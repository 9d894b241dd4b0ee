"""Bounds by masks: the likelihood over all orders of the positions, sampled or enumerated.

    -log p(x) <= sum over k = 1..n of (1/k) E[cross-entropy of k masked positions]

is the any-order form of LLaDA's eq. 3 (RADD, arXiv 2406.03736). Of a model whose conditionals are those of one joint
distribution it is an equality.

Shape letters: B samples, L canvas length, J blocks of a sample, G counts of one, S sets of positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import factorial

import numpy as np
from numpy.typing import NDArray

from mmdiff.diffusion.keys import NoiseKey
from mmdiff.diffusion.schedule import Array
from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Positive

from .passes import Estimator, Pass, Targets

MOST = 12
"""Targets of a sample whose sets are all enumerated: 4,095 forwards."""


@part
@dataclass(frozen=True)
class Elbo:
    """An upper bound of -log p, unbiased: one copy for each count k while n <= levels, else `levels` values of k.

    Each of these is drawn from its own part of 1..n and weighted for that part. Of a model of blocks, it is the sum
    over blocks, each behind the clean ids of earlier ones: for blocks of one position, -log p itself.
    """

    levels: AtLeast1 = 16

    blockwise = True

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        # one part for each block of a sample: its target positions, and the pairs of a count and its weight
        parts: list[tuple[int, NDArray[np.int64], list[tuple[int, float]]]] = []
        for b, sample in enumerate(targets.index):
            here_L, block_L = targets.target_BL[b], targets.block_BL[b]
            blocks = [np.flatnonzero(here_L & (block_L == unit)) for unit in np.unique(block_L[here_L])]
            part_JG = key.fold("level").uniform(sample, len(blocks) * self.levels).reshape(len(blocks), self.levels)
            parts += [(b, at, grid(len(at), part_G)) for at, part_G in zip(blocks, part_JG, strict=True)]
        for copy in range(max((len(pairs) for *_, pairs in parts), default=0)):
            masked_BL, weight_BL = np.zeros(targets.target_BL.shape, dtype=np.bool_), np.zeros(targets.target_BL.shape)
            draws_BL = targets.uniforms(key, copy)
            for b, at, pairs in parts:
                if copy < len(pairs):
                    k, weight = pairs[copy]
                    at = at[draws_BL[b, at].argsort(kind="stable")[:k]]
                    masked_BL[b, at], weight_BL[b, at] = True, weight
            yield Pass(masked_BL, weight_BL)


def grid(n: int, part_G: Array) -> list[tuple[int, float]]:
    """Returns pairs (k, weight): the sum of weight * f(k), f the cross-entropy of k masked, estimates sum f(k)/k.

    With fewer levels than positions, 1..n is cut into as many stretches, and `part_G` (in [0, 1)) says where in its
    stretch a k lies: its weight is (length of the stretch) / k, so that the mean over uniform `part_G` is exact. A
    fixed k (the middle) is not: cross-entropy rises towards k = n, where it may be all there is.
    """
    if n <= len(part_G):
        return [(k, 1 / k) for k in range(1, n + 1)]
    edges = np.linspace(0, n, len(part_G) + 1).round().astype(int).tolist()
    return [
        (k := a + 1 + int(part * (b - a)), (b - a) / k)
        for part, a, b in zip(part_G, edges[:-1], edges[1:], strict=True)
    ]


@part
@dataclass(frozen=True)
class Quadrature:
    """The bound by the Gauss-Legendre rule in the mask rate, one mask per node (GDPO, arXiv 2510.08554).

    Of n targets the integrand is a polynomial of degree n - 1: the estimate is unbiased for n <= 2 * nodes.
    """

    nodes: AtLeast1 = 3

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        node_N, weight_N = np.polynomial.legendre.leggauss(self.nodes)
        for copy, (rate, weight) in enumerate(zip((node_N + 1) / 2, weight_N / 2, strict=True)):
            masked_BL = targets.target_BL & (targets.uniforms(key, copy) < rate)
            yield Pass(masked_BL, masked_BL * (weight / rate))


@part
@dataclass(frozen=True)
class AnyOrder:
    """The bound without sampling: all 2 ** n - 1 sets of masked targets, at (k - 1)! (n - k)! / n! each.

    Raises ConfigError for a sample of more than 12 targets.
    """

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        n_B = targets.target_BL.sum(1)
        most = int(n_B.max(initial=0))
        if most > MOST:
            raise ConfigError(f"estimator: {most} targets have too many sets to score each, expected at most {MOST}")
        rank_BL = targets.target_BL.cumsum(1) - 1
        share_BK = np.array(
            [
                [factorial(k - 1) * factorial(n - k) / factorial(n) if 0 < k <= n else 0.0 for k in range(most + 1)]
                for n in n_B.tolist()
            ]
        )
        for bits in range(1, 2**most):
            inside_B = bits < 2**n_B
            masked_BL = targets.target_BL & (bits >> np.maximum(rank_BL, 0) & 1 == 1) & inside_B[:, None]
            yield Pass(masked_BL, masked_BL * share_BK[np.arange(len(n_B)), masked_BL.sum(1)][:, None])


@part
@dataclass(frozen=True)
class UpperBound:
    """A lower bound of -log p, from the masks of an upper one (SPG's upper bound of log p, arXiv 2510.09541).

    The sum over positions of -log(E[weight * p ** power]) / power, the mean over counts and masks of a position: by
    Jensen's inequality not above the bound itself, and so not above -log p of a model whose conditionals agree.
    Where masks are sampled, the mean is estimated, and the value leans upwards where there are few.

    of: the upper bound; `Elbo` needs a level for each target, so that every position is masked in one of its forwards.
    samples: how often its masks are drawn. power: beta of the paper, at least 1.
    """

    of: Estimator = field(default_factory=Elbo)
    samples: AtLeast1 = 1
    power: Positive = 1.0

    def passes(self, targets: Targets, key: NoiseKey) -> Iterator[Pass]:
        for number in range(self.samples):
            for one in self.of.passes(targets, key.fold(f"sample/{number}") if number else key):
                yield one._replace(weight_BL=one.weight_BL / self.samples)
