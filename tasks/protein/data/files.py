"""Files of sequences as streams of text, packed by gzip where their names end in `.gz`.

Only regular files are read, line by line, and neither a line nor what a packed file unpacks to is without bounds.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO, TextIO, cast

from mmdiff.errors import ConfigError, DataError, short
from mmdiff.files import aside, regular, writable

FASTA = (".fa", ".fasta", ".faa", ".afa", ".a3m")
TABLES = (".csv", ".tsv", ".jsonl")
STOCKHOLM = (".sto", ".stk", ".stockholm")
KNOWN = FASTA + TABLES + STOCKHOLM
LONGEST = 1 << 24  # bytes or characters of a line, and of a record; the longest known protein has 45,000
RATIO = 250  # what is packed unpacks to so many times its size at most
FREE = 1 << 26  # bytes that any file may unpack to
BOM = b"\xef\xbb\xbf"


def suffix(path: str | Path) -> str:
    """The ending of a name without `.gz`, in lower case. Raises ConfigError for one that no file of sequences has."""
    ending = Path(re.sub(r"(?i)\.gz$", "", str(path))).suffix.lower()
    if ending not in KNOWN:
        known = f"known: {', '.join(KNOWN)}, .gz"
        raise ConfigError(f"{short(path)}: no format has the ending {short(repr(ending), 60)} ({known})")
    return ending


@contextmanager
def reading(path: str | Path, nulls: bool = False) -> Iterator[BinaryIO]:
    """Bytes of a file, unpacked. Whatever is wrong with it becomes a DataError. nulls: zero bytes are text."""
    packed, name = is_packed(path), short(path)
    try:
        size = regular(Path(path))
        with cast(BinaryIO, _unpacked(path, size) if packed else open(path, "rb")) as file:
            head = cast(Any, file).peek(4096)[:4096]
            if head.startswith(b"\x1f\x8b"):
                raise DataError(f"{name}: packed by gzip {'twice' if packed else 'under a name without .gz'}")
            if b"\0" in head and (not nulls or not head.lstrip(BOM).startswith((b"#", b">"))):
                raise DataError(f"{name}: not a text file")
            yield cast(BinaryIO, io.BufferedReader(_CarriageReturns(file))) if old_ends(head[:-1]) else file
    except ConfigError as error:
        raise DataError(str(error)) from None
    except EOFError:
        raise DataError(f"{name}: cut off, its packed data have no end") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name}: not a gzip file ({error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.object[error.start]:#04x} is not UTF-8") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}") from None


def lines(file: IO[AnyStr], path: str | Path) -> Iterator[AnyStr]:
    """The lines of a file with their ends. Raises DataError for one that is too long for any sequence."""
    for number, text in enumerate(iter(lambda: file.readline(LONGEST + 1), None), 1):
        if not text:
            return
        if len(text) > LONGEST:
            raise DataError(f"{short(path)} line {number}: expected at most {LONGEST:,} characters")
        yield text


def old_ends(text: bytes) -> bool:
    """Whether lines end in a carriage return alone, as some programs for the Macintosh write them."""
    return b"\r" in text and b"\n" not in text


class _CarriageReturns(io.RawIOBase):
    """A file whose lines end in a carriage return, with line feeds in their place: each byte stays where it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._file.read(len(memoryview(buffer))).replace(b"\r", b"\n")
        memoryview(buffer)[: len(found)] = found
        return len(found)


class _Unpacking(io.RawIOBase):
    """What a gzip file holds, as far as its size makes that likely."""

    def __init__(self, path: str | Path, size: int) -> None:
        self._file, self._path, self._most, self._read = gzip.open(path, "rb"), path, FREE + RATIO * size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._file.read1(len(memoryview(buffer)))
        self._read += len(found)
        if self._read > self._most:
            raise DataError(f"{short(self._path)}: unpacks to more than {RATIO} times its size")
        memoryview(buffer)[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


def _unpacked(path: str | Path, size: int) -> io.BufferedReader:
    return io.BufferedReader(_Unpacking(path, size), 1 << 16)


@contextmanager
def writing(path: str | Path, overwrite: bool) -> Iterator[TextIO]:
    """Text that goes to a file aside, which becomes `path` when all is written, and is removed when it is not."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise ConfigError(f"{short(path)} is there already; choose another file")
    try:
        with writable(path), aside(path) as part, open(part, "wb") as raw:
            # no name and no time in its head: the same records, the same bytes
            packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if is_packed(path) else None
            file = io.TextIOWrapper(cast(Any, packed or raw), encoding="utf-8", newline="\n")
            yield file
            file.flush()
            file.detach()
            if packed is not None:
                packed.close()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(f"{short(path)}: {half!r}, half a pair of surrogates, cannot be written as text") from None


def is_packed(path: str | Path) -> bool:
    """Returns whether a file's name says that it is packed by gzip."""
    return str(path).lower().endswith(".gz")
