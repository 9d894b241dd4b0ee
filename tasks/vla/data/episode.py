"""An episode of a robot: its instruction, and what it saw, felt and did, frame by frame.

Shape letters: N frames, D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmdiff.errors import DataError, nearest

Array = np.ndarray[Any, Any]
Frames = Sequence[Array] | Array


@dataclass
class Episode:
    """One demonstration.

    action: float32 (N, D) in robot units; `action[n]` is what was done after seeing frame n.
    state: float32 (N, S), or None where nothing was measured.
    images: camera -> N pictures, uint8 (H, W, 3); any sequence, so that pictures may be read when they are used.
    """

    instruction: str
    action: Array
    state: Array | None = None
    images: Mapping[str, Frames] = field(default_factory=dict)
    fps: float = 10.0
    success: bool | None = None

    def __len__(self) -> int:
        return len(self.action)


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
    pictures: whether every picture is looked at, which decodes pictures that are in a file.
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
