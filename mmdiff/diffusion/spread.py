"""How the levels of a step of training lie in [0, 1): one by one, or evenly over all its samples and copies.

A level is the uniform number from which a mask rate follows. Each spread is a function of (seed, step, sample, copy):
the levels of a step are the same however it is split into forwards and processes, and after a resume. Where a sample
has several groups of targets (documents of a packed row, blocks), each has a level of its own.

Shape letters: G groups of all samples and copies of a forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Share

from .keys import NoiseKey
from .schedule import Array


class Draws(NamedTuple):
    """What the levels of a forward are made of.

    rank_G: the number of a group's copy among the `total` copies of the whole step. part_G: which group of its sample
    it is, as a share of them, from 0. u_G: its own uniform number. first_G: that of the first group of its sample.
    key: that of the step, for what its samples share.
    """

    rank_G: NDArray[np.int64]
    total: int
    part_G: Array
    u_G: Array
    first_G: Array
    key: NoiseKey


class Levels(NamedTuple):
    """level_G: numbers in [0, 1). weight_G: what a level counts in a mean over levels, 1 on average."""

    level_G: Array
    weight_G: Array


class Spread(Protocol):
    """A way to draw levels."""

    def levels(self, draws: Draws) -> Levels:
        """Returns the level of each group."""
        ...


@part
@dataclass(frozen=True)
class Independent:
    """Every level is drawn by itself (LLaDA)."""

    def levels(self, draws: Draws) -> Levels:
        return _even(draws.u_G)


@part
@dataclass(frozen=True)
class Stratified:
    """Copy i draws from the i-th of `total` equal parts of [0, 1) (MDLM). Groups of a sample lie evenly around it."""

    def levels(self, draws: Draws) -> Levels:
        return _even(((draws.rank_G + draws.first_G) / draws.total + draws.part_G) % 1)


@part
@dataclass(frozen=True)
class SharedOffset:
    """One offset per step, copy i lies i / total behind it (VDM, arXiv 2107.00630; MD4, GIDD, RADD)."""

    def levels(self, draws: Draws) -> Levels:
        offset = draws.key.fold("offset").uniform(0, 1)
        return _even((offset + draws.rank_G / draws.total + draws.part_G) % 1)


@part
@dataclass(frozen=True)
class Antithetic:
    """Copies 2i and 2i + 1 have levels u and 1 - u, u drawn by another spread for pair i."""

    spread: Spread = field(default_factory=Independent)

    def levels(self, draws: Draws) -> Levels:
        pair_G, key = draws.rank_G // 2, draws.key.fold("pair")
        first = {pair: key.uniform(pair, 1)[0] for pair in set(pair_G.tolist())}
        first_G = np.array([first[pair] for pair in pair_G.tolist()])
        u_G = (first_G + draws.part_G) % 1
        found = self.spread.levels(Draws(pair_G, (draws.total + 1) // 2, draws.part_G, u_G, first_G, draws.key))
        level_G = np.where(draws.rank_G % 2, np.minimum(1 - found.level_G, np.nextafter(1, 0)), found.level_G)
        return found._replace(level_G=level_G)


@part
@dataclass(frozen=True)
class Clipped:
    """Levels between `low` and `high`, drawn by another spread (BD3LM, arXiv 2503.09573, section 5).

    Weights stay as they are, so the loss is no bound; its variance is less. Raises ConfigError unless low < high.
    """

    low: Share = 0.0
    high: Share = 1.0
    spread: Spread = field(default_factory=Stratified)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"spread.low: {self.low}, expected a number below spread.high, {self.high}")

    def levels(self, draws: Draws) -> Levels:
        found = self.spread.levels(draws)
        return found._replace(level_G=self.low + (self.high - self.low) * found.level_G)


@part
@dataclass(frozen=True)
class Quadrature:
    """Copy i has the (i modulo nodes)-th node of the Gauss-Legendre rule, and its weight (GDPO, arXiv 2510.08554).

    With a multiple of `nodes` copies in a step, every node is met as often. The mean over levels is exact for losses
    that are polynomials of the level of a degree below 2 * nodes, and biased for others.
    """

    nodes: AtLeast1 = 3

    def levels(self, draws: Draws) -> Levels:
        node_N, weight_N = np.polynomial.legendre.leggauss(self.nodes)
        number_G = draws.rank_G % self.nodes
        return Levels((node_N[number_G] + 1) / 2, self.nodes * weight_N[number_G] / 2)


def _even(level_G: Array) -> Levels:
    return Levels(level_G, np.ones_like(level_G))
