"""Moving pictures: mp4 through PyAV, GIF through Pillow. Frames are uint8 (H, W, 3).

A frame that is read by its time is the frame that a straight pass would show there: decoding starts at the
keyframe before it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from mmdiff.errors import ConfigError, DataError, nearest, require
from mmdiff.files import aside

Array = np.ndarray[Any, Any]

CODECS = ("libx264", "libopenh264", "mpeg4")
"""Encoders of `write_mp4`, the first that is there is taken; all are shown by common players."""
AHEAD = 16  # frames that are decoded rather than skipped by a seek
GIF_FPS = 50  # viewers show a frame of less than 2/100 s for 10/100 s


class VideoWriter:
    """Frames to an mp4 file, one by one.

    path: must not be there. codec: an encoder of PyAV's, None: the first of `CODECS` there is. gop: frames from one
    keyframe to the next; few make single frames fast to read. quality: the encoder's `crf` (libx264), lower is better.
    The file is whole only after `close`. Raises ConfigError for the codec, DataError for a frame.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        codec: str | None = None,
        gop: int = 12,
        quality: int = 20,
        pad: bool = False,
    ) -> None:
        require("av", "vla")
        import av

        if not (math.isfinite(fps) and fps > 0):
            raise ConfigError(f"fps: {fps}, expected a number above 0")
        self.path, self.fps, self.frames = Path(path), fps, 0
        self.codec = codec_of(codec)
        self._gop, self._quality, self._pad = gop, quality, pad
        self._shape: tuple[int, ...] = ()
        self._stream: Any = None
        self._bytes = self._packets = 0
        if self.path.exists():
            raise ConfigError(f"{self.path} is there already; choose another file")
        self._container = av.open(str(self.path), "w", format="mp4", options={"movflags": "faststart"})

    def size(self, more: int = 0) -> float:
        """About how many bytes the file has after `more` frames, by the frames that have left the encoder so far."""
        return self._bytes / max(self._packets, 1) * (self.frames + more)

    def add(self, frame_HW3: Array) -> None:
        import av

        if self._stream is None:
            self._begin(frame_HW3)
        elif frame_HW3.shape != self._shape:
            raise DataError(
                f"{self.path} frame {self.frames}: shape {frame_HW3.shape}, those before have {self._shape}"
            )
        height, width = self._shape[:2]
        if height % 2 or width % 2:
            frame_HW3 = np.pad(frame_HW3, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), format="rgb24")
        frame.pts = self.frames
        frame.time_base = 1 / _rate(self.fps)
        self._write(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        if self._stream is not None:
            self._write(self._stream.encode())
        self._container.close()

    def _write(self, packets: list[Any]) -> None:
        for packet in packets:
            self._bytes += packet.size
            self._packets += 1
        self._container.mux(packets)

    def _begin(self, frame_HW3: Array) -> None:

        if frame_HW3.dtype != np.uint8 or frame_HW3.ndim != 3 or frame_HW3.shape[2] != 3 or 0 in frame_HW3.shape:
            shape, kind = frame_HW3.shape, frame_HW3.dtype
            raise DataError(f"{self.path} frame 0: {kind} of shape {shape}, expected uint8 (height, width, 3)")
        height, width = frame_HW3.shape[:2]
        if (height % 2 or width % 2) and not self._pad:
            raise DataError(f"{self.path}: frames of {height} x {width} pixels; yuv420p video needs even numbers")
        self._shape = frame_HW3.shape
        # no B-frames: frames are written in the order in which they are shown, so that the first is at time 0
        options = {"crf": str(self._quality), "bf": "0"} if self.codec == "libx264" else {}
        stream: Any = self._container.add_stream(self.codec, rate=_rate(self.fps), options=options)
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.gop_size = self._gop
        if self.codec == "mpeg4":
            stream.bit_rate = max(
                400_000, round(height * width * self.fps)
            )  # it has no constant quality; 1 bit a pixel
        self._stream = stream


def codec_of(name: str | None = None) -> str:
    """The encoder of that name; None: the first of `CODECS` that PyAV has here. Raises ConfigError."""
    require("av", "vla")
    import av

    for known in CODECS if name is None else [name]:
        try:
            av.codec.Codec(known, "w")
        except ValueError:  # PyAV's UnknownCodecError
            continue
        return known
    if name is None:
        raise ConfigError(f"codec: none of {', '.join(CODECS)} is in this build of PyAV; name one that is")
    raise ConfigError(f"codec: {name!r} is no encoder of this build of PyAV{nearest(name, CODECS)}")


def write_mp4(
    path: str | Path, frames: Iterable[Array], fps: float, codec: str | None = None, *, overwrite: bool = False
) -> Path:
    """Frames to an mp4 that browsers show. A row or column of odd number is repeated at the edge.

    Written aside and renamed. Raises ConfigError for a file that is there already, unless `overwrite`; DataError for no
    frames, or frames of several sizes.
    """
    path = _free(path, overwrite)
    with aside(path) as part:
        writer = VideoWriter(part, fps, codec, pad=True)
        try:
            for frame in frames:
                writer.add(frame)
        finally:
            writer.close()
        if writer.frames == 0:
            raise DataError(f"{path}: no frames to write")
    return path


def write_gif(
    path: str | Path, frames: Iterable[Array], fps: float, *, scale: int = 1, overwrite: bool = False
) -> Path:
    """Frames to an endless GIF that takes as long as the frames do at `fps`.

    A GIF counts hundredths of a second, and viewers show no more than 50 frames a second: of faster ones every second,
    third, ... is kept. scale: every pixel becomes scale x scale. Frames that are equal to the one before become one
    longer frame. Written aside and renamed. Raises as `write_mp4` does.
    """
    require("PIL", "vla")
    from PIL import Image

    path = _free(path, overwrite)
    if not (math.isfinite(fps) and fps > 0):
        raise ConfigError(f"fps: {fps}, expected a number above 0")
    every = math.ceil(fps / GIF_FPS)
    kept = [frame for n, frame in enumerate(frames) if n % every == 0]
    if not kept:
        raise DataError(f"{path}: no frames to write")
    ends = [round(100 * every * n / fps) for n in range(len(kept) + 1)]
    pictures = [Image.fromarray(np.ascontiguousarray(frame)).quantize(256) for frame in kept]
    if scale > 1:
        pictures = [p.resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST) for p in pictures]
    durations = [10 * (b - a) for a, b in zip(ends, ends[1:], strict=False)]
    with aside(path) as part:
        pictures[0].save(
            part, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, disposal=2
        )
    return path


