"""HDF5 files as robomimic, LIBERO and ALOHA's recorders lay them out."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.convert.hdf5 import BLOCK, hdf5_episodes, layout_of
from mmdiff.tasks.vla.convert.options import ReadOptions
from mmdiff.tasks.vla.data.episode import check_episode

pytestmark = pytest.mark.needs("h5py")

LIFT = ReadOptions(instruction="lift the cube")
ALOHA = ReadOptions(fps=50, instruction="put the cube in the box")


def pictures(number: int, frames: int, size: int = 8) -> np.ndarray:
    """uint8 (frames, size, size, 3): red grows from top to bottom, green from left to right, blue is the frame."""
    values = np.zeros((frames, size, size, 3), np.uint8)
    values[..., 0] = 10 * np.arange(size)[:, None]
    values[..., 1] = 10 * np.arange(size)
    values[..., 2] = (100 * number + np.arange(frames))[:, None, None] % 256
    return values


def robomimic(path, demos=3, frames=4, **change):
    """As `dataset_states_to_obs.py` writes it: chunks of several frames, compressed, and filter keys."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}})
        for n in range(demos):
            demo = data.create_group(f"demo_{n}")
            demo.attrs["num_samples"] = frames
            demo["actions"] = np.full((frames, 7), n + 0.5)
            demo["states"] = np.zeros((frames, 32))
            demo["rewards"] = np.zeros(frames)
            demo["dones"] = np.zeros(frames, np.int64)
            for group in ("obs", "next_obs"):
                obs = demo.create_group(group)
                obs["robot0_eef_pos"] = np.full((frames, 3), 1.0)
                obs["robot0_eef_quat"] = np.full((frames, 4), 2.0)
                obs["robot0_gripper_qpos"] = np.full((frames, 2), 3.0)
                obs["object"] = np.full((frames, 10), 4.0)
                for camera in ("agentview", "robot0_eye_in_hand"):
                    obs.create_dataset(f"{camera}_image", data=pictures(n, frames), compression="gzip", chunks=True)
        names = np.array([f"demo_{n}".encode() for n in range(demos)])
        file["mask/train"], file["mask/valid"] = names[1:], names[:1]
    return path


def libero(path, frames=4, instruction: object = "open the top drawer"):
    """As LIBERO's scripts/create_dataset.py writes it."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": instruction, "problem_name": "libero"})
        data.attrs["env_args"] = json.dumps({"type": 1, "env_kwargs": {"control_freq": 20}})
        data.attrs["macros_image_convention"] = "opengl"
        for n in range(2):
            demo = data.create_group(f"demo_{n}")
            demo["actions"] = np.full((frames, 7), float(n))
            demo["states"], demo["robot_states"] = np.zeros((frames, 79)), np.zeros((frames, 9))
            demo["rewards"], demo["dones"] = np.zeros(frames, np.uint8), np.zeros(frames, np.uint8)
            obs = demo.create_group("obs")
            obs["ee_states"] = np.tile(np.arange(6.0), (frames, 1))
            obs["ee_pos"], obs["ee_ori"] = obs["ee_states"][:, :3], obs["ee_states"][:, 3:]
            obs["gripper_states"] = np.tile([6.0, 7.0], (frames, 1))
            obs["joint_states"] = np.zeros((frames, 7))
            obs["agentview_rgb"], obs["eye_in_hand_rgb"] = pictures(n, frames), pictures(n, frames)
    return path


def jpeg(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def aloha(path, frames=5, compressed=False):
    """As ACT's record_episodes.py writes it; `compressed` pads JPEGs to the longest and notes their lengths."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["sim"] = not compressed
        obs = file.create_group("observations")
        images = obs.create_group("images")
        for camera in ("cam_high", "cam_low"):
            if not compressed:
                images.create_dataset(camera, data=pictures(0, frames), chunks=(1, 8, 8, 3))
                continue
            files = [jpeg(picture) for picture in pictures(0, frames)]
            width = max(map(len, files)) + 7
            padded = np.stack([np.frombuffer(f.ljust(width, b"\0"), np.uint8) for f in files])
            images.create_dataset(camera, data=padded, chunks=(1, width))
        if compressed:
            file.attrs["compress"] = True
            file["compress_len"] = np.full((2, frames), width - 7, np.float32)
        obs["qpos"] = np.tile(np.arange(14.0), (frames, 1))
        obs["qvel"], obs["effort"] = np.ones((frames, 14)), np.zeros((frames, 14))
        file["action"], file["base_action"] = np.zeros((frames, 14)), np.ones((frames, 2))
    return path


