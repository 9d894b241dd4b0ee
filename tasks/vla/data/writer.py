"""Episodes to a LeRobotDataset v3.0, as huggingface/lerobot lays it out; see `layout.py`.

Shape letters: N frames, D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError, DataError, require
from mmdiff.files import clear, commit, part_of
from mmdiff.parts.ranges import Positive

from .dataset_stats import PictureStats, column_stats, flat, sampled, vector_stats
from .episode import Episode, check_episode
from .files import CHUNK, RowFiles, VideoFiles, encoded, video_info, write_tasks, writing
from .layout import DATA_PATH, EPISODES_PATH, PREFIX, VERSION, VIDEO_PATH
from .video_writer import codec_of

COUNTED = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that every data set has, in this order, after its own."""


class LeRobotWriter:
    """A LeRobotDataset, episode by episode.

    All is written into a folder aside, which `finish` gives its name; without `finish` nothing is left, and what a
    killed process left is removed by the next one. A context finishes at its end, and leaves nothing after an error.

    fps, robot_type: as info.json has them. action_names, state_names: of the dimensions; empty: 0, 1, ...
    video: pictures go into one mp4 per camera and file, else each into its row, as `picture`.
    codec: an encoder of PyAV's for videos. data_mb, video_mb: the size at which the next file is begun.
    The features are those of the first episode: which cameras, sizes of pictures, D and S, whether success is known.
    notes: further files of `meta/` by name, JSON, which `finish` writes.

    Raises ConfigError for a folder that exists, for an argument, and for a disk that is full or read-only.
    """

    @typed
    def __init__(
        self,
        folder: str | Path,
        *,
        fps: Positive,
        robot_type: str | None = None,
        video: bool = False,
        action_names: Sequence[str] | None = None,
        state_names: Sequence[str] | None = None,
        picture: Literal["png", "jpeg"] = "png",
        codec: str | None = None,
        data_mb: Positive = 100,
        video_mb: Positive = 200,
    ) -> None:
        require("pyarrow", "vla")
        self.folder = Path(folder)
        self._check_free()
        self.fps, self.robot_type, self.video, self.picture = fps, robot_type, video, picture
        self.codec = codec_of(codec) if video else ""
        self.data_mb, self.video_mb = data_mb, video_mb
        self._names = {"action": list(action_names or ()), "observation.state": list(state_names or ())}
        self.notes: dict[str, Any] = {}
        self.tasks: dict[str, int] = {}
        self.features: dict[str, dict[str, Any]] = {}
        self.frames = 0
        self._episodes: list[dict[str, Any]] = []
        self._cameras: dict[str, tuple[int, ...] | None] | None = None
        self._seen: dict[str, PictureStats] = {}
        self._rows = RowFiles(data_mb)
        self._videos: dict[str, VideoFiles] = {}
        self._aside = part_of(self.folder.resolve())
        shutil.rmtree(self._aside, ignore_errors=True)
        with writing(self.folder):
            clear(self._aside.parent, self.folder.resolve().name)
            self._aside.mkdir(parents=True)
        self._cleanup = weakref.finalize(self, _remove, self._aside, os.getpid())

    def __len__(self) -> int:
        """Episodes so far."""
        return len(self._episodes)

    def add(self, episode: Episode, where: str | None = None) -> int:
        """Write an episode; returns its number. Raises DataError, which names it and the frame, and writes nothing.

        where: what an error calls the episode; None: its number in this data set.
        """
        if not self._cleanup.alive:
            raise ConfigError(f"{self.folder}: is finished, no episode can be added")
        number = len(self._episodes)
        where = where or f"{self.folder} episode {number}"
        self._check(episode, where)
        if self._cameras is None:
            self._begin(episode, where)
        n, first = len(episode), self.frames
        task = self.tasks.setdefault(episode.instruction, len(self.tasks))
        counted = (
            (np.arange(n) / self.fps).astype(np.float32),
            np.arange(n),
            np.full(n, number),
            np.arange(first, first + n),
            np.full(n, task),
        )
        columns: dict[str, Any] = {"action": np.asarray(episode.action, np.float32)}
        if episode.state is not None:
            columns["observation.state"] = np.asarray(episode.state, np.float32)
        if episode.success is not None:
            columns["next.success"] = np.arange(n) == (n - 1 if episode.success else n)
        columns |= dict(zip(COUNTED, counted, strict=True))
        stats = {key: vector_stats(values.reshape(n, -1)) for key, values in columns.items()}

        row: dict[str, Any] = {"episode_index": number, "tasks": [episode.instruction], "length": n}
        for camera in self._cameras or ():
            key, seen = PREFIX + camera, PictureStats()
            chosen = set(sampled(n).tolist())
            with writing(self.folder):
                frames = self._videos[key].begin(n) if self.video else None
            files = []
            for i, frame in enumerate(episode.images[camera]):
                if i in chosen:
                    seen.add(frame)
                if frames is None:
                    files.append({"bytes": encoded(frame, self.picture), "path": f"frame-{i:06d}.{self.picture}"})
                else:
                    with writing(self.folder):
                        frames.add(frame)
            if frames is None:
                columns[key] = files
            else:
                row |= {f"videos/{key}/{name}": value for name, value in self._videos[key].end(n).items()}
            self._seen[key] += seen
            stats[key] = seen.stats()
        with writing(self.folder):
            chunk, file = self._rows.write(self._aside, self.features, columns)
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        row |= {"dataset_from_index": first, "dataset_to_index": first + n}
        self._episodes.append(row | flat(stats) | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self.frames += n
        return number

    def finish(self) -> Path:
        """Write `meta/`, and give the folder its name. Raises DataError for no episodes, ConfigError as above."""
        if not self._cleanup.alive:
            return self.folder
        if not self._episodes:
            self.discard()
            raise DataError(f"{self.folder}: no episodes to write")
        try:
            with writing(self.folder):
                self._rows.close()
                for video in self._videos.values():
                    video.close()
                self._write_meta()
                self._check_free()
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                commit(self._aside, self.folder)
        except BaseException:
            self.discard()
            raise
        self._cleanup.detach()
        return self.folder

    def discard(self) -> None:
        """Remove what was written."""
        files: list[Any] = [self._rows, *self._videos.values()]
        for file in files:
            with suppress(Exception):  # what cannot be written to its end is removed all the same
                file.close()
        self._cleanup()

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()

    # What all episodes share

    def _check(self, episode: Episode, where: str) -> None:
        if self._cameras is None:
            check_episode(episode, where)
        else:
            state = self.features.get("observation.state")
            check_episode(
                episode,
                where,
                dims=self.features["action"]["shape"][0],
                state_dims=state["shape"][0] if state else 0,
                cameras=self._cameras,
            )
            if ("next.success" in self.features) != (episode.success is not None):
                expected = "True or False" if "next.success" in self.features else "None"
                raise DataError(f"{where}: success is {episode.success}, expected {expected} as in episode 0")
        if abs(episode.fps - self.fps) > 1e-6 * self.fps:
            raise DataError(f"{where}: {episode.fps:g} frames per second, the data set has {self.fps:g}")

    def _begin(self, episode: Episode, where: str) -> None:
        cameras: dict[str, tuple[int, ...] | None] = {}
        features: dict[str, dict[str, Any]] = {}
        for name, seen in episode.images.items():
            if not name or "/" in name:
                raise DataError(f"{where}: camera {name!r}, expected a name without '/'")
            cameras[name] = shape = tuple(seen[0].shape)
            height, width = shape[:2]
            kind = "video" if self.video else "image"
            if self.video and (height % 2 or width % 2):
                size = f"{height} x {width} pixels; yuv420p video needs even numbers"
                raise DataError(f"{where}: camera {name!r} has {size} (or video=False)")
            features[PREFIX + name] = {
                "dtype": kind,
                "shape": list(shape),
                "names": ["height", "width", "channels"],
            } | ({"info": video_info(height, width, self.fps, self.codec)} if self.video else {})
        for key, values in (("observation.state", episode.state), ("action", episode.action)):
            if values is not None:
                dims = values.shape[1]
                names = self._names[key] or [f"{key.split('.')[-1]}_{d}" for d in range(dims)]
                if len(names) != dims:
                    raise ConfigError(
                        f"{key.split('.')[-1]}_names: {len(names)} names, episodes have {dims} dimensions"
                    )
                features[key] = {"dtype": "float32", "shape": [dims], "names": names}
        if episode.success is not None:
            features["next.success"] = {"dtype": "bool", "shape": [1], "names": None}
        for key in COUNTED:
            features[key] = {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
        self._cameras, self.features = cameras, features
        self._seen = {PREFIX + name: PictureStats() for name in cameras}
        if self.video:
            self._videos = {
                PREFIX + n: VideoFiles(self._aside, PREFIX + n, self.fps, self.codec, self.video_mb) for n in cameras
            }

    # Files

    def _write_meta(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        meta = self._aside / "meta"
        file = self._aside / EPISODES_PATH.format(chunk_index=0, file_index=0)
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), file)

        write_tasks(meta / "tasks.parquet", self.tasks)
        fps = int(self.fps) if float(self.fps).is_integer() else self.fps
        info = {
            "codebase_version": VERSION,
            "robot_type": self.robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": _whole(self.data_mb),
            "video_files_size_in_mb": _whole(self.video_mb),
            "fps": fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.video else None,
            "features": self.features,
        }
        (meta / "info.json").write_text(json.dumps(info, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        files = sorted((self._aside / "data").glob("*/*.parquet"))
        stats = {
            key: self._seen[key].stats() if key in self._seen else column_stats(files, key, feature["shape"][0])
            for key, feature in self.features.items()
        }
        (meta / "stats.json").write_text(json.dumps(stats, indent=4) + "\n", encoding="utf-8")
        for name, note in self.notes.items():
            (meta / name).write_text(json.dumps(note) + "\n", encoding="utf-8")

    def _check_free(self) -> None:
        if self.folder.exists() or self.folder.is_symlink():
            raise ConfigError(f"{self.folder} is there already; nothing was overwritten, choose another folder")


def _whole(mb: float) -> float:
    return int(mb) if float(mb).is_integer() else mb


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a process that was forked from the writer's
        shutil.rmtree(folder, ignore_errors=True)
