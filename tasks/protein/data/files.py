"""Files of sequences as streams of text, packed by gzip where their names end in `.gz`."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from mmdiff.errors import ConfigError, DataError
from mmdiff.files import aside

FASTA = (".fa", ".fasta", ".faa", ".afa", ".a3m")
TABLES = (".csv", ".tsv", ".jsonl")


def suffix(path: str | Path) -> str:
    """The ending of a name without `.gz`, in lower case. Raises ConfigError for one that no file of sequences has."""
    ending = Path(re.sub(r"(?i)\.gz$", "", str(path))).suffix.lower()
    if ending not in FASTA + TABLES:
        raise ConfigError(f"{path}: no format has the ending {ending!r} (known: {', '.join(FASTA + TABLES)}, .gz)")
    return ending


@contextmanager
def reading(path: str | Path) -> Iterator[BinaryIO]:
    """Bytes of a file, unpacked. Every way in which it cannot be read becomes a DataError."""
    packed = is_packed(path)
    try:
        with cast(BinaryIO, gzip.open(path, "rb") if packed else open(path, "rb")) as file:
            head = cast(Any, file).peek(4096)[:4096]
            if head.startswith(b"\x1f\x8b"):
                raise DataError(f"{path}: packed by gzip {'twice' if packed else 'under a name without .gz'}")
            if b"\0" in head:
                raise DataError(f"{path}: not a text file")
            yield file
    except EOFError:
        raise DataError(f"{path}: cut off, its packed data have no end") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a gzip file ({error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.object[error.start]:#04x} is not UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


@contextmanager
def writing(path: str | Path, overwrite: bool) -> Iterator[TextIO]:
    """Text that goes to a file aside, which becomes `path` when all is written, and is removed when it is not."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} is there already; choose another file")
    try:
        with aside(path) as part, open(part, "wb") as raw:
            # no name and no time in its head: the same records, the same bytes
            packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if is_packed(path) else None
            file = io.TextIOWrapper(cast(Any, packed or raw), encoding="utf-8", newline="\n")
            yield file
            file.flush()
            file.detach()
            if packed is not None:
                packed.close()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


def is_packed(path: str | Path) -> bool:
    return str(path).lower().endswith(".gz")
