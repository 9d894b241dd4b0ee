"""What readers of recorded episodes share: columns joined, pictures read when they are used.

Shape letters: N frames, D dimensions of a column, H W pixels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload
from zipfile import BadZipFile

import numpy as np

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import DataError
from mmdiff.tasks.vla.data.episode import Episode

from .options import ReadOptions

Array = np.ndarray[Any, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Recording:
    """An episode and the names of its columns; state_names is () where it has no state."""

    episode: Episode
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """An episode that has been found. `read()` raises DataError where it is broken."""

    where: str
    read: Callable[[], Recording]


def broken(where: str, error: DataError) -> Recorded:
    """Stands for an episode that could not be found: its `read()` raises `error`."""

    def read() -> Recording:
        raise error

    return Recorded(where, read)


class Frames(Sequence[Array]):
    """N pictures, uint8 (H, W, 3), each read when it is used.

    read: index -> uint8 (H, W, 3). Raises DataError that names the frame, for one that cannot be read.
    """

    def __init__(self, count: int, read: Callable[[int], Array], options: ReadOptions, where: str, camera: str) -> None:
        self._count, self._read, self._options, self._where, self._camera = count, read, options, where, camera

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        frame = range(self._count)[index]  # IndexError ends an iteration
        where = f"{self._where} frame {frame}: camera {self._camera!r}"
        image = guarded(where, lambda: self._read(frame))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"{where}: {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
        if self._options.rotate:
            image = image[::-1, ::-1]
        if self._options.bgr:
            image = image[..., ::-1]
        return np.ascontiguousarray(image)


def guarded(where: str, read: Callable[[], T]) -> T:
    """What `read` gives; a damaged file becomes a DataError that begins with `where`."""
    try:
        return read()
    except DataError as error:
        message = str(error)
        raise DataError(message if message.startswith(where) else f"{where}: {message}") from None
    except (OSError, RuntimeError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(f"{where}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None


def decoded(data: Any) -> Array:
    """The bytes of a picture file -> uint8 (H, W, 3)."""
    return np.asarray(read_image(bytes(data)))


def joined(columns: Sequence[tuple[str, Array]], what: str, where: str) -> tuple[Array, tuple[str, ...]]:
    """Columns (N,) or (N, d) side by side, float32 (N, D), and a name for each. Raises DataError.

    what: "action" or "state". A single column takes its name from it, several from their keys.
    """
    parts: list[Array] = []
    names: list[str] = []
    for key, column in columns:
        if column.dtype.kind not in "fiub" or column.ndim not in (1, 2):
            raise DataError(f"{where}: {what} {key!r} is {column.dtype} {column.shape}, expected numbers (frames, D)")
        if len(column) != len(columns[0][1]):
            raise DataError(
                f"{where}: {what} {key!r} has {len(column)} frames, {columns[0][0]!r} has {len(columns[0][1])}"
            )
        part = column[:, None] if column.ndim == 1 else column
        prefix = what if len(columns) == 1 else key.rsplit("/", 1)[-1]
        names += [prefix] if column.ndim == 1 else [f"{prefix}.{i}" for i in range(part.shape[1])]
        with np.errstate(over="ignore"):  # an infinity is refused, by its frame, when the episode is checked
            parts.append(part.astype(np.float32))
    return np.concatenate(parts, axis=1), tuple(names)


def stripped(key: str) -> str:
    """`agentview_image` and `agentview_rgb` -> `agentview`."""
    return re.sub(r"_(image|rgb)$", "", key)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts demo_2 before demo_10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part]