def read_frames(path: str | Path) -> Iterator[Array]:
    """All frames of a video in the order in which they are shown. Raises DataError for what is no video, or damaged."""
    video = Video(path)
    try:
        yield from video
    finally:
        video.close()


class Video:
    """A video file whose frames are read by time. Opened when it is used first, in each process for itself.

    Not for several threads at once.
    """

    _container: Any
    _decoder: Any
    _frame: Any
    _time: float  # of the frame that was decoded last
    _landed: float  # of the first one behind a seek

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
        return float(self._opened().average_rate or 0)

    @property
    def frames(self) -> int:
        """How many, by the file's header; 0 where it does not say."""
        return int(self._opened().frames)

    @property
    def shape(self) -> tuple[int, int, int]:
        stream = self._opened()
        return stream.height, stream.width, 3

    def at(self, seconds: float) -> Array:
        """The frame shown at `seconds`, which is the nearest, at most half a frame away. Raises DataError."""
        stream = self._opened()
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
        self._seek(self._opened(), -1.0)
        while self._advance():
            yield self._frame.to_ndarray(format="rgb24")

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._forget()

    def _until(self, seconds: float, half: float) -> Array | None:
        """Decode up to the frame at `seconds`. None: there is none, or decoding began behind it."""
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
            raise DataError(f"{self.path}: damaged behind {max(self._time, 0):.3f} s ({error.strerror})") from None
        if self._frame is None:
            self._landed = float(frame.time)
        self._frame, self._time = frame, float(frame.time)
        return True

    def _seek(self, stream: Any, seconds: float) -> None:
        import av

        self._frame, self._time, self._landed = None, -1.0, 0.0
        try:
            # one tick early: rounding must not land behind the frame
            self._container.seek(max(round(seconds / stream.time_base) - 1, 0), stream=stream, backward=True)
        except av.error.FFmpegError as error:
            raise DataError(f"{self.path}: cannot be searched for {seconds:.3f} s ({error.strerror})") from None
        self._decoder = self._container.decode(stream)

    def _opened(self) -> Any:
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
        """In a forked process: the handles are the other's, and freeing them would wait for its threads for ever."""
        _INHERITED.append((self._container, self._decoder, self._frame))
        self._forget()


_OPEN: WeakSet[Video] = WeakSet()
_INHERITED: list[Any] = []  # what a fork brought along; neither used nor freed


def _after_fork() -> None:
    for video in list(_OPEN):
        video._leave()
    _OPEN.clear()


os.register_at_fork(after_in_child=_after_fork)


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _free(path: str | Path, overwrite: bool) -> Path:
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(f"{path} is there already; choose another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
