"""Success rates with intervals, and lerobot's `eval_info.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mmdiff.experiments.comparison.intervals import LEVEL, wilson
from mmdiff.files import without_nan, write_text

from .rollout import Rollout


def rate(episodes: Sequence[Rollout]) -> dict[str, float]:
    """`success` (a share) with its interval, `successes` of `n`, and `steps`, the mean of those that succeeded."""
    won = [episode for episode in episodes if episode.success]
    low, high = wilson(len(won), len(episodes))
    share = len(won) / len(episodes) if episodes else 0.0
    out = {"success": share, "success_low": low, "success_high": high, "successes": len(won), "n": len(episodes)}
    return {**out, "steps": fmean(e.steps for e in won)} if won else out


def rates(episodes: Sequence[Rollout]) -> dict[str, Any]:
    """`rate` of all episodes, and of each task under `by_task`, in order of appearance."""
    return {**rate(episodes), "by_task": {task: rate(of) for task, of in by_task(episodes).items()}}


def by_task(episodes: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """Returns episodes by the name of their task, in order."""
    out: dict[str, list[Rollout]] = {}
    for episode in episodes:
        out.setdefault(episode.task, []).append(episode)
    return out


def eval_info(
    episodes: Sequence[Rollout],
    *,
    seconds: float,
    videos: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """What `lerobot-eval` writes (lerobot 0.4, src/lerobot/scripts/lerobot_eval.py, `eval_policy_all`), `pc_` in
    percent, and `intervals` besides, in percent too.

    videos: task -> paths. Each task is a group of its own, as in lerobot for Meta-World.
    """
    per_task: list[dict[str, Any]] = []
    members = by_task(episodes)
    paths = {task: list((videos or {}).get(task, ())) for task in members}
    for task, of in members.items():
        metrics = {
            "sum_rewards": [e.sum_reward for e in of],
            "max_rewards": [e.max_reward for e in of],
            "successes": [e.success for e in of],
            "video_paths": paths[task],
        }
        per_task.append({"task_group": task, "task_id": 0, "metrics": metrics})
    per_group = {task: _aggregate(of, paths[task]) for task, of in members.items()}
    overall = _aggregate(episodes, [path for films in paths.values() for path in films])
    times = {"eval_s": seconds, "eval_ep_s": seconds / max(1, len(episodes))}
    return {
        "per_task": per_task,
        "per_group": per_group,
        "overall": {**overall, **times},
        "intervals": {
            "method": "wilson",
            "level": LEVEL,
            "per_group": {task: _interval(of) for task, of in members.items()},
            "overall": _interval(episodes),
        },
    }


def write_eval_info(file: Path, info: Mapping[str, Any]) -> None:
    """Write figures in the form of LeRobot's eval_info.json, whole or not at all."""
    write_text(file, json.dumps(without_nan(info), indent=2) + "\n")


def _aggregate(episodes: Sequence[Rollout], videos: Sequence[str]) -> dict[str, Any]:
    return {
        "avg_sum_reward": fmean(e.sum_reward for e in episodes),
        "avg_max_reward": fmean(e.max_reward for e in episodes),
        "pc_success": 100 * fmean(e.success for e in episodes),
        "n_episodes": len(episodes),
        "video_paths": list(videos),
    }


def _interval(episodes: Sequence[Rollout]) -> dict[str, list[float]]:
    low, high = wilson(sum(e.success for e in episodes), len(episodes))
    return {"pc_success": [100 * low, 100 * high]}
