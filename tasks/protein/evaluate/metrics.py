"""Figures of sets of sequences: composition, validity, conserved columns; and of filled-in residues.

None of them is informative without a comparison: natural sequences compared with natural ones, or a control.
Aligned sequences are rows of one length in upper case and `-`; for composition their gaps are taken out.

Shape letters: S samples, T natural sequences, C columns, P positions, K letters or classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.errors import DataError
from mmdiff.tasks.protein.data.alignments import aligned_codes
from mmdiff.tasks.protein.residues import CANONICAL, GAP, codes

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

MOST = 0.25  # share of one residue in a sequence, beyond which DPLM takes it for a repeat
RUN = 6  # equal residues in a row, at most
SPLITS = 5  # of natural sequences, whose distances the floor is the mean of
CONSERVED = 0.7  # share of the consensus residue in its column


def one_hot(code_SC: NDArray[np.int16], classes: int) -> NDArray[np.float32]:
    """(S, C * K) rows of codes from 0 to K - 1, all zero where a code is -1."""
    return (code_SC[..., None] == np.arange(classes)).reshape(len(code_SC), -1).astype(np.float32)


# Composition


def kmers(sequences: Sequence[str], k: int, letters: str = CANONICAL) -> Counts:
    """(K**k,) how often each k-mer occurs, the first letter the most significant. Windows with any other letter in them
    are left out, and none spans two sequences."""
    index_N, _ = _windows(sequences, k, letters)
    return np.bincount(index_N, minlength=len(letters) ** k)


def _windows(sequences: Sequence[str], k: int, letters: str = CANONICAL) -> tuple[Counts, Counts]:
    """(N,) the k-mer of each window without any other letter, and the number of its sequence."""
    code_N = codes("*".join(sequences), letters).astype(np.int64)  # no letter, so no window crosses it
    n = len(code_N) - k + 1
    if n <= 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    windows = [code_N[i : i + n] for i in range(k)]
    index_N, known_N = np.zeros(n, dtype=np.int64), np.ones(n, dtype=bool)
    for window_N in windows:
        index_N = index_N * len(letters) + window_N
        known_N &= window_N >= 0
    number_N = np.repeat(np.arange(len(sequences)), [len(s) + 1 for s in sequences])[:n]
    return index_N[known_N], number_N[known_N]


def jensen_shannon(p: NDArray[Any], q: NDArray[Any]) -> float:
    """Divergence in bits, from 0 to 1, of two distributions or tables of counts (scipy's `jensenshannon` is its root).

    Raises DataError if one of them is empty.
    """
    if not p.sum() or not q.sum():
        raise DataError("Jensen-Shannon divergence: one of the two sets has nothing to count")
    a, b = p / p.sum(), q / q.sum()
    middle = (a + b) / 2

    def entropy(x: Array) -> float:
        x = x[x > 0]
        return float(-(x * np.log2(x)).sum())

    return max(0.0, entropy(middle) - (entropy(a) + entropy(b)) / 2)


def divergence(a: Sequence[str], b: Sequence[str], k: int) -> tuple[float, float]:
    """Jensen-Shannon divergence of the k-mers of two sets, and its standard error over sequences of both.

    The error is the infinitesimal jackknife (Efron 1982): to first order a sequence moves the divergence by what its
    own k-mers are worth. Drawing sequences again would not do, for a divergence grows with every draw.
    """
    sets = [_windows(a, k), _windows(b, k)]
    counts = [np.bincount(index_N, minlength=len(CANONICAL) ** k) for index_N, _ in sets]
    value = jensen_shannon(*counts)
    p, q = (x / x.sum() for x in counts)
    variance = 0.0
    for (index_N, number_N), share, sequences in zip(sets, (p, q), (a, b), strict=True):
        worth = np.log2(np.divide(2 * share, p + q, out=np.ones_like(share), where=share > 0)) / 2
        own_S = np.bincount(number_N, worth[index_N] - share @ worth, minlength=len(sequences)) / len(index_N)
        variance += float((own_S**2).sum()) * len(own_S) / max(1, len(own_S) - 1)
    return value, float(np.sqrt(variance))


def composition_report(
    samples: Sequence[str],
    natural: Sequence[str],
    *,
    heldout: tuple[Sequence[str], Sequence[str]] | None = None,
    ks: Sequence[int] = (1, 2, 3),
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """`{"1": {"samples", "floor", "floor_std", "heldout", "shuffled", "columns", "se"}, ...}`: Jensen-Shannon
    divergences, with the standard error of each (`divergence`).

    The divergence of two finite sets of one distribution is not 0, and depends on their sizes. Each of `SPLITS` random
    splits therefore cuts `natural` into a part of as many sequences as there are samples (half of it at most) and the
    rest; against the rest are held as many samples, that part (`floor`), that part with the residues of each sequence
    in random order (`shuffled`) and, where all are of one length, with each column in random order (`columns`: what a
    sampler of independent columns scores). Means over the splits.

    heldout: (held-out sequences, training sequences): how far as many of the first are from the second. Random splits
    put close relatives on both sides, a model has seen one side only; so that this is the floor of natural sequences of
    clusters that the other set has none of.
    """
    if len(natural) < 2 or not samples:
        raise DataError(f"composition: {len(samples)} samples, {len(natural)} natural; expected at least 1 and 2")
    rng = np.random.default_rng(seed)
    aligned = len({len(s) for s in natural}) == 1 and any(GAP in s for s in natural)
    size = min(len(samples), len(natural) // 2)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {str(k): {} for k in ks}
    for _ in range(SPLITS):
        order = rng.permutation(len(natural))
        part, rest = [natural[i] for i in order[:size]], [natural[i] for i in order[size:]]
        sets = {
            "samples": [samples[i] for i in rng.permutation(len(samples))[:size]],
            "floor": part,
            "shuffled": ["".join(rng.permutation(list(ungapped(s)))) for s in part],
        }
        if aligned:
            columns = [rng.permutation([s[c] for s in part]) for c in range(len(part[0]))]
            sets["columns"] = ["".join(row) for row in zip(*columns, strict=True)]
        pairs = {name: (some, rest) for name, some in sets.items()}
        if heldout is not None:
            new, seen = heldout
            pairs["heldout"] = ([new[i] for i in rng.permutation(len(new))[:size]], list(seen))
        for name, (some, against) in pairs.items():
            bare = [[ungapped(s) for s in of] for of in (some, against)]
            for k in ks:
                found[str(k)].setdefault(name, []).append(divergence(bare[0], bare[1], k))
    out: dict[str, dict[str, Any]] = {}
    for key, of in found.items():  # of sets that overlap: the error of their mean is that of one
        mean = {name: np.mean(pairs, axis=0) for name, pairs in of.items()}
        out[key] = {name: float(value) for name, (value, _) in mean.items()}
        out[key]["floor_std"] = float(np.std([value for value, _ in of["floor"]]))
        out[key]["se"] = {name: float(error) for name, (_, error) in mean.items()}
    return out


def composition(sequences: Sequence[str]) -> dict[str, float]:
    """Share of each of the 20 residues among them."""
    counts = kmers(sequences, 1)
    return {letter: float(n / max(1, counts.sum())) for letter, n in zip(CANONICAL, counts, strict=True)}


def ungapped(sequence: str) -> str:
    """Returns a sequence without gaps."""
    return sequence.replace(GAP, "")


# Validity


def validity(
    sequences: Sequence[str], lengths: Sequence[int] | None = None, *, most: float = MOST, run: int = RUN
) -> dict[str, float]:
    """Shares of sequences: `canonical` (the 20 residues only), `length` (as asked, where `lengths` says), `balanced`
    (no residue makes up more than `most`), `no_run` (no residue more than `run` times in a row), and `valid`: all of
    these. Gaps are no residues and are taken out, but count towards the length."""
    checks: dict[str, list[bool]] = {"canonical": [], "length": [], "balanced": [], "no_run": []}
    for i, sequence in enumerate(sequences):
        code_N = codes(ungapped(sequence), CANONICAL)
        n = len(code_N)
        share = np.bincount(code_N[code_N >= 0], minlength=1).max() / max(1, n)
        edges = np.flatnonzero(np.diff(code_N, prepend=-2, append=-2))
        checks["canonical"].append(n > 0 and bool((code_N >= 0).all()))
        checks["length"].append(lengths is None or len(sequence) == lengths[i])
        checks["balanced"].append(bool(share <= most))
        checks["no_run"].append(bool(np.diff(edges).max(initial=0) <= run))
    if lengths is None:
        del checks["length"]
    every = [all(of_one) for of_one in zip(*checks.values(), strict=True)]
    return {name: float(np.mean(found)) if found else 0.0 for name, found in {**checks, "valid": every}.items()}


# Conserved columns


def conserved(
    samples: Sequence[str], natural: Sequence[str], *, columns: Sequence[int] | None = None, least: float = CONSERVED
) -> dict[str, Any]:
    """Share of sequences with the consensus of `natural` at its conserved columns; a gap is not the consensus.

    `columns` (counted from 1), `consensus` (a letter per column), `samples` and `natural` (shares by column), and their
    means `mean` and `natural_mean`, with standard errors over sequences (`mean_se`, `natural_mean_se`). columns: which
    ones; None: those whose consensus has a share of at least `least`.
    """
    code_TC, code_SC = aligned_codes(natural, CANONICAL), aligned_codes(samples, CANONICAL)
    if code_SC.shape[1] != code_TC.shape[1]:
        raise DataError(f"samples of {code_SC.shape[1]} columns, expected {code_TC.shape[1]} as in the alignment")
    share_CK = (code_TC[..., None] == np.arange(len(CANONICAL))).mean(0)
    if columns is None:
        at = np.flatnonzero(share_CK.max(1) >= least)
    else:
        at = np.array([c - 1 for c in columns], dtype=np.int64)
        if len(at) and (at.min() < 0 or at.max() >= len(share_CK)):
            raise DataError(f"columns {list(columns)}: expected numbers from 1 to {len(share_CK)}")
    consensus = share_CK[at].argmax(1)
    kept_SC, natural_TC = code_SC[:, at] == consensus, code_TC[:, at] == consensus
    kept = kept_SC.mean(0)
    return {
        "columns": [int(c) + 1 for c in at],
        "consensus": "".join(CANONICAL[i] for i in consensus),
        "samples": [float(x) for x in kept],
        "natural": [float(x) for x in share_CK[at].max(1)],
        "mean": float(kept.mean()) if len(at) else 0.0,
        "natural_mean": float(share_CK[at].max(1).mean()) if len(at) else 0.0,
        "mean_se": _error_of_mean(kept_SC),
        "natural_mean_se": _error_of_mean(natural_TC),
    }


def _error_of_mean(right_SC: NDArray[np.bool_]) -> float:
    s, c = right_SC.shape
    return float(right_SC.mean(1).std(ddof=1) / np.sqrt(s)) if s > 1 and c else float("nan")


# Filled-in residues


def confusion(true_P: NDArray[Any], predicted_P: NDArray[Any], classes: int) -> Counts:
    """(K, K) counts, one row per true class."""
    return np.bincount(true_P.astype(np.int64) * classes + predicted_P, minlength=classes**2).reshape(classes, classes)


def classification(counts_KK: Counts) -> Mapping[str, float]:
    """`accuracy`, `f1` (weighted by how often a class is the true one) and `mcc` (Matthews', of many classes: Gorodkin
    2004) of a confusion matrix. Not a number without counts; `mcc` is 0 where it is not defined, as in scikit-learn."""
    n = int(counts_KK.sum())
    if not n:
        return dict.fromkeys(("accuracy", "f1", "mcc"), float("nan"))
    true_K, predicted_K, right_K = (
        x.astype(np.float64) for x in (counts_KK.sum(1), counts_KK.sum(0), counts_KK.diagonal())
    )
    f1_K = 2 * right_K / np.maximum(true_K + predicted_K, 1)
    spread = (n**2 - (predicted_K**2).sum()) * (n**2 - (true_K**2).sum())
    mcc = (right_K.sum() * n - (true_K * predicted_K).sum()) / np.sqrt(spread) if spread > 0 else 0.0
    return {"accuracy": float(right_K.sum() / n), "f1": float((f1_K * true_K).sum() / n), "mcc": float(mcc)}
