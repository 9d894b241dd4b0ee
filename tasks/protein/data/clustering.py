"""How alike sequences are, and greedy clusters of those that are.

Clusters are made as by CD-HIT (Li & Godzik, Bioinformatics 2006): the longest sequence founds the first cluster, and
each next one joins the first cluster whose founder it is like, else founds one.

Shape letters: N sequences, C columns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmdiff.config.typed import typed
from mmdiff.errors import DataError, require
from mmdiff.parts.ranges import PositiveShare
from mmdiff.tasks.protein.residues import CANONICAL, GAP

K = 3  # letters of a word
AFTER = 2.0  # seconds until progress is shown

Like = Callable[[int, NDArray[np.int64]], NDArray[np.bool_]]


def identity(a: str, b: str) -> float:
    """Share of equal letters of two aligned rows, over the columns where not both have a gap; 0 where all are gaps.

    Raises DataError for rows of unequal length.
    """
    if len(a) != len(b):
        raise DataError(f"rows of {len(a)} and {len(b)} columns are not aligned")
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x != GAP or y != GAP]
    return sum(x == y for x, y in pairs) / len(pairs) if pairs else 0.0


def global_identity(a: str, b: str) -> float:
    """Equal residues of the best global alignment of two sequences, over the residues of the shorter one.

    BLOSUM62, gaps -11 and -1 for each further residue, none at the ends: what CD-HIT counts, with an alignment that
    need not guess a band. Where several alignments are the best, the first is counted. Raises MissingExtra.
    """
    shorter = min(len(a), len(b))
    return _aligner().align(_scored(a), _scored(b))[0].counts().identities / shorter if shorter else 0.0


@typed
def clusters(sequences: Sequence[str], identity: PositiveShare = 0.7, aligned: bool | None = None) -> NDArray[np.int64]:
    """(N,) the number of each sequence's cluster, in the order in which they are founded.

    Sequences with more residues come first, of equally many the earlier one.

    aligned: True: `identity` of rows with gaps, all of them at once. False: `global_identity`, gaps taken out, of pairs
        that share enough of the shorter one's words of 3 letters, besides those that are shared by chance: half of
        identity^3, the share that differences leave whole when they are spread out, and at least
        1 - 3 (1 - identity), what is left when each of them spoils three words. This is a filter for speed: it misses
        pairs below 0.6, few at 0.5 and many at 0.4. None: True for rows of one length where some have a gap.

    Time grows with N times the number of clusters: seconds for thousands of aligned rows, minutes for those that are
    not; for millions there are CD-HIT and MMseqs2. The last two results are kept: both sides of a split need them.
    Raises ConfigError; DataError for aligned rows of unequal length; MissingExtra where they are not aligned.
    """
    aligned = _are_aligned(sequences) if aligned is None else aligned
    return _clusters(tuple(sequences), identity, aligned).copy()


@lru_cache(maxsize=2)
def _clusters(sequences: tuple[str, ...], identity: float, aligned: bool) -> NDArray[np.int64]:
    residues_N = np.array([len(s) - s.count(GAP) for s in sequences], dtype=np.int64)
    order_N = np.argsort(-residues_N, kind="stable")
    like = _like_aligned(sequences, identity) if aligned else _like_by_words(sequences, identity)
    cluster_N = np.full(len(sequences), -1, dtype=np.int64)
    founded = 0
    with tqdm(total=len(sequences), desc="clusters", file=sys.stderr, leave=False, delay=AFTER) as bar:
        # founder by founder: a sequence is taken by the first that it is like, as it would be in its own turn
        while len(order_N):
            founder, rest = int(order_N[0]), order_N[1:]
            joins = like(founder, rest)
            cluster_N[founder] = cluster_N[rest[joins]] = founded
            founded += 1
            bar.update(1 + int(joins.sum()))
            order_N = rest[~joins]
    return cluster_N


def near(
    sequences: Sequence[str],
    ones: NDArray[np.int64],
    others: NDArray[np.int64],
    identity: float = 0.7,
    aligned: bool | None = None,
) -> NDArray[np.bool_]:
    """(ones,) whether any of `others` is as alike as in `clusters`; both are numbers of `sequences`."""
    aligned = _are_aligned(sequences) if aligned is None else aligned
    like = _like_aligned(sequences, identity) if aligned else _like_by_words(sequences, identity)
    return np.array([like(int(one), others).any() for one in ones], dtype=bool)


def _are_aligned(sequences: Sequence[str]) -> bool:
    return len({len(s) for s in sequences}) == 1 and any(GAP in s for s in sequences)


def _like_aligned(rows: Sequence[str], identity: float) -> Like:
    unequal = next((row for row in rows if len(row) != len(rows[0])), None)
    if unequal is not None:
        raise DataError(f"rows of {len(rows[0])} and {len(unequal)} columns are not aligned")
    letters_NC = np.frombuffer("".join(rows).encode("ascii"), dtype=np.uint8).reshape(len(rows), -1)

    def like(founder: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        one_C, others_NC = letters_NC[founder], letters_NC[others]
        residue_C = one_C != ord(GAP)
        equal_N = ((others_NC == one_C) & residue_C).sum(1)
        columns_N = ((others_NC != ord(GAP)) | residue_C).sum(1)
        return equal_N >= identity * columns_N - 1e-9

    return like


def _like_by_words(sequences: Sequence[str], identity: float) -> Like:
    require("rapidfuzz", "protein")
    from rapidfuzz.distance import LCSseq

    bare = [s.replace(GAP, "") for s in sequences]
    scored = [_scored(s) for s in bare]
    words = [_words(s) for s in bare]
    count_N = np.array([len(one) for one in words], dtype=np.int64)
    index = WordIndex(words, 26**K)
    share = max(1 - K * (1 - identity), identity**K / 2)

    def like(founder: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        shared_N = index.shared(words[founder])
        chance = len(words[founder]) / len(CANONICAL) ** K
        out = shared_N[others] >= (chance + (1 - chance) * share) * count_N[others] - 1e-9
        for i in np.flatnonzero(out):
            a, b = bare[founder], bare[others[i]]
            least = identity * min(len(a), len(b)) - 1e-9
            # members of one family share words enough; an alignment costs ten times what rules most pairs out
            # no alignment makes more letters equal than the longest common subsequence has
            common = LCSseq.similarity(scored[founder], scored[others[i]])
            out[i] = common >= least and global_identity(a, b) >= identity - 1e-9
        return out

    return like


class WordIndex:
    """Which of N sequences hold which words. words: of each sequence, distinct numbers below `size`."""

    def __init__(self, words: Sequence[NDArray[np.int64]], size: int) -> None:
        joined = np.concatenate([*words, np.zeros(0, dtype=np.int64)])
        owners = np.repeat(np.arange(len(words)), [len(one) for one in words])
        self._n = len(words)
        self._owners = owners[joined.argsort(kind="stable")]  # of each word in turn, where it begins by `_starts`
        self._starts = np.concatenate([[0], np.bincount(joined, minlength=size).cumsum()])

    def shared(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) how many of these words each sequence holds."""
        having = [self._owners[self._starts[word] : self._starts[word + 1]] for word in words]
        return np.bincount(np.concatenate([*having, np.zeros(0, dtype=np.int64)]), minlength=self._n)


def _words(sequence: str) -> NDArray[np.int64]:
    """The words of a sequence as numbers, each once."""
    letters = np.frombuffer(sequence.upper().encode("ascii"), dtype=np.uint8).astype(np.int64) - ord("A")
    windows = np.lib.stride_tricks.sliding_window_view(letters, K) if len(letters) >= K else np.zeros((0, K), np.int64)
    found: NDArray[np.int64] = np.unique(windows @ (26 ** np.arange(K)))
    return found


def _scored(sequence: str) -> str:
    """With the letters of BLOSUM62: selenocysteine as C, pyrrolysine as K, leucine or isoleucine as X."""
    return sequence.translate(str.maketrans("UOJ", "CKX"))


@lru_cache(maxsize=1)
def _aligner() -> Any:
    require("Bio", "protein")
    from Bio.Align import PairwiseAligner, substitution_matrices

    aligner = PairwiseAligner()
    aligner.mode = "global"
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    aligner.open_gap_score, aligner.extend_gap_score, aligner.end_gap_score = -11, -1, 0
    return aligner
