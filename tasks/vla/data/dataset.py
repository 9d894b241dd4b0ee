r"""LeRobotDatasets of v3.0, v2.1 and v2.0: episodes by number, and their frames as rows, each with its K next actions.

    {"image": b"\x89PNG...", "state": float32 (S,), "instruction": "open the drawer", "action": float32 (K, D),
     "action_is_pad": bool (K,), "dataset": "bridge", "episode": 3, "frame": 41, "where": "bridge episode 3 frame 41"}

Actions, states and indices are held in memory; pictures are read when they are used.

Shape letters: N frames, M rows, D dimensions of an action, S of the state, K actions of a chunk, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mmdiff.errors import ConfigError, DataError, located, nearest
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast0, NotNegative, SignedShare, UpTo1000, Whole
from mmdiff.protocols import Row

from .columns import CACHE, EncodedPictures, read_rows
from .episode import Array, Episode, LazyFrames, check_finite, choose_episodes, noops
from .layout import read_layout
from .video import Videos, check_times

TOY_ACTION, TOY_STATE = 7, 4
"""D and S of the data that `Steps.toy` draws: an arm's action, and Meta-World's state."""


class LeRobot:
    """A LeRobotDataset in a folder. May be pickled, and used after a fork: files are opened when they are used.

    action, state: the features that hold them; there may be no state. cache: bytes of encoded pictures that are kept.

    Raises DataError for a folder that is none, files that are missing or cut off, columns that are missing or of
    another width than `meta/info.json` says, and episodes whose rows disagree with `meta/episodes`.
    """

    def __init__(
        self, path: str | Path, action: str = "action", state: str = "observation.state", cache: int = CACHE
    ) -> None:
        self.path = Path(path)
        self.layout = read_layout(path)
        features = self.layout.features
        if action not in features:
            raise DataError(f"{path}: no feature {action!r}{nearest(action, features)}")
        if state not in features and state != "observation.state":
            raise DataError(f"{path}: no feature {state!r}{nearest(state, features)}")
        self.fps = self.layout.fps
        self._keys = self.layout.cameras()
        self.cameras: tuple[str, ...] = tuple(self._keys)
        self.action_names = self.layout.names(action)
        self.state_names = self.layout.names(state) if state in features else ()
        self.tasks: tuple[str, ...] = tuple(self.layout.tasks[n] for n in sorted(self.layout.tasks))
        found = read_rows(self.layout, action, state if state in features else None)
        self.start_E, self.length_E = found.pop("start"), found.pop("length")
        self.row_E = found.pop("row")  # the row of its file that an episode begins with
        self._columns = found
        self._pictures = EncodedPictures(self.path, cache)
        clips: dict[str, list[tuple[int, int, float]]] = {}
        for location in self.layout.episodes:
            for clip in location.clips.values():
                clips.setdefault(clip.file, []).append((location.number, location.length, clip.start))
        self._videos = Videos(self.path, self.fps, clips)

    def __len__(self) -> int:
        """Episodes."""
        return len(self.layout.episodes)

    @property
    def frames(self) -> int:
        return int(self.length_E.sum())

    def actions(self) -> Array:
        """float32 (N, D), episode after episode. Raises DataError for NaN, by episode and frame."""
        self.check()
        return self._columns["action"]

    def states(self) -> Array | None:
        """float32 (N, S), or None. Raises DataError for NaN, by episode and frame."""
        self.check()
        return self._columns.get("state")

    def check(self, episodes: Sequence[int] | None = None) -> None:
        """Raise DataError, which names episode and frame, where an action or a state is not finite, or the timestamps
        by which pictures are found in videos are not frame_index / fps. None: all."""
        for what, names in (("action", self.action_names), ("state", self.state_names)):
            values_ND = self._columns.get(what)
            if values_ND is None or (episodes is None and np.isfinite(values_ND).all()):
                continue
            for e in range(len(self)) if episodes is None else episodes:
                start = self.start_E[e]
                check_finite(values_ND[start : start + self.length_E[e]], self.where(e), what, names)
        for e in range(len(self)) if episodes is None else episodes:
            if self.layout.episodes[e].clips:
                file = self.path / self.layout.episodes[e].file
                check_times(self._columns["time"][self.rows(e)], self.fps, f"{file}: episode {e}")

    def check_videos(self) -> None:
        """Read all videos, without decoding them. Raises DataError, which names the file, where the frames are not
        those of the episodes; `picture` checks the index of a video that it opens."""
        self._videos.check()

    def where(self, episode: int, frame: int | None = None) -> str:
        return f"{self.path} episode {episode}" + ("" if frame is None else f" frame {frame}")

    def instruction(self, episode: int, frame: int) -> str:
        """The instruction of a row. Raises DataError where `meta/` does not know the number of a row's task."""
        number = int(self._columns["task"][self.start_E[episode] + frame])
        found = self.layout.tasks.get(number)
        if found is None:
            raise DataError(f"{self.where(episode, frame)}: task_index {number} is not one of meta/tasks")
        return found

    def episode(self, i: int) -> Episode:
        """Its pictures are decoded when they are used. Raises DataError for NaN; IndexError."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path}: episode {i}, there are {len(self)}")
        i %= len(self)
        self.check([i])
        part = slice(int(self.start_E[i]), int(self.start_E[i] + self.length_E[i]))
        state, success = self._columns.get("state"), self._columns.get("success")
        return Episode(
            self.instruction(i, 0),
            self._columns["action"][part].copy(),
            None if state is None else state[part].copy(),
            {name: LazyFrames(int(self.length_E[i]), partial(self._decoded, name, i)) for name in self.cameras},
            self.fps,
            None if success is None else bool(success[part].any()),
        )

    def picture(self, camera: str, episode: int, frame: int) -> bytes | Array:
        """As it is stored: the bytes of a file for a picture in parquet, uint8 (H, W, 3) for one in a video.

        Raises DataError, which names episode and frame, and the nearest camera.
        """
        key = self._key(camera)
        location = self.layout.episodes[episode]
        with located(f"{self.where(episode, frame)}: camera {camera!r}"):
            clip = location.clips.get(key)
            if clip is None:
                return self._pictures.at(location.file, key, int(self.row_E[episode]) + frame)
            return self._videos.open(clip.file).at(
                clip.start + float(self._columns["time"][self.start_E[episode] + frame])
            )

    def _decoded(self, camera: str, episode: int, frame: int) -> Array:
        found = self.picture(camera, episode, frame)
        if not isinstance(found, bytes):
            return found
        from mmdiff.encoders.media.images import read_image

        with located(f"{self.where(episode, frame)}: camera {camera!r}"):
            return np.array(read_image(found))

    def rows(self, episode: int) -> slice:
        """Where its frames are in `actions()` and `states()`."""
        return slice(int(self.start_E[episode]), int(self.start_E[episode] + self.length_E[episode]))

    def _key(self, camera: str) -> str:
        key = self._keys.get(camera, camera)
        if key not in self._keys.values():
            raise DataError(f"{self.path}: no camera {camera!r}{nearest(camera, self._keys)}")
        return key


@part
class Steps:
    """The frames of a LeRobotDataset as rows, each with the K actions from this frame on; a row is shown above.

    After the end of an episode the last action is repeated, and `action_is_pad` is True. `image` is one picture or a
    list in the order of `cameras`: encoded bytes where parquet holds them, uint8 (H, W, 3) where a video does; absent
    in data without cameras. `state` is absent in data without a state.

    cameras: which, in which order; None: all. key: the value of `dataset`, whose statistics a task uses; None: the
        name of the folder.
    episodes: their numbers; "a:b", from a to before b as in Python; a share in (0, 1), evenly spread over all; or
        a negative share, which is what that of 1 - share leaves: 0.9 and -0.1 are training and held-out. None: all.
    no_noops: frames are left out whose action is shorter (Euclidean norm) than this and leaves the gripper as it was,
        OpenVLA's filter; 1e-4 there. gripper: its dimension, which does not count as motion; None: there is none.
    Raises ConfigError for episodes that are not there, DataError as `LeRobot` does, and for NaN in the chosen episodes.
    """

    page = "docs/data/lerobot.md"

    def __init__(
        self,
        path: str,
        chunk: UpTo1000 = 5,
        cameras: Sequence[str] | None = None,
        episodes: Sequence[AtLeast0] | str | SignedShare | None = None,
        key: str | None = None,
        no_noops: NotNegative | None = None,
        gripper: Whole | None = -1,
        action: str = "action",
        state: str = "observation.state",
        cache_mb: AtLeast0 = CACHE >> 20,
    ) -> None:
        self.data = LeRobot(path, action, state, cache_mb << 20)
        self.chunk, self.key = chunk, key or Path(path).resolve().name
        self.cameras = self.data.cameras if cameras is None else tuple(cameras)
        for name in self.cameras:
            if name not in self.data.cameras and name not in self.data._keys.values():
                raise ConfigError(f"cameras: {path} has no camera {name!r}{nearest(name, self.data.cameras)}")
        self.episodes = choose_episodes(episodes, len(self.data), path)
        self.data.check(self.episodes)
        self._check_videos()
        self.dropped = 0
        self._action_ND = self.data._columns["action"]
        self._state_NS = self.data._columns.get("state")
        rows, lasts, numbers, at = [], [], [], 0
        for e in self.episodes:
            row_M = np.arange(self.data.start_E[e], self.data.start_E[e] + self.data.length_E[e])
            if no_noops is not None:
                row_M = row_M[~noops(self._action_ND[row_M], no_noops, gripper)]
            self.dropped += int(self.data.length_E[e]) - len(row_M)
            at += len(row_M)
            rows.append(row_M)
            lasts.append(np.full(len(row_M), at - 1))
            numbers.append(np.full(len(row_M), e))
        self._row_M, self._last_M, self._episode_M = (np.concatenate(x) for x in (rows, lasts, numbers))
        if not len(self._row_M):
            raise ConfigError(f"no_noops: {no_noops:g} leaves no frame of {path}")
        self._ahead_K = np.arange(chunk)

    def __len__(self) -> int:
        return len(self._row_M)

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        i = index % len(self)
        episode, at = int(self._episode_M[i]), int(self._row_M[i])
        frame = at - int(self.data.start_E[episode])
        ahead_K = self._ahead_K + i
        last = self._last_M[i]
        row: dict[str, Any] = {}
        if self.cameras:
            seen = [self.data.picture(name, episode, frame) for name in self.cameras]
            row["image"] = seen[0] if len(seen) == 1 else seen
        if self._state_NS is not None:
            row["state"] = self._state_NS[at].copy()
        row["instruction"] = self.data.instruction(episode, frame)
        row["action"] = self._action_ND[self._row_M[np.minimum(ahead_K, last)]]
        row["action_is_pad"] = ahead_K > last
        row |= {"dataset": self.key, "episode": episode, "frame": frame, "where": self.data.where(episode, frame)}
        return row

    def _check_videos(self) -> None:
        """A missing file is found now, not after an hour of training."""
        keys = [self.data._key(name) for name in self.cameras]
        known: dict[str, bool] = {}
        for e in self.episodes:
            for name, key in zip(self.cameras, keys, strict=True):
                clip = self.data.layout.episodes[e].clips.get(key)
                if clip is not None and not known.setdefault(clip.file, (self.data.path / clip.file).is_file()):
                    raise DataError(
                        f"{self.data.where(e)}: camera {name!r}: {self.data.path / clip.file}: no such file"
                    )

    @classmethod
    def toy(cls, path: str, chunk: int = 5, cameras: Sequence[str] | None = None, **settings: Any) -> Steps:
        """Two drawn episodes instead of those of `path`, with actions of `TOY_ACTION` and states of `TOY_STATE`
        numbers; the first of `path` where it is there, for its numbers have to fit the other parts."""
        from .writer import LeRobotWriter

        if (Path(path) / "meta" / "info.json").is_file():
            return cls(path, chunk, cameras, **{**settings, "episodes": [0]})

        rng = np.random.default_rng(0)
        with TemporaryDirectory() as folder:
            with LeRobotWriter(f"{folder}/toy", fps=10) as writer:
                for _ in range(2):
                    action_ND = rng.uniform(-1, 1, (8, TOY_ACTION)).astype(np.float32)
                    state_NS = rng.uniform(-1, 1, (8, TOY_STATE)).astype(np.float32)
                    pictures = {c: rng.integers(0, 255, (8, 16, 16, 3), np.uint8) for c in cameras or ["front"]}
                    writer.add(Episode("reach", action_ND, state_NS, pictures, 10))
            kept = {name: value for name, value in settings.items() if name in ("key", "cache_mb")}
            kept.setdefault("key", Path(path).resolve().name)
            source = cls(f"{folder}/toy", chunk, cameras, **kept)
            for i in range(len(source)):
                source[i]  # its pictures are kept, the folder is not
        return source
