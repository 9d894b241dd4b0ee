"""95 % intervals of figures of sequences: the sequences are drawn again; of shares Wilson's; of others 1.96 errors.

Draws are by the number of a sequence: it counts as often as a Poisson variable of mean 1 says (Hanley and MacGibbon
2006), so that nothing is kept of single sequences, and all figures and predictors share their draws.

Shape letters: R draws, S sequences, K letters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, factorial, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.diffusion.keys import NoiseKey
from mmdiff.experiments.comparison.intervals import wilson
from mmdiff.tasks.protein.data.alignments import LETTERS
from mmdiff.tasks.protein.residues import CANONICAL

from .metrics import Array, Counts, classification

DRAWS = 500
Z = 1.959964  # of a normal distribution, 95 % lie within
EDGES = np.cumsum([exp(-1) / factorial(n) for n in range(12)])

Interval = list[float]
"""[low, high]; not a number where there is nothing to draw from."""


def weights(number: int) -> NDArray[np.int64]:
    """(R,) how often a sequence counts in each draw."""
    return np.searchsorted(EDGES, NoiseKey(0, stream="intervals").uniform(number, DRAWS), side="right")


def interval(drawn_R: Sequence[float] | NDArray[Any]) -> Interval:
    """What 95 % of the drawn figures lie within."""
    known = np.asarray(drawn_R, dtype=np.float64)
    known = known[np.isfinite(known)]
    return [float(x) for x in np.quantile(known, [0.025, 0.975])] if len(known) else [float("nan")] * 2


def of_sequences(values: Sequence[float], figure: Callable[[NDArray[Any]], float] = np.mean) -> Interval:
    """Of a figure of one value per sequence."""
    value_S = np.asarray(values, dtype=np.float64)
    if len(value_S) < 2:
        return [float("nan")] * 2
    rng = np.random.default_rng(0)
    return interval([figure(value_S[rng.integers(0, len(value_S), len(value_S))]) for _ in range(DRAWS)])


def of_share(share: float, n: int) -> Interval:
    """Wilson's, of a share of n sequences: not empty at 0 and 1."""
    return list(wilson(share * n, n)) if n else [float("nan")] * 2


def of_mean(mean: float, standard_error: float, least: float = -inf, most: float = inf) -> Interval:
    """Of a figure with a standard error, which is never below `least` or above `most`."""
    return [max(least, mean - Z * standard_error), min(most, mean + Z * standard_error)]


def of_shares(shares: Mapping[str, float], n: int) -> dict[str, Interval]:
    """`of_share` of each."""
    return {name: of_share(share, n) for name, share in shares.items()}


class Drawn:
    """The counts of `DRAWS` sets of sequences, each drawn from all."""

    def __init__(self) -> None:
        self.counts_RKK = np.zeros((DRAWS, len(LETTERS), len(LETTERS)), dtype=np.int64)
        self.nll_RK = np.zeros((DRAWS, len(LETTERS)))

    def add(self, number: int, counts_KK: Counts, nll_K: Array) -> None:
        weight_R = weights(number)
        true, predicted = counts_KK.nonzero()
        self.counts_RKK[:, true, predicted] += weight_R[:, None] * counts_KK[true, predicted]
        self.nll_RK += weight_R[:, None] * nll_K

    def intervals(self, *, nll: bool, columns: bool) -> dict[str, Interval]:
        """Returns the 95 % intervals of the scores by name. nll: of the cross-entropy too. columns: of gaps too."""
        of_residues_RKK = self.counts_RKK.copy()
        of_residues_RKK[:, len(CANONICAL) :] = 0
        found = [classification(counts_KK) for counts_KK in of_residues_RKK]
        out = {name: interval([one[name] for one in found]) for name in ("accuracy", "f1", "mcc")}
        sums = {"nll": (self.nll_RK[:, : len(CANONICAL)], of_residues_RKK)} if nll else {}
        if columns:
            right_R = np.trace(self.counts_RKK, axis1=1, axis2=2)
            every_R = self.counts_RKK.sum((1, 2))
            out["column_accuracy"] = interval(right_R[every_R > 0] / every_R[every_R > 0])
            sums |= {"column_nll": (self.nll_RK, self.counts_RKK)} if nll else {}
        for name, (nll_RK, counts_RKK) in sums.items():
            n_R = counts_RKK.sum((1, 2))
            out[name] = interval(nll_RK.sum(1)[n_R > 0] / n_R[n_R > 0])
        return out
