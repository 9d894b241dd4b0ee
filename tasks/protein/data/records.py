"""Records of files of sequences, and the rows of the protein task that are made of them.

>thio Thioredoxin 1     -> Record("thio", "Thioredoxin 1", "MSDKIIHLTD", "x.fasta record 1 (thio)")
MSDKIIHLTD
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError
from mmdiff.protocols import Row


@dataclass(frozen=True, slots=True)
class Record:
    """A sequence of a file. id: the first word of a header; description: the rest of it.

    where: file, record and id, for errors. fields: the other columns of a table.
    """

    id: str
    description: str
    sequence: str
    where: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        names = ("id", "description", "sequence", "where")
        return {**self.fields, **{name: getattr(self, name) for name in names}}


def as_record(record: Record | Row) -> Record:
    """The record of a row, whose other columns become its fields."""
    if isinstance(record, Record):
        return record
    names = {one.name for one in fields(Record)}
    others = {name: value for name, value in record.items() if name not in names}
    return Record(
        record["id"], record.get("description", ""), record["sequence"], fields={**record.get("fields", {}), **others}
    )


def as_row(record: Record | Row) -> Row:
    """The row of a record."""
    return record.row if isinstance(record, Record) else record


def name_of(row: Row, number: int) -> str:
    """The id of a row; of one that has none its number, from 0."""
    return str(number if row.get("id") is None else row["id"])


def where_of(row: Row, number: int) -> str:
    """What errors call a row: its `where`, or its number, from 1, and its id."""
    return str(row.get("where") or f"record {number + 1} ({name_of(row, number)})")


def pass_over(
    lines: Iterable[Mapping[str, Any]],
    rows: Iterator[tuple[int, Row]],
    is_of: Callable[[Mapping[str, Any], Row, int], bool],
    file: Path | None,
) -> None:
    """Pass over the rows whose records a file holds already. is_of: whether a record is that of a row and its number.

    Raises ConfigError where the file holds the records of other rows.
    """
    for count, line in enumerate(lines):
        if (found := next(rows, None)) is None:
            raise ConfigError(f"{file} holds more records than the {count} of the input; choose another name")
        number, row = found
        if not is_of(line, row, number):
            old, new = line.get("id"), name_of(row, number)
            other = f"{old!r}, now {new!r}" if old != new else "another sequence"
            raise ConfigError(
                f"{file} was written for other records (record {number + 1} is {other}); choose another name"
            )
