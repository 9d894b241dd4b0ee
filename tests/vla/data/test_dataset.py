"""LeRobotDatasets: what is written is read; rows; every refusal; the layout and its statistics."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import ConfigError, DataError, UserError
from mmdiff.tasks.vla.data.dataset import TOY_ACTION, TOY_STATE, LeRobot, Steps, chosen, noops
from mmdiff.tasks.vla.data.dataset_stats import PictureStats, vector_stats
from mmdiff.tasks.vla.data.episode import Episode
from mmdiff.tasks.vla.data.video import read_frames
from mmdiff.tasks.vla.data.video_writer import write_mp4
from mmdiff.tasks.vla.data.writer import LeRobotWriter

pytestmark = [pytest.mark.needs("pyarrow", "av", "PIL")]
LENGTHS = (5, 9, 1, 7)
ROWS = sum(LENGTHS)


def episodes(lengths: tuple[int, ...] = LENGTHS, cameras: tuple[str, ...] = ("front", "wrist")) -> list[Episode]:
    rng = np.random.default_rng(0)
    found = []
    for e, n in enumerate(lengths):
        shades = 20 + 5 * np.arange(n)[:, None, None, None] + 40 * e
        images = {c: np.broadcast_to(shades + 3 * i, (n, 16, 24, 3)).astype(np.uint8) for i, c in enumerate(cameras)}
        action, state = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32)
        found.append(Episode(f"do {e % 2}", action, state, images, 10.0, e != 1))
    return found


def write(folder: Path, given: list[Episode] | None = None, **settings: Any) -> Path:
    with LeRobotWriter(folder, fps=10, robot_type="arm", action_names=("x", "y", "grip"), **settings) as writer:
        for episode in episodes() if given is None else given:
            writer.add(episode)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lerobot") / "demos")


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lerobot") / "filmed", video=True)


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "copy"))


# Round trips


def test_episodes_come_back(data: Path) -> None:
    found = LeRobot(data)
    assert (len(found), found.frames, found.fps, found.cameras) == (4, ROWS, 10, ("front", "wrist"))
    assert found.action_names == ("x", "y", "grip") and found.state_names == ("state_0", "state_1")
    assert found.tasks == ("do 0", "do 1")
    for i, wanted in enumerate(episodes()):
        one = found.episode(i)
        assert (one.instruction, one.fps, one.success) == (wanted.instruction, 10, wanted.success)
        assert np.array_equal(one.action, wanted.action) and np.array_equal(one.state, wanted.state)
        for camera in ("front", "wrist"):
            assert np.array_equal(np.stack(list(one.images[camera])), wanted.images[camera])
            assert np.array_equal(one.images[camera][-1], wanted.images[camera][-1])
            assert len(one.images[camera][1:]) == len(wanted.action) - 1
    assert np.array_equal(found.actions(), np.concatenate([e.action for e in episodes()]))
    assert np.array_equal(found.states(), np.concatenate([e.state for e in episodes()]))
    with pytest.raises(IndexError):
        found.episode(4)


def test_videos_come_back(filmed: Path) -> None:
    """A flat grey survives the codec up to a few values; every frame is that of the straight pass of its file."""
    found = LeRobot(filmed)
    assert not list(filmed.glob("videos/*/*/file-001.mp4"))
    for camera in found.cameras:
        straight = list(read_frames(filmed / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"))
        assert len(straight) == ROWS
        for i, wanted in enumerate(episodes()):
            for n in np.random.default_rng(i).permutation(len(wanted)).tolist():
                frame = found.picture(camera, i, n)
                assert np.array_equal(frame, straight[sum(LENGTHS[:i]) + n])
                assert abs(frame.mean() - wanted.images[camera][n].mean()) < 2
    rows = Steps(str(filmed), cameras=["wrist"])
    assert rows[6]["image"].shape == (16, 24, 3) and rows[6]["image"].dtype == np.uint8


def test_many_files(tmp_path: Path) -> None:
    long = [replace(e, images={"front": e.images["front"] % 250}) for e in episodes((70, 60, 3))]
    write(tmp_path / "a", long, data_mb=0.002, video_mb=1e-6, video=True)
    assert len(list((tmp_path / "a").glob("data/chunk-000/file-*.parquet"))) == 3
    assert len(list((tmp_path / "a").glob("videos/observation.images.front/chunk-000/*.mp4"))) == 3
    found = LeRobot(tmp_path / "a")
    for i, wanted in enumerate(long):
        assert np.array_equal(found.episode(i).action, wanted.action)
        assert abs(found.picture("front", i, 1).mean() - wanted.images["front"][1].mean()) < 2
    given = episodes((6, 3, 8, 2, 5))
    write(tmp_path / "b", given, data_mb=0.006)
    assert len(files := sorted((tmp_path / "b").glob("data/chunk-000/file-*.parquet"))) > 1
    assert all(file.stat().st_size < 0.02 * (1 << 20) for file in files)
    found = LeRobot(tmp_path / "b", cache=1)  # no more than one row group is kept
    for i, n in ((4, 2), (0, 5), (2, 7), (4, 0), (1, 1)):
        assert np.array_equal(found.episode(i).images["wrist"][n], given[i].images["wrist"][n])
    assert len(found._pictures._groups) == 1


def test_jpeg_and_one_dimension_and_no_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = Episode("go", rng.normal(size=(6, 1)).astype(np.float32), fps=12.5)
    with LeRobotWriter(tmp_path / "a", fps=12.5) as writer:
        writer.add(plain)
    row = Steps(str(tmp_path / "a"), chunk=2)[5]
    assert np.array_equal(row["action"], plain.action[[5, 5]]) and "image" not in row and "state" not in row
    found = LeRobot(tmp_path / "a")
    assert found.fps == 12.5 and found.states() is None and found.episode(0).success is None
    write(tmp_path / "b", picture="jpeg")
    image = Steps(str(tmp_path / "b"), cameras=["front"])[3]["image"]
    assert image[:2] == b"\xff\xd8" and abs(np.array(read_image(image)).mean() - 35) < 2


# The layout of huggingface/lerobot


def test_the_layout(data: Path, filmed: Path) -> None:
    import pyarrow.parquet as pq

    there = sorted(str(file.relative_to(filmed)) for file in filmed.rglob("*") if file.is_file())
    assert there == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "videos/observation.images.front/chunk-000/file-000.mp4",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    ]
    info = json.loads((filmed / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "total_episodes": 4,
        "total_frames": ROWS,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:4"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    assert features["action"] == {"dtype": "float32", "shape": [3], "names": ["x", "y", "grip"]}
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    front = features["observation.images.front"]
    assert (front["dtype"], front["shape"], front["names"]) == ("video", [16, 24, 3], ["height", "width", "channels"])
    assert front["info"]["video.codec"] == "h264" and front["info"]["video.pix_fmt"] == "yuv420p"
    assert json.loads((data / "meta/info.json").read_text())["video_path"] is None

    table = pq.read_table(data / "data/chunk-000/file-000.parquet")
    assert table.column("index").to_pylist() == list(range(ROWS))
    assert table.column("episode_index").to_pylist() == np.repeat(range(4), LENGTHS).tolist()
    assert table.column("timestamp").to_pylist()[5:8] == [0, np.float32(0.1), np.float32(0.2)]
    assert str(table.schema.field("action").type) == "fixed_size_list<element: float>[3]"
    assert str(table.schema.field("observation.images.front").type) == "struct<bytes: binary, path: string>"
    assert pq.ParquetFile(data / "data/chunk-000/file-000.parquet").num_row_groups == 4

    tasks = pq.read_table(data / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "task": ["do 0", "do 1"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]

    rows = pq.read_table(filmed / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, 5, 14, 15]
    assert [row["dataset_to_index"] for row in rows] == [5, 14, 15, 22]
    assert rows[1]["tasks"] == ["do 1"] and rows[3]["length"] == 7
    key = "videos/observation.images.wrist"
    assert rows[3][f"{key}/from_timestamp"] == 1.5 and rows[3][f"{key}/to_timestamp"] == 2.2
    assert rows[3][f"{key}/chunk_index"] == rows[3][f"{key}/file_index"] == rows[3]["data/chunk_index"] == 0
    assert rows[3]["stats/action/max"] == episodes()[3].action.max(0).tolist()


def test_statistics_are_exact(data: Path) -> None:
    stats = json.loads((data / "meta/stats.json").read_text())
    action = np.concatenate([e.action for e in episodes()]).astype(np.float64)
    for name, wanted in {
        "mean": action.mean(0),
        "std": action.std(0),
        "min": action.min(0),
        "max": action.max(0),
        "q01": np.quantile(action, 0.01, axis=0),
        "q50": np.median(action, axis=0),
        "q99": np.quantile(action, 0.99, axis=0),
        "count": [ROWS],
    }.items():
        np.testing.assert_allclose(stats["action"][name], wanted, rtol=1e-12, err_msg=name)
    assert stats["next.success"]["mean"] == [3 / ROWS]  # one frame of each episode but the second
    pixels = np.concatenate([e.images["front"].reshape(-1, 3) for e in episodes()]) / 255
    seen = stats["observation.images.front"]
    assert np.shape(seen["mean"]) == (3, 1, 1) and seen["count"] == [ROWS]
    np.testing.assert_allclose(np.ravel(seen["mean"]), pixels.mean(0))
    np.testing.assert_allclose(np.ravel(seen["q10"]), np.quantile(pixels, 0.1, axis=0))


def test_statistics_of_pictures_are_those_of_their_pixels() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(3, 250, (5, 12, 9, 3)).astype(np.uint8)
    seen = PictureStats()
    for picture in pictures:
        seen.add(picture)
    wanted = vector_stats(pictures.reshape(-1, 3) / 255)
    for name, value in seen.stats().items():
        np.testing.assert_allclose(np.ravel(value), [5] if name == "count" else wanted[name], rtol=1e-9, err_msg=name)


# Rows


def test_rows(data: Path) -> None:
    rows, given = Steps(str(data), chunk=4), episodes()
    assert len(rows) == ROWS
    at = 0
    for e, episode in enumerate(given):
        for n in range(len(episode)):
            row = rows[at]
            ahead = [min(n + k, len(episode) - 1) for k in range(4)]
            assert np.array_equal(row["action"], episode.action[ahead]) and row["action"].dtype == np.float32
            assert row["action_is_pad"].tolist() == [n + k >= len(episode) for k in range(4)]
            assert np.array_equal(row["state"], episode.state[n])
            assert (row["episode"], row["frame"], row["instruction"]) == (e, n, episode.instruction)
            assert row["dataset"] == "demos" and row["where"] == f"{data} episode {e} frame {n}"
            for found, camera in zip(row["image"], ("front", "wrist"), strict=True):
                assert isinstance(found, bytes)
                assert np.array_equal(np.array(read_image(found)), episode.images[camera][n])
            at += 1
    assert rows[-1]["frame"] == 6
    with pytest.raises(IndexError):
        rows[ROWS]


def test_order_of_cameras_and_key(data: Path) -> None:
    rows = Steps(str(data), cameras=["wrist", "front"], key="arm7")
    assert rows[0]["dataset"] == "arm7"
    assert [np.array(read_image(x)).mean() for x in rows[0]["image"]] == [23, 20]
    one = Steps(str(data), cameras=["observation.images.wrist"])[0]["image"]
    assert isinstance(one, bytes) and np.array(read_image(one)).mean() == 23
    assert "image" not in Steps(str(data), cameras=[])[0]
    with pytest.raises(ConfigError, match=r"""no camera 'frnt' \(did you mean "front"\?\)"""):
        Steps(str(data), cameras=["frnt"])


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (None, list(range(10))),
        ([7, 2], [7, 2]),
        ("2:4", [2, 3]),
        (":-8", [0, 1]),
        ("-2:", [8, 9]),
        (0.5, [1, 3, 5, 7, 9]),
        (-0.5, [0, 2, 4, 6, 8]),
        (0.9, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (-0.1, [0]),
    ],
)
def test_episodes_asked_for(asked: Any, wanted: list[int]) -> None:
    assert chosen(asked, 10, "x") == wanted


def test_a_share_and_its_rest_are_all() -> None:
    for count in (7, 30, 120):
        for percent in range(1, 100):
            share = percent / 100
            rest = [] if int(round(count * share, 6)) == count else chosen(-(1 - share), count, "x")
            took = [] if count * share < 1 else chosen(share, count, "x")
            assert sorted(took + rest) == list(range(count)) and len(took) == int(round(count * share, 6))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([3, 12], "12 is none of x, which has 0 to 9"),
        ([3, 3], "3 is there twice"),
        ("9:3", "are none of the 10"),
        ([], "are none of the 10"),
        ("some", "expected numbers"),
        (1.5, "expected a share"),
        (5, "expected a list of numbers"),
    ],
)
def test_episodes_that_are_not(asked: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(asked, 10, "x")


def test_chosen_episodes_give_their_rows(data: Path) -> None:
    rows = Steps(str(data), episodes=[3, 0], chunk=2)
    assert [(rows[i]["episode"], rows[i]["frame"]) for i in range(len(rows))] == [
        *((3, n) for n in range(7)),
        *((0, n) for n in range(5)),
    ]
    assert rows[6]["action_is_pad"].tolist() == [False, True]


def test_noops_are_dropped_and_chunks_go_on_behind_them(tmp_path: Path) -> None:
    """By hand: still frames go, one that only moves the gripper stays, and the first frame of an episode may go."""
    action = np.array([[0, 0, 1], [1, 0, 1], [0, 1e-5, 1], [0, 0, -1], [0, 0, -1], [2, 0, -1]], np.float32)
    assert noops(action, 1e-4).tolist() == [True, False, True, False, True, False]
    assert noops(action, 1e-4, None).tolist() == [False] * 6
    write(tmp_path / "a", [replace(episodes((6,))[0], action=action)])
    rows = Steps(str(tmp_path / "a"), chunk=2, no_noops=1e-4)
    assert rows.dropped == 3 and [row["frame"] for row in (rows[i] for i in range(3))] == [1, 3, 5]
    assert rows[1]["action"].tolist() == [[0, 0, -1], [2, 0, -1]] and rows[2]["action_is_pad"].tolist() == [False, True]
    with pytest.raises(ConfigError, match="no_noops: 100 leaves no frame"):
        Steps(str(tmp_path / "a"), no_noops=100, gripper=None)
    with pytest.raises(ConfigError, match="gripper: 3, actions have 3"):
        Steps(str(tmp_path / "a"), no_noops=1, gripper=3)


@pytest.mark.parametrize("kind", ["data", "filmed"])
def test_data_processes(kind: str, request: pytest.FixtureRequest) -> None:
    """A used source is pickled, and used in forked processes, where it gives the same."""
    rows = Steps(str(request.getfixturevalue(kind)), cameras=["front"])

    def look(source: Steps) -> list[float]:
        images = (source[i]["image"] for i in (20, 3, 11))
        return [float(np.array(read_image(image)).mean()) for image in images]

    wanted = look(rows)
    assert look(pickle.loads(pickle.dumps(rows))) == wanted
    assert len(pickle.dumps(rows)) < 20_000
    read, wrote = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(wrote, b"1" if look(rows) == wanted else b"0")
        finally:
            os._exit(0)
    assert look(rows) == wanted
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"1"


def test_a_toy_needs_no_data() -> None:
    rows = Steps.toy("data/metaworld", chunk=3, cameras=["a", "b"], episodes=0.9, no_noops=1e-4)
    assert rows[9]["action"].shape == (3, TOY_ACTION) and rows[9]["state"].shape == (TOY_STATE,)
    assert len(rows[9]["image"]) == 2 and rows[9]["dataset"] == "metaworld"
    assert np.array(read_image(rows[0]["image"][1])).shape == (16, 16, 3)


def test_a_toy_is_the_data_where_it_is_there(data: Path) -> None:
    rows = Steps.toy(str(data), chunk=3)
    assert {rows[i]["episode"] for i in range(len(rows))} == {0}
    assert np.array_equal(rows[0]["action"], LeRobot(data).episode(0).action[:3])


# Damage


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    import pyarrow.parquet as pq

    pq.write_table(change(pq.read_table(file)), file)


def replaced(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[Any], Any]:
    def change(table: Any) -> Any:
        import pyarrow as pa

        at = table.schema.get_field_index(name)
        return table.set_column(at, name, pa.array(values(table.column(name).to_pylist())))

    return change


def set_at(index: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:index], value, *values[index + 1 :]]


DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
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


# What the writer refuses


def test_a_folder_that_is_there_is_left_alone(data: Path, tmp_path: Path) -> None:
    before = (data / DATA).read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        LeRobotWriter(data, fps=10)
    writer = LeRobotWriter(tmp_path / "late", fps=10)
    writer.add(episodes()[0])
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="is there already"):
        writer.finish()
    assert (tmp_path / "late" / "mine").read_text() == "kept" and (data / DATA).read_bytes() == before


def test_nothing_stays_of_what_is_not_finished(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "a", fps=10, video=True)
    writer.add(episodes()[0])
    assert len(list(tmp_path.iterdir())) == 1 and not (tmp_path / "a").exists()
    del writer
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="a: no episodes to write"):
        LeRobotWriter(tmp_path / "a", fps=10).finish()
    with pytest.raises(KeyError), LeRobotWriter(tmp_path / "a", fps=10) as writer:
        writer.add(episodes()[0])
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("video", [False, True])
def test_a_broken_episode_is_refused_and_the_others_are_whole(tmp_path: Path, video: bool) -> None:
    writer = LeRobotWriter(tmp_path / "a", fps=10, video=video)
    good = episodes()
    writer.add(good[0])
    nan = good[1].action.copy()
    nan[4, 2] = np.nan
    short = {name: seen[:-1] for name, seen in good[1].images.items()}
    sizes = {**good[1].images, "wrist": [*good[1].images["wrist"][:-1], np.zeros((16, 16, 3), np.uint8)]}
    for broken, message in (
        (replace(good[1], action=nan), r"episode 1 frame 4: action\[2\] is nan"),
        (replace(good[1], images=short), r"episode 1: camera 'front' has 8 pictures, 9 actions"),
        (replace(good[1], images=sizes), r"episode 1 frame 8: camera 'wrist': picture of shape \(16, 16, 3\)"),
        (replace(good[1], images={"front": good[1].images["front"]}), r"episode 1: no camera 'wrist'"),
        (replace(good[1], state=None), r"episode 1: the state has 0 dimensions, expected 2"),
        (replace(good[1], action=good[1].action[:, :2]), r"episode 1: action has 2 dimensions, expected 3"),
        (replace(good[1], success=None), r"episode 1: success is None, expected True or False"),
        (replace(good[1], fps=20), r"episode 1: 20 frames per second, the data set has 10"),
    ):
        with pytest.raises(DataError, match=message):
            writer.add(broken)
    assert writer.add(good[3]) == 1 and len(writer) == 2
    assert writer.finish() == tmp_path / "a" == writer.finish()
    with pytest.raises(ConfigError, match="is finished"):
        writer.add(good[0])
    found = LeRobot(tmp_path / "a")
    assert [len(found.episode(i)) for i in range(2)] == [5, 7]
    assert abs(found.episode(1).images["wrist"][6].mean() - good[3].images["wrist"][6].mean()) < 2


def test_arguments(tmp_path: Path) -> None:
    for settings, message in (
        ({"fps": 0}, "fps: 0"),
        ({"fps": 10, "picture": "gif"}, "picture: 'gif'"),
        ({"fps": 10, "data_mb": 0}, "data_mb"),
    ):
        with pytest.raises(ConfigError, match=message):
            LeRobotWriter(tmp_path / "a", **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="action_names: 2 names, episodes have 3"):
        LeRobotWriter(tmp_path / "a", fps=10, action_names=("x", "y")).add(episodes()[0])
    odd = replace(episodes()[0], images={"front": np.zeros((5, 15, 16, 3), np.uint8)})
    with pytest.raises(DataError, match="camera 'front' has 15 x 16 pixels; yuv420p video needs even"):
        LeRobotWriter(tmp_path / "a", fps=10, video=True).add(odd)
    with pytest.raises(UserError, match="codec: 'x265x'"):
        LeRobotWriter(tmp_path / "a", fps=10, video=True, codec="x265x")
    with pytest.raises(ConfigError, match="chunk: 0"):
        Steps("x", chunk=0)


# v2.1


def test_version_2(tmp_path: Path, filmed: Path) -> None:
    """A file an episode, tasks and episodes in JSON lines, lists of any length, pictures in parquet and in videos."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, given = tmp_path / "old", episodes()
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    features = {
        "action": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "grip"]}},
        "observation.state": {"dtype": "float32", "shape": [2], "names": None},
        "observation.image": {"dtype": "image", "shape": [3, 16, 24], "names": ["channel", "height", "width"]},
        "observation.images.wrist": {"dtype": "video", "shape": [16, 24, 3], "names": ["height", "width", "channel"]},
        "observation.images.depth": {"dtype": "video", "shape": [16, 24, 1], "info": {"video.is_depth_map": True}},
    }
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "chunks_size": 1000,
        "features": features,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "do 0"}\n{"task_index": 1, "task": "do 1"}\n')
    lines = [json.dumps({"episode_index": e, "tasks": [g.instruction], "length": len(g)}) for e, g in enumerate(given)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines))
    pictures = LeRobot(write(tmp_path / "png"))
    for e, episode in enumerate(given):
        n = len(episode)
        columns = {
            "action": pa.array(episode.action.tolist(), pa.list_(pa.float64())),
            "observation.state": pa.array(episode.state.tolist(), pa.list_(pa.float32())),
            "observation.image": [{"bytes": pictures.picture("front", e, i), "path": "x"} for i in range(n)],
            "timestamp": pa.array(np.arange(n) / 10, pa.float32()),
            "frame_index": range(n),
            "episode_index": [e] * n,
            "task_index": [e % 2] * n,
        }
        pq.write_table(pa.table(columns), folder / f"data/chunk-000/episode_{e:06d}.parquet")
        film = folder / f"videos/chunk-000/observation.images.wrist/episode_{e:06d}.mp4"
        write_mp4(film, episode.images["wrist"], 10)
    found = LeRobot(folder)
    assert found.cameras == ("image", "wrist") and found.action_names == ("x", "y", "grip") and found.state_names == ()
    for e, episode in enumerate(given):
        one = found.episode(e)
        assert np.array_equal(one.action, episode.action) and one.instruction == episode.instruction
        assert np.array_equal(one.images["image"][-1], episode.images["front"][-1])
        assert abs(one.images["wrist"][-1].mean() - episode.images["wrist"][-1].mean()) < 2
    (folder / "meta/episodes.jsonl").write_text(lines[0] + "\n{")
    with pytest.raises(DataError, match="episodes.jsonl line 2: not JSON"):
        LeRobot(folder)


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
