"""A run's folder: `runs/<name>/` with its configuration, metrics, checkpoints, the finished model, the report.

config.yaml      resolved, as the run last trained by it
SHA256SUMS       its checksum, signed: what this user's training wrote is trusted, see docs/security.md
metrics.jsonl    one JSON object per line, by step
tensorboard/     the same figures
checkpoints/     see mmdiff.runs.checkpoint
model/           the finished model, see mmdiff.model.saving
metrics.json     the result, once there is one
note.txt         what a person noted, see mmdiff.runs.notes
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mmdiff.config import load_config, to_yaml, trusting
from mmdiff.config.load import RUN_FILE
from mmdiff.config.settings import Config
from mmdiff.errors import ConfigError
from mmdiff.files import clear, lock, named, read_json, unlock, without_nan, write_sums, write_text

from .changes import changed
from .metrics import is_number, lines_of, read_metrics
from .progress import checkpoints_in, read_progress, samples_of_steps
from .trackers import log, started

RUNS = Path("runs")
LONGEST = 200  # bytes of a run's name: most file systems take 255, and other names are made of it


class Run:
    """The folder of a run; one process at a time trains in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.model = folder / "model"
        self.metrics = folder / "metrics.jsonl"
        self._lock: TextIO | None = None
        self._board: Any = None
        self._trackers: list[Any] = []

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of metrics.json; None while the run has no result."""
        file = self.folder / "metrics.json"
        if not (self.model / "config.json").is_file() or not file.is_file():
            return None
        result = read_json(file)
        if not isinstance(result, dict):
            raise ConfigError(f"{file}: expected an object of figures, found {type(result).__name__}")
        return result

    @property
    def begun(self) -> bool:
        """Whether the run took a step that is to be seen: a line of metrics, a checkpoint, a model."""
        logged = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return logged or bool(checkpoints_in(self.checkpoints)) or self.model.exists()

    def lock(self) -> None:
        """Keep other processes out, and remove what a killed one left half written. Raises ConfigError.

        The lock lies beside the folder, so it stays where it is when the folder is moved.
        """
        beside = self.folder.with_name(f".{self.folder.name}.lock")
        self._lock = lock(beside, f"{self.folder}: another process is training this run")
        for folder in (self.folder, self.checkpoints):
            clear(folder)

    def begin_log(
        self, step: int, *, tensorboard: bool, trackers: Sequence[str] = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        """Go on with the metrics of a run that stands at `step`: lines that are later are dropped, they come again; so
        is the line that says that it had diverged.

        trackers, settings: see `mmdiff.runs.trackers.started`.
        """
        self._trackers = started(trackers, self.folder, settings or {})
        if self.metrics.is_file():
            lines = lines_of(self.metrics.read_bytes())
            kept = [line for line, found in lines if found["step"] <= step and "diverged" not in found]
            write_text(self.metrics, b"".join(line + b"\n" for line in kept).decode())
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def has_bound(self, step: int) -> bool:
        """Whether the metrics have the bound on held-out rows at a step."""
        lines = read_metrics(self.metrics)
        return any(is_number(line.get("bound_per_sample")) and line["step"] == step for line in lines)

    def bounds(self, stage: str) -> dict[int, float]:
        """Returns the bounds per token on a stage's held-out rows, by step, as the metrics have them; infinite where
        one was not finite."""
        found = [line for line in read_metrics(self.metrics) if line.get("stage") == stage]
        values = {line["step"]: line["bound_per_token"] for line in found if "bound_per_token" in line}
        return {step: float(value) if is_number(value) else math.inf for step, value in values.items()}

    def not_finite(self) -> list[int]:
        """Returns the steps whose bound on held-out rows, of any stage, was not finite."""
        values = {
            line["step"]: line["bound_per_token"] for line in read_metrics(self.metrics) if "bound_per_token" in line
        }
        return [step for step, value in values.items() if not is_number(value)]

    def best(self, stage: str, count: int) -> list[int]:
        """Returns the steps with the `count` lowest bounds of a stage, the lowest first."""
        bounds = {step: value for step, value in self.bounds(stage).items() if count and math.isfinite(value)}
        return sorted(bounds, key=lambda step: (bounds[step], step))[:count]

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the figures of a step to metrics.jsonl and to TensorBoard."""
        with named(self.metrics), open(self.metrics, "a") as file:
            file.write(json.dumps(without_nan({"step": step, **values})) + "\n")
        log(self._trackers, step, values)
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{values.get('stage', 'run')}/{name}", value, step)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write metrics.json; what was there under other names is kept."""
        self.write_result({**(self.result or {}), **result})

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write metrics.json, in place of one that is there."""
        write_text(self.folder / "metrics.json", json.dumps(without_nan(result), indent=2) + "\n")

    def close(self) -> None:
        """Let other processes train in this folder."""
        if self._board is not None:
            self._board.close()
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []
        if self._lock is not None:
            unlock(self._lock)
            self._lock = None


def open_run(config: Config, *, fresh: bool = False, world: int = 1) -> Run:
    """Make or find the folder of a configuration's run, locked: another process is refused before anything is moved.

    fresh: a folder that is there is moved aside. world: processes that train. Raises ConfigError for a folder of
    another configuration: nothing is overwritten; settings that change no training may be others (mmdiff.runs.changes).
    """
    run = Run(RUNS / run_name(config))
    RUNS.mkdir(parents=True, exist_ok=True)
    run.lock()
    try:
        if fresh and run.folder.exists():
            _move_aside(run.folder)
        _prepare(run, config, world)
    except BaseException:
        run.close()
        raise
    return run


def standing(folder: Path, model: Path) -> str | None:
    """Returns in one line that the model found in a run's folder is not that of a finished run; None where it is."""
    run = Run(folder)
    checkpoints = checkpoints_in(run.checkpoints)
    if not checkpoints or model not in (run.model, checkpoints[-1]):
        return None
    try:
        progress = read_progress(checkpoints[-1])
    except ConfigError:  # damaged: whoever loads it says so
        return None
    if model == checkpoints[-1]:
        return f"{folder} is not finished: this is its checkpoint at step {progress.step}, in stage {progress.stage}"
    done = (run.result or {}).get("steps")
    if isinstance(done, int) and done < progress.step:
        return f"{folder} is training on: this is its model of {done} steps, the newest checkpoint has {progress.step}"
    return None


