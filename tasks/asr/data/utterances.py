"""What all sources of speech rows share: checks of their rows, done before anything runs on them.

    {"audio": "a.wav", "text": "turn left", "id": "a", "duration": 1.5, "speaker": "s1", "where": "rows.jsonl line 1"}

`audio` is a path or {"path", "start", "end"}, `text` what was said, `duration` in seconds, `where` file and line: later
errors about the row, as of a transcript with symbols that the vocabulary lacks, name it. `speaker` may be missing.

All sources share these arguments:
    on_error: "stop" raises a DataError for the first row that cannot be used; "skip" leaves such rows out, says so in
        one line on stderr, and counts them by reason in `skipped`. Either way before any row is handed out.
    limit: read the first rows only.
    verify: read the header of every file now (threads share the work): broken and empty files, and segments outside
        their file, are found, and `duration` is filled in. A file that is cut off may have a good header; it ends the
        run when it is met. False looks only whether the files are there.
    empty: whether a transcript may be empty (silence, noise) or missing: a row without one can be written down.
"""

from __future__ import annotations

import os.path
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmdiff.encoders.media.audio import OVERSHOOT, duration
from mmdiff.errors import ConfigError, DataError, nearest
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.rows import OnError, RowError, UnusableRows, read_lines

Make = Callable[[], dict[str, Any]]
Entry = tuple[str, Make]
"""File and line of a row, and what makes it: raises RowError when the row cannot be used."""


class SpeechRows:
    """The rows of a source: `rows`, those of them left out by reason in `skipped`."""

    rows: list[Row]
    skipped: Counter[str]
    kept: TemporaryDirectory[str] | None = None  # of a toy: lives as long as the rows that name its files

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def length(self, index: int) -> float:
        """Seconds; 0 where they are not known (`verify: false`)."""
        return float(self.rows[index].get("duration", 0.0))


def usable(
    entries: Iterable[Entry], name: str, on_error: OnError, limit: int | None, verify: bool, empty: bool
) -> tuple[list[Row], Counter[str]]:
    """The rows that can be used, and how many were left out for which reason. name: of the source, in errors.

    The other arguments are those of the sources, see above. Raises as they do.
    """
    if on_error not in ("stop", "skip"):
        raise ConfigError(f"on_error: {on_error!r}{nearest(str(on_error), ['stop', 'skip'])}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: {limit} rows, expected at least 1")
    unusable = UnusableRows(on_error)
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for where, make in islice(entries, limit):
        with unusable.checked(where):
            row = {"where": where, **make()}
            if not row.get("text") and not empty:
                raise RowError("empty text", f"of {row['id']!r}; `empty` allows it")
            if row["id"] in seen:
                raise RowError("duplicate id", f"{row['id']!r} is that of {seen[row['id']]} too")
            seen[row["id"]] = where
            rows.append(row)
    if verify:
        rows = _measured(rows, unusable)
    skipped = unusable.skipped
    report = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
    if not rows:
        raise DataError(f"{name}: no row can be used ({report or 'it has none'})")
    if report:
        total = len(rows) + skipped.total()
        print(f"{name}: skipped {skipped.total()} of {total} rows ({report})", file=sys.stderr)
    return rows, skipped


def _measured(rows: list[Row], unusable: UnusableRows) -> list[Row]:
    """The rows whose files have a good header, with the `duration` it gives."""
    kept: list[Row] = []
    pool = ThreadPoolExecutor()
    try:
        lengths = [pool.submit(duration, row["audio"]) for row in rows]
        for row, length in zip(rows, lengths, strict=True):
            with unusable.checked(row["where"]):
                kept.append({**row, "duration": _length(row, length.result)})
    finally:
        pool.shutdown(cancel_futures=True)
    return kept


def _length(row: Row, measure: Callable[[], float]) -> float:
    """Seconds of a row's sound. measure: gives them, or raises DataError."""
    try:
        seconds = measure()
    except DataError as error:
        raise RowError("unreadable audio", str(error)) from None
    said = row.get("duration", seconds)
    if abs(said - seconds) > OVERSHOOT:
        path = row["audio"]["path"] if isinstance(row["audio"], Mapping) else row["audio"]
        raise RowError("wrong duration", f"{said:g} s, and {path} has {seconds:g} s; a part of a file has an `offset`")
    return seconds


def folder_at(argument: str, path: Path) -> Path:
    """Raises DataError unless `path` is one."""
    if not path.is_dir():
        raise DataError(f"{argument}: {path} is not a folder")
    return path


def audio_path(audio: Any, root: Path) -> str:
    """The full path of a file under `root`, or of an absolute path. Raises RowError."""
    if not isinstance(audio, str) or not audio:
        raise RowError("audio is not a path", f"{audio!r:.60}")
    if not os.path.isabs(audio) and os.path.normpath(audio).split(os.sep)[0] == os.pardir:
        raise RowError("audio outside the folder", f"{audio!r} leads out of {root}")
    path = root / audio
    if not path.is_file():
        raise RowError("missing audio", str(path))
    return str(path)


def id_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """(file and line, id, what follows it) of each line that is not empty."""
    for where, line in read_lines(path):
        if line:
            id, *rest = line.split(maxsplit=1)
            yield where, id, rest[0] if rest else ""
