"""Documents: text files, JSON, tables and saved `datasets`, read one at a time.

    {"text": "Once upon a time ...", "where": "stories.jsonl line 1"}

Whatever yields such rows serves as documents: a list, a `datasets.Dataset`, `mmdiff.data.formats.rows.Rows`, these
classes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

from mmdiff.canvas.vocab import check_text
from mmdiff.data.formats.matched import matched
from mmdiff.errors import ConfigError, DataError, RowError, nearest, require
from mmdiff.files import as_object
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Share
from mmdiff.protocols import Row

from .files import needed, read


@part
@dataclass(eq=False)
class Documents:
    """The documents of files, in the order of their names, read as they are asked for; nothing is held.

    path: a file, a folder that `datasets` saved, or a pattern (`corpus/**/*.jsonl.gz`). What a file is follows from its
        ending: `.jsonl` and `.ndjson` hold an object per line, `.json` that or a list, `.parquet`, `.csv` and `.tsv` a
        table, all others one document of plain text; `.gz`, `.bz2`, `.xz` and `.zst` behind any of them are unpacked.
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
        self.files = matched(self.path)
        for package in filter(None, {needed(file) for file in self.files}):
            require(package, "text")

    def __iter__(self) -> Iterator[Row]:
        count, skipped = 0, 0
        for where, found in (pair for file in self.files for pair in read(file)):
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

    documents: Iterable[Row]
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
    """Yields (where, text) of documents of any kind. Raises DataError for what holds no text, ConfigError for no rows.

    Whatever can be gone through or asked by number will do.
    """
    rows = hasattr(documents, "__iter__") or hasattr(documents, "__getitem__")
    if not rows or isinstance(documents, str | bytes | Mapping):
        raise ConfigError(f"documents: {documents!r:.60}, expected what yields rows, {{target: ..., path: ...}} say")
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
