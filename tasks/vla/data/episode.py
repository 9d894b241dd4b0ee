"""An episode of a robot: its instruction, and pictures, state and action of every frame; which episodes are used.

Shape letters: N frames, D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from mmdiff.errors import ConfigError, DataError, nearest

Array = np.ndarray[Any, Any]
Frames = Sequence[Array] | Array


@dataclass
class Episode:
    """One demonstration.

    action: float32 (N, D) in robot units; `action[n]` was executed after frame n.
    state: float32 (N, S), or None where nothing was measured.
    images: camera -> N pictures, uint8 (H, W, 3); any sequence, such as `LazyFrames`.
    """

    instruction: str
    action: Array
    state: Array | None = None
    images: Mapping[str, Frames] = field(default_factory=dict)
    fps: float = 10.0
    success: bool | None = None

    def __len__(self) -> int:
        return len(self.action)


class LazyFrames(Sequence[Array]):
    """N pictures, uint8 (H, W, 3), each of which is read when it is used.

    read: the number of a frame -> its picture. Raises DataError, which names the frame, for one that cannot be read.
    """

    def __init__(self, count: int, read: Callable[[int], Array]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        found = range(self._count)[index]  # IndexError ends an iteration
        return self._read(found) if isinstance(found, int) else [self._read(frame) for frame in found]


def check_episode(
    episode: Episode,
    where: str = "episode",
    *,
    dims: int | None = None,
    state_dims: int | None = None,
    cameras: Mapping[str, tuple[int, ...] | None] | None = None,
    pictures: bool = True,
) -> None:
    """Raise DataError, which names the episode (`where`) and the frame, for what cannot be trained on.

    That is: no frames; an action or a state that is not (N, D) of finite numbers; another length of the state or of a
    camera; a picture that is not uint8 (H, W, 3), or not of the size of the first.

    dims, state_dims: the D and S expected, 0: no state. cameras: those expected, with the shape of their pictures.
    pictures: whether every picture is checked, which decodes those in files.
    """
    if not isinstance(episode.instruction, str):
        raise DataError(f"{where}: instruction is {episode.instruction!r:.60}, expected text")
    if not (np.isfinite(episode.fps) and episode.fps > 0):
        raise DataError(f"{where}: fps is {episode.fps}, expected a number above 0")
    _check_vectors(episode.action, f"{where}", "action", dims)
    frames = len(episode.action)
    if episode.state is not None:
        _check_vectors(episode.state, f"{where}", "state", None)
        if len(episode.state) != frames:
            raise DataError(f"{where}: {len(episode.state)} states, {frames} actions; expected one per frame")
    measured = 0 if episode.state is None else episode.state.shape[1]
    if state_dims is not None and measured != state_dims:
        raise DataError(f"{where}: the state has {measured} dimensions, expected {state_dims}")
    for name in cameras or {}:
        if name not in episode.images:
            raise DataError(f"{where}: no camera {name!r}{nearest(name, episode.images)}")
    for name, seen in episode.images.items():
        if cameras is not None and name not in cameras:
            raise DataError(f"{where}: camera {name!r} is in no earlier episode{nearest(name, cameras)}")
        if len(seen) != frames:
            raise DataError(
                f"{where}: camera {name!r} has {len(seen)} pictures, {frames} actions; expected one per frame"
            )
        if pictures:
            _check_pictures(seen, where, name, (cameras or {}).get(name))


def check_finite(values_ND: Array, where: str, what: str, names: Sequence[str] = (), first: int = 0) -> None:
    """Raise DataError for the first frame that holds NaN or an infinity. first: the number of the first frame."""
    finite_ND = np.isfinite(values_ND)
    if not finite_ND.all():
        frame, dim = (int(n) for n in np.argwhere(~finite_ND)[0])
        name = f" ({names[dim]})" if dim < len(names) else ""
        value = values_ND[frame, dim]
        raise DataError(f"{where} frame {first + frame}: {what}[{dim}]{name} is {value}, expected a finite number")


def choose_episodes(episodes: Sequence[int] | str | float | None, count: int, path: str) -> list[int]:
    """Returns the numbers of the episodes that `Steps` reads, out of 0..count - 1. Raises ConfigError."""
    if episodes is None:
        return list(range(count))
    if isinstance(episodes, str):
        parts = re.fullmatch(r"\s*(-?\d*)\s*:\s*(-?\d*)\s*", episodes)
        if parts is None:
            raise ConfigError(f'episodes: {episodes!r}, expected numbers, "from:to", or a share such as 0.9')
        found = list(range(count))[slice(*(int(p) if p else None for p in parts.groups()))]
    elif isinstance(episodes, float):
        if not 0 < abs(episodes) < 1:
            raise ConfigError(f"episodes: {episodes:g}, expected a share above 0 and below 1, or minus it")
        share = episodes if episodes > 0 else 1 + episodes
        upto = np.floor(np.round(np.arange(count + 1) * share, 6))
        found = np.flatnonzero((np.diff(upto) > 0) == (episodes > 0)).tolist()
    else:
        if isinstance(episodes, bool | int | Mapping):
            raise ConfigError(f'episodes: {episodes!r}, expected a list of numbers, "from:to", or a share such as 0.9')
        found = [int(e) for e in episodes]
        for e in found:
            if not 0 <= e < count:
                raise ConfigError(f"episodes: {e} is none of {path}, which has 0 to {count - 1}")
        if len(set(found)) < len(found):
            raise ConfigError(f"episodes: {next(e for e in found if found.count(e) > 1)} is there twice")
    if not found:
        raise ConfigError(f"episodes: {episodes!r} are none of the {count} of {path}")
    return found


def noops(action_ND: Array, threshold: float, gripper: int | None = -1) -> Array:
    """Returns bool (N,): the frames whose action is shorter than `threshold` and leaves the gripper as it was.

    gripper: its dimension, which does not count as motion; None: there is none. Raises ConfigError.
    """
    dims = action_ND.shape[1]
    if gripper is not None and not -dims <= gripper < dims:
        raise ConfigError(f"gripper: {gripper}, actions have {dims} dimensions")
    moving = np.ones(dims, bool)
    if gripper is not None:
        moving[gripper] = False
    still_N = np.linalg.norm(action_ND[:, moving], axis=1) < threshold
    if gripper is not None:
        still_N[1:] &= action_ND[1:, gripper] == action_ND[:-1, gripper]
    return still_N


def _check_vectors(values: Any, where: str, what: str, dims: int | None) -> None:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise DataError(
            f"{where}: {what} is {type(values).__name__}, expected an array of numbers (frames, dimensions)"
        )
    if values.ndim != 2:
        raise DataError(f"{where}: {what} has shape {values.shape}, expected (frames, dimensions)")
    if len(values) == 0:
        raise DataError(f"{where}: no frames ({what} has shape {values.shape})")
    if values.shape[1] == 0 or (dims is not None and values.shape[1] != dims):
        needed = "at least 1" if dims is None else dims
        raise DataError(f"{where}: {what} has {values.shape[1]} dimensions, expected {needed}")
    check_finite(values, where, what)


def _check_pictures(seen: Frames, where: str, name: str, shape: tuple[int, ...] | None) -> None:
    for n, picture in enumerate(seen):
        at = f"{where} frame {n}: camera {name!r}"
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            kind = picture.dtype if isinstance(picture, np.ndarray) else type(picture).__name__
            raise DataError(f"{at}: picture of {kind}, expected a uint8 array (height, width, 3)")
        if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise DataError(f"{at}: picture of shape {picture.shape}, expected (height, width, 3)")
        shape = shape or picture.shape
        if picture.shape != shape:
            raise DataError(f"{at}: picture of shape {picture.shape}, those before have {shape}")
