"""Intervals around means over rows, by the percentile bootstrap: rows are drawn again and again, and the mean taken.

Those of shares are by Wilson's formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

DRAWS = 10_000
MANY = 1000  # distinct values, above which a fifth of the draws have to do
LEVEL = 0.95
AT_ONCE = 4_000_000  # numbers that are held at one time


def bootstrap(values: Sequence[float], *, draws: int | None = None) -> tuple[float, float]:
    """Returns the ends of the 95 % interval around the mean of values, one per row.

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
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def wilson(successes: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Returns the score interval of a share (Wilson, JASA 1927), which stays in [0, 1] and has a width at 0 and 1.

    It is (0, 1) of nothing.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if not n:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    # at the ends the formula gives 0 and 1 up to rounding
    return (0.0 if not successes else middle - half), (1.0 if successes == n else middle + half)
