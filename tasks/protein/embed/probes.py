"""Linear probes: what of a label can be read off frozen embeddings by logistic or ridge regression.

Folds keep groups (clusters of homologues) whole: a probe that has seen a close relative of every test sequence needs to
know the family only. Baselines stand in the same folds, and `shuffled` is the floor, the same probe fitted to training
labels that were permuted.

Shape letters: N rows (sequences or residues), D features, F folds, G groups, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.config.typed import typed
from mmdiff.errors import DataError, require
from mmdiff.parts.ranges import AtLeast1
from mmdiff.tasks.protein.residues import CANONICAL

from .folds import folds_of, group_numbers
from .labels import UNRESOLVED, Labels, label_array, read_labels
from .metrics import Fold, figures, intervals

__all__ = ["Labels", "composition", "folds_of", "probe", "probe_text", "read_labels", "residue_probe"]

Array = NDArray[Any]
Predict = Callable[[Array], Array]

PENALTIES = {"classification": (1e-4, 1e-3, 1e-2, 1e-1), "regression": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)}
"""Weight of |w|^2 / 2 against the mean loss per row, which is cross-entropy or half the squared error: scikit-learn's C
is 1 / (penalty N), its alpha penalty N, so that a value is as strong in any number of rows. Tried by inner folds."""
INNER = 3  # folds within the training rows
TRIED = 10_000  # rows at most that a penalty is chosen by
ITERATIONS = 300  # of L-BFGS
WINDOW = 15  # residues of the one-hot baseline


def probe(
    features: Any,
    labels: Sequence[Any],
    groups: Sequence[Hashable] | None = None,
    *,
    sequences: Sequence[str] | None = None,
    kind: str = "auto",
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Cross-validated scores of a probe of a label per sequence.

    features: (N, D), or an `Embeddings` of pooled vectors. labels: N strings or numbers. groups: of each row; None:
        every row is its own, which is right only for sequences that are no relatives.
    sequences: give the baseline of amino-acid composition (20 frequencies).
    kind: classification (logistic regression) | regression (ridge) | auto: regression for numbers of which some are not
        whole, or of which there are more than 20 different ones. Features are standardised on the training rows.
    Returns {"kind", "rows", "width", "groups", "folds", "classes" (how many rows have each), "scores"}: scores
    {predictor: {metric: {"mean", "sd", "interval"}}} over test folds (sd with folds - 1; `metrics.intervals`), of
    `probe`, `composition`, `majority` or `mean` (a constant), `shuffled`; metrics are those of `metrics.figures`.
    Raises DataError for labels and features that do not fit each other, ConfigError for fewer groups than folds,
    MissingExtra without scikit-learn.
    """
    require("sklearn", "protein")
    features_ND = np.asarray(features.stacked() if hasattr(features, "stacked") else features)
    if features_ND.ndim != 2 or len(features_ND) != len(labels):
        raise DataError(f"features of shape {features_ND.shape} for {len(labels)} labels, expected a row per label")
    label_N, kind = label_array(labels, kind)
    sets = {"probe": features_ND}
    if sequences is not None:
        if len(sequences) != len(labels):
            raise DataError(f"{len(sequences)} sequences for {len(labels)} labels")
        sets["composition"] = composition(sequences)
    return _scored(sets, label_N, group_numbers(groups, len(labels)), kind, folds, seed)


