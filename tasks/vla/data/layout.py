"""The folder `meta/` of a LeRobotDataset: features, tasks, and where the frames of every episode are.

v3.0 (many episodes per file):
    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet  videos/<key>/chunk-000/file-000.mp4
v2.0 and v2.1 (a file per episode):
    meta/info.json  meta/tasks.jsonl  meta/episodes.jsonl
    data/chunk-000/episode_000000.parquet  videos/chunk-000/<key>/episode_000000.mp4

The paths stand as templates in info.json. Source: huggingface/lerobot, `lerobot.datasets`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.errors import DataError, nearest, require

from .reading import inside, json_lines, open_parquet, read_json, read_texts, reading

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FIELD = re.compile(r"\{\w+(:0?\d{0,2}d)?\}")  # of a template of a path
PICTURES = ("image", "video")  # dtypes of features that are pictures
PREFIX = "observation.images."
OLD = "lerobot converts it: python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME --root=FOLDER"


@dataclass(frozen=True)
class Clip:
    """Where an episode's pictures of a camera are: `file`, from `start` seconds on."""

    file: str
    start: float


@dataclass(frozen=True)
class Location:
    """Where an episode is. file: of its rows, relative to the folder. clips: by camera key, for cameras in videos."""

    number: int
    length: int
    file: str
    clips: Mapping[str, Clip]


@dataclass(frozen=True)
class Layout:
    """Where the parts of a LeRobot data set lie.

    folder: the data set. fps: frames per second. features: as in info.json. tasks: instruction by task_index.
    episodes: in the order of their numbers.
    """

    folder: Path
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[int, str]
    episodes: Sequence[Location]

    def names(self, feature: str) -> tuple[str, ...]:
        """Of the dimensions; empty where they have none."""
        names = self.features[feature].get("names")
        if isinstance(names, Mapping):  # {"motors": [...]}, or {name: number}
            lists = [value for value in names.values() if isinstance(value, list)]
            names = [name for value in lists for name in value] if lists else list(names)
        shape = list(self.features[feature].get("shape") or [])
        if not isinstance(names, list) or len(names) != (shape[0] if len(shape) == 1 else -1):
            return ()
        return tuple(map(str, names))

    def cameras(self) -> dict[str, str]:
        """Short name -> key of the feature: `front` for `observation.images.front`. Maps of depth are left out."""
        keys = [key for key, feature in self.features.items() if feature["dtype"] in PICTURES and not _depth(feature)]
        short = [key.removeprefix(PREFIX).removeprefix("observation.") for key in keys]
        return dict(zip(short if len(set(short)) == len(keys) else keys, keys, strict=True))


def read_layout(path: str | Path) -> Layout:
    """Raises DataError for a folder that is no LeRobotDataset of v3 or v2, and for damaged files of `meta/`."""
    require("pyarrow", "vla")
    folder = Path(path)
    file = folder / "meta" / "info.json"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one of a LeRobotDataset")
    if not file.exists():
        raise DataError(f"{folder}: no LeRobotDataset here (meta/info.json is missing)")
    info = read_json(file)
    version = str(info.get("codebase_version"))
    major = version.lstrip("v").split(".")[0]
    if major == "1":
        raise DataError(f"{folder}: LeRobotDataset {version}, expected {VERSION} or v2; make it v2.1 and then: {OLD}")
    if major not in ("2", "3"):
        raise DataError(
            f"{file}: codebase_version {version!r}, expected {VERSION} or v2.1; re-save it with lerobot < 1"
        )
    for name, kind in {"fps": (int, float), "features": (dict,), "data_path": (str,)}.items():
        if not isinstance(info.get(name), kind):
            raise DataError(
                f"{file}: {name} is {info.get(name)!r:.60}{nearest(name, info) if name not in info else ''}"
            )
    for name, feature in info["features"].items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise DataError(f"{file}: features.{name} has no dtype")
        for known, kinds in {"shape": list, "info": dict, "video_info": dict}.items():
            if not isinstance(feature.get(known), kinds | None):
                raise DataError(f"{file}: features.{name}.{known} is {feature[known]!r:.60}")
    if not 0 < info["fps"] < math.inf:
        raise DataError(f"{file}: fps is {info['fps']}, expected a number above 0")
    tasks, episodes = _v3(folder, info) if major == "3" else _v2(folder, info)
    episodes = sorted(episodes, key=lambda e: e.number)
    for n, location in enumerate(episodes):
        if location.number != n:
            raise DataError(
                f"{folder}: meta lists episode {location.number} where {n} is expected; one is missing or double"
            )
    if not episodes:
        raise DataError(f"{folder}: holds no episodes")
    return Layout(folder, float(info["fps"]), info["features"], tasks, tuple(episodes))


