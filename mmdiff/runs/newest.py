"""The model that a folder is of: its own, or the newest of a run."""

from __future__ import annotations

from pathlib import Path

from mmdiff.errors import ConfigError, nearest
from mmdiff.model.published.bare import is_bare
from mmdiff.model.published.layout import is_exported
from mmdiff.model.published.layouts import is_published

from .folder import RUNS
from .progress import checkpoints_in


def find_model(folder: Path) -> Path:
    """The newest model in the folder of a run, or the folder itself. Raises ConfigError where there is none."""
    if not folder.is_dir():
        runs = [str(p) for p in RUNS.glob("*")] if RUNS.is_dir() else []
        raise ConfigError(f"{folder}: no such folder{nearest(str(folder), runs)}")
    if (folder / "backbone").is_dir() or is_exported(folder) or is_published(folder) or is_bare(folder):
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if checkpoints := checkpoints_in(folder / "checkpoints"):
        return checkpoints[-1]
    raise ConfigError(f"{folder}: neither a saved model nor a run with one")
