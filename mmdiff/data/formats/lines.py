"""JSON lines by number: one pass over the files notes where lines begin and end; a line is read when it is asked for.

{"image": "cat.jpg", "question": "What is it?", "answer": "a cat"}
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.errors import DataError
from mmdiff.files import json_object


class Lines:
    """The lines of files that are not blank, file after file. See `mmdiff.data.formats.table.Table`."""

    group_sizes: Sequence[int] = ()
    in_order = False

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        begins, ends, numbers, counts = [], [], [], []
        for path in self.files:
            begin, end, number = _scanned(path)
            begins.append(begin)
            ends.append(end)
            numbers.append(number)
            counts.append(len(begin))
        self._first = np.cumsum([0, *counts])
        self._begin, self._end, self._line = (np.concatenate(each) for each in (begins, ends, numbers))

    def __len__(self) -> int:
        return len(self._begin)

    def _file(self, index: int) -> Path:
        return self.files[int(np.searchsorted(self._first, index, side="right")) - 1]

    def where(self, index: int) -> str:
        return f"{self._file(index)} line {self._line[index]}"

    def size(self, index: int) -> int:
        return int(self._end[index] - self._begin[index])

    def read(self, index: int) -> Mapping[str, Any]:
        try:
            with self._file(index).open("rb") as file:
                file.seek(int(self._begin[index]))
                line = file.read(self.size(index))
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})") from None
        return json_object(line.rstrip())


def _scanned(path: Path) -> tuple[Any, Any, Any]:
    """Returns where the lines begin and end, in bytes, and their numbers from 1; blank lines are left out."""
    begins, ends, numbers, at = array("q"), array("q"), array("q"), 0
    try:
        with path.open("rb") as file:
            for n, line in enumerate(file, 1):
                if line.strip():
                    begins.append(at)
                    ends.append(at + len(line))
                    numbers.append(n)
                at += len(line)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return np.array(begins), np.array(ends), np.array(numbers)
