"""`datasets` by row number: a Dataset as it is, an IterableDataset one row after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError, DataError, line_of, require, shown
from mmdiff.parts.ranges import AtLeast1


class Arrow:
    """The rows of a `datasets.Dataset`. See `mmdiff.data.formats.table.Table`.

    Its pictures and sounds are handed on as they are stored, so that an encoder decodes them and errors name the row.
    """

    group_sizes: Sequence[int] = ()
    in_order = False

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = undecoded(dataset), name

    def __len__(self) -> int:
        return len(self.dataset)

    def where(self, index: int) -> str:
        return f"{self.name} row {index}"

    def size(self, index: int) -> None:
        return None

    def read(self, index: int) -> Mapping[str, Any]:
        try:
            row: Mapping[str, Any] = self.dataset[index]
        except Exception as error:  # of whatever reads and maps the rows
            raise DataError(f"cannot be read ({line_of(error)})") from None
        return row


class Iterated:
    """The rows of a `datasets.IterableDataset`, in its order. See `mmdiff.data.formats.table.Table`.

    A row is reached by reading on from the last one, or by `skip` from the beginning: that is how a run resumes where
    it stood. Every process reads all rows and hands out its own, as the order of a stage is over all processes.

    count: the rows of an epoch; None: they are counted, by reading them once.
    """

    group_sizes: Sequence[int] = ()
    in_order = True

    def __init__(self, dataset: Any, name: str, count: int | None = None) -> None:
        self.dataset, self.name = undecoded(dataset), name
        self._next = 0
        self._rows: Iterator[Mapping[str, Any]] = iter(())
        self._begun = False
        self._owner = os.getpid()
        self._count = self._counted() if count is None else count

    def __len__(self) -> int:
        return self._count

    def where(self, index: int) -> str:
        return f"{self.name} row {index}"

    def size(self, index: int) -> None:
        return None

    def _counted(self) -> int:
        count = 0
        try:
            for _ in self._from(0):
                count += 1
        except Exception as error:  # of whatever reads and maps the rows
            raise DataError(f"{self.where(count)}: cannot be read ({line_of(error)})") from None
        return count

    def _from(self, index: int) -> Iterator[Mapping[str, Any]]:
        # `iter(dataset)` would deal the rows out to data processes, whose shares the stream has dealt out already
        rows = (self.dataset.skip(index) if index else self.dataset).iter(batch_size=1)
        return ({name: values[0] for name, values in batch.items()} for batch in rows)

    def read(self, index: int) -> Mapping[str, Any]:
        if self._owner != os.getpid():
            # forked in the midst of rows: their threads are not here, and their files' positions are shared. They are
            # neither read on nor closed, which would wait for those threads.
            self._inherited, self._begun, self._owner = self._rows, False, os.getpid()
        try:
            if not self._begun or index < self._next:
                self._rows, self._next, self._begun = self._from(index), index, True
            for row in self._rows:
                self._next += 1
                if self._next > index:
                    return row
        except Exception as error:  # of whatever reads and maps the rows
            self._begun = False
            raise DataError(f"cannot be read ({line_of(error)})") from None
        self._begun = False
        raise DataError(f"there is no such row; expected the {self._count} of `limit`")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_rows": iter(()), "_begun": False}


def loaded(
    path: str,
    *,
    split: str = "train",
    name: str | None = None,
    data_files: str | Sequence[str] | None = None,
    data_dir: str | None = None,
    streaming: bool = False,
    shuffle_buffer: AtLeast1 | None = None,
    seed: int = 0,
) -> Any:
    """Returns what `datasets.load_dataset` loads: a builder such as `json` or `imagefolder`, a folder, or a hub's name.

    streaming: an IterableDataset, of which nothing is prepared on the disk. shuffle_buffer: rows that it is shuffled
    among, under `seed`; None: its order is that of the files. Other arguments are those of `load_dataset`. Raises
    ConfigError, DataError.
    """
    require("datasets", "text")
    import datasets

    if shuffle_buffer is not None and not streaming:
        raise ConfigError("shuffle_buffer: rows that are not streamed are shuffled by the stage, expected none")
    try:
        found = datasets.load_dataset(
            path, name, split=split, data_files=data_files, data_dir=data_dir, streaming=streaming
        )
        return found.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else found
    except Exception as error:  # of whatever a builder does with the files
        raise DataError(f"{shown(path)}: cannot be loaded ({line_of(error)})") from None


def saved(path: Path) -> Any:
    """Returns the Dataset that `save_to_disk` put into a folder. Raises DataError."""
    require("datasets", "text")
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError) as error:
        files = any(one.is_file() for one in path.iterdir())
        why = f"for the files in it: {path}/*" if files else line_of(error)
        raise DataError(f"{path}: no folder that `datasets` saved ({why})") from None
    if not isinstance(found, datasets.Dataset):
        raise DataError(f"{path}: holds the splits {', '.join(map(str, found))}, expected the folder of one")
    return found


def undecoded(dataset: Any) -> Any:
    """Returns a data set whose pictures and sounds are {"bytes": ..., "path": ...}."""
    import datasets

    for name, kind in (dataset.features or {}).items():
        if isinstance(kind, datasets.Image | datasets.Audio) and kind.decode:
            dataset = dataset.cast_column(name, type(kind)(decode=False))
    return dataset
