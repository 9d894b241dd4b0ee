"""Files of a data set that may come from anyone: each is regular, of a bounded size, and inside its folder.

A link may lead anywhere on the disk of the person who made it (the cache of huggingface_hub is made of links), but to a
regular file only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdiff import files
from mmdiff.errors import ConfigError, DataError, located, nearest

TEXT_BYTES = 4 << 30  # of a file of lines
SMALL = 16 << 20  # bytes that any parquet file may unpack to
MANY = 1 << 30  # bytes that a row group of pictures may unpack to at once
PACKED = 300  # the most bytes, beyond that, that a byte of it may unpack to


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """What pyarrow raises about `file` becomes one line. Raises DataError."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (pa.ArrowException, OSError, ValueError, MemoryError, KeyError) as error:  # damaged text, damaged names
        raise DataError(f"{file}: damaged or cut off ({' '.join(str(error).split()):.120})") from None


def inside(path: str, where: str) -> str:
    """Raises DataError for a path that leaves the folder of its data set, and for one that no file can have."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise DataError(f"{where}: {path!r:.120} leads out of the data set's folder")
    if "\0" in path or len(path) > 2000 or any(len(part.encode(errors="replace")) > 255 for part in Path(path).parts):
        raise DataError(f"{where}: {path!r:.120} is no path")
    return path


def check_regular(file: Path, at_most: int | None = None) -> int:
    """Returns the size of a file in bytes. Raises DataError unless it is a regular file of a size that is expected."""
    try:
        return files.regular(file, at_most)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except ConfigError as error:
        raise DataError(str(error)) from None


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object of a file. Raises DataError."""
    try:
        found = files.read_json(file)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except ConfigError as error:
        raise DataError(str(error)) from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: not a JSON object")
    return found


def json_lines(file: Path, *fields: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the object of every line of a file of JSON that is not empty.

    Raises DataError, which names the line, also for one that lacks one of `fields`.
    """
    check_regular(file, TEXT_BYTES)
    with open(file, "rb") as handle:
        for number, value in files.json_lines(handle, file):
            where = f"{file} line {number}"
            with located(where):
                row = files.as_object(value)
            for name in fields:
                if name not in row:
                    raise DataError(f"{where}: no {name!r}{nearest(name, row)}")
            yield where, row


def open_parquet(file: Path, columns: Sequence[str] | None = None, **named: Any) -> Any:
    """Returns a ParquetFile. Raises DataError for a file that is none, lacks a column, or unpacks to very much more.

    columns: those that will be read; None: all. named: arguments of ParquetFile. Repeated values take no room in a
    file: one of some kilobytes may hold a thousand million rows.
    """
    import pyarrow.parquet as pq

    check_regular(file)
    with reading(file):
        parquet = pq.ParquetFile(file, **named)
        meta, there = parquet.metadata, parquet.schema_arrow.names
    for name in columns or ():
        if name not in there:
            raise DataError(f"{file}: no column {name!r}{nearest(name, there)}")
    names = there if columns is None else columns
    with reading(file):
        parts = [part for g in range(meta.num_row_groups) for part in _parts(meta.row_group(g), names)]
    unpacked = sum(max(8 * part.num_values, part.total_uncompressed_size) for part in parts)
    _check_unpacked(file, max(unpacked, 8 * meta.num_rows))
    return parquet


def read_texts(parquet: Any, file: Path, name: str) -> list[Any]:
    """Returns a column of text. One that repeats is in memory once."""
    with reading(file):
        column = parquet.read([name], use_threads=False).column(name).cast("string").dictionary_encode()
    return [
        None if n is None else chunk.dictionary[n].as_py() for chunk in column.chunks for n in chunk.indices.to_pylist()
    ]


def read_group(parquet: Any, file: Path, group: int, name: str) -> Any:
    """Returns a column of bytes of a row group. Raises DataError for repeated bytes that unpack to very much."""
    import pyarrow as pa

    with reading(file):
        parts = _parts(parquet.metadata.row_group(group), [name])
        _check_unpacked(file, sum(part.total_uncompressed_size for part in parts))
        if max((part.num_values * part.total_uncompressed_size for part in parts), default=0) < MANY:
            return parquet.read_row_group(group, [name], use_threads=False).column(name).combine_chunks()
        found, unpacked = [], 0
        for batch in parquet.iter_batches(16, [group], [name], use_threads=False):
            unpacked += batch.nbytes
            _check_unpacked(file, unpacked)
            found.append(batch.column(0))
        return pa.chunked_array(found).combine_chunks()


def _check_unpacked(file: Path, unpacked: int) -> None:
    size = file.stat().st_size
    if unpacked > SMALL + PACKED * size:
        raise DataError(f"{file}: {size:,} bytes that unpack to {unpacked:,}, more than data of robots do")


def _parts(group: Any, names: Sequence[str]) -> list[Any]:
    """The leaves, such as `action.list.element`, of some columns; names of columns hold dots too."""
    parts = [group.column(c) for c in range(group.num_columns)]
    return [p for p in parts if any(p.path_in_schema == n or p.path_in_schema.startswith(f"{n}.") for n in names)]
