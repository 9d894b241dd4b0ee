"""From the layouts people bring to a LeRobot dataset that is read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from paths import DATA

from mmdiff.errors import ConfigError, DataError, UserError
from mmdiff.tasks.vla.convert.convert import convert, detect
from mmdiff.tasks.vla.convert.options import ReadOptions
from mmdiff.tasks.vla.data.dataset import LeRobot

pytestmark = [pytest.mark.needs("pyarrow"), pytest.mark.needs("h5py")]

REACH = DATA / "rlds"


def pictures(number: int, frames: int) -> np.ndarray:
    return ((np.arange(frames * 8 * 8 * 3).reshape(frames, 8, 8, 3) + 40 * number) % 251).astype(np.uint8)


def demos(path: Path, numbers=(0, 1, 2), frames: int = 4) -> Path:
    """A file of LIBERO's layout; what was done says which demonstration it was."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = '{"language_instruction": "open the drawer"}'
        data.attrs["env_args"] = '{"env_kwargs": {"control_freq": 20}}'
        for n in numbers:
            demo = data.create_group(f"demo_{n}")
            demo["actions"] = np.full((frames, 7), float(n))
            demo["obs/ee_states"], demo["obs/gripper_states"] = np.full((frames, 6), n), np.zeros((frames, 2))
            demo["obs/agentview_rgb"] = pictures(n, frames)
    return path


def spoil(path: Path, demo: str, frame: int) -> Path:
    import h5py

    with h5py.File(path, "a") as file:
        file["data"][demo]["actions"][frame, 3] = np.nan
    return path


def test_what_is_written_is_what_was_there(tmp_path):
    source = demos(tmp_path / "open_the_drawer_demo.hdf5", numbers=range(11))
    result = convert(str(source), str(tmp_path / "out"), ReadOptions(rotate=180, cameras={"front": "agentview_rgb"}))
    assert result == {
        "folder": str(tmp_path / "out"),
        "layout": "libero",
        "fps": 20,
        "cameras": ["front"],
        "episodes": 11,
        "frames": 44,
        "skipped": [],
    }
    written = LeRobot(str(tmp_path / "out"))
    assert (len(written), written.frames, written.fps) == (11, 44, 20)
    assert tuple(written.action_names) == tuple(f"action.{i}" for i in range(7))
    assert tuple(written.state_names)[5:7] == ("ee_states.5", "gripper_states.0")
    for n in (0, 2, 10):
        seen = written.episode(n)
        assert (seen.action == n).all() and (seen.state[:, 0] == n).all() and seen.instruction == "open the drawer"
        assert (np.stack(list(seen.images["front"])) == pictures(n, 4)[:, ::-1, ::-1]).all()


def test_a_folder_of_files_and_a_limit(tmp_path):
    for n in (10, 9):
        demos(tmp_path / "in" / f"task_{n}.hdf5", numbers=(n,))
    assert convert(str(tmp_path / "in"), str(tmp_path / "out"))["episodes"] == 2
    assert [LeRobot(str(tmp_path / "out")).episode(n).action[0, 0] for n in (0, 1)] == [9, 10]
    assert convert(str(tmp_path / "in"), str(tmp_path / "one"), limit=1)["episodes"] == 1


def test_a_tfds_folder(tmp_path, capsys):
    result = convert(str(REACH), str(tmp_path / "out"), ReadOptions(fps=5))
    assert (result["layout"], result["episodes"], result["frames"]) == ("rlds", 2, 7)
    assert "layout rlds" in capsys.readouterr().err
    written = LeRobot(str(tmp_path / "out"))
    assert sorted(written.episode(n).instruction for n in (0, 1)) == ["reach é 0", "reach é 1"]


def test_numpy_folders(tmp_path):
    for n in range(2):
        (tmp_path / "in" / str(n)).mkdir(parents=True)
        np.save(tmp_path / "in" / str(n) / "actions.npy", np.full((3, 2), float(n)))
        np.save(tmp_path / "in" / str(n) / "top.npy", pictures(n, 3))
    result = convert(str(tmp_path / "in"), str(tmp_path / "out"), ReadOptions(fps=10, instruction="go"))
    assert (result["layout"], result["frames"]) == ("numpy", 6)
    assert LeRobot(str(tmp_path / "out")).episode(1).state is None


