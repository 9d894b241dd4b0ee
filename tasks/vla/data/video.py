"""Frames of a video file by their time, or one after the other, through PyAV. Frames are uint8 (H, W, 3).

A frame that is read by its time is the frame that a straight pass would show there: decoding starts at the keyframe
before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from mmdiff.errors import DataError, require

Array = np.ndarray[Any, Any]

AHEAD = 16  # frames that are decoded rather than skipped by seeking


class Video:
    """A video file whose frames are read by time, or iterated over. Each process opens it when it uses it first.

    Not for several threads at once.
    """

    _container: Any
    _decoder: Any
    _frame: Any
    _time: float  # of the frame that was decoded last
    _landed: float  # of the first frame after a seek

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._forget()

    @property
    def fps(self) -> float:
        return float(self._stream().average_rate or 0)

    def at(self, seconds: float) -> Array:
        """The frame shown at `seconds`, which is the nearest, at most half a frame away. Raises DataError."""
        stream = self._stream()
        half = 0.5 / self.fps if self.fps else 0.05
        if self._frame is None or not 0 < seconds - self._time <= 2 * half * AHEAD:
            if self._frame is None or abs(seconds - self._time) > half:
                self._seek(stream, seconds)
        found = self._until(seconds, half)
        if found is None and self._landed > seconds:  # a file whose index of keyframes is wrong
            self._seek(stream, -1.0)
            found = self._until(seconds, half)
        if found is None:
            what = f"ends at {self._time:.3f} s" if self._frame is not None else "holds no frame from there on"
            raise DataError(f"{self.path}: no frame at {seconds:.3f} s, the video {what}")
        return found

    def __iter__(self) -> Iterator[Array]:
        self._seek(self._stream(), -1.0)
        while self._advance():
            yield self._frame.to_ndarray(format="rgb24")

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._forget()

    def _until(self, seconds: float, half: float) -> Array | None:
        """Decode up to the frame at `seconds`. None: there is none, or decoding began after it."""
        while self._frame is None or self._time < seconds - half:
            if not self._advance():
                return None
        if self._time > seconds + half:
            return None
        found: Array = self._frame.to_ndarray(format="rgb24")
        return found

    def _advance(self) -> bool:
        import av

        try:
            frame = next(self._decoder)
        except StopIteration:
            return False
        except av.error.FFmpegError as error:
            raise DataError(f"{self.path}: damaged after {max(self._time, 0):.3f} s ({error.strerror})") from None
        if self._frame is None:
            self._landed = float(frame.time)
        self._frame, self._time = frame, float(frame.time)
        return True

    def _seek(self, stream: Any, seconds: float) -> None:
        import av

        self._frame, self._time, self._landed = None, -1.0, 0.0
        try:
            # one tick early: rounding must not lead past the frame
            self._container.seek(max(round(seconds / stream.time_base) - 1, 0), stream=stream, backward=True)
        except av.error.FFmpegError as error:
            raise DataError(f"{self.path}: cannot be searched for {seconds:.3f} s ({error.strerror})") from None
        self._decoder = self._container.decode(stream)

    def _stream(self) -> Any:
        if self._container is not None:
            return self._container.streams.video[0]
        require("av", "vla")
        import av

        try:
            container = av.open(str(self.path), "r")
        except av.error.FileNotFoundError:
            raise DataError(f"{self.path}: no such file") from None
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.path}: not a video, or cut off ({error.strerror})") from None
        if not container.streams.video:
            container.close()
            raise DataError(f"{self.path}: holds no pictures")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # data processes are many already
        self._container = container
        _OPEN.add(self)
        self._seek(stream, -1.0)
        return stream

    def _forget(self) -> None:
        self._container = self._decoder = self._frame = None
        self._time, self._landed = -1.0, 0.0

    def _leave(self) -> None:
        """Forget the handles in a forked process: freeing them would wait for threads of the parent."""
        _INHERITED.append((self._container, self._decoder, self._frame))
        self._forget()


_OPEN: WeakSet[Video] = WeakSet()
_INHERITED: list[Any] = []  # handles of the parent process; neither used nor freed


def _after_fork() -> None:
    for video in list(_OPEN):
        video._leave()
    _OPEN.clear()


os.register_at_fork(after_in_child=_after_fork)
