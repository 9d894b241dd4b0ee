"""Results in a file of JSON lines, added to as they come, that an interrupted run goes on with."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError
from mmdiff.files import write_text

Record = dict[str, Any]
SETTINGS = ".settings.json"  # behind the name of a file: what its records depend on


class Records:
    """Records by the number of their row. A line is {"row": number, **record}; a last line that a kill cut short is
    dropped, and its row done again.

    file: None keeps them in memory only. settings: what the records depend on, kept beside the file under
    `<file>.settings.json`; a file of other settings, or of another origin, is refused and left as it is.
    Raises ConfigError.
    """

    def __init__(self, file: Path | None, settings: Mapping[str, Any]) -> None:
        self.file = file
        self.done: dict[int, Record] = {}
        if file is None:
            return
        with _opening(file, settings) as is_there:
            if is_there:
                # a kill may cut a character in two; JSON strings may hold what `splitlines` takes for the end of a line
                lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
                self.done = {line.pop("row"): line for line in map(_parsed, lines) if line is not None}
                self._write()

    def add(self, records: Mapping[int, Record]) -> None:
        self.done.update(records)
        if self.file is not None:
            with open(self.file, "a", encoding="utf-8") as handle:
                handle.writelines(_line(row, record) for row, record in records.items())

    def finish(self) -> list[Record]:
        """All records in the order of their rows, in the file too."""
        self.done = dict(sorted(self.done.items()))
        if self.file is not None:
            self._write()
        return list(self.done.values())

    def _write(self) -> None:
        assert self.file is not None
        write_text(self.file, "".join(_line(row, record) for row, record in self.done.items()))


class Lines:
    """Records in the order of their rows, of which only the number is kept in memory: for inputs of any length.

    `done` rows are in the file; a last line that a kill cut short is cut off. file and settings: as in `Records`, which
    keeps its records and takes them in any order. One process at a time writes. Raises ConfigError.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.file = file
        self.done = 0
        with _opening(file, settings) as is_there:
            self._lock = open(file.with_name(file.name + SETTINGS), "r+")  # held while this object is
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"{file}: another process is writing to it") from None
            if is_there:
                self.done = _cut_to_whole_lines(file)
            else:
                file.touch()

    def add(self, records: Sequence[Record]) -> None:
        """Append the records of the next rows; they are on the disk when this returns."""
        text = "".join(_line(self.done + i, record) for i, record in enumerate(records))
        try:
            with open(self.file, "a", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise ConfigError(f"{self.file}: cannot be written ({error.strerror})") from None
        self.done += len(records)

    def read(self) -> Iterator[Record]:
        with open(self.file, encoding="utf-8") as handle:
            for line in handle:
                record = json.loads(line)
                record.pop("row")
                yield record


@contextmanager
def _opening(file: Path, settings: Mapping[str, Any]) -> Iterator[bool]:
    """Whether the file is there, once it is known to be of these settings; else they are written down beside it."""
    if file.is_dir():
        raise ConfigError(f"{file}: a folder, expected a file of JSON lines")
    beside = file.with_name(file.name + SETTINGS)
    wanted = json.dumps(settings, indent=2, default=str, sort_keys=True) + "\n"
    try:
        is_there = file.exists()
        if is_there:
            _check(file, beside, json.loads(wanted))
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(beside, wanted)
        yield is_there
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from None


def _cut_to_whole_lines(file: Path) -> int:
    """Cut off what stands behind the last end of a line; returns the number of lines."""
    count = end = 0
    with open(file, "rb+") as handle:
        for line in handle:
            if line.endswith(b"\n"):
                count, end = count + 1, end + len(line)
        handle.truncate(end)
    return count


def _line(row: int, record: Record) -> str:
    return json.dumps({"row": row, **record}, ensure_ascii=False, default=str) + "\n"


def _parsed(line: str) -> Record | None:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("row"), int) else None


def _check(file: Path, beside: Path, wanted: Mapping[str, Any]) -> None:
    """Raises ConfigError unless `file` was written with the settings that are `wanted`."""
    kept = _read(beside) if file.is_file() and beside.is_file() else None
    if kept is None:
        raise ConfigError(f"{file} is there already and was not written by this command; choose another file")
    if kept != wanted:
        raise ConfigError(f"{file} was written with another {_changed(kept, wanted)}; choose another file")


def _read(file: Path) -> Record | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # not JSON, or not UTF-8
        return None
    return found if isinstance(found, dict) else None


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], key: str = "") -> str:
    """The first setting that differs, with both values."""
    name = next(name for name in sorted({*old, *new}) if old.get(name) != new.get(name))
    a, b = old.get(name), new.get(name)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return _changed(a, b, f"{key}{name}.")
    return f"{key}{name} ({a!r}, now {b!r})"
