"""Aligned families: match columns, column frequencies, identity, and rows held out by clusters.

    >seq1/1-6
    MK-tAYIA      -> match columns M K - A Y I A, the insertion t dropped

An alignment is A3M, ColabFold's too, or FASTA as Pfam writes it (`.afa`): upper case and '-' are match columns, lower
case and '.' are insertions, which are dropped. Or it is Stockholm (`stockholm.py`), known by its first line.

Shape letters: N rows, C match columns, 21 the residues in the order of `CANONICAL` and the gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmdiff.config.typed import typed
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, BetweenZeroAndOne, Positive, PositiveShare, Share, Whole
from mmdiff.protocols import Row
from mmdiff.tasks.protein.residues import CANONICAL, GAP, codes

from .clustering import clusters, near
from .clustering import identity as identity
from .fasta import read_a3m, read_fasta, write_fasta
from .files import TABLES
from .records import Record
from .stockholm import is_stockholm, read_stockholm
from .tables import drawn, read_csv

LETTERS = CANONICAL + GAP


@dataclass(frozen=True)
class Alignment:
    """Rows of equally many match columns. dropped: how many rows were left out, by reason."""

    ids: Sequence[str]
    sequences: Sequence[str]
    where: Sequence[str]
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        return len(self.sequences[0])


@typed
def read_alignment(path: str | Path, max_gaps: Share = 1.0, distinct: bool = False) -> Alignment:
    """The match columns of an A3M, `.afa` or Stockholm file (`.gz` too).

    max_gaps: rows with a larger share of gaps are dropped. distinct: of rows that are the same only the first is kept.
    Raises DataError for a row with another number of match columns than the first, and when no row is left.
    """
    records, dropped = _kept(_aligned(path), path, max_gaps=max_gaps, distinct=distinct, canonical=False)
    ids, sequences, where = zip(*((r.id, r.sequence, r.where) for r in records), strict=True)
    return Alignment(ids, sequences, where, dropped)


class Profile:
    """Letters of each column, independent of each other: the baseline of every model of a family.

    rows: of equal length. pseudo: observations added to each of the 21 letters of a column. Letters besides the 21
    (X, say) are not counted. `probabilities` is (C, 21), rows sum to 1. Raises DataError for unequal rows.
    """

    @typed
    def __init__(self, rows: Sequence[str], pseudo: Positive = 0.5) -> None:
        if not rows:
            raise DataError("a profile of no rows")
        codes_NC = aligned_codes(rows)
        count_C21 = np.stack([(codes_NC == i).sum(0) for i in range(len(LETTERS))], axis=1) + float(pseudo)
        self.probabilities: NDArray[np.float64] = count_C21 / count_C21.sum(1, keepdims=True)

    def nll(self, sequence: str) -> float:
        """Nats per column, the mean over those that hold one of the 21 letters. Raises DataError for another length."""
        if len(sequence) != len(self.probabilities):
            raise DataError(f"{len(sequence)} columns, the profile has {len(self.probabilities)}")
        codes_C = codes(sequence, LETTERS)
        known = codes_C >= 0
        if not known.any():
            raise DataError(f"{sequence!r:.60} has none of {LETTERS}")
        return float(-np.log(self.probabilities[known, codes_C[known]]).mean())

    def sample(self, n: int, seed: int = 0) -> list[str]:
        """n rows, each letter drawn by itself."""
        edges_C21 = np.cumsum(self.probabilities, axis=1)[:, :-1]
        key = NoiseKey(seed, stream="profile")
        drawn_NC = ((key.uniform(i, len(edges_C21))[:, None] >= edges_C21).sum(1) for i in range(n))
        return ["".join(LETTERS[i] for i in row_C) for row_C in drawn_NC]


@part
class Family:
    """The members of a family, similar ones kept on one side of the split: rows {"id", "description", "sequence",
    "where"}, held in memory.

    path: an alignment; with aligned=False also sequences that are not aligned, which is a file without any gap: FASTA,
        or a table with the columns `id` and `sequence` (`.csv`, `.tsv`, `.jsonl`).
    split: whole clusters (`mmdiff.tasks.protein.data.clustering`) are drawn by `seed` for "test" until they hold
        `test_share` of the rows, or nearly: a cluster that would take it above is passed over. "train" is the rest,
        "all" both.
    aligned: rows are match columns with '-' for gaps; False: residues, insertions too.
    identity: of the clusters. A row joins one representative, so a test row may still be closer than this to a
        training row that is not a representative (of Kunitz domains at 0.7, 22 % are).
    apart: leave these test rows out. The training rows are the same.
    max_gaps: rows of an alignment with a larger share of gaps are left out before the clusters are made, and so are
        rows that are the same (in their match columns) as one before, and rows with letters besides the 20.
    max_length: rows of the split with more letters are left out. `dropped` counts what is left out, by reason.

    The same file and arguments give the same split in every process, and the same one for either `aligned`.
    Raises ConfigError, DataError; MissingExtra for sequences that are not aligned without Biopython.
    """

    page = "docs/data/fasta.md"

    def __init__(
        self,
        path: str,
        split: Literal["train", "test", "all"] = "train",
        aligned: bool = True,
        identity: PositiveShare = 0.7,
        test_share: BetweenZeroAndOne = 0.12,
        seed: Whole = 0,
        max_gaps: Share = 0.2,
        max_length: AtLeast1 | None = None,
        apart: bool = False,
    ) -> None:
        columns = aligned or _has_gaps(path)
        records, self.dropped = _kept(
            _aligned(path, "" if aligned else "; a gap makes an alignment of a file") if columns else _residues(path),
            path,
            max_gaps=max_gaps,
            distinct=True,
            canonical=True,
        )
        self.columns: int | None = len(records[0].sequence) if columns else None  # C
        self._rows: list[Row] = [record.row for record in records]
        self.clusters = clusters([record.sequence for record in records], identity, aligned=columns)
        """(rows,) the number of each row's cluster."""
        if split != "all":
            test = _held_out(self.clusters, test_share, seed)
            if not 0 < test.sum() < len(records):
                raise DataError(
                    f"{path}: {len(records)} rows make {self.clusters.max() + 1} clusters at identity {identity}, none "
                    f"small enough for a test_share of {test_share}; choose another identity or test_share"
                )
            chosen = np.flatnonzero(test == (split == "test"))
            if apart and split == "test":
                rows = [record.sequence for record in records]
                close = near(rows, chosen, np.flatnonzero(~test), identity, aligned=columns)
                self.dropped["close"], chosen = int(close.sum()), chosen[~close]
                if not len(chosen):
                    raise DataError(f"{path}: every test row has a training row at identity {identity}")
            self._rows, self.clusters = [self._rows[i] for i in chosen], self.clusters[chosen]
        if columns and not aligned:
            residues = {record.where: record.sequence for record in _residues(path)}
            self._rows = [{**row, "sequence": residues[row["where"]]} for row in self._rows]
        if max_length is not None:
            short = [len(row["sequence"]) <= max_length for row in self._rows]
            self.dropped["length"] = short.count(False)
            self._rows, self.clusters = [*compress(self._rows, short)], self.clusters[short]
            if not self._rows:
                raise DataError(f"{path}: no row has at most {max_length} letters")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def length(self, index: int) -> float:
        """Letters of a row."""
        return float(len(self._rows[index]["sequence"]))

    @classmethod
    def toy(cls, path: str, *arguments: Any, **settings: Any) -> Family:
        """An alignment of drawn rows instead of `path`, written and read back."""
        with TemporaryDirectory() as folder:
            file = f"{folder}/toy.afa"
            rows = (f"{drawn(11, i)}-{drawn(12, 32 + i)}" for i in range(32))
            write_fasta(file, (Record(f"toy{i}", "drawn", row) for i, row in enumerate(rows)))
            return cls(file, *arguments, **{**settings, "max_length": None})