@typed
def residue_probe(
    embeddings: Any,
    labels: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    *,
    sequences: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    folds: int = 5,
    limit: AtLeast1 = 60_000,
    seed: int = 0,
) -> dict[str, Any]:
    """`probe` of a label per residue, as is secondary structure: accuracy is then Q3.

    embeddings: of each sequence (residues, D); an `Embeddings` by residue is read once, sequence by sequence.
    labels: of each sequence a letter per residue; `-` and `?` are left out. groups: of sequences; None: each its own.
    sequences: give the baseline `onehot-15`, the residue with seven on either side, one-hot.
    ids: what errors call the sequences; None: the ids of `embeddings`.
    limit: residues that are used, drawn evenly from all that have a label (`rows` of `labelled`): memory and time are
        those of so many rows, whatever the number of sequences.
    Raises as `probe` does; DataError names a sequence whose label is of another length.
    """
    require("sklearn", "protein")
    if not len(embeddings) == len(labels) == len(labels if sequences is None else sequences):
        counts = f"{len(embeddings)} embeddings, {len(labels)} labels"
        raise DataError(counts + ("" if sequences is None else f", {len(sequences)} sequences"))
    names = ids if ids is not None else getattr(embeddings, "ids", [str(i) for i in range(len(labels))])
    resolved = [np.array([c not in UNRESOLVED for c in label], dtype=bool) for label in labels]
    ends = np.cumsum([0, *(int(own.sum()) for own in resolved)])
    rng = np.random.default_rng([seed, 1])
    drawn = np.sort(rng.choice(ends[-1], min(limit, int(ends[-1])), replace=False)) if ends[-1] else np.zeros(0, int)
    cuts = np.searchsorted(drawn, ends)
    group_S = group_numbers(groups, len(labels))
    features, windows, letters, group = [], [], [], []
    for s, x_ND in enumerate(embeddings):
        for what, length in (("residues embedded", len(x_ND)), ("residues", len(sequences[s]) if sequences else None)):
            if length is not None and length != len(labels[s]):
                raise DataError(f"record {s + 1} ({names[s]}): {len(labels[s])} letters of labels for {length} {what}")
        at = resolved[s].nonzero()[0][drawn[cuts[s] : cuts[s + 1]] - ends[s]]
        if not len(at):
            continue
        features.append(np.asarray(x_ND)[at])
        letters += [labels[s][i] for i in at]
        group.append(np.full(len(at), group_S[s]))
        if sequences is not None:
            windows.append(onehot(sequences[s], at))
    if not features:
        raise DataError("no residue has a label")
    sets = {"probe": np.concatenate(features)}
    if windows:
        sets[f"onehot-{WINDOW}"] = np.concatenate(windows)
    found = _scored(sets, np.array(letters), np.concatenate(group), "classification", folds, seed)
    return {**found, "labelled": int(ends[-1])}


def probe_text(result: Mapping[str, Any]) -> str:
    """Plain text of what a probe found: a line per predictor, its figures as mean +- sd over folds, and intervals."""
    scores = result["scores"]
    metrics = list(next(iter(scores.values())))
    lines = [f"{'':12}" + "".join(f"{metric:>35}" for metric in metrics)]
    for name, by_metric in scores.items():
        of = (by_metric[metric] for metric in metrics)
        cells = ("{mean:.3f} +- {sd:.3f} ({interval[0]:.3f} to {interval[1]:.3f})".format(**one) for one in of)
        lines.append(f"{name:12}" + "".join(f"{cell:>35}" for cell in cells))
    return "\n".join(lines)


# Features of sequences ------------------------------------------------------------------------------------------------


def composition(sequences: Sequence[str]) -> Array:
    """(N, 20) float32: the share of each residue."""
    return np.array([[s.count(c) / max(len(s), 1) for c in CANONICAL] for s in sequences], dtype=np.float32)


def onehot(sequence: str, at: Array, window: int = WINDOW) -> Array:
    """(len(at), window * 21) float32: letters round each position; the 21st is any other letter, and the outside."""
    half = window // 2
    code = np.array([CANONICAL.find(c) for c in sequence], dtype=np.int64)
    code = np.pad(np.where(code < 0, len(CANONICAL), code), half, constant_values=len(CANONICAL))
    around = code[np.asarray(at)[:, None] + np.arange(window)]
    return np.eye(len(CANONICAL) + 1, dtype=np.float32)[around].reshape(len(around), -1)


# Fitting --------------------------------------------------------------------------------------------------------------


