"""Intervals around means over rows, by the percentile bootstrap: rows are drawn again and again, and the mean taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 10_000
MANY = 1000  # distinct values, above which a fifth of the draws have to do
LEVEL = 0.95
AT_ONCE = 4_000_000  # numbers that are held at one time


def bootstrap(values: Sequence[float], *, draws: int | None = None, level: float = LEVEL) -> tuple[float, float]:
    """Returns the ends of the interval around the mean of values, one per row.

    Drawing N rows is drawing how often each of the U distinct values comes (a multinomial), which costs U and not N.
    The same values, in any order, give the same interval. Of paired rows, hand in their differences.
    """
    distinct_U, count_U = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    total = int(count_U.sum())
    if len(distinct_U) == 1:
        return float(distinct_U[0]), float(distinct_U[0])
    draws = draws or (DRAWS if len(distinct_U) <= MANY else DRAWS // 5)
    rng = np.random.default_rng(0)
    size = max(1, AT_ONCE // len(distinct_U))
    means: list[Any] = []
    for first in range(0, draws, size):
        drawn_DU = rng.multinomial(total, count_U / total, size=min(size, draws - first))
        means.append(drawn_DU @ distinct_U / total)
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