def _v3(folder: Path, info: Mapping[str, Any]) -> tuple[dict[int, str], list[Location]]:
    file = folder / "meta" / "tasks.parquet"
    parquet = open_parquet(file, read_dictionary=["task"])
    there = parquet.schema_arrow.names
    text = [name for name in there if name != "task_index"]
    if "task_index" not in there or not text:
        raise DataError(f"{file}: columns {', '.join(there)[:200]}, expected task_index and task")
    named = "task" if "task" in text else text[0]
    with reading(file):
        numbers = parquet.read(["task_index"], use_threads=False).column("task_index").to_pylist()
    tasks = {}
    for number, words in zip(numbers, read_texts(parquet, file, named), strict=True):
        _check_row({"task_index": number, "task": words}, str(file))
        tasks[number] = words

    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{key}/{name}" for key in videos for name in ("chunk_index", "file_index", "from_timestamp")]
    files = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise DataError(f"{folder}: no files meta/episodes/chunk-*/file-*.parquet")
    locations = []
    for file in files:
        parquet = open_parquet(file, columns)
        with reading(file):
            rows = parquet.read(columns, use_threads=False).to_pylist()
        for row in rows:
            _check_row(row, f"{file} episode {row['episode_index']!r:.20}")
            clips = {}
            for key in videos:
                numbers = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
                film = _path(folder, info, "video_path", video_key=key, **numbers)
                clips[key] = Clip(film, row[f"videos/{key}/from_timestamp"])
            numbers = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
            data = _path(folder, info, "data_path", **numbers)
            locations.append(Location(row["episode_index"], row["length"], data, clips))
    return tasks, locations


def _v2(folder: Path, info: Mapping[str, Any]) -> tuple[dict[int, str], list[Location]]:
    tasks = {}
    for where, row in json_lines(folder / "meta" / "tasks.jsonl", "task_index", "task"):
        _check_row({name: row[name] for name in ("task_index", "task")}, where)
        tasks[row["task_index"]] = row["task"]
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    locations = []
    chunk = info.get("chunks_size") or 1000
    if type(chunk) is not int or chunk < 1:
        raise DataError(f"{folder}/meta/info.json: chunks_size is {chunk!r:.60}, expected a whole number above 0")
    for where, row in json_lines(folder / "meta" / "episodes.jsonl", "episode_index", "length"):
        number = row["episode_index"]
        _check_row({name: row[name] for name in ("episode_index", "length")}, where)
        of = {"episode_chunk": number // chunk, "episode_index": number}
        clips = {key: Clip(_path(folder, info, "video_path", video_key=key, **of), 0.0) for key in videos}
        file = _path(folder, info, "data_path", **of)
        locations.append(Location(number, row["length"], file, clips))
    return tasks, locations


def _check_row(row: Mapping[str, Any], where: str) -> None:
    """Raise DataError for an entry of `meta/` that is not what its name says: text, seconds, or a whole number."""
    for name, value in row.items():
        if name == "task":
            right, expected = isinstance(value, str), "text"
        elif name.endswith("_timestamp"):
            right = type(value) in (int, float) and 0 <= value < math.inf
            expected = "seconds, a number from 0 on"
        else:
            right, expected = type(value) is int and 0 <= value < 1 << 62, "a whole number from 0 on"
        if not right:
            raise DataError(f"{where}: {name} is {'empty' if value is None else f'{value!r:.60}'}, expected {expected}")


def _path(folder: Path, info: Mapping[str, Any], name: str, **values: Any) -> str:
    """A template of info.json, filled in. Raises DataError for one that is none, and for a file outside the folder."""
    template = info.get(name)
    try:
        if not isinstance(template, str) or set("{}") & set(FIELD.sub("", template)):  # no attribute, no great width
            raise ValueError
        path = template.format(**values)
    except (ValueError, KeyError, IndexError, TypeError):
        fields = ", ".join(values)
        raise DataError(f"{folder}/meta/info.json: {name} is {template!r:.80}, expected a path with {fields}") from None
    return inside(path, f"{folder}/meta/info.json: {name}")


def _depth(feature: Mapping[str, Any]) -> bool:
    notes = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(notes.get("is_depth_map") or notes.get("video.is_depth_map"))
