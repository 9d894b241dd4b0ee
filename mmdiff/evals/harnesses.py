"""Harnesses of others as entries of a suite (`mmdiff.evaluation.bench`): lm-eval, lmms-eval and lerobot-eval.

Each is called with a run, and returns figures with the standard errors that the harness gives. One that is not
installed raises MissingExtra.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmdiff.errors import ConfigError, MissingExtra, nearest, require


class Figure(NamedTuple):
    """A line of a suite's table. error: the standard error, None where none is known. n: how many rows or episodes."""

    task: str
    metric: str
    value: float
    error: float | None
    n: int | None


@dataclass
class LmEval:
    """Tasks of EleutherAI's lm-evaluation-harness. tasks: their names. path: a folder of tasks of one's own.

    settings: arguments of `mmdiff.evals.lm_eval.Harness`, such as {levels: 32}. shots: examples before a question.
    """

    tasks: Sequence[str]
    path: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    shots: int | None = None

    def __call__(self, run: Path, *, limit: int | None, out: Path) -> list[Figure]:
        """Returns the figures of a run. Raises MissingExtra, and ConfigError for a task that there is not."""
        require("lm_eval", "harness")
        import lm_eval
        from lm_eval.tasks import TaskManager

        from .lm_eval import Harness

        manager = TaskManager(include_path=self.path, include_defaults=True)
        _check_names(self.tasks, manager)
        found: Any = lm_eval.simple_evaluate(
            Harness(str(run), **self.settings),
            tasks=list(self.tasks),
            num_fewshot=self.shots,
            limit=limit,
            task_manager=manager,
            log_samples=False,
        )
        return figures_of(found)


@dataclass
class LmmsEval:
    """Tasks of lmms-eval, of pictures and sounds. tasks, path: as of `LmEval`.

    settings: arguments of `mmdiff.evals.lmms_eval.Harness`.
    """

    tasks: Sequence[str]
    path: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, run: Path, *, limit: int | None, out: Path) -> list[Figure]:
        """Returns the figures of a run. Raises MissingExtra, and ConfigError for a task that there is not."""
        require("lmms_eval", "lmms")
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.models import MODEL_REGISTRY_V2
        from lmms_eval.tasks import TaskManager

        from .lmms_eval import manifest

        MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
        manager = TaskManager(include_path=self.path, include_defaults=True)
        _check_names(self.tasks, manager)
        words = ",".join(f"{name}={value}" for name, value in {"pretrained": run, **self.settings}.items())
        found: Any = simple_evaluate(
            "mmdiff", model_args=words, tasks=list(self.tasks), limit=limit, task_manager=manager
        )
        return figures_of(found)


@dataclass
class Lerobot:
    """An environment of lerobot, by its own `lerobot-eval` and the plug-in `plugins/lerobot_policy_mmdiff`.

    env: its type. cameras: the environment's names of the model's pictures. episodes: how many. words: further options.
    """

    env: str
    cameras: Sequence[str] = ()
    episodes: int = 50
    words: Sequence[str] = ()

    def __call__(self, run: Path, *, limit: int | None, out: Path) -> list[Figure]:
        """Returns the share of episodes that succeed. Raises MissingExtra without lerobot, ConfigError if it fails."""
        for program in ("lerobot-eval", "lerobot-export-mmdiff"):
            if shutil.which(program) is None:
                raise MissingExtra(f"{program} is not installed, see plugins/lerobot_policy_mmdiff/README.md")
        policy, results = out / "policy", out / "lerobot"
        shutil.rmtree(policy, ignore_errors=True)
        _run(["lerobot-export-mmdiff", str(run), str(policy), *(("--cameras", *self.cameras) if self.cameras else ())])
        count = min(self.episodes, limit) if limit else self.episodes
        words = [f"--policy.path={policy}", f"--env.type={self.env}", f"--eval.n_episodes={count}"]
        _run(["lerobot-eval", *words, f"--output_dir={results}", *self.words])
        info = json.loads((results / "eval_info.json").read_text(encoding="utf-8"))
        share = float(info.get("overall", info.get("aggregated"))["pc_success"]) / 100
        return [Figure(self.env, "success", share, math.sqrt(share * (1 - share) / count), count)]


def figures_of(found: Mapping[str, Any]) -> list[Figure]:
    """Returns the figures of what lm-eval and lmms-eval return: `acc,none` beside `acc_stderr,none`, by task."""
    out = []
    for task, values in found["results"].items():
        count = (found.get("n-samples", {}).get(task) or {}).get("effective")
        for name, value in values.items():
            metric, _, kind = name.partition(",")
            if metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float) or not kind:
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            known = isinstance(error, int | float) and math.isfinite(error)
            metric = metric if kind == "none" else name
            out.append(Figure(task, metric, float(value), float(error) if known else None, count))
    return out


def _check_names(tasks: Sequence[str], manager: Any) -> None:
    for name in tasks:
        if name not in (known := manager.all_tasks):
            raise ConfigError(f"tasks: {name!r}: the harness has no such task{nearest(name, known)}")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise ConfigError(f"{command[0]} ended with code {done.returncode}: {last[:300]}")
