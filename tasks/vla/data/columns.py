"""Columns of parquet files: numbers as arrays, pictures by row group, on demand.

Shape letters: N rows, D dimensions of an action, S of the state, E episodes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.errors import DataError, nearest

from .layout import Layout, Location
from .reading import check_regular, inside, open_parquet, read_group, reading

Array = np.ndarray[Any, Any]
CACHE = 256 << 20  # bytes of encoded pictures that a process keeps
SUCCESS = "next.success"
PICTURE_BYTES = 1 << 28  # of an encoded picture in a file of its own
OPEN = 32  # files that a process keeps open


def read_rows(layout: Layout, action: str, state: str | None) -> dict[str, Array]:
    """Returns the columns of all rows, and where the episodes are in them.

    "action" (N, D), "state" (N, S), "task", "time", "success" (N,); "start", "length", "row" (E,).
    """
    roles = {action: "action"} | ({state: "state"} if state else {})
    has_success = SUCCESS in layout.features
    requested = [*roles, "episode_index", "frame_index", "task_index", "timestamp"] + [SUCCESS] * has_success
    parts: dict[str, list[Array]] = {}
    start_E, row_E = (np.full(len(layout.episodes), -1, np.int64) for _ in range(2))
    count = 0
    locations: dict[str, list[Location]] = {}
    for location in layout.episodes:
        locations.setdefault(location.file, []).append(location)
    for name, here in locations.items():
        file = layout.folder / name
        columns = read_columns(file, requested)
        plain = {key: numbers(columns[key], file, key) for key in requested if key not in roles}
        for location, begin in _find(layout, here, plain["episode_index"], plain["frame_index"]):
            start_E[location.number], row_E[location.number] = count + begin, begin
        for key, role in roles.items():
            parts.setdefault(role, []).append(vectors(columns[key], file, key, _dims(layout, key)))
        parts.setdefault("task", []).append(plain["task_index"].astype(np.int32))
        parts.setdefault("time", []).append(plain["timestamp"].astype(np.float32))
        if has_success:
            parts.setdefault("success", []).append(plain[SUCCESS].astype(bool))
        count += len(plain["task_index"])
    found = {role: np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for role, arrays in parts.items()}
    return found | {"start": start_E, "row": row_E, "length": np.array([p.length for p in layout.episodes], np.int64)}


def read_columns(file: Path, columns: Sequence[str]) -> dict[str, Any]:
    """Columns of a parquet file as pyarrow arrays. Raises DataError for what is missing or damaged."""
    parquet = open_parquet(file, columns, memory_map=True)
    with reading(file):
        table = parquet.read(list(columns), use_threads=False)
    return {name: table.column(name) for name in columns}


def vectors(column: Any, file: Path, name: str, dims: int) -> Array:
    """Returns a column of lists, or of numbers where D is 1, as float32 (N, D). Empty entries become NaN.

    Raises DataError for a row whose list has another length, and for what is no list of numbers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = []
    row = 0
    for chunk in column.chunks:
        if isinstance(chunk, pa.ExtensionArray):
            chunk = chunk.storage
        kind = chunk.type
        if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
            length_N = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(length_N != dims)
            if wrong.size:
                n = int(wrong[0])
                raise DataError(f"{file} row {row + n}: {name} has {length_N[n]} dimensions, info.json says {dims}")
            values = chunk.flatten()
        elif dims == 1:
            values = chunk
        else:
            raise DataError(f"{file}: {name} is a column of {kind}, expected lists of {dims} numbers")
        if not (
            pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)
        ):
            raise DataError(f"{file}: {name} is a column of {kind}, expected lists of {dims} numbers")
        parts.append(values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(chunk), dims))
        row += len(chunk)
    return np.concatenate(parts) if parts else np.zeros((0, dims), np.float32)


def numbers(column: Any, file: Path, name: str) -> Array:
    """Returns a column of numbers as an array (N,). Raises DataError for empty entries and other types."""
    if column.null_count:
        raise DataError(f"{file}: {name} has empty entries")
    values = np.asarray(column.to_numpy())
    if values.dtype == object and len(values) and np.size(values[0]) == 1:  # lists of one number
        values = np.concatenate(values)
    if values.dtype.kind not in "iufb":
        raise DataError(f"{file}: {name} is a column of {column.type}, expected numbers")
    return values


