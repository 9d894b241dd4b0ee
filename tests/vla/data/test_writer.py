"""The layout of huggingface/lerobot as the writer makes it, its statistics, and what the writer refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from robots.demos import DATA, LENGTHS, ROWS, episodes

from mmdiff.errors import ConfigError, DataError, UserError
from mmdiff.tasks.vla.data.dataset import LeRobot, Steps
from mmdiff.tasks.vla.data.dataset_stats import PictureStats, vector_stats
from mmdiff.tasks.vla.data.writer import LeRobotWriter

pytestmark = [pytest.mark.needs("pyarrow", "av", "PIL")]


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
        ({"fps": 0}, "fps=0"),
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
    with pytest.raises(ConfigError, match="chunk=0: expected a whole number from 1 to 1000"):
        Steps("x", chunk=0)
