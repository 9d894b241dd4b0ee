"""Intervals against known values and scipy; lerobot's schema field by field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmdiff.tasks.vla.rollout.rollout import Rollout
from mmdiff.tasks.vla.rollout.success import eval_info, rate, rates, wilson, write_eval_info


def episodes() -> list[Rollout]:
    told = [("b", 0, True, 10, 3.0, 1.0), ("b", 1, False, 20, 1.0, 0.5), ("a", 0, True, 6, 2.0, 2.0)]
    told += [("a", 1, True, 8, 4.0, 1.0)]
    return [Rollout(*row) for row in told]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_the_score_equation_and_mirrors() -> None:
    for n in (1, 7, 20, 200):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1 and high > low
            assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))
            for p in (low, high):  # |k/n - p| = z sqrt(p (1 - p) / n) at both ends
                assert abs(k / n - p) == pytest.approx(1.959963984540054 * (p * (1 - p) / n) ** 0.5, abs=1e-9)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson(3, 2)


@pytest.mark.needs("scipy")
def test_wilson_is_scipys() -> None:
    from scipy.stats import binomtest

    for k, n, level in ((0, 5, 0.95), (19, 20, 0.9), (7, 50, 0.99)):
        there = binomtest(k, n).proportion_ci(level, method="wilson")
        assert wilson(k, n, level) == pytest.approx((there.low, there.high), abs=1e-12)


def test_rates_by_task() -> None:
    found = rates(episodes())
    assert list(found["by_task"]) == ["b", "a"]
    low, high = wilson(3, 4)
    assert found | {"by_task": 0} == {
        "success": 0.75, "success_low": low, "success_high": high, "successes": 3, "n": 4, "steps": 8.0, "by_task": 0,
    }  # fmt: skip
    assert found["by_task"]["b"]["success"] == 0.5 and found["by_task"]["a"]["steps"] == 7.0
    assert "steps" not in rate(episodes()[1:2])


def test_eval_info_is_lerobots(tmp_path: Path) -> None:
    info = eval_info(episodes(), seconds=8.0, videos={"b": ["videos/b_0/x.gif"]})
    assert info["per_task"] == [
        {
            "task_group": "b",
            "task_id": 0,
            "metrics": {
                "sum_rewards": [3.0, 1.0],
                "max_rewards": [1.0, 0.5],
                "successes": [True, False],
                "video_paths": ["videos/b_0/x.gif"],
            },
        },
        {
            "task_group": "a",
            "task_id": 0,
            "metrics": {
                "sum_rewards": [2.0, 4.0],
                "max_rewards": [2.0, 1.0],
                "successes": [True, True],
                "video_paths": [],
            },
        },
    ]
    group = {"avg_sum_reward": 2.0, "avg_max_reward": 0.75, "pc_success": 50.0, "n_episodes": 2}
    assert info["per_group"]["b"] == {**group, "video_paths": ["videos/b_0/x.gif"]}
    overall = {"avg_sum_reward": 2.5, "avg_max_reward": 1.125, "pc_success": 75.0, "n_episodes": 4}
    assert info["overall"] == {**overall, "eval_s": 8.0, "eval_ep_s": 2.0, "video_paths": ["videos/b_0/x.gif"]}
    assert info["intervals"]["overall"]["pc_success"] == pytest.approx([100 * p for p in wilson(3, 4)])
    assert set(info) == {"per_task", "per_group", "overall", "intervals"}
    write_eval_info(tmp_path / "eval_info.json", info)
    assert json.loads((tmp_path / "eval_info.json").read_text()) == info
    assert [file.name for file in tmp_path.iterdir()] == ["eval_info.json"]
