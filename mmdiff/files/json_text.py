"""JSON of people and of other programs: what a text or a line holds, or one line that says what is wrong with it.

    {"image": "cat.jpg", "question": "What is it?", "answer": "a cat"}

A line ends at a line feed alone: JSON may hold U+2028 or U+0085, which other readers of lines take for an end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from mmdiff.errors import DataError, RowError

LINE_BYTES = 1 << 26
"""Most bytes of a line of JSON, as of a small file that is read whole."""
MARK = b"\xef\xbb\xbf"  # some editors begin a file with it


def parse_json(text: bytes | str, *, nan: bool = True) -> Any:
    """Returns what a JSON text holds. Raises RowError, whose reason leaves out where in the text the fault is.

    nan: whether NaN and infinities, which Python writes and JSON does not have, are taken.
    """
    try:
        whole = text if isinstance(text, str) else text.removeprefix(MARK).decode()
        return json.loads(whole, object_pairs_hook=_distinct, parse_constant=None if nan else _no_number)
    except UnicodeDecodeError as error:
        raise RowError("not UTF-8", f"at byte {error.start}") from None
    except RecursionError:
        raise RowError("nested too deeply") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and whole[: error.pos].rstrip(" \t").endswith("\r"):
            raise RowError("not JSON", "several values; lines end in a carriage return, expected a line feed") from None
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise RowError("not JSON", f"{error.msg} at {line}column {error.colno}") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise RowError("not JSON", str(error)) from None


def _no_number(text: str) -> Any:
    raise RowError("not JSON", f"{text} is no number of it")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object. Raises RowError for a key that stands twice in it: readers of JSON differ in which counts."""
    out = dict(pairs)
    if len(out) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError("a key twice", f"{twice!r:.60}")
    return out


def as_object(value: Any) -> dict[str, Any]:
    """Returns a value of `json_lines` that is an object. Raises RowError for all else."""
    if isinstance(value, RowError):
        raise value
    if not isinstance(value, dict):
        raise RowError("not a JSON object", f"{value!r:.60}")
    return value


def json_object(text: bytes | str, *, nan: bool = True) -> dict[str, Any]:
    """Returns the object that a JSON text holds. nan: see `parse_json`. Raises RowError."""
    return as_object(parse_json(text, nan=nan))


def json_lines(file: IO[bytes] | IO[str], name: object, most: int = LINE_BYTES) -> Iterator[tuple[int, Any]]:
    """Yields number (from 1) and value of every line that is not blank; the value of a line that is none, a RowError.

    name: of the file, for the DataError that a line of more than `most` bytes raises.
    """
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            raise DataError(f"{name} line {number}: has more than {most:,} bytes")
        if line.strip():
            try:
                yield number, parse_json(line.rstrip())
            except RowError as error:
                yield number, error
