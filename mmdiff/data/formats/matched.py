"""The files that a path or a pattern names: `corpus/**/*.jsonl`."""

from __future__ import annotations

from glob import glob
from pathlib import Path

from mmdiff.errors import DataError, nearest, shown

SAVED = ("dataset_info.json", "dataset_dict.json")  # what `save_to_disk` of `datasets` puts into a folder


def matched(source: str | Path) -> list[Path]:
    """Returns the files, in the order of their names.

    A path that is there is meant as it is, whatever brackets and stars its name has. Of what a pattern matches, folders
    are left out unless `datasets` saved them. Raises DataError where nothing is left.
    """
    name, path = str(source), Path(source)
    if name and _there(path):
        return [path]
    found = sorted(map(Path, glob(name, recursive=True)))
    if not found:
        near = nearest(name, [str(p) for p in path.parent.glob("*")])
        raise DataError(f"{shown(name) or repr(name)}: no such file{near if 'did you mean' in near else ''}")
    files = [file for file in found if not file.is_dir() or _saved(file)]
    if not files:
        raise DataError(f"{shown(name)}: matches folders alone, expected files")
    return files


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, a zero byte
        return False


def _saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED)
