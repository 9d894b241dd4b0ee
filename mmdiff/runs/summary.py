"""A run in a few words and figures, read from its folder without torch, whatever state the folder is in."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdiff.config import flatten
from mmdiff.config.load import RUN_FILE, YAML_BYTES
from mmdiff.errors import ConfigError, shown
from mmdiff.files import locked, read_json, read_text, yaml_of

from .metrics import is_number, lines_of
from .notes import read_note
from .progress import checkpoints_in, read_progress

STATES = ("finished", "training", "unfinished", "diverged", "not begun", "broken")
TAIL = 1 << 16  # bytes at the end of metrics.jsonl, in which its last lines are looked for


@dataclass
class Summary:
    """What is known of a run.

    state: one of `STATES`. step, total: how far training has come, of the steps of all stages. when: the time of its
    last file, in seconds since 1970. seconds: of training. figures: the numbers of metrics.json by dotted key.
    settings: those of config.yaml by dotted key. problem: why it is broken, in one line.
    """

    folder: Path
    state: str = "broken"
    step: int | None = None
    total: int | None = None
    when: float = 0.0
    seconds: float | None = None
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def task(self) -> str | None:
        """The name of the class of the task."""
        target = self.settings.get("task.target", self.settings.get("task"))
        return target.rpartition(".")[2] if isinstance(target, str) else None


def summary_of(folder: Path) -> Summary:
    """Returns the summary of a run's folder; one that cannot be read is `broken`, and its `problem` says why."""
    out = Summary(folder)
    try:
        out.when = _when(folder)
        tree = yaml_of(read_text(folder / RUN_FILE, YAML_BYTES), RUN_FILE)
        if not isinstance(tree, dict):
            raise ConfigError(f"{RUN_FILE}: holds a {type(tree).__name__}, expected a mapping")
        out.settings = flatten(tree)
        out.note = read_note(folder)
        _read_state(out)
    except FileNotFoundError as error:
        out.state, out.problem = "broken", f"{Path(str(error.filename)).name} is missing"
    except (ConfigError, OSError, ValueError, TypeError, RecursionError) as error:
        out.state, out.problem = "broken", shown(str(error).removeprefix(f"{folder}/"), 200)
    return out


def _read_state(out: Summary) -> None:
    folder = out.folder
    steps = {key: value for key, value in out.settings.items() if key.startswith("train.stages.")}
    stages = [value for key, value in steps.items() if key.count(".") == 3 and key.endswith(".steps")]
    out.total = sum(value for value in stages if isinstance(value, int))
    checkpoints, last = checkpoints_in(folder / "checkpoints"), _last_line(folder / "metrics.jsonl")
    if checkpoints:
        progress = read_progress(checkpoints[-1])
        out.step, out.seconds = progress.step, progress.seconds
    if last is not None:
        out.step = max(out.step or 0, int(last["step"]))
    planned = None
    if (folder / "metrics.json").is_file():
        result = read_json(folder / "metrics.json")
        if not isinstance(result, dict):
            raise ConfigError("metrics.json: expected an object of figures")
        out.figures = {key: value for key, value in flatten(result).items() if is_number(value)}
        planned = result.get("planned_steps", result.get("steps"))
    if locked(folder.with_name(f".{folder.name}.lock")):
        out.state = "training"
    elif planned is not None and planned == out.total and (folder / "model" / "config.json").is_file():
        out.state, out.step = "finished", int(out.figures["steps"])
        out.seconds = out.figures.get("seconds_training", out.seconds)
    elif last is not None and "diverged" in last:
        out.state = "diverged"
    else:
        out.state = "not begun" if out.step is None else "unfinished"


def _when(folder: Path) -> float:
    """Returns the time of the newest file that training, evaluation or a person wrote."""
    times = [entry.stat().st_mtime for entry in os.scandir(folder) if entry.is_file()]
    return max(times, default=folder.stat().st_mtime)


def _last_line(file: Path) -> dict[str, Any] | None:
    """Returns the last whole line of metrics.jsonl, None where there is none."""
    if not file.is_file():
        return None
    with open(file, "rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - TAIL))
        return next((found for _, found in reversed(list(lines_of(handle.read())))), None)
