"""What readers of recorded episodes share: what is wanted of an episode, columns joined, pictures read when asked for.

Shape letters: N frames, D dimensions of a column, H W pixels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload
from zipfile import BadZipFile

import numpy as np

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import ConfigError, DataError, nearest
from mmdiff.tasks.vla.data.episode import Episode

Array = np.ndarray[Any, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What is taken of a source's episodes. Raises ConfigError.

    fps: frames a second; None: what the source says. instruction: of every episode; None: what the source says.
    cameras: name of a camera -> its key in the source, in order; None: all that look like pictures.
    state, action: keys whose columns are joined in this order; None: what the layout is known for; () no state.
    rotate: 180 turns pictures round (LIBERO's files hold them upside down). bgr: swaps red and blue.
    subset: name under `mask` of a robomimic file, such as "train". split: of a TFDS folder; None: "train".
    """

    fps: float | None = None
    instruction: str | None = None
    cameras: Mapping[str, str] | None = None
    state: Sequence[str] | None = None
    action: Sequence[str] | None = None
    rotate: int = 0
    bgr: bool = False
    subset: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ConfigError(f"fps: {self.fps} is not a number of frames a second above 0")
        if self.instruction is not None and not self.instruction.strip():
            raise ConfigError("instruction: empty, expected a sentence")
        if self.rotate not in (0, 180):
            raise ConfigError(f"rotate: {self.rotate}, expected 0 or 180")
        if self.action is not None and not self.action:
            raise ConfigError("action: no keys, expected at least one")
        for name in ("state", "action"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"{name}: {getattr(self, name)!r} is a string, expected a list of keys")

    def frames_a_second(self, stated: float | None, where: str) -> float:
        if self.fps is not None:
            return float(self.fps)
        if stated is None:
            raise ConfigError(f"fps: {where} does not say how many frames a second it has; give it (--fps)")
        return stated

    def words(self, stated: str | None, where: str) -> str:
        words = (self.instruction or stated or "").strip()
        if not words:
            raise ConfigError(f"instruction: {where} holds none; give one (--instruction)")
        return words

    def pictures(self, found: Mapping[str, str], known: Iterable[str], where: str) -> dict[str, str]:
        """Name -> key. found: what there is by default; known: every key there is. Raises DataError."""
        if self.cameras is None:
            return dict(found)
        known = set(known)
        for name, key in self.cameras.items():
            if key not in known:
                raise DataError(f"{where}: camera {name}: no {key!r}{nearest(key, known)}")
        return dict(self.cameras)


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
    """In place of what could not even be found."""

    def read() -> Recording:
        raise error

    return Recorded(where, read)


class Frames(Sequence[Array]):
    """N pictures, uint8 (H, W, 3), each read when it is asked for.

    read: index -> uint8 (H, W, 3). Raises DataError that names the frame, for one that cannot be read.
    """

    def __init__(self, count: int, read: Callable[[int], Array], wanted: Wanted, where: str, camera: str) -> None:
        self._count, self._read, self._wanted, self._where, self._camera = count, read, wanted, where, camera

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
        if self._wanted.rotate:
            image = image[::-1, ::-1]
        if self._wanted.bgr:
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
