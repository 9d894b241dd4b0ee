"""Trackers of other people's making, through accelerate: the figures of a run in Weights & Biases or MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.errors import UserError, require
from mmdiff.files import without_nan

PROJECT = "mmdiff"


def started(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> list[Any]:
    """Returns trackers that have been started, with the settings of the run in `folder` by dotted key.

    A run of Weights & Biases goes on under its name when training resumes; MLflow begins another of the same name.
    Raises MissingExtra where the package is not installed, UserError for what it says when it is started.
    """
    if not names:
        return []
    for name in names:
        require(name, "trackers")
    from accelerate.tracking import MLflowTracker, WandBTracker

    made: list[Any] = []
    for name in names:
        try:
            if name == "wandb":
                tracker: Any = WandBTracker(
                    PROJECT, name=folder.name, id=folder.name, resume="allow", dir=str(folder.resolve())
                )
            else:
                tracker = MLflowTracker(experiment_name=PROJECT, run_name=folder.name)
            tracker.start()
            tracker.store_init_configuration(dict(settings))
        except Exception as error:  # whatever that package raises: no account, no server
            raise UserError(f"train.trackers: {name}: {' '.join(str(error).split())[:200]}") from None
        made.append(tracker)
    return made


def log(trackers: Sequence[Any], step: int, values: Mapping[str, Any]) -> None:
    """Give a line of figures to trackers: its numbers, below the name of their stage, without those that are none."""
    numbers = {
        f"{values.get('stage', 'run')}/{name}": value
        for name, value in without_nan(values).items()
        if isinstance(value, int | float)
    }
    for tracker in trackers:
        tracker.log(numbers, step=step)
