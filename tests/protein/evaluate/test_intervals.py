"""Intervals against formulas, and where they stand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmdiff.tasks.protein.evaluate.intervals import DRAWS, Drawn, interval, of_mean, of_sequences, of_share, weights
from mmdiff.tasks.protein.evaluate.mask_filling import Tally, baselines
from mmdiff.tasks.protein.evaluate.metrics import conserved, divergence, jensen_shannon, kmers
from mmdiff.tasks.protein.evaluate.novelty import diversity
from mmdiff.tasks.protein.evaluate.page import within


def test_a_sequence_counts_as_often_as_a_poisson_variable_says() -> None:
    every = np.stack([weights(number) for number in range(200)])
    assert every.shape == (200, DRAWS) and (weights(3) == every[3]).all()
    assert every.mean() == pytest.approx(1, abs=0.02) and every.var() == pytest.approx(1, abs=0.03)


def test_accuracy_is_within_what_its_standard_error_says() -> None:
    rng = np.random.default_rng(0)
    tally = Tally(drawn=Drawn())
    for number in range(400):
        true_P = rng.integers(0, 20, 10).astype(np.int16)
        right_P = rng.random(10) < 0.3
        tally.add(number, true_P, np.where(right_P, true_P, (true_P + 1) % 20).astype(np.int16), right_P + 1.0)
    found = tally.figures()
    low, high = found["intervals"]["accuracy"]
    assert low < found["accuracy"] < high
    assert high - low == pytest.approx(2 * 1.96 * found["accuracy_se"], rel=0.15)
    wide = found["intervals"]["nll"]
    assert wide[0] - low == pytest.approx(1) and wide[1] - high == pytest.approx(1)  # nll is 1 + right
    for name in ("f1", "mcc"):
        assert found["intervals"][name][0] < found[name] < found["intervals"][name][1]


def test_intervals_of_shares_means_and_values() -> None:
    assert of_share(1.0, 300) == [pytest.approx(0.98736, abs=1e-5), 1.0]  # Wilson
    assert of_share(0.5, 100) == pytest.approx([0.40383, 0.59617], abs=1e-5)
    assert of_mean(2.0, 0.1) == pytest.approx([1.804, 2.196], abs=1e-3)
    assert of_mean(0.9, 0.1, 0, 1) == [pytest.approx(0.704, abs=1e-3), 1] and of_mean(0.1, 0.1, 0, 1)[0] == 0
    rng = np.random.default_rng(0)
    low, high = of_sequences(rng.normal(size=400))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    for nothing in (of_sequences([1.0]), of_share(0.5, 0), interval([]), interval([math.nan])):
        assert all(math.isnan(x) for x in nothing)


def test_a_figure_stands_before_its_interval() -> None:
    assert within(0.35123, [0.33, 0.37]) == "0.3512 (0.33 to 0.37)"
    assert within(0.5, None) == within(0.5, [math.nan, math.nan]) == 0.5


def drawn(n: int, rng: np.random.Generator, letters: str = "ACDEFG", stay: float = 0.6) -> list[str]:
    """Chains of 30 residues that stay as they are with a probability, each begun on its own, so that windows of one
    sequence are not independent."""
    code_SC = rng.integers(0, len(letters), (n, 30))
    for column in range(1, 30):
        stays_S = rng.random(n) < stay
        code_SC[stays_S, column] = code_SC[stays_S, column - 1]
    return ["".join(letters[i] for i in row) for row in code_SC]


@pytest.mark.parametrize("k", [1, 2])
def test_the_error_of_a_divergence_is_that_of_the_jackknife(k: int) -> None:
    rng = np.random.default_rng(0)
    a, b = drawn(40, rng), [*drawn(60, rng, "CDEFGH", 0.3), "WWXW", ""]
    value, error = divergence(a, b, k)
    assert value == jensen_shannon(kmers(a, k), kmers(b, k))
    without_a = [jensen_shannon(kmers(a[:i] + a[i + 1 :], k), kmers(b, k)) for i in range(len(a))]
    without_b = [jensen_shannon(kmers(a, k), kmers(b[:i] + b[i + 1 :], k)) for i in range(len(b))]
    variance = sum((len(x) - 1) * np.var(x) for x in (without_a, without_b))
    assert error == pytest.approx(np.sqrt(variance), rel=0.06)


def test_a_divergence_of_other_sequences_lies_within_its_interval() -> None:
    """Of 200 pairs of sets 95 % are within the interval round the mean of all: 190, give or take 3.1 by chance."""
    rng = np.random.default_rng(1)
    found = np.array([divergence(drawn(50, rng), drawn(80, rng, "CDEFGH"), 2) for _ in range(200)])
    within_it = np.abs(found[:, 0] - found[:, 0].mean()) < 1.96 * found[:, 1]
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.2)
    assert 190 - 4 * 3.1 <= within_it.sum() <= 190 + 3 * 3.1


@pytest.mark.parametrize(("n", "kinds"), [(12, [0.1, 0.9]), (600, [0.5])])
def test_the_error_of_an_identity_is_that_of_other_sequences(n: int, kinds: list[float]) -> None:
    """A thousand pairs of 12 sequences of two kinds are far from independent, those of 600 of one kind are."""
    rng = np.random.default_rng(2)
    found = []
    for seed in range(150):
        kind_S = rng.choice(kinds, n)  # the share of A
        letters = np.where(rng.random((n, 20)) < kind_S[:, None], "A", rng.choice(list("CDEFG"), (n, 20)))
        one = diversity(["".join(row) for row in letters], aligned=True, seed=seed)
        found.append((one["identity"], one["identity_se"]))
    mean, error = np.array(found).T
    assert np.sqrt((error**2).mean()) == pytest.approx(mean.std(), rel=0.25)  # 150 draws: 6 %, and what 12 are biased


def test_conserved_columns_have_the_error_of_a_mean_over_sequences() -> None:
    rng = np.random.default_rng(3)
    natural = ["A" * 5 + "".join(rng.choice(list("CD"), 3)) for _ in range(40)]
    samples = ["".join(rng.choice(["A", "C"], 5, p=[0.8, 0.2])) + "CDC" for _ in range(30)]
    found = conserved(samples, natural)
    kept = [sample[:5].count("A") / 5 for sample in samples]
    assert found["columns"] == [1, 2, 3, 4, 5] and found["mean"] == pytest.approx(np.mean(kept))
    assert found["mean_se"] == pytest.approx(np.std(kept, ddof=1) / math.sqrt(30)) and found["natural_mean_se"] == 0
    assert math.isnan(conserved(samples[:1], natural)["mean_se"])


def test_every_figure_of_the_baselines_has_one() -> None:
    found = baselines(["MKAY", "MKAV", "MRAY"], ["MKAY", "MRAV", "MKCY"], (0.5,))
    for of in found.values():
        for figures in of.values():
            named = {"accuracy", "f1", "mcc", "nll", "column_accuracy", "column_nll"} & figures.keys()
            assert figures["intervals"].keys() == named
