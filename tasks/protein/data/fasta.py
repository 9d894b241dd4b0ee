"""Protein sequences from FASTA and A3M files, and back. Files are streams; one whose name ends in `.gz` is packed.

    >sp|P0AA25|THIO_ECOLI Thioredoxin 1            -> {"id": "sp|P0AA25|THIO_ECOLI", "sequence": "MSDKIIHLTD", ...}
    MSDKIIHLTD

What stands in a sequence besides residues is dealt with by named policies (`Policy`). White space is never part of a
sequence. Everything else that is not a residue is an error that names file, record, id, line and position; positions
count what the file has, gaps and lower case included.

An A3M may come from ColabFold: its first line tells lengths ("#103\t1"), and alignments may be joined by zero bytes.
"""

from __future__ import annotations

import os
import re
import weakref
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np

from mmdiff.config.typed import typed
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import DataError, short
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1, Whole
from mmdiff.protocols import Row

from .files import BOM, LONGEST, STOCKHOLM, TABLES, is_packed, lines, old_ends, reading, suffix, writing
from .policies import WHITE, Policy, cleaned, policy_of
from .records import Record, as_record
from .stockholm import read_stockholm
from .tables import Pairs as Pairs
from .tables import drawn, read_csv

A3M = {"lower": "drop", "gaps": "keep"}
"""The policies of match columns: insertions are dropped, gaps kept."""


def read_fasta(path: str | Path, *, unique: bool = False, **policy: str) -> Iterator[Record]:
    """The records of a FASTA file, one by one. policy: see `Policy`.

    unique: two records of one id are an error; all ids are then held in memory.
    Raises ConfigError for the policy now; DataError, while it is read, for a file that is not there, not text, packed
    and cut off, or empty, for text before the first '>', a record without an id or a sequence, and what is no residue.
    """
    return _read_fasta(path, policy_of(policy), unique)


def read_a3m(path: str | Path, **policy: str) -> Iterator[Record]:
    """`read_fasta` of match columns: lower case and '.' dropped, '-' kept, unless `policy` sets something else.

    Of alignments that are joined in one file, all must be of the same query. Raises DataError.
    """
    return _read_fasta(path, policy_of({**A3M, **policy}), unique=False, a3m=True)


def read_sequences(
    path: str | Path, column: str = "sequence", id_column: str | None = None, **policy: str
) -> Iterator[Record]:
    """`read_fasta`, `read_a3m`, `read_stockholm` or `read_csv`, by the ending of the name. Raises ConfigError for other
    endings."""
    ending = suffix(path)
    if ending in STOCKHOLM:
        return read_stockholm(path, **policy)
    if ending in TABLES:
        return read_csv(path, column, id_column, **policy)
    return _read_fasta(path, policy_of({**(A3M if ending == ".a3m" else {}), **policy}), unique=False)


@typed
def write_fasta(
    path: str | Path, records: Iterable[Record | Row], width: AtLeast1 | None = 60, *, overwrite: bool = False
) -> int:
    """Write records (or rows) as they come; the file is there when all are. Returns how many.

    width: letters per line; None: all on one.
    Raises ConfigError for a file that is there already, unless `overwrite`; DataError for a record that would not be
    read back as it is.
    """
    count = 0
    with writing(path, overwrite) as file:
        for record in map(as_record, records):
            count += 1
            header = f"{record.id} {record.description}".rstrip()
            if not record.id or split_header(header) != (record.id, record.description) or re.search("[\r\n]", header):
                raise DataError(
                    f"{path} record {count}: {header!r:.60} is no header: an id is one word, a header one line"
                )
            if not record.sequence or re.search(r"[\s>]", record.sequence):
                raise DataError(f"{path} record {count} ({record.id}): {record.sequence!r:.60} is no sequence")
            step = width or len(record.sequence)
            lines = (record.sequence[i : i + step] for i in range(0, len(record.sequence), step))
            file.write(">" + header + "\n" + "\n".join(lines) + "\n")
    return count


@part
class Fasta:
    """The records of a FASTA or A3M file by number: rows {"id", "description", "sequence", "where"}.

    The file is read and checked once; then only offsets and lengths are held, 16 bytes per record, and a row is read
    from the file when it is asked for. A `.gz` cannot be entered in its middle: it is held unpacked, as one block of
    bytes.

    limit: the first records only. max_length, crop: of a longer sequence a row has `max_length` letters, the first
    ("head"), or a window drawn by (seed, number of the row), which is the same in every epoch ("random").
    lower, gaps, stop, unknown: see `Policy`. Raises as `read_fasta` does.
    """

    page = "docs/data/fasta.md"

    def __init__(
        self,
        path: str,
        limit: AtLeast1 | None = None,
        max_length: AtLeast1 | None = None,
        crop: Literal["random", "head"] = "random",
        seed: Whole = 0,
        lower: str = "upper",
        gaps: str = "drop",
        stop: str = "strip",
        unknown: str = "keep",
    ) -> None:
        self.path, self.max_length, self._crop = path, max_length, crop
        self._key = NoiseKey(seed, stream="crop")
        self._policy = Policy(lower, gaps, stop, unknown)
        self._file: int | None = None
        self._unpacked: bytearray | None = bytearray() if is_packed(path) else None
        starts, lengths = array("q"), array("q")
        end = 0
        for block in blocks(path):
            if len(starts) == limit:
                break
            lengths.append(len(_of_block(block, path, self._policy).sequence))
            starts.append(block.start)
            end = block.end
            if self._unpacked is not None:
                starts[-1] = len(self._unpacked)
                self._unpacked += block.header
                self._unpacked += b"".join(block.lines)
                end = len(self._unpacked)
        starts.append(end)
        self._starts, self._lengths = np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        text = self._text(index)
        header, _, body = (text.replace(b"\r", b"\n") if old_ends(text) else text).partition(b"\n")
        body = body.partition(b"\0")[0]  # behind it begins another alignment
        if not header.startswith(b">"):
            raise DataError(f"{self.path}: changed since it was first read (record {index + 1})")
        block = Block(index + 1, 0, 0, 0, header, [body])
        record = _of_block(block, self.path, self._policy)
        n, most = len(record.sequence), self.max_length
        if n != self._lengths[index]:
            raise DataError(f"{record.where}: changed since it was first read")
        row = record.row
        if most is not None and n > most:
            at = int(self._key.uniform(index, 1)[0] * (n - most + 1)) if self._crop == "random" else 0
            row["sequence"] = record.sequence[at : at + most]
            row["where"] = f"{record.where} residues {at + 1}-{at + most}"
        return row

    def length(self, index: int) -> float:
        """Letters of a row."""
        return float(min(self._lengths[index], self.max_length or self._lengths[index]))

    @classmethod
    def toy(cls, path: str, *arguments: Any, **settings: Any) -> Fasta:
        """A file of drawn sequences instead of `path`, written and read back."""
        with TemporaryDirectory() as folder:
            file = f"{folder}/toy.fa.gz"  # packed, so that nothing is read from it later
            write_fasta(file, (Record(f"toy{i}", "drawn", drawn(12 + i, i)) for i in range(8)))
            return cls(file, *arguments, **settings)

    def _text(self, index: int) -> bytes:
        start, end = self._starts[index : index + 2].tolist()
        if self._unpacked is not None:
            return bytes(self._unpacked[start:end])
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._file)
            # has no position, which processes that are forked would share
            return os.pread(self._file, end - start, start)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}  # a data process opens its own