def read(path, options, layout=None):
    return [found.read() for found in hdf5_episodes(path, layout or layout_of(path), options)]


def test_robomimic(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", demos=11, frames=BLOCK + 3)
    assert layout_of(path) == "robomimic"
    found = read(path, LIFT)
    assert [r.episode.action[0, 0] for r in found] == [n + 0.5 for n in range(11)]  # demo_10 comes last
    for n, recording in enumerate(found):
        seen = recording.episode
        check_episode(seen)
        assert (seen.fps, seen.instruction, seen.action.dtype) == (20, "lift the cube", np.float32)
        assert seen.state[0].tolist() == [1] * 3 + [2] * 4 + [3] * 2
        assert list(seen.images) == ["agentview", "robot0_eye_in_hand"]
        want = pictures(n, BLOCK + 3)
        for frame in (BLOCK, 0, BLOCK + 2, 1):  # in any order
            assert (seen.images["agentview"][frame] == want[frame]).all()
        assert (np.stack(seen.images["agentview"][2:5]) == want[2:5]).all()
    assert found[0].action_names == tuple(f"action.{i}" for i in range(7))
    assert found[0].state_names[:4] == ("robot0_eef_pos.0", "robot0_eef_pos.1", "robot0_eef_pos.2", "robot0_eef_quat.0")


def test_a_subset_is_the_mask(tmp_path):
    path = robomimic(tmp_path / "a.hdf5")
    train = ReadOptions(instruction="lift", subset="train")
    assert [r.episode.action[0, 0] for r in read(path, train)] == [1.5, 2.5]
    with pytest.raises(ConfigError, match=r'no mask/trian \(did you mean "train"\?\)'):
        read(path, ReadOptions(instruction="lift", subset="trian"))


def test_cameras_states_and_actions_are_chosen_and_ordered(tmp_path):
    path = robomimic(tmp_path / "a.hdf5")
    options = ReadOptions(
        fps=10,
        instruction="lift",
        cameras={"wrist": "robot0_eye_in_hand_image", "front": "agentview_image"},
        state=("robot0_gripper_qpos", "object"),
        action=("rewards", "actions"),
    )
    recording = read(path, options)[0]
    assert list(recording.episode.images) == ["wrist", "front"]
    assert recording.episode.state[0].tolist() == [3, 3] + [4] * 10
    assert recording.episode.action[0].tolist() == [0] + [0.5] * 7
    assert recording.action_names[:2] == ("rewards", "actions.0")
    assert recording.episode.fps == 10  # an argument goes before what the file says
    assert read(path, ReadOptions(instruction="lift", state=()))[0].episode.state is None


def test_libero(tmp_path):
    path = libero(tmp_path / "a_demo.hdf5")
    assert layout_of(path) == "libero"
    seen = read(path, ReadOptions())[1].episode
    check_episode(seen)
    assert (seen.instruction, seen.fps) == ("open the top drawer", 20)
    assert seen.state[0].tolist() == list(range(8))
    assert list(seen.images) == ["agentview", "eye_in_hand"]
    assert (seen.images["agentview"][2] == pictures(1, 4)[2]).all()
    turned = read(path, ReadOptions(rotate=180))[1].episode.images["agentview"][2]
    assert (turned == np.rot90(pictures(1, 4)[2], 2)).all() and turned.flags.c_contiguous
    swapped = read(path, ReadOptions(bgr=True))[1].episode.images["agentview"][2]
    assert (swapped == pictures(1, 4)[2][..., ::-1]).all()
    assert read(path, ReadOptions(instruction="close it"))[0].episode.instruction == "close it"
    assert (
        read(libero(tmp_path / "b.hdf5", instruction=["open ", "it"]), ReadOptions())[0].episode.instruction
        == "open it"
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_aloha(tmp_path, compressed):
    path = aloha(tmp_path / "episode_0.hdf5", compressed=compressed)
    assert layout_of(path) == "aloha"
    (recording,) = read(path, ALOHA)
    seen = recording.episode
    check_episode(seen)
    assert (len(seen), seen.fps, seen.instruction) == (5, 50, "put the cube in the box")
    assert seen.state[0].tolist() == list(range(14)) and recording.state_names[13] == "state.13"
    assert list(seen.images) == ["cam_high", "cam_low"]
    apart = np.abs(np.stack(list(seen.images["cam_low"])).astype(int) - pictures(0, 5)).max()
    assert apart <= (6 if compressed else 0)
    mobile = read(
        path, ReadOptions(fps=50, instruction="go", action=("action", "base_action"), state=("qpos", "qvel"))
    )[0]
    assert mobile.episode.action.shape == (5, 16) and mobile.episode.state.shape == (5, 28)
    assert mobile.action_names[13:15] == ("action.13", "base_action.0")


def test_episodes_outlive_the_iteration(tmp_path):
    found = [r for n in range(2) for r in read(aloha(tmp_path / f"episode_{n}.hdf5"), ALOHA)]
    assert all((r.episode.images["cam_high"][4] == pictures(0, 5)[4]).all() for r in found)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (robomimic, ReadOptions(), "instruction: .* give one"),
        (aloha, ReadOptions(instruction="go"), r"fps: .* give it \(--fps\)"),
    ],
)
def test_what_the_file_does_not_say_is_asked_for(tmp_path, make, options, message):
    with pytest.raises(ConfigError, match=message):
        read(make(tmp_path / "a.hdf5"), options)


