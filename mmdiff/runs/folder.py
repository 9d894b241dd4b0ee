"""A run's folder: `runs/<name>/` with its configuration, metrics, checkpoints, the finished model, the report.

config.yaml      resolved, as it was when the run began
SHA256SUMS       its checksum, signed: what this user's training wrote is trusted, see docs/security.md
metrics.jsonl    one JSON object a line, by step
tensorboard/     the same figures
checkpoints/     see mmdiff.runs.checkpoint
model/           the finished model, see mmdiff.model.saving
metrics.json     the result, once there is one
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from mmdiff.config import flatten, load_config, to_yaml, trusting
from mmdiff.config.settings import Config
from mmdiff.errors import ConfigError
from mmdiff.files import clear, lock, read_json, write_sums, write_text

RUNS = Path("runs")


class Run:
    """The folder of a run; one process at a time trains in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.model = folder / "model"
        self.metrics = folder / "metrics.jsonl"
        self._lock: TextIO | None = None
        self._board: Any = None

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of metrics.json; None while the run has no result."""
        file = self.folder / "metrics.json"
        if not (self.model / "config.json").is_file() or not file.is_file():
            return None
        result: dict[str, Any] = read_json(file)
        return result

    def lock(self) -> None:
        """Keep other processes out, and remove what a killed one left half written. Raises ConfigError."""
        self._lock = lock(self.folder / ".lock", f"{self.folder}: another process is training this run")
        for folder in (self.folder, self.checkpoints):
            clear(folder)

    def begin_log(self, step: int, *, tensorboard: bool) -> None:
        """Go on with the metrics of a run that stands at `step`: lines that are later are dropped, they come again."""
        if self.metrics.is_file():
            kept = [line for line in self.metrics.read_text().splitlines() if _step(line) <= step]
            write_text(self.metrics, "".join(f"{line}\n" for line in kept))
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the figures of a step to metrics.jsonl and to TensorBoard."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{values.get('stage', 'run')}/{name}", value, step)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write metrics.json; what was there under other names is kept."""
        merged = {**(self.result or {}), **result}
        write_text(self.folder / "metrics.json", json.dumps(merged, indent=2) + "\n")

    def close(self) -> None:
        """Let other processes train in this folder."""
        if self._board is not None:
            self._board.close()
        if self._lock is not None:
            self._lock.close()


def open_run(config: Config, *, fresh: bool = False) -> Run:
    """Make or find the folder of a configuration's run.

    fresh: a folder that is there is moved aside. Raises ConfigError for one of another configuration: nothing is
    overwritten.
    """
    folder = RUNS / str(config.name)
    if Path(str(config.name)).is_absolute() or ".." in Path(str(config.name)).parts:
        raise ConfigError(f"name: {config.name!r} is not a name below {RUNS}/")
    if fresh and folder.exists():
        folder.rename(folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
    begun = any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "model"))
    if (folder / "config.yaml").is_file() and begun:
        with trusting():  # it is compared, and nothing of it is called
            old, new = flatten(asdict(load_config(str(folder)))), flatten(asdict(config))
        changed = [k for k in [*old, *(k for k in new if k not in old)] if old.get(k) != new.get(k)]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"{folder} holds a run of another configuration ({key} was {old.get(key)!r}, is {new.get(key)!r}"
                f"{f', and {len(changed) - 1} more' if len(changed) > 1 else ''}): choose name=..., or --fresh"
            )
    elif folder.exists() and any(folder.iterdir()) and not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is there and holds no run: choose name=..., or --fresh")
    else:  # new, or what was refused before its first step
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", to_yaml(replace(config)))
    write_sums(folder, ["config.yaml"])  # this user asks for just this configuration
    return Run(folder)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):  # the line a kill cut short
        return 1 << 62
