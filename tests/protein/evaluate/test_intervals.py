"""Intervals against formulas, and where they stand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmdiff.tasks.protein.evaluate.intervals import DRAWS, Drawn, interval, of_mean, of_sequences, of_share, weights
from mmdiff.tasks.protein.evaluate.mask_filling import Tally, baselines
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
    rng = np.random.default_rng(0)
    low, high = of_sequences(rng.normal(size=400))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    for nothing in (of_sequences([1.0]), of_share(0.5, 0), interval([]), interval([math.nan])):
        assert all(math.isnan(x) for x in nothing)


def test_a_figure_stands_before_its_interval() -> None:
    assert within(0.35123, [0.33, 0.37]) == "0.3512 (0.33 to 0.37)"
    assert within(0.5, None) == within(0.5, [math.nan, math.nan]) == 0.5


def test_every_figure_of_the_baselines_has_one() -> None:
    found = baselines(["MKAY", "MKAV", "MRAY"], ["MKAY", "MRAV", "MKCY"], (0.5,))
    for of in found.values():
        for figures in of.values():
            named = {"accuracy", "f1", "mcc", "nll", "column_accuracy", "column_nll"} & figures.keys()
            assert figures["intervals"].keys() == named