def _scored(
    sets: Mapping[str, Array], label_N: Array, group_N: Array, kind: str, folds: int, seed: int
) -> dict[str, Any]:
    for name, x_ND in sets.items():
        if not np.isfinite(x_ND).all():
            raise DataError(f"{name}: features of row {int((~np.isfinite(x_ND)).any(1).argmax()) + 1} are not finite")
    stratum_N = label_N if kind == "classification" else np.zeros(len(label_N))
    if kind == "classification" and len(np.unique(label_N)) < 2:
        raise DataError(f"labels: all {len(label_N)} are {label_N[0]!s}, expected two or more different ones")
    fold_N = folds_of(group_N, stratum_N, folds, seed)
    rng = np.random.default_rng([seed, 2])
    by_fold: dict[str, list[Fold]] = {}
    for fold in range(folds):
        test, train = fold_N == fold, fold_N != fold
        y, predicted = label_N[train], {}
        for name, x_ND in sets.items():
            fitted_ND, tested_ND = x_ND[train], x_ND[test]
            penalty = _penalty(fitted_ND, y, group_N[train], kind, seed)
            predicted[name] = _fit(fitted_ND, y, penalty, kind)(tested_ND)
            if name == "probe":
                shuffled = _fit(fitted_ND, rng.permutation(y), penalty, kind)(tested_ND)
        values, counts = np.unique(y, return_counts=True)
        if kind == "classification":
            predicted["majority"] = np.full(test.sum(), values[counts.argmax()])
        else:
            predicted["mean"] = np.full(test.sum(), y.mean())
        predicted["shuffled"] = shuffled
        for name, guess in predicted.items():
            by_fold.setdefault(name, []).append((label_N[test], guess, group_N[test]))
    scores: dict[str, Any] = {}
    for name, of in by_fold.items():
        found, ranges = [figures(kind, *one[:2]) for one in of], intervals(kind, of, seed)
        for metric, around in ranges.items():
            each = [float(one[metric][0]) for one in found]
            shown = {"mean": float(np.mean(each)), "sd": float(np.std(each, ddof=1)), "interval": around}
            scores.setdefault(name, {})[metric] = shown
    out = {"kind": kind, "rows": len(label_N), "width": sets["probe"].shape[1], "groups": len(np.unique(group_N))}
    if kind == "classification":
        out["classes"] = {str(c): int(n) for c, n in zip(*np.unique(label_N, return_counts=True), strict=True)}
    return {**out, "folds": folds, "scores": scores}


def _penalty(x_ND: Array, label_N: Array, group_N: Array, kind: str, seed: int) -> float:
    """The best of `PENALTIES` in inner folds of the same groups; the stronger of two that are equally good."""
    grid = PENALTIES[kind]
    if len(label_N) > TRIED:
        rows = np.sort(np.random.default_rng([seed, 3]).choice(len(label_N), TRIED, replace=False))
        x_ND, label_N, group_N = x_ND[rows], label_N[rows], group_N[rows]
    inner = min(INNER, len(np.unique(group_N)))
    if inner < 2:
        return grid[len(grid) // 2]
    stratum_N = label_N if kind == "classification" else np.zeros(len(label_N))
    fold_N = folds_of(group_N, stratum_N, inner, seed)
    good = np.zeros(len(grid))
    for fold in range(inner):
        test, train = fold_N == fold, fold_N != fold
        for i, penalty in enumerate(grid):
            guess = _fit(x_ND[train], label_N[train], penalty, kind)(x_ND[test])
            error = guess != label_N[test] if kind == "classification" else (guess - label_N[test]) ** 2
            good[i] -= error.sum()
    return grid[len(grid) - 1 - int(good[::-1].argmax())]


def _fit(x_ND: Array, label_N: Array, penalty: float, kind: str) -> Predict:
    """Standardise and fit. L-BFGS stops after 300 iterations: a probe that is not quite converged is a probe."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    if kind == "classification" and len(np.unique(label_N)) == 1:
        return lambda test_ND: np.full(len(test_ND), label_N[0])
    x_ND = x_ND.astype(np.float32)
    centre_D, scale_D = x_ND.mean(0, dtype=np.float64), x_ND.std(0, dtype=np.float64)
    scale_D[scale_D <= 1e-6 * np.abs(centre_D)] = np.inf  # what varies by rounding only is left out

    def scaled(x_ND: Array) -> Array:
        out: Array = (x_ND.astype(np.float32) - centre_D.astype(np.float32)) / scale_D.astype(np.float32)
        return out

    n = len(label_N)
    if kind == "classification":
        model = LogisticRegression(C=1 / (penalty * n), max_iter=ITERATIONS)
    else:
        model = Ridge(alpha=penalty * n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaled(x_ND), label_N)
    return lambda test_ND: np.asarray(model.predict(scaled(test_ND)))
