"""What readers of rows share: files of JSON or of lines, and sources whose rows are checked before any is handed out.

    {"image": "cat.jpg", "question": "What is it?", "answer": "a cat", "where": "rows.json row 0"}

`where` names the file and the row in it, for error lines.
"""

from __future__ import annotations

import io
import os.path
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

from mmdiff.data.fields import fault_of
from mmdiff.errors import DataError, RowError, nearest, shown
from mmdiff.files import json_lines, parse_json, unreadable
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row

BYTES = 8 * 1024**3
"""Most bytes of a file of rows, which is read whole."""


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Returns (file and line, text without white space around it) of every line. Raises DataError for the file."""
    lines = _content(path).split("\n")
    if not lines[-1]:
        lines.pop()
    return [(f"{path} line {n}", line.strip()) for n, line in enumerate(lines, 1)]


def read_json(path: Path) -> list[tuple[str, Any]]:
    """Returns (file and row, value) of a JSON list, of one object, or of one object per line.

    The value of a line that is not JSON is a RowError. Raises DataError for the file.
    """
    text = _content(path)
    try:
        whole = parse_json(text)
    except RowError as error:
        if text.lstrip().startswith("[") or "\n" not in text.strip() and error.reason == "nested too deeply":
            raise DataError(f"{path}: {error}") from None
    else:
        if isinstance(whole, list):
            return [(f"{path} row {i}", value) for i, value in enumerate(whole)]
        return [(f"{path} line 1", whole)]
    return [(f"{path} line {n}", _expected(value)) for n, value in json_lines(io.StringIO(text), path)]


def _expected(value: Any) -> Any:
    if isinstance(value, RowError) and value.reason == "not JSON":
        return RowError(value.reason, f"{value.detail}; expected a list, or one object per line")
    return value


def _content(path: Path) -> str:
    if fault := unreadable(path):
        there = fault == "no such file"
        near = nearest(path.name, [p.name for p in path.parent.glob("*")]) if there else ""
        fault = f"no such file{near if 'did you mean' in near else ''}" if there else f"cannot be read ({fault})"
        raise DataError(f"{shown(path)}: {fault}")
    if path.stat().st_size > BYTES:
        raise DataError(f"{path}: has {path.stat().st_size:,} bytes, expected at most {BYTES:,}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        packed = error.object.startswith(b"\x1f\x8b")
        fault = "packed by gzip, expected text; unpack it" if packed else f"not UTF-8 at byte {error.start}"
        raise DataError(f"{path}: {fault}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def begin_with(ids: Collection[str], lines: Sequence[tuple[str, str]]) -> bool:
    """Whether most lines begin with one of `ids`. Most and not all: a wrong id is then an error, and not a word."""
    known, first = set(ids), [line.split(maxsplit=1)[0] for _, line in lines if line]
    return 2 * sum(word in known for word in first) > len(first)


OnError = Literal["stop", "skip"]
Make = Callable[[], Row]
Entry = tuple[str, Make]
"""File and line of a row, and the function that makes the row; it raises RowError where the row cannot be used."""


@dataclass(eq=False)
class CheckedRows:
    """A source of rows from files, all of which are checked before any row is handed out.

    on_error: "stop" raises a DataError for the first row that cannot be used; "skip" leaves such rows out, prints one
        line about them on stderr, and counts them by reason in `skipped`.
    limit: only the first rows are read.
    verify: the media of every row are opened now (threads share the work), so that a damaged file is found before
        anything runs on it. False checks only that the files exist.

    Raises ConfigError for arguments, DataError for the file and where no row can be used. A source defines `origin`,
    `entries`, `verified` and `toy_files`.
    """

    on_error: OnError = field(default="stop", kw_only=True)
    limit: AtLeast1 | None = field(default=None, kw_only=True)
    verify: bool = field(default=True, kw_only=True)

    _folder: TemporaryDirectory[str] | None = field(
        default=None, init=False, repr=False
    )  # of a toy: as long as its rows

    def __post_init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.rows: list[Row] = self._usable(islice(self.entries(), self.limit))
        if self.verify:
            pool = ThreadPoolExecutor()
            try:
                self.rows = self._usable(self.verified(pool, self.rows))
            finally:
                pool.shutdown(cancel_futures=True)
        report = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
        if not self.rows:
            raise DataError(f"{self.origin()}: no row can be used ({report or 'it has none'})")
        if report:
            left_out = self.skipped.total()
            print(
                f"{self.origin()}: skipped {left_out} of {len(self.rows) + left_out} rows ({report})", file=sys.stderr
            )

    def origin(self) -> str:
        """Returns the file or folder that errors about the whole source name."""
        raise NotImplementedError

    def entries(self) -> Iterator[Entry]:
        """Yields the entries of the files, in order."""
        raise NotImplementedError

    def verified(self, pool: Executor, rows: Sequence[Row]) -> Iterable[Entry]:
        """Returns the entries of `rows` once more; those whose media cannot be read raise RowError."""
        raise NotImplementedError

    @classmethod
    def toy_files(cls, folder: Path, **arguments: Any) -> dict[str, Any]:
        """Writes a small example into `folder`, and returns the arguments that read it."""
        raise NotImplementedError

    @classmethod
    def toy(cls, *files: Any, **arguments: Any) -> Self:
        """A small example, written and read back, in place of the files that the arguments name."""
        folder = TemporaryDirectory()
        source = cls(**{**arguments, **cls.toy_files(Path(folder.name), **arguments)})
        source._folder = folder
        return source

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def _usable(self, entries: Iterable[Entry]) -> list[Row]:
        rows = []
        for where, make in entries:
            try:
                rows.append(make())
            except RowError as error:
                if self.on_error == "stop":
                    raise DataError(f"{where}: {error}") from None
                self.skipped[error.reason] += 1
        return rows


def file_under(root: Path, given: Any, field: str, noun: str) -> str:
    """Returns the full path of a file under `root`, or of an absolute path. Raises RowError.

    field: of the row that holds the path. noun: what the file is called in errors.
    """
    if not isinstance(given, str) or not given:
        raise RowError(f"{field} is not a path", f"{given!r:.60}")
    if "\0" in given:
        raise RowError(f"{field} is not a path", f"{given!a:.60}")
    if not os.path.isabs(given) and os.path.normpath(given).split(os.sep)[0] == os.pardir:
        raise RowError(f"{noun} outside the folder", f"{shown(given)!r} leads out of {root}")
    path = root / given
    fault = unreadable(path)
    if fault == "no such file":
        raise RowError(f"missing {noun}", shown(path))
    if fault:
        article = "an" if noun[0] in "aeiou" else "a"
        raise RowError(f"{field} is not {article} {noun}", f"{shown(path)}: {fault}")
    return str(path)


def check_fields(row: Row, fields: Collection[str]) -> None:
    """Raise RowError for a field that looks like one that the row lacks, and for text that is none."""
    if fault := fault_of(row, fields):
        raise RowError(*fault)


def folder_at(argument: str, path: Path) -> Path:
    """Returns `path`. Raises DataError unless it is a folder."""
    if unreadable(path) != "a folder":
        raise DataError(f"{argument}: {shown(path)} is not a folder")
    return path