def test_a_broken_episode_ends_it_and_leaves_nothing(tmp_path):
    source = spoil(demos(tmp_path / "a.hdf5"), "demo_1", frame=2)
    with pytest.raises(DataError, match=r"a.hdf5 episode demo_1 frame 2: action\[3\].* is nan"):
        convert(str(source), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


def test_broken_episodes_are_left_out_and_listed(tmp_path):
    spoil(demos(tmp_path / "in" / "1.hdf5"), "demo_1", frame=2)
    (tmp_path / "in" / "0.hdf5").write_bytes(b"cut off")
    result = convert(str(tmp_path / "in"), str(tmp_path / "out"), skip=True)
    assert (result["episodes"], result["frames"]) == (2, 8)
    assert ["0.hdf5" in line or "demo_1 frame 2" in line for line in result["skipped"]] == [True, True]
    assert [LeRobot(str(tmp_path / "out")).episode(n).action[0, 0] for n in (0, 1)] == [0, 2]


def test_an_episode_unlike_the_first_is_broken(tmp_path):
    import h5py

    source = demos(tmp_path / "a.hdf5", numbers=range(4))
    with h5py.File(source, "a") as file:
        data = file["data"]
        del data["demo_1/actions"], data["demo_2/obs/agentview_rgb"]
        data["demo_1/actions"] = np.zeros((4, 6))
        data["demo_2/obs/wrist_rgb"] = pictures(0, 4)
        del data["demo_3/obs/agentview_rgb"]
        data["demo_3/obs/agentview_rgb"] = pictures(0, 4)[:, :6]
    skipped = convert(str(source), str(tmp_path / "out"), skip=True)["skipped"]
    assert "demo_1: action has 6 dimensions, expected 7" in skipped[0]
    assert "demo_2: no camera 'agentview'" in skipped[1]
    assert "demo_3 frame 0: camera 'agentview': picture of shape (6, 8, 3)" in skipped[2]


def test_a_broken_first_episode_does_not_say_how_the_others_look(tmp_path):
    import h5py

    source = spoil(demos(tmp_path / "a.hdf5"), "demo_0", frame=3)
    with h5py.File(source, "a") as file:
        actions = file["data/demo_0/actions"][:, :5]
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = actions
    result = convert(str(source), str(tmp_path / "out"), skip=True)
    assert result["episodes"] == 2 and "demo_0 frame 3" in result["skipped"][0]
    assert LeRobot(str(tmp_path / "out")).actions().shape == (8, 7)


def test_nothing_left_is_an_error(tmp_path):
    source = spoil(demos(tmp_path / "a.hdf5", numbers=(0,)), "demo_0", frame=0)
    with pytest.raises(DataError, match="no episodes left: .*demo_0 frame 0"):
        convert(str(source), str(tmp_path / "out"), skip=True)
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_the_options_is_not_skipped(tmp_path):
    source = str(demos(tmp_path / "a.hdf5"))
    (tmp_path / "there").mkdir()
    for options, message in (
        ({"out": "there"}, "is there already"),
        ({"layout": "libreo"}, r'layout: .*did you mean "libero"'),
        ({"split": "train"}, "split: only TFDS folders"),
        ({"layout": "aloha", "subset": "train"}, "subset: only robomimic files"),
        ({"subset": "train"}, "no mask/train"),
        ({"rotate": 90}, "rotate: 90"),
        ({"fps": -1}, "fps: -1"),
        ({"limit": 0}, "limit=0"),
    ):
        named = {key: options.pop(key) for key in ("layout", "limit") if key in options}
        out = str(tmp_path / options.pop("out", "new"))
        with pytest.raises(UserError, match=message):
            convert(source, out, ReadOptions(**options), skip=True, **named)
        assert not (tmp_path / "new").exists()


def test_layouts_are_told_apart(tmp_path):
    assert detect(demos(tmp_path / "a.hdf5")) == "libero" == detect(tmp_path)
    assert detect(REACH) == "rlds"
    (tmp_path / "b" / "0").mkdir(parents=True)
    with pytest.raises(DataError, match="no .hdf5 files, no features.json and no folders with action.npy"):
        detect(tmp_path / "b")
    np.save(tmp_path / "b" / "0" / "action.npy", np.zeros((2, 2)))
    assert detect(tmp_path / "b") == "numpy"
    demos(tmp_path / "b" / "a.hdf5")
    with pytest.raises(DataError, match="1 HDF5 files .* and folders or .npz .* --layout"):
        detect(tmp_path / "b")
    with pytest.raises(DataError, match="no such file or folder"):
        detect(tmp_path / "c")
    (tmp_path / "d" / "meta").mkdir(parents=True)
    (tmp_path / "d" / "meta" / "info.json").write_text("{}")
    with pytest.raises(DataError, match="LeRobot dataset already"):
        detect(tmp_path / "d")
    with pytest.raises(ConfigError, match="fps"):
        convert(str(tmp_path / "b"), str(tmp_path / "out"), ReadOptions(instruction="go"), layout="numpy")
