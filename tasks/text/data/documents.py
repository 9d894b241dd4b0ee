"""Documents: text files, JSON lines, Parquet and saved `datasets`, read one at a time.

    {"text": "Once upon a time ...", "where": "stories.jsonl line 1"}

Whatever yields such rows serves as documents: a list, a `datasets.Dataset`, `mmdiff.data.formats.rows.Rows`, these
classes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

from mmdiff.canvas.vocab import check_text
from mmdiff.data.formats.loaded import saved
from mmdiff.errors import DataError, RowError, nearest, require, shown
from mmdiff.files import as_object, json_lines, unreadable
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Share
from mmdiff.protocols import Row

Found = Iterator[tuple[str, Mapping[str, Any] | RowError]]
"""File and row in it, and the row; a RowError where it cannot be read."""


@part
@dataclass(eq=False)
class Documents:
    """The documents of files, in the order of their names, read as they are asked for; nothing is held.

    path: a file, a folder that `datasets` saved, or a pattern (`corpus/**/*.jsonl.gz`). What a file is follows from its
        ending: `.jsonl` and `.ndjson` hold an object per line, `.parquet` a table, all others one document of plain
        text; `.gz` behind any of the first and the last is unpacked.
    field: the column or field of the text.
    on_error: "stop" raises a DataError for a row that cannot be used; "skip" leaves it out, and logs how many were.
    limit: only the first documents.

    Raises DataError for a pattern that nothing matches, MissingExtra where a format needs a package.
    """

    page: ClassVar[str] = "docs/data/documents.md"
    path: str
    field: str = "text"
    on_error: Literal["stop", "skip"] = "stop"
    limit: AtLeast1 | None = None

    def __post_init__(self) -> None:
        self.files = sorted(map(Path, glob(self.path, recursive=True)))
        if not self.files:
            beside = [str(p) for p in Path(self.path).parent.glob("*")]
            near = nearest(self.path, beside)
            raise DataError(f"{shown(self.path)}: no such file{near if 'did you mean' in near else ''}")
        if any(file.suffix == ".parquet" for file in self.files):
            require("pyarrow", "text")
        if any(file.is_dir() for file in self.files):
            require("datasets", "text")

    def __iter__(self) -> Iterator[Row]:
        count, skipped = 0, 0
        for where, found in (pair for file in self.files for pair in _read(file)):
            if count == self.limit:
                break
            try:
                text = _text(found, self.field)
            except DataError as error:
                if self.on_error == "stop":
                    raise DataError(f"{where}: {error}") from None
                skipped += 1
                continue
            count += 1
            yield {"text": text, "where": where}
        if skipped:
            print(f"{self.path}: skipped {skipped} of {count + skipped} documents", file=sys.stderr)

    @classmethod
    def toy(cls, path: str, field: str = "text", **arguments: Any) -> Self:
        """A small file of JSON lines in place of the files that the arguments name."""
        folder = TemporaryDirectory()
        file = Path(folder.name) / "toy.jsonl"
        lines = (json.dumps({field: f"{word} is the word of document {n}."}) for n, word in enumerate(TOY))
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        made = cls(str(file), field, **arguments)
        made._folder = folder  # type: ignore[attr-defined]
        return made


TOY = "river stone apple night candle winter harbour window".split()


@part
@dataclass(eq=False)
class Split:
    """The documents that are held out, or all others. A text decides by itself, so copies of one lie on one side.

    heldout: the share that is held out. which: "train" for the others.
    """

    documents: Any
    heldout: Share = 0.05
    which: Literal["train", "heldout"] = "train"

    def __iter__(self) -> Iterator[Row]:
        for row in self.documents:
            digest = hashlib.blake2b(str(row["text"]).encode(), digest_size=8).digest()
            if (int.from_bytes(digest) < self.heldout * 2**64) == (self.which == "heldout"):
                yield row

    @classmethod
    def toy(cls, documents: Any, **settings: Any) -> Any:
        """All documents: of a few, none may be on one side."""
        return documents


def texts_of(documents: Iterable[Row], field: str = "text") -> Iterator[tuple[str, str]]:
    """Yields (where, text) of documents of any kind. Raises DataError for what holds no text."""
    for n, row in enumerate(documents):
        where = str(row.get("where", f"document {n}")) if isinstance(row, Mapping) else f"document {n}"
        try:
            yield where, _text(row, field)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def _text(row: Any, field: str) -> str:
    row = as_object(row)
    if field not in row:
        raise RowError(f"no {field}", nearest(field, map(str, row)).strip())
    text = row[field]
    if not isinstance(text, str):
        raise RowError(f"{field} is not text", f"{text!r:.60}")
    check_text(text)
    return text


def _read(path: Path) -> Found:
    if path.is_dir():
        yield from _saved(path)
        return
    if fault := unreadable(path):
        raise DataError(f"{shown(path)}: cannot be read ({fault})")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    yield from READERS.get(kind, _plain)(path)


def _plain(path: Path) -> Found:
    with _unpacked(path) as file:
        try:
            yield str(path), {"text": file.read().decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            yield str(path), RowError("not UTF-8", f"at byte {error.start}")
        except (OSError, EOFError) as error:
            yield str(path), RowError("cannot be read", str(error))


def _lines(path: Path) -> Found:
    with _unpacked(path) as file:
        try:
            yield from ((f"{path} line {n}", value) for n, value in json_lines(file, path))
        except (OSError, EOFError) as error:  # a packed file that is cut off
            yield str(path), RowError("cannot be read", str(error))


def _table(path: Path) -> Found:
    import pyarrow
    from pyarrow import parquet

    n = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield f"{path} row {n}", row
                    n += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({' '.join(str(error).split())[:200]})") from None


def _saved(path: Path) -> Found:
    for n, row in enumerate(saved(path)):
        yield f"{path} row {n}", row


def _unpacked(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


READERS: Mapping[str, Callable[[Path], Found]] = {".jsonl": _lines, ".ndjson": _lines, ".parquet": _table}
