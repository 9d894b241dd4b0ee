"""Damaged data sets: every refusal names the file, the episode and the frame."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robots.demos import DATA, EPISODES, ROWS, replaced, rewrite, set_at

from mmdiff.errors import DataError
from mmdiff.tasks.vla.data.dataset import LeRobot, Steps
from mmdiff.tasks.vla.data.reading import open_parquet

pytestmark = [pytest.mark.needs("pyarrow", "av", "PIL")]


DAMAGE: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "nan action": (
        DATA,
        replaced("action", set_at(7, [0.0, float("nan"), 0.0])),
        r"episode 1 frame 2: action\[1\] \(y\) is nan",
    ),
    "empty action": (
        DATA,
        replaced("action", set_at(7, [0.0, 0.0, None])),
        r"episode 1 frame 2: action\[2\] \(grip\) is nan",
    ),
    "inf state": (
        DATA,
        replaced("observation.state", set_at(21, [1.0, float("inf")])),
        r"episode 3 frame 6: state\[1\] ",
    ),
    "short action": (
        DATA,
        replaced("action", set_at(7, [0.0, 1.0])),
        r"row 7: action has 2 dimensions, info.json says 3",
    ),
    "words": (DATA, replaced("action", lambda v: [["a"] * 3] * len(v)), r"action is a column of list<.*string>"),
    "no column": (DATA, lambda t: t.drop_columns(["action"]), r"no column 'action'"),
    "no timestamp": (DATA, lambda t: t.drop_columns(["timestamp"]), r"no column 'timestamp'"),
    "lost row": (
        DATA,
        lambda t: t.slice(0, 21),
        r"episode 3: 6 frames in data/chunk-000/file-000.parquet, meta says 7",
    ),
    "lost episode": (DATA, lambda t: t.slice(5), r"episode 0: no rows in data/chunk-000/file-000.parquet, 5 expected"),
    "torn": (DATA, replaced("episode_index", set_at(8, 0)), r"the rows of episode 0 are not in one piece"),
    "frames": (DATA, replaced("frame_index", set_at(8, 2)), r"episode 1 frame 3: frame_index is 2"),
    "length": (EPISODES, replaced("length", set_at(2, 2)), r"episode 2: 1 frames in data/.*, meta says 2"),
    "twice": (EPISODES, replaced("episode_index", set_at(2, 1)), r"meta lists episode 1 where 2 is expected"),
    "no length": (EPISODES, lambda t: t.drop_columns(["length"]), r"no column 'length'"),
    "no file": (EPISODES, replaced("data/file_index", set_at(0, 5)), r"file-005.parquet: no such file"),
    "tasks": ("meta/tasks.parquet", lambda t: t.drop_columns(["task_index"]), r"columns task, expected task_index and"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, copy: Path) -> None:
    file, change, message = DAMAGE[name]
    rewrite(copy / file, change)
    with pytest.raises(DataError, match=message) as error:
        Steps(str(copy))
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


def test_a_broken_episode_can_be_left_out(copy: Path) -> None:
    rewrite(copy / DATA, replaced("action", set_at(7, [0.0, float("nan"), 0.0])))
    assert len(Steps(str(copy), episodes=[0, 2, 3])) == ROWS - 9
    found = LeRobot(copy)
    assert len(found.episode(0)) == 5
    for look in (lambda: found.episode(1), found.actions, found.states):
        with pytest.raises(DataError, match="episode 1 frame 2"):
            look()


@pytest.mark.parametrize("file", [DATA, EPISODES, "meta/tasks.parquet"])
def test_cut_off_files(file: str, copy: Path) -> None:
    whole = (copy / file).read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        (copy / file).write_bytes(whole[:cut])
        with pytest.raises(DataError, match=f"{file}: damaged or cut off"):
            LeRobot(copy)
    (copy / file).unlink()
    with pytest.raises(DataError, match="no (such )?file"):
        LeRobot(copy)


def test_flipped_bytes_of_pictures(copy: Path) -> None:
    """What the format itself does not notice, the picture does; nothing but a DataError comes out."""
    rewrite(copy / DATA, replaced("observation.images.wrist", set_at(6, {"bytes": b"\x89PNG broken", "path": None})))
    assert len(Steps(str(copy), cameras=["front"])) == ROWS
    with pytest.raises(DataError, match="episode 1 frame 1: camera 'wrist': .*not a picture"):
        LeRobot(copy).episode(1).images["wrist"][1]
    rewrite(copy / DATA, replaced("observation.images.wrist", set_at(6, {"bytes": None, "path": "none.png"})))
    with pytest.raises(DataError, match="episode 1 frame 1: camera 'wrist': .*'none.png', which cannot be read"):
        Steps(str(copy), cameras=["wrist"])[6]
    (copy / "none.png").write_bytes(b"beside")
    assert Steps(str(copy), cameras=["wrist"])[6]["image"] == b"beside"


def test_damaged_videos(filmed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(filmed, tmp_path / "copy"))
    file = copy / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * 0.7)])
    rows = Steps(str(copy))
    with pytest.raises(DataError, match="episode 3 frame 6: camera 'wrist': .*file-000.mp4: (no frame at|damaged)"):
        rows[ROWS - 1]
    file.write_bytes(whole[:20])
    with pytest.raises(DataError, match="episode 0 frame 0: camera 'wrist': .*not a video, or cut off"):
        Steps(str(copy))[0]
    file.unlink()
    with pytest.raises(DataError, match="episode 0: camera 'wrist': .*file-000.mp4: no such file"):
        Steps(str(copy))
    assert len(Steps(str(copy), cameras=["front"])) == ROWS


def test_tasks_that_meta_does_not_know(copy: Path) -> None:
    rewrite(copy / DATA, replaced("task_index", set_at(2, 9)))
    with pytest.raises(DataError, match="episode 0 frame 2: task_index 9 is not one of meta/tasks"):
        Steps(str(copy))[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "LeRobotDataset v1.6, expected v3.0 or v2; make it v2.1 and then: .*convert"),
        ({"codebase_version": "v4.0"}, "codebase_version 'v4.0', expected v3.0"),
        ({"codebase_version": None}, "codebase_version 'None'"),
        ({"fps": 0}, "fps is 0, expected"),
        ({"fps": "10"}, "fps is '10'"),
        ({"data_path": None}, "data_path is None"),
        ({"features": {"action": {"shape": [3]}}}, "features.action has no dtype"),
        (
            {"features": {"actions": {"dtype": "float32", "shape": [3]}}},
            r"""no feature 'action' \(did you mean "actions""",
        ),
    ],
)
def test_info(change: dict[str, Any], message: str, copy: Path) -> None:
    file = copy / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=message):
        LeRobot(copy)


