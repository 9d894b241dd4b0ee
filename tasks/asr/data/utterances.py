"""What all sources of speech rows share: the checks of their rows, done before anything runs on them.

    {"audio": "a.wav", "text": "turn left", "id": "a", "duration": 1.5, "speaker": "s1", "where": "rows.jsonl line 1"}

`audio` is a path or {"path", "start", "end"}, `text` the transcript, `duration` in seconds, `where` file and line, for
later errors about the row, such as a word of the transcript that the vocabulary lacks. `speaker` may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from mmdiff.encoders.media.audio import OVERSHOOT, duration
from mmdiff.errors import DataError, RowError
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.rows import CheckedRows, Entry, Make, read_lines


@dataclass(eq=False)
class SpeechRows(CheckedRows):
    """The base of the sources of speech. A source defines `utterances` in place of `entries`.

    on_error, limit, verify: see `mmdiff.tasks.dialogue.rows.CheckedRows`. To verify is to read the header of every
        file: broken and empty files, and segments outside their file, are found, and `duration` is filled in. A file
        that is cut off may have a good header; it ends the run when its turn comes.
    empty: whether a transcript may be empty (silence, noise) or missing, as it is where it is yet to be made.
    """

    page: ClassVar[str] = "docs/data/speech.md"
    empty: bool = field(default=False, kw_only=True)

    def utterances(self) -> Iterator[Entry]:
        """Yields the entries of the files, in order."""
        raise NotImplementedError

    def entries(self) -> Iterator[Entry]:
        seen: dict[str, str] = {}
        for where, make in self.utterances():
            yield where, partial(self._checked, where, make, seen)

    def verified(self, pool: Executor, rows: Sequence[Row]) -> Iterable[Entry]:
        lengths = [pool.submit(duration, row["audio"]) for row in rows]
        return [
            (row["where"], partial(_measured, row, length.result)) for row, length in zip(rows, lengths, strict=True)
        ]

    def length(self, index: int) -> float:
        """Returns the seconds of a row; 0 where they are not known (`verify: false`)."""
        return float(self.rows[index].get("duration", 0.0))

    def _checked(self, where: str, make: Make, seen: dict[str, str]) -> Row:
        row = {"where": where, **make()}
        if not row.get("text") and not self.empty:
            raise RowError("empty text", f"of {row['id']!r}; `empty` allows it")
        if row["id"] in seen:
            raise RowError("duplicate id", f"{row['id']!r} is that of {seen[row['id']]} too")
        seen[row["id"]] = where
        return row


def _measured(row: Row, measure: Callable[[], float]) -> Row:
    """Returns the row with its `duration`. measure: returns seconds, or raises DataError."""
    try:
        seconds = measure()
    except DataError as error:
        raise RowError("unreadable audio", str(error)) from None
    given = row.get("duration", seconds)
    if abs(given - seconds) > OVERSHOOT:
        path = row["audio"]["path"] if isinstance(row["audio"], Mapping) else row["audio"]
        raise RowError("wrong duration", f"{given:g} s, and {path} has {seconds:g} s; a part of a file has an `offset`")
    return {**row, "duration": seconds}


def id_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (file and line, id, the text behind it) of each line that is not empty."""
    for where, line in read_lines(path):
        if line:
            id, *rest = line.split(maxsplit=1)
            yield where, id, rest[0] if rest else ""
