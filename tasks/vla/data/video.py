"""Frames of a video file by their time, or one after the other, through PyAV. Frames are uint8 (H, W, 3).

A frame that is read by its time is the frame that a straight pass would show there: decoding starts at the keyframe
before it. `check_times` and `check_clips` hold that this frame is the one that belongs to a row.

Shape letters: N frames of an episode, F of a video, H W pixels.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from mmdiff.encoders.media.images import MAX_PIXELS
from mmdiff.errors import DataError, require

from .reading import check_regular

Array = np.ndarray[Any, Any]

AHEAD = 16  # frames that are decoded rather than skipped by seeking
VIDEOS = 16  # videos that a process keeps open
NEAR = 0.25  # of a frame: how far a time may be from frame_index / fps
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg"
"""FFmpeg's names of the containers that are read. Others, such as playlists, name files and addresses elsewhere."""


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

    def times(self, every_packet: bool = False) -> Array:
        """The times at which its frames are shown, float64 (F,), in order; nothing is decoded. Raises DataError.

        every_packet: reads the whole file, where otherwise its index is enough if it has one.
        """
        import av

        stream = self._stream()
        entries = stream.index_entries
        if not every_packet and len(entries) and len(entries) >= stream.frames > 0:
            ticks_F = np.sort(np.array([entry.timestamp for entry in entries], np.float64))
            ticks_F += (stream.start_time or 0) - ticks_F[0]  # an index holds the times at which frames are decoded
        else:
            try:
                self._container.seek(0, stream=stream, backward=True)
                found = [packet.pts for packet in self._container.demux(stream) if packet.size]
            except av.error.FFmpegError as error:
                raise DataError(f"{self.path}: damaged ({error.strerror})") from None
            self._seek(stream, -1.0)
            if None in found:
                raise DataError(f"{self.path}: frame {found.index(None)} has no time")
            ticks_F = np.sort(np.array(found, np.float64))
        return ticks_F * float(stream.time_base)

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

        check_regular(self.path)
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        try:
            container = av.open(str(self.path), "r", options=options)
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.path}: not a video, or cut off ({error.strerror})") from None
        if not container.streams.video:
            container.close()
            raise DataError(f"{self.path}: holds no pictures")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            container.close()
            raise DataError(f"{self.path}: {width} x {height} pixels, expected 1 to {MAX_PIXELS} in all")
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


class Videos:
    """The videos of a folder, of which the last ones stay open; each process opens its own.

    clips: by file, (number, frames, start in seconds) of all episodes in it, see `check_clips`.
    """

    def __init__(self, folder: Path, fps: float, clips: Mapping[str, Sequence[tuple[int, int, float]]]) -> None:
        self.folder, self.fps, self.clips = folder, fps, clips
        self._open: OrderedDict[str, Video] = OrderedDict()
        self._checked: set[str] = set()

    def open(self, file: str) -> Video:
        """Raises DataError where the index of the file is not that of its episodes."""
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        video = Video(self.folder / file)
        if file not in self._checked:
            check_clips(video, self.fps, self.clips[file])
            self._checked.add(file)
        self._open[file] = video
        if len(self._open) > VIDEOS:
            self._open.popitem(last=False)[1].close()
        return video

    def check(self) -> None:
        """Read all files whole, without decoding them, for `check_clips`."""
        for file, clips in self.clips.items():
            video = Video(self.folder / file)
            check_clips(video, self.fps, clips, every_packet=True)
            video.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def check_times(time_N: Array, fps: float, where: str) -> None:
    """Raise DataError, by frame, where the timestamps of an episode are not frame_index / fps.

    By them the pictures of a video are found: under others, actions are paired with pictures of another moment.
    """
    right_N = np.arange(len(time_N)) / fps
    wrong = np.flatnonzero(~(np.abs(time_N.astype(np.float64) - right_N) <= NEAR / fps))
    if len(wrong):
        n = int(wrong[0])
        expected = f"expected frame_index / fps, {right_N[n]:g} s (fps is {fps:g})"
        raise DataError(f"{where} frame {n}: timestamp is {time_N[n]:g} s, {expected}")


def check_clips(video: Video, fps: float, clips: Sequence[tuple[int, int, float]], every_packet: bool = False) -> None:
    """Raise DataError where the frames of a video are not those of its episodes.

    Frame n has to be shown at n / fps, and each episode has frames of its own. clips: (number, frames, start in
    seconds) of all episodes in it. every_packet: see `Video.times`.
    """
    time_F = video.times(every_packet)
    wrong = np.flatnonzero(~(np.abs(time_F - np.arange(len(time_F)) / fps) <= NEAR / fps))
    if len(wrong):
        n = int(wrong[0])
        expected = f"expected {n / fps:.3f} s at {fps:g} frames per second"
        raise DataError(f"{video.path}: frame {n} is shown at {time_F[n]:.3f} s, {expected}")
    end, before, gaps = 0, -1, False
    for number, length, start in sorted(clips, key=lambda clip: clip[2]):
        first = round(start * fps)
        where = f"{video.path}: episode {number} begins at {start:.3f} s"
        if abs(start * fps - first) > NEAR:
            raise DataError(f"{where}, between two frames")
        if first < end:
            raise DataError(f"{where}, within episode {before}, which ends at {end / fps:.3f} s")
        if first + length > len(time_F):
            raise DataError(f"{where} and has {length} frames, the video ends after {len(time_F) / fps:.3f} s")
        gaps = gaps or first > end
        end, before = first + length, number
    if not gaps and end < len(time_F):
        raise DataError(f"{video.path}: holds {len(time_F)} frames, its episodes have {end}")


_OPEN: WeakSet[Video] = WeakSet()
_INHERITED: list[Any] = []  # handles of the parent process; neither used nor freed


def _after_fork() -> None:
    for video in list(_OPEN):
        video._leave()
    _OPEN.clear()


os.register_at_fork(after_in_child=_after_fork)
