"""Figures of sets of sequences and of filled-in residues: closed forms and other implementations."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from mmdiff.errors import DataError
from mmdiff.tasks.protein.data.clustering import identity
from mmdiff.tasks.protein.evaluate.metrics import (
    classification,
    composition,
    composition_report,
    confusion,
    conserved,
    jensen_shannon,
    kmers,
    validity,
)
from mmdiff.tasks.protein.evaluate.novelty import CANDIDATES, diversity, identities, nearest, novelty, word_index
from mmdiff.tasks.protein.residues import CANONICAL


def drawn(n: int, length: int, seed: int = 0, letters: str = CANONICAL) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), length)) for _ in range(n)]


# Composition


def test_kmers_are_counted_within_sequences() -> None:
    sequences = ["ACDXAC", "C", "", "AC", "AXC", *drawn(5, 30)]
    for k in (1, 2, 3):
        expected = Counter(s[i : i + k] for s in sequences for i in range(len(s) - k + 1))
        counts = kmers(sequences, k)
        assert counts.shape == (20**k,)
        found = {
            "".join(CANONICAL[(index // 20**p) % 20] for p in reversed(range(k))): int(counts[index])
            for index in np.flatnonzero(counts)
        }
        assert found == {kmer: n for kmer, n in expected.items() if "X" not in kmer}
    assert kmers([], 2).sum() == kmers(["A"], 2).sum() == 0
    assert kmers(["ab"], 1, "ba").tolist() == [1, 1]


def test_jensen_shannon_is_in_bits() -> None:
    p, q = np.array([3.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0])
    assert jensen_shannon(p, p * 7) == 0
    assert jensen_shannon(np.array([5, 0]), np.array([0, 2])) == 1  # nothing in common
    middle = [0.375, 0.375, 0.25]
    by_hand = 0.5 * (0.75 * np.log2(0.75 / middle[0]) + 0.25 * np.log2(0.25 / middle[1]))
    by_hand += 0.5 * (0.5 * np.log2(0.5 / middle[1]) + 0.5 * np.log2(0.5 / middle[2]))
    assert jensen_shannon(p, q) == pytest.approx(by_hand) == jensen_shannon(q, p)
    with pytest.raises(DataError, match="nothing to count"):
        jensen_shannon(p, p * 0)


@pytest.mark.needs("scipy")
def test_jensen_shannon_is_the_square_of_scipys() -> None:
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(0)
    for _ in range(5):
        p, q = rng.dirichlet(np.full(20, 0.2)), rng.dirichlet(np.full(20, 0.2))
        assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)


def test_composition_beside_its_floor() -> None:
    """Samples of the natural distribution lie at the floor, others above it; a shuffle keeps single residues."""
    natural, alike = drawn(400, 60, 0), drawn(100, 60, 1)
    other = drawn(100, 60, 2, "ACDEFGHIKL")
    found = composition_report(alike, natural, seed=3)
    for k, of in found.items():
        # means of two sets of 100: within what five splits vary by
        assert abs(of["samples"] - of["floor"]) < 6 * of["floor_std"] + 1e-4, k
    assert found["1"]["shuffled"] == pytest.approx(found["1"]["floor"])
    assert found["1"]["floor"] < found["2"]["floor"] < found["3"]["floor"]  # a floor grows with the number of classes
    assert composition_report(other, natural)["1"]["samples"] > 0.2
    assert found == composition_report(alike, natural, seed=3)
    assert "columns" not in found["1"]  # no gap, so not taken for an alignment


def test_controls_of_an_alignment() -> None:
    """Pairs of neighbours are equal: shuffled columns lose that and keep columns; shuffled residues lose both."""
    rng = np.random.default_rng(0)
    pairs = ["ACDE", "FGHI", "KLMN", "PQRS"]
    natural = ["".join(2 * rng.choice(list(letters)) for letters in pairs) + "-" for _ in range(400)]
    found = composition_report(natural[:100], natural, ks=(1, 2))
    assert found["1"]["columns"] == pytest.approx(found["1"]["floor"])
    assert found["2"]["floor"] < 0.03 < 0.1 < found["2"]["columns"] < found["2"]["shuffled"]


def test_shares_of_residues() -> None:
    shares = composition(["AAC-", "X"])
    assert shares["A"] == pytest.approx(2 / 3) and shares["C"] == pytest.approx(1 / 3) and len(shares) == 20


# Identity


def test_identity_by_column() -> None:
    assert identities(["ACD-", "----"], ["ACD-", "ACDE", "GC--"]).tolist() == [
        [1.0, 0.75, pytest.approx(1 / 3)],  # a column where both have a gap is none
        [0.0, 0.0, 0.0],
    ]
    with pytest.raises(DataError, match="columns"):
        identities(["AC"], ["ACD"])
    with pytest.raises(DataError, match="sequence 2: 3 columns, expected 2"):
        identities(["AC", "ACD"], ["AC"])


def test_novelty_by_column_is_that_of_all_pairs() -> None:
    samples, train = drawn(20, 15, 0, "ACD-"), drawn(30, 15, 1, "ACD-")
    samples[3] = train[7]
    found = novelty(samples, train, aligned=True)

    for i, sample in enumerate(samples):
        every = [identity(sample, t) for t in train]
        assert found["identity"][i] == pytest.approx(max(every))
        assert every[found["nearest"][i]] == pytest.approx(max(every))
    assert found["max"] == 1 and found["nearest"][3] == 7 and found["exact"] == 1 / 20
    assert found["method"] == "by column"


@pytest.mark.needs("Bio")
def test_novelty_of_sequences_that_are_not_aligned() -> None:
    train = drawn(60, 80, 0)
    changed = list(train[41])
    for at in range(0, 80, 10):
        changed[at] = "A" if changed[at] != "A" else "C"
    samples = [train[5], train[23][20:60], "".join(changed), train[9][:30] + "GGG" + train[9][30:], "WWWW"]
    found = novelty(samples, train, aligned=False)
    assert found["nearest"][:4] == [5, 23, 41, 9]
    assert found["identity"][:4] == [1, 1, pytest.approx(0.9), 1]  # a piece is not new, nor is one with an insertion
    assert found["exact"] == 0.2 and str(CANDIDATES) in found["method"]
    with pytest.raises(DataError, match="0 training sequences"):
        novelty(samples, [], aligned=False)


def test_the_index_of_words_counts_shared_words() -> None:
    train = [*drawn(50, 40, 0, "ACDE"), "", "AC"]
    sample = drawn(1, 40, 1, "ACDE")[0]

    def words(s: str) -> set[str]:
        return {s[i : i + 3] for i in range(len(s) - 2)}

    shared = [len(words(sample) & words(t)) for t in train]
    assert nearest(word_index(train), sample, 52) == sorted(range(52), key=lambda i: -shared[i])
    assert nearest(word_index(train), "", 2) == [0, 1]


@pytest.mark.needs("Bio")
@pytest.mark.parametrize("aligned", [True, False])
def test_diversity(aligned: bool) -> None:
    same = {"unique": 1 / 3, "identity": 1, "identity_se": 0}
    assert diversity(["ACDE", "ACDE", "ACDE"], aligned=aligned, pairs=20) == same
    other = {"unique": 1, "identity": 0, "identity_se": 0}
    assert diversity(["AAAA", "CCCC"], aligned=aligned, pairs=20) == other
    one = diversity(["AC"], aligned=aligned)
    assert (one["unique"], one["identity"]) == (1, 0) and math.isnan(one["identity_se"])


# Validity


def test_validity() -> None:
    good = "ACDEFGHIKLMNPQRSTVWY"
    of = validity(
        [good, good + "X", good + good[::-1] + good, "A" * 5 + good, 3 * good + "C" * 7, 6 * "A" + good, good + "-"]
    )
    assert of == {
        "canonical": pytest.approx(6 / 7),
        "balanced": pytest.approx(6 / 7),  # 7 of 26 are A
        "no_run": pytest.approx(5 / 7),  # six in a row may be, seven not
        "valid": pytest.approx(4 / 7),
    }
    assert validity([good, good], [20, 21])["length"] == 0.5
    assert validity(["AAAAAA" + good], most=7 / 26)["balanced"] == 1
    assert validity([""])["canonical"] == 0 and validity([])["valid"] == 0
    assert validity([good], run=0)["no_run"] == 0


# Conserved columns


def test_conserved_columns() -> None:
    natural = ["AC-D", "AC-D", "AC-E", "CC-F"]
    found = conserved(["AC--", "CCAD"], natural, least=0.7)
    assert found == {
        "columns": [1, 2],
        "consensus": "AC",
        "samples": [0.5, 1.0],
        "natural": [0.75, 1.0],
        "mean": 0.75,
        "natural_mean": 0.875,
        "mean_se": 0.25,  # of 1 / 2 and 1
        "natural_mean_se": 0.125,  # of 1, 1, 1 and 1 / 2
    }
    chosen = conserved(["AC--", "CCAD"], natural, columns=[4])
    assert (chosen["consensus"], chosen["samples"], chosen["natural"]) == ("D", [0.5], [0.5])
    with pytest.raises(DataError, match="numbers from 1 to 4"):
        conserved(natural, natural, columns=[0])
    with pytest.raises(DataError, match="expected 4"):
        conserved(["AC"], natural)
    assert conserved(natural, natural, least=1.1)["mean"] == 0


# Filled-in residues


@pytest.mark.needs("sklearn")
@pytest.mark.parametrize("seed", range(4))
def test_classification_is_scikit_learns(seed: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    rng = np.random.default_rng(seed)
    true_P = rng.choice(21, 400, p=rng.dirichlet(np.full(21, 0.3)))
    said_P = np.where(rng.random(400) < 0.4, true_P, rng.integers(0, 21, 400))
    found = classification(confusion(true_P, said_P, 21))
    assert found["accuracy"] == pytest.approx(accuracy_score(true_P, said_P))
    assert found["f1"] == pytest.approx(f1_score(true_P, said_P, average="weighted", zero_division=0))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(true_P, said_P))


def test_classification_at_the_edges() -> None:
    right = confusion(np.array([0, 1, 2]), np.array([0, 1, 2]), 3)
    assert classification(right) == {"accuracy": 1, "f1": 1, "mcc": 1}
    always = confusion(np.array([0, 0, 1]), np.array([0, 0, 0]), 3)
    assert classification(always)["mcc"] == 0 and classification(always)["f1"] == pytest.approx(0.8 * 2 / 3)
    assert np.isnan(classification(np.zeros((3, 3), dtype=np.int64))["accuracy"])


def test_the_floor_of_held_out_sequences_is_their_distance_from_the_training_sequences() -> None:
    rng = np.random.default_rng(0)
    near = ["".join(rng.choice(list("ACDE"), 30)) for _ in range(200)]
    far = ["".join(rng.choice(list("FGHI"), 30)) for _ in range(200)]
    alike = composition_report(near[:50], near, heldout=(near[:100], near[100:]), ks=(1,))["1"]
    assert alike["heldout"] == pytest.approx(alike["floor"], abs=0.005)
    assert composition_report(near[:50], near, heldout=(far, near), ks=(1,))["1"]["heldout"] == pytest.approx(1.0)