def split_header(header: str) -> tuple[str, str]:
    """(id, description) of a header without its '>': the first word, and the rest as it stands."""
    id, *rest = re.split(r"[ \t]+", header.strip(" \t\r\n"), maxsplit=1)
    return id, rest[0] if rest else ""


class Block(NamedTuple):
    """A record as the file has it. line: of its header, from 1. start, end: bytes of the (unpacked) file."""

    number: int
    line: int
    start: int
    end: int
    header: bytes
    lines: list[bytes]
    begins: bool = False  # an alignment behind another one

    def named(self, path: str | Path) -> tuple[str, str]:
        """(id, description). Raises DataError for a header without an id."""
        id, description = split_header(decoded(self.header[1:], path, self.line))
        if not id:
            raise DataError(f"{short(path)} record {self.number}, line {self.line}: no id after '>'")
        return id, description


def blocks(path: str | Path, a3m: bool = False) -> Iterator[Block]:
    """The records of a FASTA file as they stand. a3m: whatever its name says. Raises DataError."""
    number = first = start = at = size = 0
    header: bytes | None = None
    body: list[bytes] = []
    joined = begins = False  # behind a zero byte; of the record at hand
    a3m = a3m or re.search(r"(?i)\.a3m(\.gz)?$", str(path)) is not None
    with reading(path, nulls=a3m) as file:
        for line, piece, text in _pieces(lines(file, path), a3m):
            if line == 1 and text.startswith(BOM):
                text, at = text[len(BOM) :], len(BOM)
            joined = joined or piece > 0
            at += piece > 0
            size += len(text)
            if text.startswith(b">"):
                if header is not None:
                    yield Block(number, first, start, at, header, body, begins)
                number, first, start, header, body = number + 1, line, at, text, []
                begins, joined, size = joined, False, len(text)
            elif a3m and text.startswith(b"#") and (joined or header is None):
                pass
            elif header is not None and not joined:
                body.append(text)
            elif text.translate(None, WHITE):
                shown = f"{decoded(text, path, line).strip()!r:.40}"
                tables = f"tables end in {', '.join(TABLES)}"
                before = "behind a zero byte, expected '>'" if joined else f"before the first '>' ({tables})"
                raise DataError(f"{short(path)} line {line}: {shown} {before}")
            if size > LONGEST:
                raise DataError(f"{short(path)} record {number}, line {line}: more than {LONGEST:,} letters")
            at += len(text)
    if header is None:
        raise DataError(f"{short(path)}: no records")
    yield Block(number, first, start, at, header, body, begins)


def _pieces(texts: Iterable[bytes], a3m: bool) -> Iterator[tuple[int, int, bytes]]:
    """(line, number of the piece in its line, text): of an A3M, lines are cut at zero bytes."""
    for line, text in enumerate(texts, 1):
        if not a3m or b"\0" not in text:
            yield line, 0, text
        else:
            yield from ((line, i, piece) for i, piece in enumerate(text.split(b"\0")))


def _of_block(block: Block, path: str | Path, policy: Policy) -> Record:
    id, description = block.named(path)
    where = f"{short(path)} record {block.number} ({short(id, 60)})"
    return Record(id, description, cleaned(block.lines, block.line + 1, where, policy), where)


def _read_fasta(path: str | Path, policy: Policy, unique: bool, a3m: bool = False) -> Iterator[Record]:
    seen: dict[str, int] = {}
    query: str | None = None
    for block in blocks(path, a3m):
        record = _of_block(block, path, policy)
        query = query or record.sequence
        if a3m and block.begins and record.sequence != query:
            raise DataError(f"{record.where}, line {block.line}: an alignment of another query begins; expected one")
        if unique and seen.setdefault(record.id, block.number) != block.number:
            raise DataError(f"{record.where}, line {block.line}: duplicate id, that of record {seen[record.id]} too")
        yield record


def decoded(text: bytes, path: str | Path, line: int) -> str:
    """A line as text. Raises DataError for what is not UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{short(path)} line {line}: byte {text[error.start]:#04x} is not UTF-8") from None