def test_no_data_set(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder"):
        LeRobot(tmp_path / "none")
    with pytest.raises(DataError, match="no LeRobotDataset here"):
        LeRobot(tmp_path)
    (copy / "meta/info.json").write_text("{")
    with pytest.raises(DataError, match="info.json: not JSON"):
        LeRobot(copy)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data_path": "{nope}"}, "expected a path with chunk_index, file_index"),
        ({"data_path": "{"}, "expected a path with"),
        ({"data_path": "{chunk_index.__class__}"}, "expected a path with"),
        ({"data_path": "{chunk_index:0999999999d}"}, "expected a path with"),
        ({"data_path": "../demos/data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}, "leads out of"),
        ({"data_path": "/etc/passwd"}, "leads out of"),
        ({"fps": float("inf")}, "fps is inf"),
    ],
)
def test_a_data_set_names_no_file_outside(copy: Path, change: dict[str, Any], message: str) -> None:
    file = copy / "meta" / "info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        LeRobot(copy)


def test_a_picture_is_no_file_outside(copy: Path) -> None:
    rewrite(copy / DATA, replaced("observation.images.wrist", set_at(6, {"bytes": None, "path": "../x.png"})))
    data = LeRobot(copy)
    episode = int(np.searchsorted(data.start_E, 6, side="right")) - 1
    with pytest.raises(DataError, match="leads out of"):
        data.picture("wrist", episode, 6 - int(data.start_E[episode]))


def test_a_table_of_tasks_under_a_damaged_name(tmp_path: Path) -> None:
    """pyarrow's word for a column that is to be read as a dictionary and is not there is a KeyError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"tasj": ["push"]}), file := tmp_path / "tasks.parquet")
    with pytest.raises(DataError, match=r"tasks\.parquet: damaged or cut off"):
        open_parquet(file, read_dictionary=["task"])
