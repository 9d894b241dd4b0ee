"""`mmdiff demo vla`: record demonstrations, train one policy for four tasks, and evaluate it on unseen layouts.

Two of the tasks, a faucet to be opened and one to be closed, begin from the same scene: only the instruction tells them
apart (and, for half of those to be closed, how far to a side they stand). A second policy is trained without
instructions, for comparison.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.config.settings import Config
from mmdiff.errors import ConfigError
from mmdiff.files import part_of, remove
from mmdiff.runs.folder import RUNS, Run
from mmdiff.session import load
from mmdiff.tasks.background import in_background
from mmdiff.tasks.vla.rollout.ablations import without_language
from mmdiff.tasks.vla.rollout.closed_loop import ComparisonPolicy
from mmdiff.tasks.vla.rollout.evaluate import evaluate_policy
from mmdiff.tasks.vla.task import VLA
from mmdiff.training.train import train

FAUCETS = ("faucet-open-v3", "faucet-close-v3")
PAIRS = {"faucet-open-v3": "faucet-close-v3", "faucet-close-v3": "faucet-open-v3"}
SILENT = "trained without language"
DEMONSTRATIONS = 30  # layouts per task, of seeds from 1000 on
DISTURBED = {"noise": 0.3, "share": 0.5, "hold": 1}  # see `mmdiff.tasks.vla.rollout.record`
UNSEEN, EPISODES = 5000, 20  # the first seed of the layouts that are evaluated, and how many per task
LINES = {
    "success": "unseen layouts of all four tasks",
    "faucets": "the two faucets, which begin from the same scene",
    "swapped": "the faucets, each with the other's instruction",
    "no_language_faucets": "the faucets, by a policy that was trained without instructions",
    "no_image": "all four, with grey pictures",
    "random": "all four, random actions",
    "expert": "all four, the scripted expert",
}
NOTES = [
    "120 demonstrations of Meta-World's scripted experts at 64 x 64 pixels; one policy of 0.5 M parameters. 32 bins "
    "per dimension, chunks of five actions, of which two are executed before the next chunk.",
    "An episode is a layout the policy has not seen. The faucet tasks begin from the same scene, so that a policy that "
    "ignores its instruction cannot do both; with the wrong one, a policy that follows it does neither. Where a "
    "faucet stands far to a side it is one to be closed, because layouts of that task spread wider; a policy without "
    "language may use that.",
]


def run(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Record, train both policies side by side (finished ones are kept), evaluate, write report and films.

    Returns success rates `success`, `by_task`, `faucets`, `swapped`, `no_language_faucets`, `no_image`, `random`,
    `expert`, the `seconds` that this call took, and the `report`.
    """
    start = time.perf_counter()
    run = Run(RUNS / str(config.name))
    stage = config.train.stages["fit"]
    silent = f"{config.name}-silent"
    overrides = [
        f"name={silent}",
        f"train.seed={config.train.seed}",
        f"train.stages.fit.steps={stage.steps}",
        f"task.statistics={config.task['statistics']}",
    ]
    demonstrations(config, fresh=fresh)
    recorded = time.perf_counter()
    with in_background(["train", "vla-demo-silent", *overrides, *(["--fresh"] if fresh else [])]):
        train(config, fresh=fresh)
    trained = time.perf_counter()
    others = {SILENT: ComparisonPolicy(RUNS / silent, FAUCETS, without_language)}
    found = evaluated(config, run, pairs=PAIRS, others=others, title="One policy, four tasks", notes=NOTES)
    figures = summary(found)
    figures["seconds"] = round(time.perf_counter() - start, 1)
    spent = {"recording": recorded - start, "training": trained - recorded, "acting": time.perf_counter() - trained}
    run.finish({**figures, "seconds_by_part": {name: round(value, 1) for name, value in spent.items()}})
    for name, line in LINES.items():
        print(f"{figures[name]:6.3f}  {line}", file=sys.stderr)
    return {**figures, "report": found["report"]}


def simulator(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Returns the simulator of a configuration, and its tasks."""
    spec = dict(config.task["world"])
    return spec, list(spec.pop("tasks"))


def demonstrations(config: Config, *, fresh: bool) -> None:
    """Record the demonstrations unless they exist. Raises ConfigError for another data set in their folder."""
    from mmdiff.tasks.vla.rollout.record import record_dataset

    spec, tasks = simulator(config)
    folder = Path(config.task["statistics"])
    recorded = {"spec": spec, "tasks": tasks, "episodes": DEMONSTRATIONS, **DISTURBED}
    note = folder / "meta" / "demo.json"
    if folder.exists():
        if not note.is_file() or json.loads(note.read_text()) != recorded:
            raise ConfigError(f"{folder} exists, but was not recorded by this demonstration; move it away")
        if not fresh:
            return
        old = part_of(folder.resolve())  # under that name the rest is removed at the next start, if this one is killed
        os.replace(folder, old)
        remove(old)
    more: dict[str, Any] = {**DISTURBED, "notes": {note.name: recorded}}
    record_dataset(folder, spec, tasks, DEMONSTRATIONS, seed=1000, processes=2, **more)


def evaluated(config: Config, run: Run, **more: Any) -> dict[str, Any]:
    """Returns figures of a run's policy on the unseen layouts; they are kept in runs/<name>/closed-loop.

    more: further arguments of `evaluate_policy`.
    """
    folder = run.folder / "closed-loop"
    if folder.exists():  # ours, and made again in minutes
        shutil.rmtree(folder)
    spec, tasks = simulator(config)
    return evaluate_policy(
        load(run.folder, task=VLA),
        spec,
        tasks,
        out=folder,
        episodes=EPISODES,
        seed=UNSEEN,
        processes=2,
        metrics=run.metrics,
        **more,
    )


def summary(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `LINES`."""
    ablations = figures["ablations"]
    return {
        "success": figures["success"],
        "by_task": {task: of["success"] for task, of in figures["by_task"].items()},
        "faucets": mean(figures, FAUCETS),
        "swapped": mean(ablations["swapped"], FAUCETS),
        "no_language_faucets": mean(ablations[SILENT], FAUCETS),
        **{name: ablations[name]["success"] for name in ("no_image", "random", "expert")},
    }


def mean(rates: Mapping[str, Any], tasks: Sequence[str]) -> float:
    """Returns the mean success rate over some tasks."""
    return sum(rates["by_task"][task]["success"] for task in tasks) / len(tasks)
