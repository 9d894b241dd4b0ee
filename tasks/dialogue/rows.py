"""What readers of rows share: files of JSON or of lines, and what happens to rows that cannot be used.

    {"image": "cat.jpg", "question": "What is it?", "answer": "a cat", "where": "rows.json row 0"}

`where` names the file and the row of it, for error lines. A reader either stops at a row that cannot be used, or leaves
it out and counts it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mmdiff.errors import DataError, nearest


class RowError(DataError):
    """A row that cannot be used. `reason` is its kind of fault, in the same words for all rows that share it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_lines(path: Path) -> list[tuple[str, str]]:
    """(file and line, text without white space around it) of every line. Raises DataError for the file."""
    lines = _content(path).split("\n")
    if not lines[-1]:
        lines.pop()
    return [(f"{path} line {n}", line.strip()) for n, line in enumerate(lines, 1)]


def read_json(path: Path) -> list[tuple[str, Any]]:
    """(file and row, value) of a JSON list, one object, or an object per line; a RowError for a line of no JSON."""
    text = _content(path)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise DataError(f"{path} line {error.lineno}: not JSON ({error.msg})") from None
    else:
        if isinstance(whole, list):
            return [(f"{path} row {i}", value) for i, value in enumerate(whole)]
        return [(f"{path} line 1", whole)]
    rows: list[tuple[str, Any]] = []
    for where, line in read_lines(path):
        if line:
            try:
                rows.append((where, json.loads(line)))
            except json.JSONDecodeError as error:
                detail = f"{error.msg} at column {error.colno}; expected a list, or one object a line"
                rows.append((where, RowError("not JSON", detail)))
    return rows


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = [p.name for p in path.parent.glob("*")]
        near = nearest(path.name, there)
        raise DataError(f"{path}: no such file{near if 'did you mean' in near else ''}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def begin_with(ids: Collection[str], lines: Sequence[tuple[str, str]]) -> bool:
    """Most and not all: what is wrong with the ids is then said, instead of taking them for words."""
    known, first = set(ids), [line.split(maxsplit=1)[0] for _, line in lines if line]
    return 2 * sum(word in known for word in first) > len(first)


OnError = Literal["stop", "skip"]


class UnusableRows:
    """What happens to rows that raise a RowError: on_error "stop" raises DataError, "skip" counts them in `skipped`."""

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.skipped: Counter[str] = Counter()

    @contextmanager
    def checked(self, where: str) -> Iterator[None]:
        """A block that reads the row of `where`, which stands in front of the error."""
        try:
            yield
        except RowError as error:
            if self.on_error == "stop":
                raise DataError(f"{where}: {error}") from None
            self.skipped[error.reason] += 1
