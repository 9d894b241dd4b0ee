"""Rows of any task from any format, chosen by what a path ends in.

    {"image": "/data/cat.jpg", "question": "What is it?", "answer": "a cat", "where": "/data/rows.jsonl line 1"}

`where` names the file and the row in it, for error lines.
"""

from __future__ import annotations

import os.path
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mmdiff.data.fields import ENDINGS
from mmdiff.errors import ConfigError, DataError, located, nearest, shown
from mmdiff.files import unreadable
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row

from .lines import Lines
from .loaded import Arrow, Iterated, saved
from .matched import matched
from .parquet import Parquet
from .table import Table
from .tar import Tar

FORMATS: Mapping[str, Callable[[Sequence[Path]], Table]] = {
    ".jsonl": Lines, ".ndjson": Lines, ".parquet": Parquet, ".tar": Tar
}  # fmt: skip


@part
@dataclass(eq=False)
class Rows:
    """A source of rows that lie in files, read row by row as they are asked for.

    source: a file, a pattern (`shards/*.tar`; files come in order of their names) or a folder that `datasets` saved:
        JSON lines (`.jsonl`, `.ndjson`), Parquet (`.parquet`) or WebDataset's shards (`.tar`); a `datasets.Dataset` or
        `IterableDataset`, handed in from Python or made by a node of `mmdiff.data.formats.loaded.loaded`.
    fields: {field of the row: column or member of the file}, where they are called otherwise; the others stay.
    folder: where relative paths of `image` and `audio` start; None: the folder of the source. They must not lead out of
        it.
    on_error: "stop": a row that cannot be used ends the run in one line that names it. "skip": it is named and counted
        on stderr, and the row behind it is taken in its stead (`mmdiff.data.stream.Stream`).
    verify: every row is read once now, its media excepted. With "skip", those that cannot be read are left out for
        good, and counted by reason in `skipped`.
    limit: only the first rows; of what is streamed, those of an epoch (without it they are counted first).

    Raises ConfigError for arguments, DataError for files, MissingExtra where a format needs a package.
    """

    page: ClassVar[str] = "docs/data-formats.md"
    source: Any
    fields: Mapping[str, str] | None = None
    folder: str | None = None
    on_error: Literal["stop", "skip"] = "stop"
    verify: bool = False
    limit: AtLeast1 | None = None

    def __post_init__(self) -> None:
        self._columns = {column: field for field, column in (self.fields or {}).items()}
        self._root = Path(self.folder) if self.folder is not None else None
        if self._root is not None and not self._root.is_dir():
            raise DataError(f"folder: {shown(self._root)} is not a folder")
        self.files: list[Path] = []
        self._table, self._name = self._opened()
        if not len(self._table):
            raise DataError(f"{self._name}: no rows")
        self._usable: Any = None
        self.skipped: Counter[str] = Counter()
        if self.verify:
            self._verify()

    def _opened(self) -> tuple[Table, str]:
        given = self.source
        if not isinstance(given, str | Path):
            if isinstance(given, Mapping) and given and all(hasattr(one, "features") for one in given.values()):
                raise ConfigError(f"source: holds the splits {', '.join(map(str, given))}, expected one of them")
            if hasattr(given, "skip") and not hasattr(given, "__len__"):
                return Iterated(given, "streamed", self.limit), "streamed"
            if not (hasattr(given, "__len__") and hasattr(given, "cast_column")):
                raise ConfigError(f"source: a {type(given).__name__}, expected a path or what `datasets` loads")
            return Arrow(given, "dataset"), "dataset"
        self.files = files = matched(given)
        if self._root is None:
            self._root = files[0].parent
        if files[0].is_dir() and len(files) == 1:
            return Arrow(saved(files[0]), str(given)), str(given)
        kinds = sorted({file.suffix.lower() for file in files})
        if len(kinds) > 1:
            raise DataError(f"{shown(given)}: files of several formats ({', '.join(kinds)}), expected one")
        if kinds[0] not in FORMATS:
            raise DataError(f"{files[0]}: {kinds[0] or 'no ending'}, expected {', '.join(FORMATS)}")
        for file in files:
            if fault := unreadable(file):
                raise DataError(f"{shown(file)}: cannot be read ({fault})")
        return FORMATS[kinds[0]](files), str(given)

    def _verify(self) -> None:
        usable = []
        for i in range(len(self)):
            try:
                self[i]
            except DataError as error:
                if self.on_error == "stop":
                    raise
                self.skipped[str(error).removeprefix(f"{self._table.where(i)}: ").partition(":")[0][:80]] += 1
            else:
                usable.append(i)
        if self.skipped:
            report = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
            print(f"{self._name}: skipped {self.skipped.total()} of {len(self)} rows ({report})", file=sys.stderr)
            if not usable:
                raise DataError(f"{self._name}: no row can be used ({report})")
            self._usable = np.array(usable)

    @property
    def in_order(self) -> bool:
        """Whether rows can only be read one after the other, so that they are not shuffled."""
        return self._table.in_order

    @property
    def group_sizes(self) -> Sequence[int]:
        """The sizes of runs of rows that are read together; empty where any row is read alone."""
        sizes = self._table.group_sizes
        if not sizes or (self._usable is None and self.limit is None):
            return sizes
        kept = np.arange(len(self)) if self._usable is None else self._usable
        counts = np.bincount(np.searchsorted(np.cumsum(sizes), kept, side="right"), minlength=len(sizes))
        return [n for n in counts.tolist() if n]

    def __len__(self) -> int:
        if self._usable is not None:
            return len(self._usable)
        return len(self._table) if self.limit is None else min(self.limit, len(self._table))

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        i = index if self._usable is None else int(self._usable[index])
        where = self._table.where(i)
        with located(where):
            found = self._table.read(i)
            if absent := [column for column in self._columns if column not in found]:
                raise DataError(f"no {absent[0]}{nearest(absent[0], map(str, found))}")
            row = {self._columns.get(name, name): value for name, value in found.items() if value is not None}
            for field in ENDINGS:
                if field in row:
                    row[field] = self._media(row[field], field)
        return {**row, "where": where}

    def _media(self, value: Any, field: str) -> Any:
        if isinstance(value, list | tuple):
            return [self._media(one, field) for one in value] if all(map(_may_be_media, value)) else value
        if isinstance(value, Mapping) and {"bytes", "path"} >= set(value):  # as `datasets` stores them
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if not isinstance(value, str) or self._root is None or os.path.isabs(value):
            return value
        if os.path.normpath(value).split(os.sep)[0] == os.pardir:
            raise DataError(f"{field}: {shown(value)!r} leads out of {self._root}")
        return str(self._root / value)

    def length(self, index: int) -> float:
        """Returns about how long a row is, in bytes of its file or characters of its texts, without its media."""
        size = self._table.size(index if self._usable is None else int(self._usable[index]))
        return _characters({**self[index], "where": ""}) if size is None else size


def _may_be_media(value: Any) -> bool:
    return isinstance(value, str | bytes | Mapping)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_characters(one) for key, one in value.items() if key not in ENDINGS)
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0
