"""Files of mutational scans: ProteinGym's (`mutant`, `mutated_sequence`, `DMS_score`), and DeepSequence's (`mutant`
and one column per assay)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError, DataError, located, nearest, short
from mmdiff.tasks.protein.data.tables import entries

from .mutants import Mutation, parse_mutant, spelled

PROTEINGYM = ("mutated_sequence", "DMS_score")
MISSING = ("", "na", "nan", "null", "none")  # lower case


@dataclass(frozen=True)
class Scan:
    """A deep mutational scan: measured figures of mutants of one sequence.

    wild_type: its first residue has the number `offset`; `note` is where it comes from.

    names, mutants: of the rows that mutate something, in the file's order. scores: their figures by column, NaN where
    there is none. rows: of the file. synonymous: rows that were left out since they mutate nothing.
    """

    wild_type: str
    offset: int
    note: str
    names: list[str]
    mutants: list[list[Mutation]]
    scores: dict[str, list[float]]
    rows: int
    synonymous: int = 0


def read_scan(
    path: str | Path,
    wild_type: str | None = None,
    mutant_column: str = "mutant",
    score_column: str | Sequence[str] | None = None,
    offset: int | None = None,
) -> Scan:
    """A scan from CSV, TSV or JSON lines, `.gz` too.

    wild_type: None: that of `mutated_sequence` with the mutations taken back; without that column, the letters that
        the mutants themselves replace, if they cover every position from the first to the last.
    score_column: one or several; None: `DMS_score` where there is one, else every column of figures alone.
    offset: the number of the wild type's first residue. None: 1, or the first position that the mutants cover where
        the wild type is made of their letters.
    Empty cells and NaN are figures that are missing. Raises DataError that names file and line, ConfigError for a
    column that is not there.
    """
    rows = [(entry.line, entry.cells) for entry in entries(path, (mutant_column,))]
    columns = rows[0][1]
    found = []
    for line, cells in rows:
        with located(f"{path} line {line}"):
            found.append(spelled(str(cells[mutant_column])))
    if wild_type is not None:
        offset, note = 1 if offset is None else offset, "given"
    elif PROTEINGYM[0] in columns:
        offset, note = 1 if offset is None else offset, f"from {PROTEINGYM[0]}"
        wild_type = _taken_back(path, rows, found, offset)
    else:
        wild_type, offset = _from_letters(path, [line for line, _ in rows], found, offset)
        note = f"from the mutants' own letters, positions {offset}-{offset + len(wild_type) - 1}"
    names, mutants, kept = [], [], []
    for line, cells in rows:
        with located(f"{path} line {line}"):
            mutant = [one for one in parse_mutant(str(cells[mutant_column]), wild_type, offset) if one.old != one.new]
        if mutant:
            names.append(str(cells[mutant_column]).strip())
            mutants.append(mutant)
            kept.append((line, cells))
    if not names:
        raise DataError(f"{path}: no row mutates anything")
    scores = {
        name: [_figure(path, line, name, cells) for line, cells in kept]
        for name in _columns(path, rows, score_column, mutant_column)
    }
    return Scan(wild_type, offset, note, names, mutants, scores, len(rows), len(rows) - len(names))


def _taken_back(
    path: str | Path, rows: Sequence[tuple[int, Mapping[str, Any]]], found: Sequence[Sequence[Mutation]], offset: int
) -> str:
    """The wild type that all rows agree about."""
    wild_type = ""
    for (line, cells), mutant in zip(rows, found, strict=True):
        letters = list(str(cells.get(PROTEINGYM[0], "")))
        for one in mutant:
            index = one.at - offset
            if not 0 <= index < len(letters) or letters[index] != one.new:
                there = letters[index] if 0 <= index < len(letters) else "nothing"
                detail = f"position {one.at}: {one.new} in the mutant, {there} in {PROTEINGYM[0]}"
                raise DataError(f"{path} line {line}: {detail} (its first residue is taken for {offset}; see offset)")
            letters[index] = one.old
        wild_type = wild_type or "".join(letters)
        if "".join(letters) != wild_type:
            raise DataError(f"{path} line {line}: {PROTEINGYM[0]} comes of another wild type than in line {rows[0][0]}")
    return wild_type


def _from_letters(
    path: str | Path, lines: Sequence[int], found: Sequence[Sequence[Mutation]], offset: int | None
) -> tuple[str, int]:
    """The wild type's letters as the mutants name them, and the first position."""
    letter: dict[int, str] = {}
    for line, mutant in zip(lines, found, strict=True):
        for one in mutant:
            if letter.setdefault(one.at, one.old) != one.old:
                detail = f"position {one.at}: {one.old}, but {letter[one.at]} in a line before"
                raise DataError(f"{path} line {line}: {detail}")
    if not letter:
        raise DataError(f"{path}: no row mutates anything")
    first = min(letter) if offset is None else offset
    for position in range(min(first, min(letter)), max(letter) + 1):
        if position not in letter or position < first:
            detail = "comes before the offset" if position < first else "is in no mutant"
            raise DataError(f"{path}: position {position} {detail}, so the wild type is not known; expected wild_type")
    return "".join(letter[position] for position in sorted(letter)), first


def _columns(
    path: str | Path,
    rows: Sequence[tuple[int, Mapping[str, Any]]],
    asked: str | Sequence[str] | None,
    mutant_column: str,
) -> list[str]:
    """Those with figures. Raises ConfigError."""
    columns = list(rows[0][1])
    if asked is not None:
        names = [asked] if isinstance(asked, str) else list(asked)
        for name in names:
            if name not in columns:
                raise ConfigError(f"{path}: no column {name!r}{nearest(name, columns)}")
        return names
    if PROTEINGYM[1] in columns:
        return [PROTEINGYM[1]]
    names = [
        name
        for name in columns
        if name not in (mutant_column, PROTEINGYM[0])
        and all(_number(cells.get(name)) is not None for _, cells in rows)
        and any(not math.isnan(_number(cells.get(name)) or 0.0) for _, cells in rows)
    ]
    if not names:
        raise ConfigError(f"{path}: no column of figures{nearest(PROTEINGYM[1], columns)}")
    return names


def _figure(path: str | Path, line: int, name: str, cells: Mapping[str, Any]) -> float:
    number = _number(cells.get(name))
    if number is None:
        raise DataError(f"{path} line {line}: {name}: {short(repr(cells.get(name)), 60)}, expected a number or nothing")
    return number


def _number(cell: Any) -> float | None:
    """NaN where there is nothing, None for what is no number."""
    if cell is None or str(cell).strip().lower() in MISSING:
        return math.nan
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
