"""What a probe's predictions are worth, and the 95 % intervals of that: groups of test rows are drawn again.

Shape letters: R draws, N rows of a test fold, G groups, K classes or different values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Fold = tuple[Array, Array, Array]
"""Labels, predictions and numbers of groups (N,) of a test fold."""

DRAWS, AT_ONCE = 500, 50


def figures(kind: str, true_N: Array, predicted_N: Array, count_RN: Array | None = None) -> dict[str, Array]:
    """`accuracy`, `macro_f1` and `mcc` of a classification, `spearman`, `r2` and `rmse` of a regression: (R,) of each.

    count_RN: how often each row counts; None: once, with R = 1. Not a number where no row does. A constant prediction
    has no order, and no correlation: Spearman is 0 there, as MCC is; so is MCC of test rows of one class alone, as a
    fold of few groups may be. Classes that neither rows nor predictions have take no part in `macro_f1`.
    """
    count_RN = np.ones((1, len(true_N))) if count_RN is None else count_RN.astype(np.float64)
    n_R = count_RN.sum(1)
    n_R[n_R == 0] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "classification":
            return _of_classes(true_N, predicted_N, count_RN, n_R)
        return _of_numbers(true_N, predicted_N, count_RN, n_R)


def intervals(kind: str, folds: Sequence[Fold], seed: int = 0) -> dict[str, list[float]]:
    """95 % intervals of the means over folds of all figures: groups count as often as Poisson variables of mean 1 say.

    Rows of a group are relatives, and are drawn together. The probes are those that were fitted. A fold of which
    nothing is drawn takes no part in a draw.
    """
    rng = np.random.default_rng([seed, 4])
    groups = 1 + max(int(group_N.max()) for _, _, group_N in folds)
    drawn: dict[str, list[float]] = {}
    for _ in range(0, DRAWS, AT_ONCE):
        count_RG = rng.poisson(1, (AT_ONCE, groups))
        found = [figures(kind, true_N, predicted_N, count_RG[:, group_N]) for true_N, predicted_N, group_N in folds]
        for name in found[0]:
            value_RF = np.stack([one[name] for one in found], 1)
            some_R = np.isfinite(value_RF).any(1)
            drawn.setdefault(name, []).extend(np.nanmean(value_RF[some_R], 1))
    return {name: [float(x) for x in np.quantile(values, [0.025, 0.975])] for name, values in drawn.items()}


def _of_classes(true_N: Array, predicted_N: Array, count_RN: Array, n_R: Array) -> dict[str, Array]:
    classes, code_2N = np.unique(np.stack([true_N, predicted_N]), return_inverse=True)
    hot_2NK = code_2N.reshape(2, -1)[..., None] == np.arange(len(classes))
    true_RK, predicted_RK, right_RK = (count_RN @ hot.astype(np.float64) for hot in (*hot_2NK, hot_2NK[0] & hot_2NK[1]))
    f1_RK = 2 * right_RK / (true_RK + predicted_RK)
    right_R, seen_RK = right_RK.sum(1), np.isfinite(f1_RK)
    both_R = (n_R**2 - (predicted_RK**2).sum(1)) * (n_R**2 - (true_RK**2).sum(1))
    mcc_R = (right_R * n_R - (true_RK * predicted_RK).sum(1)) / np.sqrt(both_R)
    return {
        "accuracy": right_R / n_R,
        "macro_f1": np.where(seen_RK, f1_RK, 0).sum(1) / seen_RK.sum(1),
        "mcc": np.where(both_R > 0, mcc_R, 0 * n_R),
    }


def _of_numbers(true_N: Array, predicted_N: Array, count_RN: Array, n_R: Array) -> dict[str, Array]:
    left_RN = true_N - (count_RN @ true_N / n_R)[:, None]
    seen_RN = count_RN > 0
    constant_R = (np.where(seen_RN, true_N, np.inf).min(1)) == np.where(seen_RN, true_N, -np.inf).max(1)
    spread_R, error_R = (count_RN * left_RN**2).sum(1), count_RN @ (true_N - predicted_N) ** 2
    a_RN, b_RN = (_ranks(x_N, count_RN) - (n_R[:, None] + 1) / 2 for x_N in (true_N, predicted_N))  # of mean 0
    both_R = (count_RN * a_RN**2).sum(1) * (count_RN * b_RN**2).sum(1)
    spearman_R = (count_RN * a_RN * b_RN).sum(1) / np.sqrt(both_R)
    return {
        "spearman": np.where(both_R > 0, spearman_R, 0 * n_R),
        "r2": np.where(constant_R, 0 * n_R, 1 - error_R / spread_R),
        "rmse": np.sqrt(error_R / n_R),
    }


def _ranks(x_N: Array, count_RN: Array) -> Array:
    """(R, N) ranks from 1, the same for equal values, of rows that count as often as `count_RN` says."""
    order = np.argsort(x_N, kind="stable")
    first_K = np.flatnonzero(np.diff(x_N[order], prepend=np.nan) != 0)
    count_RK = np.add.reduceat(count_RN[:, order], first_K, axis=1)
    rank_RK = np.cumsum(count_RK, 1) - (count_RK - 1) / 2
    value_N = np.empty(len(x_N), dtype=np.int64)
    value_N[order] = np.repeat(np.arange(len(first_K)), np.diff(first_K, append=len(x_N)))
    ranks: Array = rank_RK[:, value_N]
    return ranks
