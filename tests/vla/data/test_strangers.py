"""Data sets from a stranger: text of other kinds, links, endless files, absurd counts, files that unpack to much."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robots.demos import DATA, EPISODES, LENGTHS, ROWS, replaced, rewrite, set_at

from mmdiff.errors import DataError
from mmdiff.tasks.vla.data.columns import EncodedPictures
from mmdiff.tasks.vla.data.dataset import LeRobot, Steps

pytestmark = [pytest.mark.needs("pyarrow", "av", "PIL")]


@pytest.fixture
def old(copy: Path) -> Path:
    """A data set of v2 whose instructions hold what some readers take for the end of a line."""
    import pyarrow.parquet as pq

    file = copy / "meta/info.json"
    info = json.loads(file.read_text()) | {"codebase_version": "v2.1"}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    file.write_text(json.dumps(info))
    table, start = pq.read_table(copy / DATA), 0
    for e, n in enumerate(LENGTHS):
        pq.write_table(table.slice(start, n), copy / f"data/chunk-000/episode_{e:06d}.parquet")
        start += n
    tasks = ['{"task_index": 0, "task": "take\u2028it\u0085up"}', '{"task_index": 1, "task": "put it down\x1c"}']
    (copy / "meta/tasks.jsonl").write_text(
        "\ufeff" + tasks[0] + "\r\n\n" + tasks[1].replace("\x1c", ""), encoding="utf-8"
    )
    lines = [json.dumps({"episode_index": e, "length": n}) for e, n in enumerate(LENGTHS)]
    (copy / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return copy


def test_valid_lines_of_json(old: Path) -> None:
    assert Steps(str(old))[0]["instruction"] == "take\u2028it\u0085up"
    info = old / "meta/info.json"
    info.write_bytes(b"\xef\xbb\xbf" + info.read_bytes())
    assert LeRobot(old).frames == ROWS


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tasks.jsonl", b'{"task_index": 0, "task": "caf\xe9"}\n', r"tasks.jsonl line 1: not UTF-8: at byte 30"),
        ("tasks.jsonl", "{}".encode("utf-16"), "tasks.jsonl line 1: not UTF-8: at byte 0"),
        ("tasks.jsonl", b'{"task_index": [0], "task": "a"}', r"line 1: task_index is \[0\], expected a whole number"),
        ("tasks.jsonl", b'{"task_index": 0, "task": {"a": 1}}', "line 1: task is {'a': 1}, expected text"),
        ("tasks.jsonl", b'\n{"task_index": 0, "tsak": "a"}', "line 2: no 'task'.*did you mean \"tsak\""),
        ("episodes.jsonl", b"[" * 100_000, "line 1: nested too deeply"),
        ("episodes.jsonl", b'{"episode_index": 0, "length": "5"}', "line 1: length is '5', expected a whole number"),
        ("episodes.jsonl", b'{"episode_index": -1, "length": 5}', "line 1: episode_index is -1, expected a whole"),
        ("episodes.jsonl", b'{"episode_index": 0, "length": 5e9}', "line 1: length is 5000000000.0, expected a whole"),
        ("info.json", b"\xff\xfe{", "info.json: not UTF-8"),
        ("info.json", b"[" * 5000 + b"]" * 5000, "info.json: (nested too deeply|not JSON)"),
    ],
)
def test_text_that_is_none(old: Path, file: str, text: bytes, message: str) -> None:
    (old / "meta" / file).write_bytes(text)
    with pytest.raises(DataError, match=message) as error:
        LeRobot(old)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "file", ["meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl", "data/chunk-000/episode_000000.parquet"]
)
@pytest.mark.parametrize("kind", ["endless", "pipe", "circle", "folder"])
def test_files_that_are_none(old: Path, file: str, kind: str) -> None:
    path = old / file
    path.unlink()
    if kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(path)
    else:
        path.mkdir()
    start = time.monotonic()
    with pytest.raises(
        DataError, match=path.name if kind != "circle" or path.name != "info.json" else "meta/info.json"
    ):
        LeRobot(old)
    assert time.monotonic() - start < 1


def test_a_picture_or_a_film_is_a_regular_file(copy: Path) -> None:
    rewrite(copy / DATA, replaced("observation.images.wrist", set_at(0, {"bytes": None, "path": "x.png"})))
    (copy / "x.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="episode 0 frame 0: camera 'wrist': .*device or pipe"):
        Steps(str(copy), cameras=["wrist"])[0]
    rewrite(copy / DATA, replaced("observation.images.wrist", set_at(0, {"bytes": None, "path": "x" * 300})))
    with pytest.raises(DataError, match="episode 0 frame 0: camera 'wrist': .* is no path"):
        Steps(str(copy), cameras=["wrist"])[0]


@pytest.mark.parametrize("name", ["length", "data/file_index", "episode_index"])
@pytest.mark.parametrize("value", [1e300, -1, "5", None])
def test_numbers_of_episodes(copy: Path, name: str, value: Any) -> None:
    rewrite(copy / EPISODES, replaced(name, lambda values: [value] * len(values)))
    with pytest.raises(DataError, match=f"{name} is .*, expected a whole number from 0 on"):
        LeRobot(copy)


@pytest.mark.parametrize("file", [DATA, "meta/tasks.parquet"])
def test_files_that_unpack_to_very_much(copy: Path, file: str) -> None:
    """Numbers that repeat take no room: they are refused before they are unpacked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file == DATA:
        zeros = pa.array(np.zeros(500_000, np.int8))
        columns = {name: zeros for name in ("episode_index", "frame_index", "task_index", "timestamp", "next.success")}
        columns |= {"action": zeros, "observation.state": zeros}
        table = pa.table(columns)
    else:
        zeros = pa.array(np.zeros(4_000_000, np.int32))
        table = pa.table({"task_index": zeros, "task": pa.DictionaryArray.from_arrays(zeros, ["x" * 10_000])})
    pq.write_table(table, copy / file, compression="zstd")
    assert (copy / file).stat().st_size < 50_000
    with pytest.raises(DataError, match=f"{file}: [0-9,]+ bytes that unpack to [0-9,]+"):
        LeRobot(copy)


def test_a_picture_that_is_repeated_very_often(copy: Path) -> None:
    """64 pictures of 1 MB, which are one in the file: what reads them sees that before all are in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, key = pq.read_table(copy / DATA), "observation.images.wrist"
    same = pa.array([{"bytes": b"x" * 1_000_000, "path": None}] * len(table))
    table = table.set_column(table.schema.get_field_index(key), key, same)
    pq.write_table(pa.concat_tables([table] * 60), copy / DATA, compression="zstd")
    size = (copy / DATA).stat().st_size
    assert size < 100_000
    with pytest.raises(DataError, match="unpack to"):
        EncodedPictures(copy).at(DATA, key, 3)
