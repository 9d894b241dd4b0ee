"""Alignments in Stockholm format, as Pfam and HMMER write them.

    # STOCKHOLM 1.0
    #=GS seq1 DE  a description      -> match columns M K A Y, the insertion t dropped
    seq1/1-5         MKtAY
    seq2/8-11        MR.AY
    #=GC RF          xx.xx
    //

Rows may stand in several blocks. Match columns are those that `#=GC RF` marks; without it, those where a row has an
upper-case letter or '-', which holds for Pfam's seeds (gaps are '.') and for HMMER's insertions (lower case) alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmdiff.errors import DataError, short

from .files import BOM, lines, reading
from .policies import Policy, cleaned, policy_of
from .records import Record

HEAD = b"# STOCKHOLM 1."
GAPS = b"-._~"
NO_COLUMN = b"-._~ "  # of RF: an insertion


def is_stockholm(path: str | Path) -> bool:
    """Whether a file begins as such alignments do, whatever its name says. Raises DataError."""
    with reading(path, nulls=True) as file:
        return file.read(len(BOM + HEAD)).removeprefix(BOM).startswith(HEAD)


def read_stockholm(path: str | Path, **policy: str) -> Iterator[Record]:
    """The rows of an alignment: with `gaps="keep"` their match columns, else their residues, insertions too.

    policy: see `Policy`; `lower` is of residues only. Raises ConfigError for the policy now; DataError, while it is
    read, as `read_fasta` does, and for rows of unequal length and a second alignment.
    """
    columns = policy.get("gaps") == "keep"
    return _read(path, policy_of({**policy, "lower": "upper"} if columns else policy), columns)


def _read(path: str | Path, policy: Policy, columns: bool) -> Iterator[Record]:
    rows, first, about, marked = _parsed(path)
    lengths = {name: len(row) for name, row in rows.items()}
    expected = next(iter(lengths.values()))
    for name, length in lengths.items():
        if length != expected:
            where = f"{short(path)} line {first[name]} ({short(name, 60)})"
            raise DataError(f"{where}: {length} columns, the first row has {expected}")
    if marked and len(marked) != expected:
        raise DataError(f"{short(path)}: #=GC RF has {len(marked)} columns, the rows have {expected}")
    kept = _match(list(map(bytes, rows.values())), bytes(marked)) if columns else None
    for number, (name, row) in enumerate(rows.items(), 1):
        where = f"{short(path)} record {number} ({short(name, 60)})"
        text = cleaned([bytes(row).translate(bytes.maketrans(GAPS, b"----"))], first[name], where, policy)
        if kept is not None:
            if len(text) != expected:
                raise DataError(f"{where}, line {first[name]}: a stop, expected residues and gaps")
            text = "".join(compress(text, kept))
        yield Record(name, about.get(name, ""), text, where)


def _parsed(path: str | Path) -> tuple[dict[str, bytearray], dict[str, int], dict[str, str], bytearray]:
    """(rows by name, the line where each begins, descriptions, RF)."""
    rows: dict[str, bytearray] = {}
    first: dict[str, int] = {}
    about: dict[str, str] = {}
    marked, ended = bytearray(), False
    with reading(path) as file:
        for line, raw in enumerate(lines(file, path), 1):
            try:
                text = raw.removeprefix(BOM).decode("utf-8").strip(" \t\r\n")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                raise DataError(f"{short(path)} line {line}: byte {byte:#04x} is not UTF-8") from None
            if line == 1 and not text.encode().startswith(HEAD):
                raise DataError(f"{short(path)} line 1: {text!r:.40}, expected '# STOCKHOLM 1.0'")
            if not text or text == "//":
                ended = ended or text == "//"
                continue
            if ended:
                raise DataError(f"{short(path)} line {line}: another alignment begins; expected one")
            if text.startswith("#"):
                words = text.split(None, 3)
                if words[:2] == ["#=GC", "RF"]:
                    marked += text.split(None, 2)[2].encode() if len(words) > 2 else b""
                elif words[0] == "#=GS" and words[2:3] == ["DE"] and len(words) > 3:
                    about[words[1]] = f"{about.get(words[1], '')} {words[3]}".strip()
                continue
            name, *letters = text.split()
            if len(letters) != 1:
                raise DataError(f"{short(path)} line {line}: {text!r:.40}, expected a name and its columns")
            first.setdefault(name, line)
            rows.setdefault(name, bytearray()).extend(letters[0].encode())
    if not rows:
        raise DataError(f"{short(path)}: no records")
    if not ended:
        raise DataError(f"{short(path)}: cut off, it does not end in '//'")
    return rows, first, about, marked


def _match(rows: list[bytes], marked: bytes) -> NDArray[np.bool_]:
    """The match columns, True."""
    if marked:
        return ~np.isin(np.frombuffer(marked, dtype=np.uint8), np.frombuffer(NO_COLUMN, dtype=np.uint8))
    match = np.zeros(len(rows[0]), dtype=bool)
    for row in rows:
        codes = np.frombuffer(row, dtype=np.uint8)
        match |= ((codes >= ord("A")) & (codes <= ord("Z"))) | (codes == ord("-"))
    return match if match.any() else ~match  # all in lower case
