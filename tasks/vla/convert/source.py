"""What readers of recorded episodes share: columns joined, pictures read when they are used.

Shape letters: N frames, D dimensions of a column, H W pixels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import DataError, line_of, located
from mmdiff.tasks.vla.data.columns import PICTURE_BYTES
from mmdiff.tasks.vla.data.episode import Episode, LazyFrames
from mmdiff.tasks.vla.data.reading import PACKED, SMALL, check_regular

from .options import ReadOptions

Array = np.ndarray[Any, Any]
DAMAGE = (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError)
DAMAGE += (MemoryError, BadZipFile, zlib.error)  # type: ignore[assignment]
"""What readers raise about a file that is damaged, or was made to harm."""


@dataclass(frozen=True)
class Recording:
    """An episode and the names of its columns; state_names is () where it has no state."""

    episode: Episode
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """An episode that has been found. where: its file and name, which begin every error about it."""

    where: str
    parse: Callable[[], Recording]

    def read(self) -> Recording:
        """Raises DataError where the episode is broken, ConfigError for an option that is missing."""
        with reading(self.where):
            return self.parse()


def broken(where: str, error: DataError) -> Recorded:
    """Returns what stands for an episode that could not be found: its `read()` raises `error`, which names it."""

    def parse() -> Recording:
        raise error

    return Recorded("", parse)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Put `where` in front of a DataError, and make one of what a damaged file raises."""
    with located(where):
        try:
            yield
        except DAMAGE as error:
            why = line_of(error)
            raise DataError(f"cannot be read ({why})") from None


def check_unpacked(unpacked: int, packed: int, what: str) -> None:
    """Raise DataError for data that unpack to very much more bytes than they take."""
    if unpacked > SMALL + PACKED * packed:
        raise DataError(f"{what}: {packed:,} bytes that unpack to {unpacked:,}, more than data of robots do")


def picture_file(path: Path) -> bytes:
    """Returns the bytes of a picture. Raises DataError for a device, a pipe, and a file that is far too large."""
    check_regular(path, PICTURE_BYTES)
    return path.read_bytes()


def recording(
    options: ReadOptions,
    where: str,
    *,
    fps: float,
    instruction: str,
    action: Sequence[tuple[str, Array]],
    state: Sequence[tuple[str, Array]],
    cameras: Mapping[str, tuple[int, Callable[[int], Array]]],
) -> Recording:
    """Returns the episode of named columns, see `joined`, and of cameras: how many pictures each has, and their reader.

    where: begins errors about pictures, which are read later. Raises DataError for the columns.
    """
    action_ND, action_names = joined(action, "action")
    state_NS, state_names = joined(state, "state") if state else (None, ())
    images = {
        camera: LazyFrames(count, partial(_picture, read, options, where, camera))
        for camera, (count, read) in cameras.items()
    }
    return Recording(Episode(instruction, action_ND, state_NS, images, fps), action_names, state_names)


def _picture(read: Callable[[int], Array], options: ReadOptions, where: str, camera: str, frame: int) -> Array:
    with reading(f"{where} frame {frame}: camera {camera!r}"):
        image = read(frame)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"{image.dtype} {image.shape}, expected uint8 (H, W, 3)")
    if options.rotate:
        image = image[::-1, ::-1]
    if options.bgr:
        image = image[..., ::-1]
    return np.ascontiguousarray(image)


def decoded(data: Any) -> Array:
    """The bytes of a picture file -> uint8 (H, W, 3)."""
    return np.asarray(read_image(bytes(data)))


def joined(columns: Sequence[tuple[str, Array]], what: str) -> tuple[Array, tuple[str, ...]]:
    """Columns (N,) or (N, d) side by side, float32 (N, D), and a name for each. Raises DataError.

    what: "action" or "state". A single column takes its name from it, several from their keys.
    """
    parts: list[Array] = []
    names: list[str] = []
    for key, column in columns:
        if column.dtype.kind not in "fiub" or column.ndim not in (1, 2):
            raise DataError(f"{what} {key!r} is {column.dtype} {column.shape}, expected numbers (frames, D)")
        if len(column) != len(columns[0][1]):
            raise DataError(f"{what} {key!r} has {len(column)} frames, {columns[0][0]!r} has {len(columns[0][1])}")
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
