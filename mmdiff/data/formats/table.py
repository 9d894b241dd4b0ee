"""What every format gives to `mmdiff.data.formats.rows.Rows`: rows by number, without holding them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Table(Protocol):
    """The rows of files of one format.

    group_sizes: of runs of rows that are read together, in order; empty where any row is read alone.
    in_order: rows can only be read one after the other.
    """

    group_sizes: Sequence[int]
    in_order: bool

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """Returns the file and the row in it, for error lines."""
        ...

    def read(self, index: int) -> Mapping[str, Any]:
        """Returns the fields of a row. Raises DataError, without `where`, for one that cannot be read."""
        ...

    def size(self, index: int) -> int | None:
        """Returns about how long a row is, in bytes without its media, without reading it; None: not known."""
        ...