def test_a_file_of_no_known_layout_or_of_two(tmp_path):
    import h5py

    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["frames"] = np.zeros(3)
    with pytest.raises(DataError, match="a.hdf5: holds frames; expected data/demo_0/actions"):
        layout_of(path)
    with h5py.File(robomimic(path), "a") as file:
        file["action"] = np.zeros((3, 2))
        file.create_group("observations")
    with pytest.raises(DataError, match="--layout robomimic, libero or aloha"):
        layout_of(path)
    assert len(read(path, LIFT, layout="robomimic")) == 3
    path.write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="a.hdf5: cannot be read"):
        layout_of(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda demo: demo.pop("obs"), "episode demo_1: no group demo_1/obs"),
        (lambda demo: demo.pop("actions"), "episode demo_1: action: no dataset 'actions'"),
        (lambda demo: demo["obs"].pop("robot0_eef_pos"), "episode demo_1: state: no dataset 'robot0_eef_pos'"),
        (lambda demo: put(demo["obs"], "agentview_image", np.zeros((4, 8, 8, 3))), "'agentview_image' is float64"),
        (lambda demo: put(demo["obs"], "robot0_eef_pos", np.zeros((3, 3))), "'robot0_eef_quat' has 4 frames"),
        (lambda demo: demo["actions"].__setitem__((2, 1), np.nan), r"demo_1 frame 2: action\[1\] is nan"),
        (lambda demo: put(demo["obs"], "agentview_image", pictures(0, 3)), "'agentview' has 3 pictures, 4 actions"),
    ],
)
def test_a_broken_episode_is_named_and_its_neighbours_are_read(tmp_path, change, message):
    import h5py

    path = robomimic(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        change(file["data/demo_1"])
    first, second, third = hdf5_episodes(path, "robomimic", LIFT)
    for found in (first, third):
        check_episode(found.read().episode, found.where)
    with pytest.raises(DataError, match=message):
        check_episode(second.read().episode, second.where)


def put(group, name, values):
    del group[name]
    group[name] = values


def test_a_missing_camera_and_a_damaged_jpeg_are_named(tmp_path):
    import h5py

    path = aloha(tmp_path / "episode_0.hdf5", compressed=True)
    options = ReadOptions(fps=50, instruction="go", cameras={"front": "cam_hihg"})
    with pytest.raises(DataError, match=r'camera front: no .cam_hihg. \(did you mean "cam_high"\?\)'):
        read(path, options)
    with h5py.File(path, "a") as file:
        file["observations/images/cam_high"][3] = 0
    with pytest.raises(DataError, match=r"episode_0.hdf5 frame 3: camera 'cam_high'.*not a picture"):
        check_episode(read(path, ALOHA)[0].episode, str(path))
