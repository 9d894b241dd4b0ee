"""`mmdiff demo vla-tables`: choices of an action-token policy, each beside that of the demonstration.

One policy per choice, trained on the demonstration's data under the same seeds and evaluated on the same layouts:
the softmax over action tokens or the whole vocabulary, 32 or 256 bins, chunks of 1, 3, 5 or 8 actions; and the ways of
decoding, all of one policy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from mmdiff.config import load_config
from mmdiff.config.settings import Config
from mmdiff.files import without_nan, write_text
from mmdiff.runs.folder import RUNS, Run
from mmdiff.session import load
from mmdiff.tasks.background import in_background
from mmdiff.tasks.vla.rollout.evaluate import evaluate_policy
from mmdiff.tasks.vla.rollout.report import write_vla_report
from mmdiff.tasks.vla.strategies import STRATEGIES, strategy
from mmdiff.tasks.vla.task import VLA
from mmdiff.training.train import train

from .demo import EPISODES, UNSEEN, demonstrations, simulator

BASE = "base"
VARIANTS: Mapping[str, list[str]] = {
    BASE: [],
    "full-vocabulary": ["train.stages.fit.objective.restrict=false"],
    "bins-256": [
        "task.codec={target: mmdiff.tasks.vla.codecs.bins.UniformBins, bins: 256}",
        "model.backbone.reserve.action=256",
    ],
    **{f"chunk-{k}": [f"task.chunk={k}", f"train.stages.fit.data.chunk={k}"] for k in (1, 3, 8)},
}
"""What differs from the base: the softmax over action tokens, 32 bins, chunks of five."""
TABLES: Mapping[str, Mapping[str, str]] = {
    "Training: where the softmax runs": {"action tokens": BASE, "whole vocabulary": "full-vocabulary"},
    "Bins": {"32": BASE, "256": "bins-256"},
    "Actions of a chunk, all executed": {"1": "chunk-1", "3": "chunk-3", "5": BASE, "8": "chunk-8"},
}
DECODING = "Decoding of one policy"


def run(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Train the policies that are missing, two at a time, evaluate all, write the report.

    Returns `tables` ({table: {row: figures}}), the `seconds` that this call took, and the `report`.
    """
    start = time.perf_counter()
    home = Run(RUNS / str(config.name))
    home.folder.mkdir(parents=True, exist_ok=True)
    demonstrations(config, fresh=False)
    names = list(VARIANTS)
    for first, second in zip(names[::2], names[1::2], strict=True):
        train_pair(config, first, second, fresh=fresh)
    acted = {name: acting(config, name) for name in names}
    tables = {heading: {row: acted[name] for row, name in rows.items()} for heading, rows in TABLES.items()}
    tables[DECODING] = {way: acting(config, BASE, way) for way in STRATEGIES}
    shown = {heading: {row: brief(of) for row, of in rows.items()} for heading, rows in tables.items()}
    write_text(home.folder / "tables.json", json.dumps(without_nan(shown), indent=2) + "\n")
    report = write_vla_report(
        home.folder / "report.html", title="What the choices are worth", figures=acted[BASE], tables=shown
    )
    for heading, rows in shown.items():
        print(heading, file=sys.stderr)
        for row, of in rows.items():
            print(f"  {row:18}" + "  ".join(f"{k} {v}" for k, v in of.items()), file=sys.stderr)
    return {"tables": shown, "seconds": round(time.perf_counter() - start, 1), "report": str(report)}


def train_pair(config: Config, first: str, second: str, *, fresh: bool) -> None:
    """Train the first policy in this process, and the second beside it on the other core."""
    again = ["--fresh"] if fresh else []
    with in_background(["train", "vla-demo", *overrides(config, second), *again]):
        train(load_config("vla-demo", overrides(config, first)), fresh=fresh)


def overrides(config: Config, name: str) -> list[str]:
    """Returns the settings of one variant of the tables."""
    steps, seed = config.train.stages["fit"].steps, config.train.seed
    common = [
        f"name={config.name}-{name}",
        f"train.seed={seed}",
        f"train.stages.fit.steps={steps}",
        "task.execute=null",
    ]
    return [*common, *VARIANTS[name]]


def acting(config: Config, name: str, way: str | None = None) -> dict[str, Any]:
    """Returns figures of a policy on the unseen layouts, read from its folder where they exist."""
    folder = RUNS / f"{config.name}-{name}"
    out = folder / f"closed-loop-{way or 'as-saved'}"
    if (out / "figures.json").is_file():
        found: dict[str, Any] = json.loads((out / "figures.json").read_text())
        return found
    session = load(folder, task=VLA)
    named = strategy(way, *session.task.groups) if way else {}
    spec, tasks = simulator(config)
    return evaluate_policy(
        session, spec, tasks, out=out, episodes=EPISODES, seed=UNSEEN, ablations=(), videos=0, processes=2, **named
    )


def brief(of: Mapping[str, Any]) -> dict[str, float | int | str]:
    """Returns a line of the tables: success with its interval, in all and per task, and what a chunk costs."""
    return {
        "success": f"{of['success']:.3f}",
        "95 %": f"{of['success_low']:.2f} to {of['success_high']:.2f}",
        **{task.removesuffix("-v3"): f"{one['success']:.2f}" for task, one in of["by_task"].items()},
        "forwards per chunk": f"{of['forwards_per_chunk']:.1f}",
        "ms per chunk": f"{of['latency_ms']['p50']:.1f}",
    }
