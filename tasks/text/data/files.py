"""One file of documents, read a document at a time. What it is follows from its ending.

stories.jsonl.zst    {"text": "Once upon a time ..."} per line, packed
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from mmdiff.data.formats.loaded import saved
from mmdiff.errors import DataError, RowError, line_of, require, shown
from mmdiff.files import json_lines, parse_json, unreadable
from mmdiff.files.json_text import MARK

Found = Iterator[tuple[str, Mapping[str, Any] | RowError]]
"""File and row in it, and the row; a RowError where it cannot be read."""

LONGEST_CELL = 2**31 - 1  # characters of a table's cell; Python's own limit is 131,072, less than a long document


def read(path: Path) -> Found:
    """Yields the rows of a file, or of a folder that `datasets` saved. Raises DataError for the file as a whole."""
    if path.is_dir():
        for n, row in enumerate(saved(path)):
            yield f"{path} row {n}", row
        return
    if fault := unreadable(path):
        raise DataError(f"{shown(path)}: cannot be read ({fault})")
    packed, kind = _endings(path)
    if kind == ".parquet":
        if packed:
            raise DataError(f"{path}: Parquet packs its own columns, expected .parquet without {packed}")
        yield from _table(path)
    else:
        yield from READERS.get(kind, _plain)(path)


def needed(path: Path) -> str | None:
    """Returns the package that a file needs, None where Python reads it."""
    packed, kind = _endings(path)
    if path.is_dir():
        return "datasets"
    return "pyarrow" if kind == ".parquet" or packed == ".zst" else None


def _endings(path: Path) -> tuple[str, str]:
    """Returns how a file is packed, "" where it is not, and what it is, in small letters."""
    last = path.suffix.lower()
    return (last, Path(path.stem).suffix.lower()) if last in PACKED else ("", last)


def _plain(path: Path) -> Found:
    with _unpacked(path) as file:
        try:
            yield str(path), {"text": file.read().decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            yield str(path), RowError("not UTF-8", f"at byte {error.start}")
        except DAMAGED as error:
            yield str(path), RowError("cannot be read", line_of(error))


def _lines(path: Path) -> Found:
    with _unpacked(path) as file:
        try:
            yield from ((f"{path} line {n}", value) for n, value in json_lines(file, path))
        except DAMAGED as error:  # a packed file that is cut off
            yield str(path), RowError("cannot be read", line_of(error))


def _list_or_lines(path: Path) -> Found:
    """`.json` is a list in some sets, an object per line in others; a list is read whole."""
    try:
        with _unpacked(path) as file:
            first = file.read(256).removeprefix(MARK).lstrip()
            whole = first + file.read() if first.startswith(b"[") else None
        found = None if whole is None else parse_json(whole)
    except RowError as error:
        yield str(path), error
    except DAMAGED as error:
        yield str(path), RowError("cannot be read", line_of(error))
    else:
        yield from _lines(path) if found is None else ((f"{path} row {n}", row) for n, row in enumerate(found))


def _cells(path: Path, delimiter: str) -> Found:
    csv.field_size_limit(LONGEST_CELL)
    with _unpacked(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            _ = rows.fieldnames  # reads the first line
            while True:
                where = f"{path} line {rows.line_num + 1}"  # where a row begins: a cell may hold several lines
                row = next(rows)
                yield where, {name: cell for name, cell in row.items() if name is not None}
        except StopIteration:
            return
        except (csv.Error, *DAMAGED) as error:
            yield f"{path} line {rows.line_num + 1}", RowError("cannot be read", line_of(error))


def _table(path: Path) -> Found:
    from pyarrow import parquet

    n = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield f"{path} row {n}", row
                    n += 1
    except DataError:
        raise
    except Exception as error:  # damaged pages make decoders raise nearly anything
        raise DataError(f"{path}: not a Parquet file that can be read ({line_of(error)})") from None


def _unpacked(path: Path) -> Any:
    packed, _ = _endings(path)
    return PACKED[packed](path) if packed else open(path, "rb")


def _zstandard(path: Path) -> IO[bytes]:
    require("pyarrow", "text")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


PACKED: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstandard
}  # fmt: skip
DAMAGED = (OSError, EOFError, lzma.LZMAError, ValueError)
READERS: Mapping[str, Callable[[Path], Found]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _list_or_lines,
    ".csv": partial(_cells, delimiter=","),
    ".tsv": partial(_cells, delimiter="\t"),
}
