"""Figures of probes against scikit-learn and SciPy, and their intervals against formulas."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from mmdiff.tasks.protein.embed import metrics
from mmdiff.tasks.protein.embed.metrics import intervals


def figures(kind: str, true: np.ndarray, guess: np.ndarray, count: np.ndarray | None = None) -> dict[str, float]:
    """Of one set of counts, beside another that must not matter."""
    both = None if count is None else np.stack([count, np.arange(len(true))])
    return {name: float(values[0]) for name, values in metrics.figures(kind, true, guess, both).items()}


@pytest.mark.needs("sklearn")
@pytest.mark.parametrize("seed", range(4))
def test_figures_of_rows_that_count_several_times_are_those_of_the_repeated_rows(seed: int) -> None:
    from scipy.stats import spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, r2_score, root_mean_squared_error

    rng = np.random.default_rng(seed)
    count = np.ones(60, int) if seed == 0 else rng.poisson(1, 60)
    true, guess = rng.choice(list("abcde"), 60, p=[0.5, 0.3, 0.1, 0.08, 0.02]), rng.choice(list("abcx"), 60)
    found = figures("classification", true, guess, None if seed == 0 else count)
    true, guess = np.repeat(true, count), np.repeat(guess, count)
    assert found["accuracy"] == pytest.approx(accuracy_score(true, guess))
    assert found["macro_f1"] == pytest.approx(f1_score(true, guess, average="macro", zero_division=0))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(true, guess))
    value = rng.integers(0, 9, 60) / 2  # with ties
    other = value + rng.integers(-2, 3, 60)
    found = figures("regression", value, other, count)
    value, other = np.repeat(value, count), np.repeat(other, count)
    assert found["spearman"] == pytest.approx(spearmanr(value, other).statistic)
    assert found["r2"] == pytest.approx(r2_score(value, other))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(value, other))


def test_constants_and_nothing() -> None:
    two, one = np.array(["a", "b", "b"]), np.array(["b", "b", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figures("classification", two, one) == {
            "accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(0.4), "mcc": 0.0,
        }  # fmt: skip
        assert figures("classification", one, one) == {"accuracy": 1.0, "macro_f1": 1.0, "mcc": 0.0}
        assert figures("regression", np.array([1.0, 2.0, 4.0]), np.full(3, 2.0))["spearman"] == 0
        flat = figures("regression", np.full(3, 0.1), np.array([1.0, 2.0, 3.0]))
        assert flat["spearman"] == flat["r2"] == 0
        assert all(math.isnan(x) for x in figures("regression", np.ones(2), np.ones(2), np.zeros(2)).values())


def test_an_interval_is_that_of_independent_groups() -> None:
    """400 groups of five equal rows: the accuracy has the error of 400 rows, not of 2,000."""
    rng = np.random.default_rng(0)
    right_G = rng.random(400) < 0.7
    group_N = np.repeat(np.arange(400), 5)
    true = np.full(2000, "a")
    guess = np.where(right_G[group_N], "a", "b")
    folds = [(true[some], guess[some], group_N[some]) for some in (group_N % 5 == fold for fold in range(5))]
    low, high = intervals("classification", folds)["accuracy"]
    share = right_G.mean()
    assert low < share < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 400), rel=0.15)
    assert intervals("classification", folds) == intervals("classification", folds)


def test_a_fold_of_which_nothing_is_drawn_is_left_out() -> None:
    folds = [(np.array(["a"]), np.array(["a"]), np.array([g])) for g in range(2)]
    assert intervals("classification", folds)["accuracy"] == [1, 1]
