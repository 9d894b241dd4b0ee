"""Folds of a cross-validation that keep groups whole.

Shape letters: N rows, F folds, G groups, C classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.errors import ConfigError, DataError

Array = NDArray[Any]


def folds_of(groups: Array, classes: Array, folds: int, seed: int) -> Array:
    """(N,) which fold tests each row. All rows of a group are in one fold; folds are about as large and have about the
    same share of each class, as far as groups allow (largest group first, each to where it is missed most).

    Raises ConfigError for fewer groups than folds.
    """
    _, of_N, size_G = np.unique(groups, return_inverse=True, return_counts=True)
    if not 2 <= folds <= len(size_G):
        raise ConfigError(f"folds: {folds}, expected 2 to {len(size_G)}, the number of groups")
    _, class_N, count_C = np.unique(classes, return_inverse=True, return_counts=True)
    count_GC = np.zeros((len(size_G), len(count_C) + 1))
    np.add.at(count_GC, (of_N, class_N), 1 / count_C[class_N])
    count_GC[:, -1] = size_G / len(of_N)
    order = np.random.default_rng([seed, 0]).permutation(len(size_G))
    order = order[np.argsort(-size_G[order], kind="stable")]
    fold_G, load_FC = np.zeros(len(size_G), dtype=np.int64), np.zeros((folds, count_GC.shape[1]))
    for g in order:
        fold_G[g] = f = (load_FC @ count_GC[g]).argmin()  # adds least to the sum of squares of all loads
        load_FC[f] += count_GC[g]
    found: Array = fold_G[of_N]
    return found


def group_numbers(groups: Sequence[Hashable] | None, n: int) -> Array:
    """(n,) int64: groups as numbers; None: every row is its own. Raises DataError for another count."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise DataError(f"{len(groups)} groups for {n} labels")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(group, len(number)) for group in groups], dtype=np.int64)
