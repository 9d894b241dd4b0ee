"""`mmdiff demo vla-mt10`: one policy for the ten tasks of Meta-World MT10, recorded, trained and evaluated."""

from __future__ import annotations

import sys
import time
from typing import Any

from mmdiff.config.settings import Config
from mmdiff.runs.folder import RUNS, Run
from mmdiff.training.train import train

from .demo import demonstrations, evaluated

NOTES = [
    "300 layouts of demonstrations by Meta-World's scripted experts, of which those that succeed within 200 steps are "
    "kept; one policy of 0.5 M parameters at 64 x 64 pixels, where a puck or a goal has one to three pixels.",
]


def run(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Returns `success`, `by_task`, `ablations`, `seconds` and the `report`."""
    start = time.perf_counter()
    run = Run(RUNS / str(config.name))
    demonstrations(config, fresh=fresh)
    train(config, fresh=fresh)
    found = evaluated(config, run, title="One policy, ten tasks", notes=NOTES)
    figures = {
        "success": found["success"],
        "by_task": {task: of["success"] for task, of in found["by_task"].items()},
        "ablations": {name: of["success"] for name, of in found["ablations"].items()},
        "expert_by_task": {task: of["success"] for task, of in found["ablations"]["expert"]["by_task"].items()},
        "seconds": round(time.perf_counter() - start, 1),
    }
    run.finish(figures)
    for task, value in figures["by_task"].items():
        print(f"{value:6.3f}  {task}", file=sys.stderr)
    return {**figures, "report": found["report"]}
