"""Maskings that decoding meets, for training on them: prefixes, suffixes, runs and single positions, and mixtures.

MDiff4STR (arXiv 2512.01422) trains on an even mixture of six: all masked, the end masked, the beginning masked, a run
masked, one position masked, and positions at random. A masked position weighs n / k, k of n being masked. Only masking
at random bounds -log p; each other one alone trains other conditionals than any-order generation needs.

Shape letters: B rows, L targets of a row, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmdiff.errors import ConfigError
from mmdiff.parts import part
from mmdiff.parts.ranges import NotNegative

from .mask_rates import Bools, ExactCount, Ints, Levels, Masked, ranks
from .schedule import Array


@part
@dataclass(frozen=True)
class Ends:
    """Masks the last k of n targets, k uniform in 1..n: what is seen is a beginning, as from left to right."""

    stratified: bool = True

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        return _run(target_BL, level_B, np.ones_like(coin_B))


@part
@dataclass(frozen=True)
class Beginnings:
    """Masks the first k of n targets, k uniform in 1..n: what is seen is an end, as from right to left."""

    stratified: bool = True

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        return _run(target_BL, level_B, np.zeros_like(coin_B))


@part
@dataclass(frozen=True)
class Runs:
    """Masks k targets in a row, k uniform in 1..n, the first of them uniform: a gap."""

    stratified: bool = True

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        return _run(target_BL, level_B, coin_B)


@part
@dataclass(frozen=True)
class Cloze:
    """Masks one target, each as likely: all others are seen."""

    stratified: bool = True

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        n_B = target_BL.sum(1)
        at_B = np.floor(level_B * n_B)
        masked_BL = target_BL & (target_BL.cumsum(1) - 1 == at_B[:, None])
        return Masked(masked_BL, n_B[:, None].astype(float), 1 / np.maximum(n_B, 1))


@part
@dataclass(frozen=True)
class Nothing:
    """Masks nothing: for changes that score what is seen."""

    stratified: bool = True

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        return Masked(np.zeros_like(target_BL), np.ones(target_BL.shape), np.zeros(len(target_BL)))


SIX = (Ends(), Beginnings(), Runs(), Cloze(), ExactCount(), ExactCount(full=1.0))


@part
@dataclass(frozen=True)
class Mixture:
    """Each row is masked by one of several maskings.

    of: the maskings; the six of MDiff4STR unless given. shares: how likely each is, in proportion; none: all alike.
    Raises ConfigError for no masking, and for shares that are not one number above 0 for each.
    """

    of: Sequence[Levels] = field(default=SIX)
    shares: Sequence[NotNegative] = ()
    stratified: bool = True

    def __post_init__(self) -> None:
        if not self.of:
            raise ConfigError("levels.of: no masking, expected at least one")
        if self.shares and (len(self.shares) != len(self.of) or not sum(self.shares) > 0):
            raise ConfigError(f"levels.shares: {list(self.shares)}, expected {len(self.of)} numbers, their sum above 0")

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        share_K = np.array(self.shares or [1.0] * len(self.of))
        edge_K = share_K.cumsum() / share_K.sum()
        kind_B = np.minimum(np.searchsorted(edge_K, coin_B, side="right"), len(self.of) - 1)
        below_B = (edge_K - share_K / share_K.sum())[kind_B]
        coin_B = np.clip((coin_B - below_B) / (share_K / share_K.sum())[kind_B], 0, np.nextafter(1, 0))  # uniform again
        masked_BL, weight_BL = np.zeros_like(target_BL), np.zeros(target_BL.shape)
        rate_B = np.zeros(len(target_BL))
        for kind, levels in enumerate(self.of):
            here_B = kind_B == kind
            ids = None if ids_BL is None else ids_BL[here_B]
            found = levels.mask(target_BL[here_B], level_B[here_B], coin_B[here_B], position_BL[here_B], ids)
            masked_BL[here_B], weight_BL[here_B], rate_B[here_B] = found
        return Masked(masked_BL, weight_BL, rate_B)


def _run(target_BL: Bools, level_B: Array, start_B: Array) -> Masked:
    """Masks k = 1 + floor(level * n) targets in a row. start_B: where, from 0, at the beginning, to 1, at the end."""
    n_B = target_BL.sum(1)
    k_B = np.minimum(1 + np.floor(level_B * n_B), n_B)
    first_B = np.minimum(np.floor(start_B * (n_B - k_B + 1)), n_B - k_B)
    rank_BL = ranks(target_BL, np.broadcast_to(np.arange(target_BL.shape[1], dtype=float), target_BL.shape))
    masked_BL = target_BL & (rank_BL >= first_B[:, None]) & (rank_BL < (first_B + k_B)[:, None])
    rate_B = np.maximum(k_B / np.maximum(n_B, 1), 1e-12)
    return Masked(masked_BL, (1 / rate_B)[:, None], rate_B)
