"""Protein sequences, and pairs of chains, in tables: CSV, TSV and JSON lines.

    id,sequence                      id,target,binder
    thio,MSDKIIHLTD                  1abc,MKTAYIAKQR,GSHMLEDP

`read_csv` reads tables of the first kind, `Pairs` those of the second.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from mmdiff.data.fields import text_fault
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError, located, nearest, short
from mmdiff.files import as_object, json_lines
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row
from mmdiff.tasks.protein.residues import CANONICAL

from .files import LONGEST, TABLES, lines, reading, suffix, writing
from .policies import Policy, cleaned, policy_of
from .records import Record


def read_csv(
    path: str | Path, column: str = "sequence", id_column: str | None = None, **policy: str
) -> Iterator[Record]:
    """The sequences in a column of a table: CSV, TSV (tabs) or JSON lines, by the ending of its name.

    id_column: None: `id` where there is one, else the number of the record. `description` is read where there is one;
    other columns are kept in `fields`. Raises as `read_fasta` does, and DataError for columns that are not there.
    """
    return _read_table(path, column, id_column, policy_of(policy))


def write_table(path: str | Path, rows: Iterable[Row], *, overwrite: bool = False) -> None:
    """Write rows as CSV, TSV or JSON lines, by the ending of the name; the columns are those of the first row.

    Raises ConfigError for a file that is there already, unless `overwrite`; DataError for a row with other columns.
    """
    with writing(path, overwrite) as file:
        if suffix(path) == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer = csv.writer(file, delimiter="\t" if suffix(path) == ".tsv" else ",", lineterminator="\n")
        columns: list[str] = []
        for number, row in enumerate(rows, 1):
            if not columns:
                columns = list(row)
                writer.writerow(columns)
            if row.keys() != set(columns):
                raise DataError(f"{path} record {number}: columns {list(row)}, expected {columns}")
            writer.writerow([row[name] for name in columns])


@part
class Pairs:
    """Pairs of chains from CSV, TSV or JSON lines: rows {"id", "target", "sequence", "where"}, held in memory.

    target, binder: their columns; the binder is the `sequence` of a row. id_column: as in `read_csv`.
    swap: every pair twice, the second time with its chains exchanged (ids end in `-swapped`).
    limit: the first pairs only. max_length: pairs with more letters, both chains together, are left out; `skipped`
    counts them. lower, gaps, stop, unknown: see `Policy`. Raises as `read_csv` does, and DataError if no pair is left.
    """

    page = "docs/data/fasta.md"

    def __init__(
        self,
        path: str,
        target: str = "target",
        binder: str = "binder",
        id_column: str | None = None,
        swap: bool = False,
        limit: AtLeast1 | None = None,
        max_length: AtLeast1 | None = None,
        lower: str = "upper",
        gaps: str = "drop",
        stop: str = "strip",
        unknown: str = "keep",
    ) -> None:
        policy = Policy(lower, gaps, stop, unknown)
        self.swap, self.skipped = swap, 0
        self._rows: list[tuple[str, str, str, str]] = []
        for entry in entries(path, (target, binder, *([id_column] if id_column else []))):
            if entry.number - 1 == limit:
                break
            id, where = _named(path, entry, id_column)
            a, b = (_cell(entry, name, where, policy, f"{name} ") for name in (target, binder))
            if max_length is not None and len(a) + len(b) > max_length:
                self.skipped += 1
            else:
                self._rows.append((id, a, b, where))
        if not self._rows:
            raise DataError(f"{path}: no pair has at most {max_length} letters")

    def __len__(self) -> int:
        return len(self._rows) * (1 + self.swap)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        pair, swapped = divmod(index, 2) if self.swap else (index, 0)
        id, target, binder, where = self._rows[pair]
        if swapped:
            id, target, binder = f"{id}-swapped", binder, target
        return {"id": id, "target": target, "sequence": binder, "where": where}

    def length(self, index: int) -> float:
        """Letters of both chains."""
        _, a, b, _ = self._rows[index // 2 if self.swap else index]
        return float(len(a) + len(b))

    @classmethod
    def toy(
        cls, path: str, target: str = "target", binder: str = "binder", id_column: str | None = None, **settings: Any
    ) -> Pairs:
        """A file of drawn pairs instead of `path`, written and read back."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / "toy.jsonl"
            rows = ({id_column or "id": f"toy{i}", target: drawn(9 + i, i), binder: drawn(6, 8 + i)} for i in range(8))
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            return cls(str(file), target, binder, id_column, **settings)


