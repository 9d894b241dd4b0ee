"""Results in a file of JSON lines, added to as they come, that an interrupted command resumes.

    {"row": 0, "settings": "c01dc0ffee00", "id": "a", "pred_text": "turn left"}

Beside the file lies `<file>.settings.json`: all that its records depend on. Each line has the first digits of its
SHA-256, so records are never taken for those of other settings, whatever was moved or copied.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from mmdiff.errors import ConfigError, RowError, short
from mmdiff.files import json_object, lock, read_json, without_nan, writable, write_text

Record = dict[str, Any]
SETTINGS = ".settings.json"  # behind the name of a file: what its records depend on
DIGITS = 12  # of the checksum of the settings, in each line


class JsonlStore:
    """Records by the number of their row, in a file of lines {"row": number, "settings": checksum, **record}.

    A last line that a kill cut short is dropped, so that its row is predicted again. One process at a time writes: from
    before it looks at the settings until this object is gone, it holds `.<file>.lock`.
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
        text = json.dumps(settings, indent=2, default=str, sort_keys=True) + "\n"
        self._mark = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
        with writable(file):
            if file.exists() and not file.is_file():
                kind = "a folder" if file.is_dir() else "a device or pipe"
                raise ConfigError(f"{short(file)}: {kind}, expected a file of JSON lines")
            file.parent.mkdir(parents=True, exist_ok=True)
            release = weakref.finalize(self, _release, *_locked(file), os.getpid())
            try:
                self._open(file, text)
            except BaseException:
                release()
                raise

    def add(self, records: Mapping[int, Record] | Iterable[Record]) -> None:
        """Append records by row, or those of the next rows; they are on the disk when this returns."""
        added = dict(records if isinstance(records, Mapping) else enumerate(records, self.count))
        if self.file is not None:
            append_lines(self.file, (self._object(row, record) for row, record in added.items()))
        if not self.ordered:
            self.records.update(added)
        self.count += len(added)

    def read(self) -> Iterator[Record]:
        """Yields the records in the order of the file."""
        assert self.file is not None
        with open(self.file, encoding="utf-8", newline="\n") as handle:
            for line in handle:
                yield _record(json.loads(line))

    def finish(self) -> list[Record]:
        """Returns all records of a store that is not `ordered`, and rewrites the file, both in the order of rows."""
        self.records = dict(sorted(self.records.items()))
        if self.file is not None:
            with writable(self.file):
                self._write_all()
        return list(self.records.values())

    def _open(self, file: Path, text: str) -> None:
        """Check the settings beside the file, or write them where no record depends on others; read what is there."""
        beside = file.with_name(file.name + SETTINGS)
        is_there = file.exists()
        if is_there:
            kept = _kept(beside)
            if kept is None:
                raise ConfigError(
                    f"{short(file)} is there already and was not written by this command; choose another file"
                )
            if (change := first_change(kept, json.loads(text))) and file.stat().st_size:
                raise ConfigError(f"{short(file)} was written with another {change}; choose another file")
        if not is_there or change:
            write_text(beside, text)
        if self.ordered:
            file.touch()
            self._cut()
        elif is_there:
            self._load()
            self._write_all()

    def _cut(self) -> None:
        """Count the records of an ordered file, and cut off what stands behind the last whole one."""
        assert self.file is not None
        end = 0
        with open(self.file, "rb+") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                found = _parsed(line)
                if found is None or found["row"] != self.count:
                    raise ConfigError(
                        f"{short(self.file)} line {self.count + 1}: not record {self.count}, which this command wrote "
                        "there; choose another file"
                    )
                self._check(found, self.count + 1)
                self.count, end = self.count + 1, end + len(line)
            handle.truncate(end)

    def _load(self) -> None:
        """Read the records of a file in any order; what is no record is dropped, a character cut in two too."""
        assert self.file is not None
        with open(self.file, "rb") as handle:
            for number, line in enumerate(handle, 1):
                if (found := _parsed(line)) is not None:
                    self._check(found, number)
                    row = found["row"]
                    self.records[row] = _record(found)
        self.count = len(self.records)

    def _check(self, found: Record, line: int) -> None:
        if found.get("settings") != self._mark:
            assert self.file is not None
            raise ConfigError(
                f"{short(self.file)} line {line} was written with other settings than those in "
                f"{short(self.file.name)}{SETTINGS}; choose another file"
            )

    def _object(self, row: int, record: Mapping[str, Any]) -> Record:
        return {"row": row, "settings": self._mark, **record}

    def _write_all(self) -> None:
        assert self.file is not None
        write_text(self.file, "".join(_line(self._object(row, record)) for row, record in self.records.items()))


def append_lines(file: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Append objects as JSON lines, which are on the disk when this returns. Raises ConfigError."""
    text = "".join(map(_line, objects))
    with writable(file), open(file, "a", encoding="utf-8", newline="\n") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def first_change(old: Any, new: Any, key: str = "") -> str | None:
    """Returns the first setting that differs, with both values: `sampler.steps (4, now 8)`; None where none does."""
    if old == new:
        return None
    if any(isinstance(old, kind) and isinstance(new, kind) for kind in (Mapping, list)):
        was, now = (value if isinstance(value, Mapping) else dict(enumerate(value)) for value in (old, new))
        name = next(name for name in sorted({*was, *now}) if was.get(name) != now.get(name))
        return first_change(was.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    return f"{short(key)} ({short(repr(old))}, now {short(repr(new))})"


def _locked(file: Path) -> tuple[Path, TextIO]:
    """Lock a file of records: the file of the lock, and its handle."""
    held = file.with_name(f".{file.name}.lock")
    while True:
        handle = lock(held, f"{short(file)}: another process is writing to it")
        try:
            if os.path.samestat(os.fstat(handle.fileno()), held.stat()):
                return held, handle
        except FileNotFoundError:
            pass
        handle.close()  # its owner removed it between our opening and our lock


def _release(held: Path, handle: TextIO, owner: int) -> None:
    if os.getpid() == owner:  # not a process that was forked of it
        with suppress(OSError):
            held.unlink()
    handle.close()


def _kept(beside: Path) -> Record | None:
    """Returns the settings of a file that is there, None where there are none that this command wrote."""
    try:
        found = read_json(beside)
    except (FileNotFoundError, ConfigError):
        return None
    return found if isinstance(found, dict) else None


def _line(record: Mapping[str, Any]) -> str:
    record = without_nan(record)
    text = json.dumps(record, ensure_ascii=False, default=str)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half a pair of surrogates, which JSON has as an escape only
            text = json.dumps(record, default=str)
    return text + "\n"


def _parsed(line: bytes) -> Record | None:
    """Returns the object of a line that has a row, None where it is none."""
    try:
        found = json_object(line)
    except RowError:
        return None
    row = found.get("row")
    return found if isinstance(row, int) and not isinstance(row, bool) else None


def _record(line: Record) -> Record:
    return {name: value for name, value in line.items() if name not in ("row", "settings")}
