"""How new generated sequences are, and how unlike each other: identities to a training set, and among themselves.

Aligned sequences are compared column by column, all with all. Others are aligned in pairs by Biopython, to those
training sequences only that share most words with them.

Shape letters: S samples, T training sequences, C columns, K letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmdiff.errors import DataError
from mmdiff.tasks.protein.data.alignments import aligned_codes
from mmdiff.tasks.protein.data.clustering import WordIndex, global_identity
from mmdiff.tasks.protein.residues import CANONICAL

from .metrics import Array, Counts, kmers, one_hot, ungapped

CANDIDATES = 10  # training sequences that are aligned to a sample
WORD = 3  # residues of the words by which they are chosen
CHUNK = 512  # samples whose identities to all training sequences exist at one time


def identities(a: Sequence[str], b: Sequence[str]) -> Array:
    """(S, T) of aligned sequences: equal residues / columns in which either has one, as `clustering.identity`."""
    code_SC, code_TC = aligned_codes(a, CANONICAL), aligned_codes(b, CANONICAL)
    if code_SC.shape[1] != code_TC.shape[1]:
        raise DataError(f"sequences of {code_SC.shape[1]} and of {code_TC.shape[1]} columns cannot be compared")
    hot_SK, hot_TK = (one_hot(code, len(CANONICAL)) for code in (code_SC, code_TC))
    residue_SC, residue_TC = code_SC >= 0, code_TC >= 0
    both = residue_SC.astype(np.float32) @ residue_TC.T.astype(np.float32)
    either = residue_SC.sum(1)[:, None] + residue_TC.sum(1)[None] - both
    return np.asarray((hot_SK @ hot_TK.T) / np.maximum(either, 1), dtype=np.float64)


def novelty(samples: Sequence[str], train: Sequence[str], *, aligned: bool) -> dict[str, Any]:
    """Identity of each sample to the training sequence nearest to it.

    `identity` and `nearest` (its number) by sample, their `mean`, `median` and `max`, `exact` (share of samples that
    are training sequences), and `method`. aligned: compared column by column, with all of `train`. Else the training
    sequences that share most words of 3 residues with the sample are aligned to it (`clustering.global_identity`: equal
    residues / length of the shorter, so that a piece of a training sequence is not new). Needs Biopython then.
    """
    if not samples or not train:
        raise DataError(f"novelty: {len(samples)} samples, {len(train)} training sequences; expected some of each")
    if aligned:
        found = []
        for i in range(0, len(samples), CHUNK):
            identity_ST = identities(samples[i : i + CHUNK], train)
            found += [(float(row.max()), int(row.argmax())) for row in identity_ST]
        method = "by column"
    else:
        index = word_index(train)
        found = []
        for s in map(ungapped, samples):
            pairs = [(global_identity(s, ungapped(train[t])), t) for t in nearest(index, s, CANDIDATES)]
            found.append(max(pairs, key=lambda pair: pair[0]))  # of several, the one that shares most words
        method = f"global alignment to the {CANDIDATES} that share most {WORD}-mers"
    values = [value for value, _ in found]
    known = {ungapped(s) for s in train}
    return {
        "identity": values,
        "nearest": [t for _, t in found],
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "max": max(values),
        "exact": float(np.mean([ungapped(s) in known for s in samples])),
        "method": method,
    }


def word_index(sequences: Sequence[str]) -> WordIndex:
    """The words of `WORD` residues of sequences."""
    return WordIndex([_words(s) for s in sequences], len(CANONICAL) ** WORD)


def nearest(index: WordIndex, sequence: str, n: int) -> list[int]:
    """The numbers of the `n` sequences that share most distinct words with one, the most first."""
    return [int(i) for i in (-index.shared(_words(sequence))).argsort(kind="stable")[:n]]


def _words(sequence: str) -> Counts:
    return np.flatnonzero(kmers([ungapped(sequence)], WORD))


def diversity(sequences: Sequence[str], *, aligned: bool, pairs: int = 1000, seed: int = 0) -> dict[str, float]:
    """`unique`: share of distinct sequences. `identity`: mean over random pairs (both with n < 2: 1 and 0), as in
    `novelty`, and its standard error over sequences, `identity_se`: pairs that share one are not independent, and those
    are summed up (Fafchamps and Gubert 2007)."""
    n = len(sequences)
    unique = len({ungapped(s) for s in sequences}) / max(1, n)
    if n < 2:
        return {"unique": unique, "identity": 0.0, "identity_se": float("nan")}
    rng = np.random.default_rng(seed)
    first = rng.integers(0, n, pairs)
    second = (first + rng.integers(1, n, pairs)) % n
    if aligned:
        code_SC = aligned_codes(sequences, CANONICAL)
        a, b = code_SC[first], code_SC[second]
        values = ((a == b) & (a >= 0)).sum(1) / np.maximum(((a >= 0) | (b >= 0)).sum(1), 1)
    else:
        bare = [ungapped(s) for s in sequences]
        values = np.array([global_identity(bare[i], bare[j]) for i, j in zip(first, second, strict=True)])
    left_P = values - values.mean()
    of_sequence_S = np.bincount(first, left_P, n) + np.bincount(second, left_P, n)
    variance = max(0.0, float((of_sequence_S**2).sum() - (left_P**2).sum())) / pairs**2
    return {"unique": unique, "identity": float(values.mean()), "identity_se": float(np.sqrt(variance))}
