"""The files of a model in the hub's layout (`exported.py`), for who looks at a folder and need not wait for torch."""

from __future__ import annotations

from pathlib import Path

EXPORTED = "mmdiff_config.json"
BESIDE = "mmdiff_files"
"""Among the fields of a published config.json: what other files of its folder hold, {file: content}."""
STEM = "mmdiff_parts"  # of the weight files of all that is not the backbone


def is_exported(folder: Path) -> bool:
    """Returns whether a folder is a model in the hub's layout that mmdiff wrote."""
    return (folder / EXPORTED).is_file()


def other_files(folder: Path) -> list[Path]:
    """Returns the weight files of all that is not the backbone."""
    return sorted(folder.glob(f"{STEM}*.safetensors"))
