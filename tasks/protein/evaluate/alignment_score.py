"""The alignment score of DSM (arXiv 2506.08293, "ASc"), of residues: l / (f(a, a) - f(a, b) + l).

f is the score of the best global alignment (Needleman-Wunsch, BLOSUM62, 10 for each residue of a gap), l the length of
the longer. 1 for the sequence itself; two unrelated sequences of one composition are far from 0, so `floor` belongs
beside every figure.

The published figures come from decoded text whose letters are parted by spaces. Each space counted as an X, which
doubled l and hardly changed f: a score s is published as 2s / (1 + s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from mmdiff.errors import DataError, require
from mmdiff.tasks.protein.residues import AMBIGUOUS, CANONICAL, GAP, RARE

GAP_SCORE = -10.0
LIKE_X = str.maketrans(dict.fromkeys("J" + RARE, "X") | {GAP: ""})  # BLOSUM62 has no row for these; gaps go


@cache
def aligner() -> Callable[[str, str], float]:
    """The score f of two sequences. Needs Biopython."""
    require("Bio", "protein")
    from Bio.Align import PairwiseAligner, substitution_matrices

    found = PairwiseAligner(mode="global", substitution_matrix=substitution_matrices.load("BLOSUM62"))
    found.open_gap_score = found.extend_gap_score = GAP_SCORE
    return lambda a, b: float(found.score(a, b)) if a and b else GAP_SCORE * max(len(a), len(b))


def alignment_scores(natural: Sequence[str], predicted: Sequence[str]) -> list[float]:
    """Returns a score per pair, at most 1. Gaps of aligned sequences are taken out first; two empty sequences score 1.

    Raises DataError that names a sequence with anything but residues in it (spaces, masked positions).
    """
    f = aligner()
    out = []
    for i, pair in enumerate(zip(natural, predicted, strict=True)):
        a, b = (_letters(sequence, i) for sequence in pair)
        length = max(len(a), len(b))
        lost = max(0.0, f(a, a) - f(a, b))  # X is worth less next to itself than next to some residues
        out.append(length / (lost + length) if length else 1.0)
    return out


def _letters(sequence: str, number: int) -> str:
    for at, letter in enumerate(sequence):
        if letter not in CANONICAL and letter not in AMBIGUOUS + RARE + GAP:
            raise DataError(f"sequence {number + 1}, residue {at + 1}: {letter!r} cannot be aligned")
    return sequence.translate(LIKE_X)


def floor(sequences: Sequence[str], *, seed: int = 0) -> float:
    """Mean score of each sequence against its own residues in random order: what knowing the composition is worth."""
    rng = np.random.default_rng(seed)
    return float(np.mean(alignment_scores(sequences, ["".join(rng.permutation(list(s))) for s in sequences])))