def run_name(config: Config) -> str:
    """Returns the name of a configuration's run. Raises ConfigError for what is no plain name of a folder."""
    name = config.name
    if not isinstance(name, str) or not name:
        raise ConfigError(f"name: {name!r} is not a name below {RUNS}/")
    odd = next((c for c in name if c == "/" or not c.isprintable()), None)
    if odd is not None:
        reason = f"{odd!r} stands in it"
    elif name.startswith("."):
        reason = "it starts with a dot"
    elif len(name.encode()) > LONGEST:
        reason = f"it has {len(name.encode())} bytes, expected at most {LONGEST}"
    else:
        return name
    raise ConfigError(f"name: {name[:80]!r} is not a name below {RUNS}/: {reason}")


def _move_aside(folder: Path) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for count in itertools.count():
        target = folder.with_name(f"{folder.name}.{stamp}{f'-{count}' if count else ''}")
        if not target.exists():
            folder.rename(target)
            return


def conflict(config: Config, *, world: int = 1) -> str | None:
    """Returns in a line why a configuration cannot be trained in its folder, None where it can. Nothing is changed."""
    run = Run(RUNS / run_name(config))
    folder = run.folder
    if folder.is_symlink() and not folder.exists() or folder.exists() and not folder.is_dir():
        return f"{folder}: is there and is no folder: choose name=..., or --fresh"
    if (folder / RUN_FILE).is_file() and run.begun:
        with trusting():  # it is compared, and nothing of it is called
            old = load_config(str(folder))
        wrong = changed(old, config, samples_of_steps(run.checkpoints), world)
        if wrong:
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            return f"{folder} holds a run of another configuration ({wrong[0]}{more}): choose name=..., or --fresh"
    elif folder.exists() and {p.name for p in folder.iterdir()} - {".lock"} and not (folder / RUN_FILE).is_file():
        return f"{folder} is there and holds no run: choose name=..., or --fresh"
    return None


def _prepare(run: Run, config: Config, world: int) -> None:
    """Check what the folder holds, and write the configuration that it resumes by."""
    folder, new = run.folder, to_yaml(config)
    if (line := conflict(config, world=world)) is not None:
        raise ConfigError(line)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUN_FILE).is_file() or (folder / RUN_FILE).read_text(encoding="utf-8") != new:
        write_text(folder / RUN_FILE, new)
    write_sums(folder, [RUN_FILE])  # this user asks for just this configuration
