"""Results in a file of JSON lines, added to as they come, that an interrupted command resumes.

    {"row": 0, "id": "a", "pred_text": "turn left"}

Beside the file lies `<file>.settings.json`: all that its records depend on.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError
from mmdiff.files import lock, write_text

Record = dict[str, Any]
SETTINGS = ".settings.json"  # behind the name of a file: what its records depend on


class JsonlStore:
    """Records by the number of their row, in a file of lines {"row": number, **record}.

    A last line that a kill cut short is dropped, so that its row is predicted again. One process at a time writes.
    file: None keeps the records in memory only. settings: what the records depend on; a file of other settings, or of
    another origin, is refused and left as it is. ordered: records come in the order of their rows, and only their
    number `count` is kept in memory, for inputs of any length; otherwise they come in any order, and `records` has
    them. Raises ConfigError.
    """

    def __init__(self, file: Path | None, settings: Mapping[str, Any], *, ordered: bool = False) -> None:
        self.file, self.ordered = file, ordered
        self.records: dict[int, Record] = {}
        self.count = 0
        if file is None:
            return
        with _opening(file, settings) as is_there:
            held = lock(file.with_name(file.name + SETTINGS), f"{file}: another process is writing to it")
            weakref.finalize(self, held.close)  # held for as long as this object lives
            if ordered:
                file.touch()
                self.count = cut_to_whole_lines(file)
            elif is_there:
                # a kill may cut a character in two; JSON strings may hold what `splitlines` takes for the end of a line
                lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
                self.records = {line.pop("row"): line for line in map(_parsed, lines) if line is not None}
                self.count = len(self.records)
                self._write_all()

    def add(self, records: Mapping[int, Record] | Iterable[Record]) -> None:
        """Append records by row, or those of the next rows; they are on the disk when this returns."""
        added = dict(records if isinstance(records, Mapping) else enumerate(records, self.count))
        if self.file is not None:
            append_lines(self.file, [{"row": row, **record} for row, record in added.items()])
        if not self.ordered:
            self.records.update(added)
        self.count += len(added)

    def read(self) -> Iterator[Record]:
        """Yields the records in the order of the file."""
        assert self.file is not None
        with open(self.file, encoding="utf-8") as handle:
            for line in handle:
                record = json.loads(line)
                record.pop("row")
                yield record

    def finish(self) -> list[Record]:
        """Returns all records of a store that is not `ordered`, and rewrites the file, both in the order of rows."""
        self.records = dict(sorted(self.records.items()))
        if self.file is not None:
            self._write_all()
        return list(self.records.values())

    def _write_all(self) -> None:
        assert self.file is not None
        write_text(self.file, "".join(_line({"row": row, **record}) for row, record in self.records.items()))


def append_lines(file: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Append objects as JSON lines, which are on the disk when this returns. Raises ConfigError."""
    text = "".join(map(_line, objects))
    try:
        with open(file, "a", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from None


def cut_to_whole_lines(file: Path) -> int:
    """Cut off what stands behind the last end of a line; returns the number of lines."""
    count = end = 0
    with open(file, "rb+") as handle:
        for line in handle:
            if line.endswith(b"\n"):
                count, end = count + 1, end + len(line)
        handle.truncate(end)
    return count


def first_change(old: Any, new: Any, key: str = "") -> str | None:
    """Returns the first setting that differs, with both values: `sampler.steps (4, now 8)`; None where none does."""
    if old == new:
        return None
    if any(isinstance(old, kind) and isinstance(new, kind) for kind in (Mapping, list)):
        was, now = (value if isinstance(value, Mapping) else dict(enumerate(value)) for value in (old, new))
        name = next(name for name in sorted({*was, *now}) if was.get(name) != now.get(name))
        return first_change(was.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    return f"{key} ({old!r}, now {new!r})"


@contextmanager
def _opening(file: Path, settings: Mapping[str, Any]) -> Iterator[bool]:
    """Yields whether the file exists, after a check of its settings; those of a new file are written beside it."""
    if file.is_dir():
        raise ConfigError(f"{file}: a folder, expected a file of JSON lines")
    beside = file.with_name(file.name + SETTINGS)
    text = json.dumps(settings, indent=2, default=str, sort_keys=True) + "\n"
    try:
        is_there = file.exists()
        if is_there:
            kept = _object(beside.read_text(encoding="utf-8", errors="replace")) if beside.is_file() else None
            if not file.is_file() or kept is None:
                raise ConfigError(f"{file} is there already and was not written by this command; choose another file")
            if change := first_change(kept, json.loads(text)):
                raise ConfigError(f"{file} was written with another {change}; choose another file")
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(beside, text)
        yield is_there
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from None


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, default=str) + "\n"


def _parsed(line: str) -> Record | None:
    found = _object(line)
    return found if found is not None and isinstance(found.get("row"), int) else None


def _object(text: str) -> Record | None:
    """Returns the JSON object that a text is, None where it is none."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
