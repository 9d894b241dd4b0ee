"""The file that an option names: what would fail when it is written, after the work, fails before."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile

from mmdiff.errors import UserError, shown

LONGEST_NAME = 120  # bytes of the name of a file: half of what disks allow, for the names it has meanwhile


def output_file(option: str, path: str | Path | None, *, new: bool = False) -> Path | None:
    """Returns the file that an option names, None without one. Nothing is made.

    option: `--out`. new: there must not be such a file. Raises UserError for a folder, a name that is too long, and a
    place that cannot be written to.
    """
    if path is None:
        return None
    named, name = Path(path), shown(path)
    if len(os.fsencode(named.name)) > LONGEST_NAME:
        raise UserError(f"{option}: {name}: a name of more than {LONGEST_NAME} bytes")
    try:
        if not str(path) or named.is_dir():
            raise UserError(f"{option}: {name!r} is not the name of a file")
        if new and named.exists():
            raise UserError(f"{option}: {name} is there already; choose another file")
        above = next(folder for folder in named.parents if folder.exists())
    except OSError as error:
        raise UserError(f"{option}: {name} cannot be written ({error.strerror})") from None
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = f"{shown(above)} is {'read-only' if above.is_dir() else 'a file'}"
        raise UserError(f"{option}: {name} cannot be written ({why})")
    return named


def make_folder(option: str, file: Path | None) -> None:
    """Make the folder of a file, and see that it can be written to. Raises UserError."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UserError(f"{option}: {shown(file)} cannot be written ({error.strerror})") from None
