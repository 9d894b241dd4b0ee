"""Frames to moving pictures: mp4 through PyAV, GIF through Pillow. Frames are uint8 (H, W, 3)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, DataError, nearest, require
from mmdiff.files import aside
from mmdiff.parts.ranges import Positive

Array = np.ndarray[Any, Any]

CODECS = ("libx264", "libopenh264", "mpeg4")
"""Encoders of `write_mp4`, the first that is there is taken; common players show all of them."""
GIF_FPS = 50  # viewers show a frame of less than 2/100 s for 10/100 s


class VideoWriter:
    """Frames to an mp4 file, one by one.

    path: must not be there. codec: an encoder of PyAV's, None: the first of `CODECS` there is. gop: frames from one
    keyframe to the next; few make single frames fast to read. quality: the encoder's `crf` (libx264), lower is better.
    The file is whole only after `close`. Raises ConfigError for the codec, DataError for a frame.
    """

    @typed
    def __init__(
        self,
        path: str | Path,
        fps: Positive,
        codec: str | None = None,
        gop: int = 12,
        quality: int = 20,
        pad: bool = False,
    ) -> None:
        require("av", "vla")
        import av

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
            )  # it has no constant quality; 1 bit per pixel
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


def write_mp4(path: str | Path, frames: Iterable[Array], fps: float, codec: str | None = None) -> Path:
    """Frames to an mp4 that browsers show. A row or column of odd number is repeated at the edge.

    Written aside and renamed. Raises ConfigError for a file that exists, DataError for no frames, or several sizes.
    """
    path = _free(path)
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


@typed
def write_gif(path: str | Path, frames: Iterable[Array], fps: Positive, *, scale: int = 1) -> Path:
    """Frames to an endless GIF that takes as long as the frames do at `fps`.

    A GIF counts hundredths of a second, and viewers show no more than 50 frames a second: of faster ones every second,
    third, ... is kept. scale: every pixel becomes scale x scale. Frames that are equal to the one before become one
    longer frame. Written aside and renamed. Raises as `write_mp4` does.
    """
    require("PIL", "vla")
    from PIL import Image

    path = _free(path)
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


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _free(path: str | Path) -> Path:
    path = Path(path)
    if path.exists():
        raise ConfigError(f"{path} is there already; choose another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
