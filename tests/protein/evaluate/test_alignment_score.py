"""The alignment score against a small Needleman-Wunsch of its own, and the published bug reproduced."""

from __future__ import annotations

import numpy as np
import pytest

from mmdiff.errors import DataError
from mmdiff.tasks.protein.evaluate.alignment_score import aligner, alignment_scores, floor
from mmdiff.tasks.protein.residues import CANONICAL

pytestmark = pytest.mark.needs("Bio")


def needleman_wunsch(a: str, b: str, gap: float = -10.0) -> float:
    from Bio.Align import substitution_matrices

    blosum = substitution_matrices.load("BLOSUM62")
    table = np.zeros((len(a) + 1, len(b) + 1))
    table[:, 0], table[0] = gap * np.arange(len(a) + 1), gap * np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = max(table[i - 1, j - 1] + blosum[x][y], table[i - 1, j] + gap, table[i, j - 1] + gap)
    return float(table[-1, -1])


def drawn(rng: np.random.Generator, n: int) -> str:
    return "".join(rng.choice(list(CANONICAL), n))


def changed(rng: np.random.Generator, sequence: str, rate: float) -> str:
    return "".join(drawn(rng, 1) if rng.random() < rate else x for x in sequence)


def test_scores_are_needleman_wunschs() -> None:
    rng = np.random.default_rng(0)
    f = aligner()
    for _ in range(8):
        a = drawn(rng, int(rng.integers(1, 25)))
        b = changed(rng, a, 0.4)[int(rng.integers(0, 3)) :] + drawn(rng, int(rng.integers(0, 4)))
        assert f(a, b) == needleman_wunsch(a, b)
        length = max(len(a), len(b))
        expected = length / (needleman_wunsch(a, a) - needleman_wunsch(a, b) + length)
        assert alignment_scores([a], [b]) == [pytest.approx(expected)]
    assert f("", "ACD") == needleman_wunsch("", "ACD") == -30


def test_known_scores() -> None:
    # one A of four becomes W: A-A 4, A-W -3, so 7 points are lost over a length of 4
    assert alignment_scores(["ACDA"], ["ACDW"]) == [pytest.approx(4 / 11)]
    assert alignment_scores(["ACD-A", "", "--"], ["AC-DA", "", "-"]) == [1, 1, 1]  # gaps are no residues
    assert alignment_scores(["ACOU"], ["ACXX"]) == [1]  # these count as X
    assert alignment_scores(["XX"], ["AA"]) == [1]  # X has less of itself than of A
    with pytest.raises(DataError, match="sequence 2, residue 2: ' ' cannot be aligned"):
        alignment_scores(["AC", "A C"], ["AC", "A C"])
    with pytest.raises(DataError, match="residue 1: '_'"):
        alignment_scores(["AC"], ["_C"])


def test_the_published_score_has_a_letter_between_residues() -> None:
    """What the published script does: spaces become X, and a score s becomes 2s / (1 + s)."""

    def published(score: float) -> float:
        return 2 * score / (1 + score)

    rng = np.random.default_rng(1)
    f = aligner()
    for rate in (0.05, 0.3, 0.6):
        a = drawn(rng, 120)
        b = changed(rng, a, rate)
        a_X, b_X = "X".join(a), "X".join(b)
        theirs = len(a_X) / (f(a_X, a_X) - f(a_X, b_X) + len(a_X))
        (ours,) = alignment_scores([a], [b])
        assert published(ours) == pytest.approx(theirs, abs=0.01)  # 119 spaces to 120 residues
    # pairs of (residues only, with spaces) that were computed by running the published procedure
    for ours, theirs in ((0.783, 0.874), (0.576, 0.728), (0.276, 0.431), (0.158, 0.270)):
        assert published(ours) == pytest.approx(theirs, abs=0.006)


def test_the_floor_is_far_from_zero() -> None:
    rng = np.random.default_rng(2)
    sequences = [drawn(rng, 100) for _ in range(20)]
    assert 0.1 < floor(sequences) < 0.2
    assert floor(sequences) == floor(sequences) != floor(sequences, seed=1)
    assert floor(["AAAA"]) == 1  # there is nothing to shuffle
