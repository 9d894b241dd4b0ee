"""Labels of sequences or of residues, from a file of their ids.

A FASTA-like file has a letter per residue, `-` and `?` for residues without a label, which probes leave out:

    >1abc
    HHHHCC-EEE

A table (.csv, .tsv) has a row per sequence, `id,label` or `id,label,group`:

    id,label,group
    1abc,kinase,cluster 7

Either may be packed (.gz).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.errors import ConfigError, DataError, nearest, short
from mmdiff.tasks.protein.data.fasta import blocks, decoded
from mmdiff.tasks.protein.data.tables import entries

KINDS = ("auto", "classification", "regression")
CLASSES = 20  # distinct whole numbers up to which labels are taken for classes
UNRESOLVED = "-?"


@dataclass(frozen=True)
class Labels:
    """Labels by id, and groups by id of a table with such a column.

    by_residue: whether a label is one letter per residue.
    """

    path: str
    label: dict[str, str]
    group: dict[str, str]
    by_residue: bool

    def of(self, ids: Iterable[str]) -> tuple[list[str], list[str]]:
        """(labels, groups) of records in the order of `ids`. Without groups each id is one, so that records of the same
        id stay together. Raises DataError that names an id without a label."""
        labels, groups = [], []
        for i, name in enumerate(ids):
            if name not in self.label:
                near = nearest(name, self.label)
                raise DataError(f"{self.path}: no label for record {i + 1}, {short(repr(name), 60)}{short(near)}")
            labels.append(self.label[name])
            groups.append(self.group.get(name, name))
        return labels, groups


def read_labels(path: str | Path) -> Labels:
    """Read labels. Raises DataError that names file, line and id: a repeated id, a missing label or column."""
    by_residue = not str(path).lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    label: dict[str, str] = {}
    group: dict[str, str] = {}
    for line, name, value, of_group in _residues(path) if by_residue else _table(path):
        if name in label:
            raise DataError(f"{path} line {line}: {short(repr(name), 60)} has a label already")
        if not value:
            raise DataError(f"{path} line {line}: {short(repr(name), 60)} has no label")
        label[name] = value
        if of_group is not None:
            group[name] = of_group
    return Labels(str(path), label, group, by_residue)


Found = tuple[int, str, str, str | None]  # line, id, label, group


def _residues(path: str | Path) -> Iterator[Found]:
    for block in blocks(path):
        lines = (decoded(text, path, line) for line, text in enumerate(block.lines, block.line + 1))
        yield block.line, block.named(path)[0], "".join("".join(lines).split()), None


def _table(path: str | Path) -> Iterator[Found]:
    for entry in entries(path, ("id", "label")):
        row = {name: str(cell).strip() for name, cell in entry.cells.items()}
        if row.get("group") == "":
            raise DataError(f"{path} line {entry.line}: {row['id']!r} has no group")
        yield entry.line, row["id"], row["label"], row.get("group")


def label_array(labels: Sequence[Any], kind: str) -> tuple[NDArray[Any], str]:
    """Labels as an array, of strings or float64, and their kind. Raises ConfigError, DataError."""
    if kind not in KINDS:
        raise ConfigError(f"kind: {kind!r} is none{nearest(kind, KINDS)}")
    numbers = [_number(label) for label in labels]
    if kind == "auto":
        for i, label in enumerate(labels):
            if numbers[i] is None and _is_float(label):
                raise DataError(f"label {i + 1}: {label!r}, expected a finite number, or a name")
        real = [x for x in numbers if x is not None]
        is_measured = any(x != round(x) for x in real) or len(set(real)) > CLASSES
        kind = "regression" if real and len(real) == len(numbers) and is_measured else "classification"
    if kind == "classification":
        return np.array([str(label) for label in labels]), kind
    for i, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        if number is None:
            raise DataError(f"label {i + 1}: {short(repr(label), 60)} is not a number, as regression needs")
    return np.array(numbers, dtype=np.float64), kind


def _number(label: Any) -> float | None:
    return float(label) if _is_float(label) and np.isfinite(float(label)) else None


def _is_float(label: Any) -> bool:
    try:
        float(label)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
