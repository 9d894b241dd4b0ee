"""Parquet by row number: a file's row groups are read whole, and the last few are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.data.stream import GROUPS
from mmdiff.errors import DataError, line_of, require


class Parquet:
    """The rows of Parquet files, file after file. See `mmdiff.data.formats.table.Table`.

    What is kept in memory is `mmdiff.data.stream.GROUPS` row groups in each data process, as many as rows are shuffled
    among at a time, so that an epoch reads each group once per process. Columns that are not in `columns` are not
    read; None: all are.
    """

    in_order = False

    def __init__(self, files: Sequence[Path], columns: Sequence[str] | None = None) -> None:
        require("pyarrow", "text")
        self.files, self.columns = list(files), None if columns is None else list(columns)
        self._group: list[tuple[int, int]] = []  # file and its row group
        sizes: list[int] = []
        self._file_first = [0]
        for n, path in enumerate(self.files):
            with _opened(path) as file:
                facts = file.metadata
                for group in range(facts.num_row_groups):
                    self._group.append((n, group))
                    sizes.append(facts.row_group(group).num_rows)
            self._file_first.append(sum(sizes))
        self.group_sizes: Sequence[int] = sizes
        self._first = np.cumsum([0, *sizes])
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._first[-1])

    def where(self, index: int) -> str:
        n = int(np.searchsorted(self._file_first, index, side="right")) - 1
        return f"{self.files[n]} row {index - self._file_first[n]}"

    def size(self, index: int) -> None:
        return None

    def read(self, index: int) -> Mapping[str, Any]:
        g = int(np.searchsorted(self._first, index, side="right")) - 1
        if g in self._kept:
            self._kept[g] = self._kept.pop(g)  # the one that was used last comes last
        else:
            table = self._read_group(*self._group[g])
            while len(self._kept) >= GROUPS:
                del self._kept[next(iter(self._kept))]
            self._kept[g] = table
        row: Mapping[str, Any] = self._kept[g].slice(index - int(self._first[g]), 1).to_pylist()[0]
        return row

    def _read_group(self, n: int, group: int) -> Any:
        path = self.files[n]
        with _opened(path) as file:
            try:
                return file.read_row_group(group, columns=self.columns)
            except Exception as error:  # damaged pages make decoders raise nearly anything
                raise DataError(f"row group {group} is damaged ({line_of(error)})") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": {}}


def _opened(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({line_of(error)})") from None
