"""How new generated sequences are, and how unlike each other: identities to a training set, and among themselves.

Aligned sequences are compared column by column, all with all. Others are aligned in pairs by Biopython, to those
training sequences only that share most words with them.

Shape letters: S samples, T training sequences, C columns, K letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.errors import DataError
from mmdiff.tasks.protein.data.clustering import global_identity
from mmdiff.tasks.protein.residues import CANONICAL

from .metrics import Array, Counts, aligned_codes, kmers, ungapped

CANDIDATES = 10  # training sequences that are aligned to a sample
WORD = 3  # residues of the words by which they are chosen
CHUNK = 512  # samples whose identities to all training sequences exist at one time


def identities(a: Sequence[str], b: Sequence[str]) -> Array:
    """(S, T) of aligned sequences: equal residues / columns in which either has one, as `clustering.identity`."""
    code_SC, code_TC = aligned_codes(a, CANONICAL), aligned_codes(b, CANONICAL)
    if code_SC.shape[1] != code_TC.shape[1]:
        raise DataError(f"sequences of {code_SC.shape[1]} and of {code_TC.shape[1]} columns cannot be compared")
    hot_SK, hot_TK = _one_hot(code_SC), _one_hot(code_TC)
    residue_SC, residue_TC = code_SC >= 0, code_TC >= 0
    both = residue_SC.astype(np.float32) @ residue_TC.T.astype(np.float32)
    either = residue_SC.sum(1)[:, None] + residue_TC.sum(1)[None] - both
    return np.asarray((hot_SK @ hot_TK.T) / np.maximum(either, 1), dtype=np.float64)


def _one_hot(code_SC: NDArray[np.int16]) -> NDArray[np.float32]:
    hot = code_SC[..., None] == np.arange(len(CANONICAL), dtype=np.int16)
    return hot.reshape(len(code_SC), -1).astype(np.float32)


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
        of_train = Words(train)
        found = []
        for s in map(ungapped, samples):
            pairs = [(global_identity(s, ungapped(train[t])), t) for t in of_train.nearest(s, CANDIDATES)]
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


class Words:
    """Which sequences hold which words of `WORD` residues: an index of their distinct words."""

    def __init__(self, sequences: Sequence[str]) -> None:
        words = [_words(s) for s in sequences]
        owner = np.repeat(np.arange(len(words), dtype=np.int32), [len(w) for w in words])
        word = np.concatenate([*words, np.zeros(0, dtype=np.int64)])
        self.n = len(words)
        self.owner = owner[word.argsort(kind="stable")]
        self.start = np.concatenate([[0], np.bincount(word, minlength=len(CANONICAL) ** WORD).cumsum()])

    def nearest(self, sequence: str, n: int) -> list[int]:
        """The `n` that share most distinct words with it, the most first."""
        shared = [self.owner[self.start[w] : self.start[w + 1]] for w in _words(sequence)]
        count = np.bincount(np.concatenate([*shared, np.zeros(0, dtype=np.int32)]), minlength=self.n)
        return [int(i) for i in (-count).argsort(kind="stable")[:n]]


def _words(sequence: str) -> Counts:
    return np.flatnonzero(kmers([ungapped(sequence)], WORD))


def diversity(sequences: Sequence[str], *, aligned: bool, pairs: int = 1000, seed: int = 0) -> dict[str, float]:
    """`unique`: share of distinct sequences. `identity`: mean over random pairs (both with n < 2: 1 and 0), as in
    `novelty`."""
    n = len(sequences)
    unique = len({ungapped(s) for s in sequences}) / max(1, n)
    if n < 2:
        return {"unique": unique, "identity": 0.0}
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
    return {"unique": unique, "identity": float(values.mean())}
