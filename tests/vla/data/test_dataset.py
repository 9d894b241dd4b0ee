"""LeRobotDatasets that are read: episodes as they were written, rows, the choice of episodes; v3.0 and v2.1."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robots.demos import LENGTHS, ROWS, episodes, write

from mmdiff.encoders.media.images import read_image
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.data.dataset import TOY_ACTION, TOY_STATE, LeRobot, Steps
from mmdiff.tasks.vla.data.episode import Episode, choose_episodes, noops
from mmdiff.tasks.vla.data.video import Video
from mmdiff.tasks.vla.data.video_writer import write_mp4
from mmdiff.tasks.vla.data.writer import LeRobotWriter

pytestmark = [pytest.mark.needs("pyarrow", "av", "PIL")]


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
        straight = list(Video(filmed / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"))
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
    assert choose_episodes(asked, 10, "x") == wanted


def test_a_share_and_its_rest_are_all() -> None:
    for count in (7, 30, 120):
        for percent in range(1, 100):
            share = percent / 100
            rest = [] if int(round(count * share, 6)) == count else choose_episodes(-(1 - share), count, "x")
            took = [] if count * share < 1 else choose_episodes(share, count, "x")
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
        choose_episodes(asked, 10, "x")


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