class EncodedPictures:
    """Encoded pictures in parquet files, by file, column and row. Reads whole row groups and keeps the last ones.

    budget: bytes kept. A row group that is larger is kept as long as it is the last one. Opened when it is used; a copy
    in another process opens files of its own, and after a fork the mappings are shared, which have no offset in a file.
    """

    def __init__(self, folder: Path, budget: int = CACHE) -> None:
        self.folder, self.budget = folder, budget
        self._clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "budget": self.budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.budget = state["folder"], state["budget"]
        self._clear()

    def at(self, file: str, column: str, row: int) -> bytes:
        """The encoded picture of a row of a file. Raises DataError."""
        starts = self._file(file)[1]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        bytes_N, path_N, _ = self._group(file, column, group)
        n = row - int(starts[group])
        if n >= len(bytes_N):
            raise DataError(f"{self.folder / file}: has no row {row}")
        found = bytes_N[n].as_py()
        if found is None:
            path = path_N[n].as_py() if path_N is not None else None
            found = self._beside(file, column, row, path)
        return bytes(found)

    def _beside(self, file: str, column: str, row: int, path: str | None) -> bytes:
        """A picture whose row holds a path only."""
        where = f"{self.folder / file} row {row}: {column}"
        if not path:
            raise DataError(f"{where} holds no picture")
        inside(path, where)
        try:
            check_regular(self.folder / path, PICTURE_BYTES)
            return (self.folder / path).read_bytes()
        except (DataError, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise DataError(f"{where} is the file {path!r}, which cannot be read ({why})") from None

    def _group(self, file: str, column: str, group: int) -> tuple[Any, Any, int]:
        key = (file, column, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        parquet, _ = self._file(file)
        there = parquet.schema_arrow.names
        if column not in there:
            raise DataError(f"{self.folder / file}: no column {column!r}{nearest(column, there)}")
        array = read_group(parquet, self.folder / file, group, column)
        import pyarrow as pa

        if isinstance(array, pa.ChunkedArray):  # more than 2 GB
            array = pa.concat_arrays(array.chunks)
        if pa.types.is_struct(array.type) and array.type.get_field_index("bytes") >= 0:
            paths = array.field("path") if array.type.get_field_index("path") >= 0 else None
            found = array.field("bytes"), paths, array.nbytes
        elif pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
            found = array, None, array.nbytes
        else:
            raise DataError(f"{self.folder / file}: {column} is a column of {array.type}, expected encoded pictures")
        self._groups[key] = found
        self._held += found[2]
        while self._held > self.budget and len(self._groups) > 1:
            self._held -= self._groups.popitem(last=False)[1][2]
        return found

    def _file(self, file: str) -> tuple[Any, Array]:
        """The file, and the row that each of its row groups begins with."""
        if file in self._files:
            self._files.move_to_end(file)
            return self._files[file]
        parquet = open_parquet(self.folder / file, [], memory_map=True)
        sizes = [parquet.metadata.row_group(n).num_rows for n in range(parquet.metadata.num_row_groups)]
        self._files[file] = parquet, np.cumsum([0, *sizes[:-1]])
        if len(self._files) > OPEN:
            self._files.popitem(last=False)
        return self._files[file]

    def _clear(self) -> None:
        self._files: OrderedDict[str, tuple[Any, Array]] = OrderedDict()
        self._groups: OrderedDict[tuple[str, str, int], tuple[Any, Any, int]] = OrderedDict()
        self._held = 0


def _find(
    layout: Layout, locations: Sequence[Location], episode_N: Array, frame_N: Array
) -> Iterator[tuple[Location, int]]:
    """The row of their file that episodes begin with. Raises DataError where the rows are not what `meta/` lists."""
    name = locations[0].file
    ends = np.flatnonzero(np.diff(episode_N)) + 1
    begins = np.concatenate(([0], ends)).astype(np.int64) if len(episode_N) else np.zeros(0, np.int64)
    lengths = np.diff(np.append(begins, len(episode_N)))
    runs: dict[int, tuple[int, int]] = {}
    for number, begin, length in zip(episode_N[begins].tolist(), begins.tolist(), lengths.tolist(), strict=True):
        if number in runs:
            raise DataError(f"{layout.folder / name}: the rows of episode {number} are not in one piece")
        runs[number] = begin, length
    for location in locations:
        where = f"{layout.folder} episode {location.number}"
        begin, length = runs.get(location.number, (0, 0))
        if length == 0:
            raise DataError(
                f"{where}: no rows in {name}" + (f", {location.length} expected" if location.length else "")
            )
        if length != location.length:
            raise DataError(f"{where}: {length} frames in {name}, meta says {location.length}")
        wrong = np.flatnonzero(frame_N[begin : begin + length] != np.arange(length))
        if wrong.size:
            found = frame_N[begin + wrong[0]]
            raise DataError(f"{where} frame {wrong[0]}: frame_index is {found}; frames are missing or out of order")
        yield location, begin


def _dims(layout: Layout, key: str) -> int:
    shape = layout.features[key].get("shape")
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 1:
        raise DataError(f"{layout.folder}: {key} has shape {shape}, expected one number of dimensions")
    return shape[0]