def drawn(length: int, number: int) -> str:
    """`length` residues, each of the 20 as likely as any, by number."""
    u = NoiseKey(0, stream="toy protein").uniform(number, length)
    return "".join(CANONICAL[i] for i in (u * len(CANONICAL)).astype(int))


class Entry(NamedTuple):
    """A row of a table: its number, from 1, its line, and its cells by column."""

    number: int
    line: int
    cells: Mapping[str, Any]


def entries(path: str | Path, columns: Sequence[str]) -> Iterator[Entry]:
    """The rows of a table, which must have `columns`. Raises DataError; ConfigError for the ending of the name."""
    ending = suffix(path)
    if ending not in TABLES:
        raise ConfigError(f"{short(path)}: {ending} is no table (known: {', '.join(TABLES)}, .gz)")
    number = 0
    with reading(path) as raw:
        if ending == ".jsonl":
            rows = _json_lines(raw, path, columns)
        else:
            file = io.TextIOWrapper(cast(Any, raw), encoding="utf-8-sig", newline="")
            rows = _lines(file, path, columns, "\t" if ending == ".tsv" else ",")
        for number, (line, cells) in enumerate(rows, 1):
            yield Entry(number, line, cells)
    if not number:
        raise DataError(f"{path}: no records")


def _demand(columns: Sequence[str], there: Iterable[str], where: str) -> None:
    for name in columns:
        if name not in there:
            raise DataError(f"{where}: no column {short(repr(name), 60)}{short(nearest(name, there))}")


def _lines(
    file: TextIO, path: str | Path, columns: Sequence[str], delimiter: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines(file, path), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if names is None:
                names = [name.strip() for name in cells]
                if double := [name for name in names if names.count(name) > 1]:
                    raise DataError(f"{path} line {reader.line_num}: two columns {short(repr(double[0]), 60)}")
                _demand(columns, names, f"{path} line {reader.line_num}")
            elif len(cells) != len(names):
                raise DataError(f"{path} line {reader.line_num}: {len(cells)} cells, expected {len(names)}")
            else:
                yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}") from None


def _json_lines(file: BinaryIO, path: str | Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, value in json_lines(file, path, LONGEST):
        with located(f"{path} line {line}"):
            found = as_object(value)
            if fault := text_fault(found):
                raise DataError("".join(fault))
        _demand(columns, found, f"{path} line {line}")
        yield line, found


def _named(path: str | Path, entry: Entry, id_column: str | None) -> tuple[str, str]:
    """(id, where)."""
    id = entry.cells.get(id_column or "id")
    id = str(entry.number) if id is None or id == "" else str(id)
    return id, f"{path} record {entry.number} ({short(id, 60)})"


def _cell(entry: Entry, column: str, where: str, policy: Policy, what: str = "") -> str:
    found = entry.cells[column]
    if not isinstance(found, str):
        raise DataError(f"{where}, line {entry.line}: {column} is {found!r:.40}, expected a sequence")
    return cleaned([found.encode("utf-8", "replace")], entry.line, where, policy, what)


def _read_table(path: str | Path, column: str, id_column: str | None, policy: Policy) -> Iterator[Record]:
    for entry in entries(path, (column, *([id_column] if id_column else []))):
        id, where = _named(path, entry, id_column)
        sequence = _cell(entry, column, where, policy)
        read = {column, id_column or "id", "description"}
        others = {name: value for name, value in entry.cells.items() if name not in read}
        yield Record(id, str(entry.cells.get("description") or ""), sequence, where, others)