def aligned_codes(rows: Sequence[str], letters: str = LETTERS) -> NDArray[np.int16]:
    """(N, C) indices of letters in `letters`, -1 for all others. Raises DataError for rows of unequal length."""
    columns = len(rows[0]) if rows else 0
    for i, row in enumerate(rows):
        if len(row) != columns:
            raise DataError(f"sequence {i + 1}: {len(row)} columns, expected {columns} as in the first")
    return codes("".join(rows), letters).reshape(len(rows), columns)


def background(sequences: Sequence[str], letters: str = CANONICAL) -> NDArray[np.float64]:
    """(K,) shares of `letters` among all letters of the sequences that are one of them, one of each added."""
    text = "".join(sequences)
    count_K = np.array([text.count(letter) + 1.0 for letter in letters])
    return np.asarray(count_K / count_K.sum())


def _aligned(path: str | Path, why: str = "") -> Iterator[Record]:
    """Yields the rows of an alignment. why: it is taken for one, in errors."""
    first: Record | None = None
    for record in read_stockholm(path, gaps="keep") if is_stockholm(path) else read_a3m(path):
        first = first or record
        if len(record.sequence) != len(first.sequence):
            raise DataError(
                f"{record.where}: {len(record.sequence)} match columns (upper case and '-'), the first record has "
                f"{len(first.sequence)}{why}"
            )
        yield record


def _kept(
    records: Iterator[Record],
    path: str | Path,
    *,
    max_gaps: float,
    distinct: bool,
    canonical: bool,
) -> tuple[list[Record], dict[str, int]]:
    """The records that are to be used, and how many are not, by the first reason that applies."""
    kept: list[Record] = []
    dropped = {"duplicates": 0, "gaps": 0, "unknown letters": 0}
    seen: set[str] = set()
    letters = set(LETTERS)
    for record in records:
        row = record.sequence
        if distinct and row in seen:
            dropped["duplicates"] += 1
        elif row.count(GAP) > max_gaps * len(row):
            dropped["gaps"] += 1
        elif canonical and not letters.issuperset(row):
            dropped["unknown letters"] += 1
        else:
            kept.append(record)
        if distinct:
            seen.add(row)
    if not kept:
        report = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise DataError(f"{path}: no row is left (dropped: {report})")
    return kept, {reason: count for reason, count in dropped.items() if count}


def _residues(path: str | Path) -> Iterator[Record]:
    if _is_table(path):
        return read_csv(path)
    return read_stockholm(path) if is_stockholm(path) else read_fasta(path)


def _has_gaps(path: str | Path) -> bool:
    if _is_table(path):
        return any(GAP in record.sequence for record in read_csv(path, gaps="keep"))
    return is_stockholm(path) or any(GAP in record.sequence for record in read_fasta(path, gaps="keep"))


def _is_table(path: str | Path) -> bool:
    return str(path).lower().removesuffix(".gz").endswith(TABLES)


def _held_out(cluster_N: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """(N,) True for the rows of the clusters that are drawn."""
    sizes = np.bincount(cluster_N)
    left = max(1, round(share * len(cluster_N)))
    out = np.zeros(len(sizes), dtype=bool)
    for one in NoiseKey(seed, stream="held out").uniform(0, len(sizes)).argsort(kind="stable"):
        if sizes[one] <= left:
            out[one] = True
            left -= sizes[one]
    return out[cluster_N]
