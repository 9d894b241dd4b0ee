"""Mask rates that depend on the token: common tokens and informative ones do not vanish at the same time.

A table of counts says how common each id is: a safetensors file with one tensor (V,), the times that each id of the
vocabulary occurs (`mmdiff.diffusion.token_rates.write_counts` makes one).

Shape letters: B rows, L targets of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mmdiff.errors import ConfigError
from mmdiff.files import only_tensor
from mmdiff.parts import part
from mmdiff.parts.ranges import BetweenZeroAndOne, NotNegative

from .mask_rates import Bools, Ints, Masked, ranks
from .schedule import Array


@part
@dataclass(frozen=True)
class Spindle:
    """DiffusionBERT's schedule (arXiv 2211.15029, eq. 10): informative tokens are masked early, common ones late.

    The mask rate of a token is t - strength sin(pi t) h, h its log frequency between 0 and 1 minus the mean of its row;
    its weight is that rate's derivative over the rate. h = 0 is the linear schedule. Where a row has tokens of unequal
    frequency, what is masked says something of what it hides, so the loss is no bound.

    counts: the table. eps: as for `mmdiff.diffusion.mask_rates.Bernoulli`. Raises ConfigError for a strength of 1 / pi
    or more, with which a rate could fall.
    """

    counts: str
    strength: NotNegative = 0.3
    eps: BetweenZeroAndOne = 1e-3
    stratified: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.strength * np.pi < 1:
            raise ConfigError(f"levels.strength: {self.strength}, expected a number from 0 to below 0.318, 1 / pi")

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        h_BL = np.where(target_BL, commonness(self.counts, ids_BL), 0.0)
        h_BL = h_BL - h_BL.sum(1, keepdims=True) / np.maximum(target_BL.sum(1, keepdims=True), 1)
        t_B1 = ((1 - self.eps) * level_B + self.eps)[:, None]
        rate_BL = t_B1 - self.strength * np.sin(np.pi * t_B1) * h_BL
        slope_BL = 1 - self.strength * np.pi * np.cos(np.pi * t_B1) * h_BL
        return Masked((position_BL < rate_BL) & target_BL, slope_BL / rate_BL, t_B1[:, 0])


@part
@dataclass(frozen=True)
class ImportantFirst:
    """Masks the k least common of n targets, k uniform in 1..n, at weight n / k (Masked-Diffuse LM, arXiv 2304.04746).

    Generation then goes from common tokens to informative ones. The soft noise of the paper is left out. No bound.

    counts: the table. softness: 0: strictly in that order; else the order is drawn, each next token with a probability
    in proportion to exp(-log frequency / softness), log frequencies between 0 and 1.
    """

    counts: str
    softness: NotNegative = 0.0
    stratified: bool = True

    def mask(
        self, target_BL: Bools, level_B: Array, coin_B: Array, position_BL: Array, ids_BL: Ints | None = None
    ) -> Masked:
        n_B = target_BL.sum(1)
        k_B = np.minimum(1 + np.floor(level_B * n_B), n_B)
        draw_BL = -np.log(-np.log(np.clip(position_BL, 2.0**-53, 1 - 2.0**-53)))  # Gumbel: the order of draws
        order_BL = commonness(self.counts, ids_BL) - self.softness * draw_BL + 1e-9 * position_BL  # ties at random
        rate_B = np.maximum(k_B / np.maximum(n_B, 1), 1e-12)
        return Masked(ranks(target_BL, order_BL) < k_B[:, None], (1 / rate_B)[:, None], rate_B)


def commonness(counts: str, ids_BL: Ints | None) -> Array:
    """Returns the log frequency of ids, from 0 for ids that never occur to 1 for the commonest. Raises ConfigError."""
    if ids_BL is None:
        raise ConfigError("levels: this masking looks at tokens, which this objective does not give")
    common_V = _table(counts)
    if int(ids_BL.max(initial=0)) >= len(common_V):
        raise ConfigError(f"levels.counts: {counts}: {len(common_V)} ids, expected one for each of the vocabulary")
    return np.asarray(common_V[ids_BL])


def write_counts(path: str | Path, ids: Iterable[int], size: int) -> None:
    """Write a table of how often each of `size` ids occurs among `ids`."""
    from safetensors.numpy import save_file

    save_file({"counts": np.bincount(np.fromiter(ids, dtype=np.int64), minlength=size)}, str(path))


def counts_of(counts: str, size: int) -> Array:
    """Returns float64 (V,), how often each id occurs, of a table for `size` ids. Raises ConfigError."""
    count_V = _counts(counts)
    if len(count_V) != size:
        raise ConfigError(f"objective.counts: {counts}: {len(count_V)} ids, expected {size}, those of the vocabulary")
    return count_V


def _table(counts: str) -> Array:
    common_V: Array = np.log1p(_counts(counts))
    return common_V / max(float(common_V.max()), 1e-12)


@lru_cache(maxsize=4)
def _counts(counts: str) -> Array:
    found, where = only_tensor(counts, "levels.counts"), f"levels.counts: {counts}"
    count_V = np.zeros(0) if found is None else found.double().numpy()
    if count_V.ndim != 1 or not len(count_V) or not np.isfinite(count_V).all() or (count_V < 0).any():
        raise ConfigError(f"{where}: expected one tensor of counts, one for each id")
    return count_V
