"""`mmdiff demo vqa`: train, answer questions about unseen pictures, and show that the pictures are used."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from mmdiff.config import build, load_config
from mmdiff.config.settings import Config
from mmdiff.evaluation.evaluate import evaluate, write_predictions
from mmdiff.evaluation.page import evenly
from mmdiff.evaluation.report import write_report
from mmdiff.runs.folder import RUNS, Run
from mmdiff.session import load
from mmdiff.tasks.background import in_background
from mmdiff.training.train import train

LINES = {
    "overall": "unseen scenes",
    "heldout": "questions that name pairs of colour and shape never named in training",
    "shuffled": "unseen scenes, pictures shuffled between questions",
    "blank": "unseen scenes, grey pictures",
    "language_only": "a model trained alike without pictures",
}
NOTES = [
    "Pictures of 24 x 24 pixels with one to four objects, and compositional questions about them. A tower was trained "
    "to read out each quarter of a picture, then connector and backbone were aligned and tuned by masked diffusion.",
    "If predictions came from the wording of the questions alone, the figures for shuffled and blank pictures and for "
    "the model without pictures would be as high as the first.",
]


def run(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Train both models side by side (or load them, when these runs are finished), evaluate, write the report.

    Returns exact-match accuracies `overall`, `heldout`, `shuffled`, `blank`, `language_only`, the `seconds` that this
    call took, and the `report`.
    """
    start = time.perf_counter()
    run = Run(RUNS / str(config.name))
    done = run.result is not None and not fresh
    tune = config.train.stages["tune"]
    overrides = [f"name={config.name}-text", f"train.seed={config.train.seed}", f"train.stages.tune.steps={tune.steps}"]
    text = load_config("vqa-demo-text", overrides)
    with in_background(["train", "vqa-demo-text", *overrides, *(["--fresh"] if fresh else [])]):
        train(config, fresh=fresh)
    results: dict[str, Any] = {}
    shown: dict[str, Sequence[tuple[Any, Any]]] = {}
    sets = [(run, name, node) for name, node in config.eval.data.items()]
    sets.append((Run(RUNS / str(text.name)), "language_only", text.eval.data["overall"]))
    for owner, name, node in sets:
        rows = build(node, where=f"eval.data.{name}")
        means, records = evaluate(load(owner.folder), rows, name=name, batch_size=config.eval.batch_size)
        results[name] = means
        write_predictions(owner.folder / f"predictions-{name}.jsonl", records)
        if name in ("overall", "heldout"):
            shown[name] = [(rows[r["row"]], r) for r in evenly(records, config.eval.examples)]
    accuracy = {name: results[name]["exact_match"] for name in LINES if name in results}
    report = write_report(
        run, title="Answers by unmasking", results={"accuracy": accuracy}, examples=shown, notes=NOTES
    )
    seconds = round(time.perf_counter() - start, 1)
    run.finish({"eval": results, **accuracy, "seconds": seconds})
    for name, value in accuracy.items():
        print(f"{value:6.3f}  {LINES[name]}", file=sys.stderr)
    if done:
        print(f"{run.folder} was trained before; `--fresh` trains again", file=sys.stderr)
    return {**accuracy, "seconds": seconds, "by_kind": results["overall"].get("by_kind", {}), "report": str(report)}
