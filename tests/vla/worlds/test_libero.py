"""The LIBERO adapter against a stand-in of LIBERO's documented interface: benchmark, paths, OffScreenRenderEnv."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from mmdiff.errors import ConfigError, MissingExtra
from mmdiff.tasks.vla.worlds.libero import STILL, SUITES, Libero, _read_states, axis_angle
from mmdiff.tasks.vla.worlds.world import World, make_world

TOP = """
import os, yaml
config_file = os.path.join(os.environ["LIBERO_CONFIG_PATH"], "config.yaml")
if not os.path.exists(config_file):
    input("Do you want to specify a custom path for the dataset folder? (Y/N): ")
def get_libero_path(key):
    with open(config_file) as file:
        config = yaml.safe_load(file)
    assert key in config, f"Key {key} not found"
    return config[key]
"""
BENCHMARK = """
from typing import NamedTuple
class Task(NamedTuple):
    name: str
    language: str
    problem: str
    problem_folder: str
    bddl_file: str
    init_states_file: str
class Suite:
    def __init__(self, name, size):
        names = [f"{name}_put_the_bowl_{i}" for i in range(size)]
        self.tasks = [
            Task(n, n.replace("_", " "), "Libero", name, f"{n}.bddl", f"{n}.pruned_init") for n in names
        ]
    def get_num_tasks(self):
        return len(self.tasks)
    def get_task(self, i):
        return self.tasks[i]
def get_benchmark_dict():
    sizes = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
    return {name: (lambda name=name, size=size: Suite(name, size)) for name, size in sizes.items()}
"""
ENVS = """
import numpy as np
class OffScreenRenderEnv:
    made = []
    def __init__(self, bddl_file_name, camera_heights=128, camera_widths=128, camera_names=("agentview",)):
        if "put_the_bowl_7" in bddl_file_name:
            raise FileNotFoundError("assets/stable_hope_objects/basket.xml")
        self.bddl, self.shape, self.names = bddl_file_name, (camera_heights, camera_widths, 3), camera_names
        self.calls, self.closed = [], False
        OffScreenRenderEnv.made.append(self)
    def _obs(self):
        ramp = np.arange(np.prod(self.shape), dtype=np.int64).reshape(self.shape)
        hand = {"robot0_eef_pos": self.state[:3], "robot0_eef_quat": np.array([0.0, 0.0, 1.0, 0.0])}
        pictures = {f"{n}_image": ((ramp + 50 * i) % 251).astype(np.uint8) for i, n in enumerate(self.names)}
        return {**hand, **pictures, "robot0_gripper_qpos": np.array([0.04, -0.04])}
    def seed(self, seed):
        self.calls.append(("seed", seed))
    def reset(self):
        self.calls.append(("reset",))
        self.state = np.zeros(4)
        return self._obs()
    def set_init_state(self, state):
        self.calls.append(("state", float(state[0])))
        self.state = np.array(state)
        return self._obs()
    def step(self, action):
        assert isinstance(action, list) and len(action) == 7
        self.calls.append(("step", tuple(action)))
        self.state = self.state + np.array([*action[:3], 0.0])
        done = self.check_success()
        return self._obs(), float(done), done, {}
    def check_success(self):
        return bool(self.state[0] > 3)
    def close(self):
        self.closed = True
"""


@pytest.fixture
def libero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package `libero` with the files of every task, and its module of environments."""
    package = tmp_path / "site" / "libero"
    for folder, text in (("", ""), ("libero", TOP), ("libero/benchmark", BENCHMARK), ("libero/envs", ENVS)):
        (package / folder).mkdir(parents=True, exist_ok=True)
        (package / folder / "__init__.py").write_text(text)
    for suite, (tasks, _) in SUITES.items():
        for kind, end in (("bddl", "bddl"), ("init", "pruned_init")):
            (tmp_path / kind / suite).mkdir(parents=True)
            for i in range(tasks):
                (tmp_path / kind / suite / f"{suite}_put_the_bowl_{i}.{end}").touch()
    states = np.arange(50.0)[:, None] * [0.01, 0, 0, 0]
    for i in (0, 3, 7):
        torch.save(states, tmp_path / "init" / "libero_goal" / f"libero_goal_put_the_bowl_{i}.pruned_init")
    (tmp_path / "config.yaml").write_text(f"bddl_files: {tmp_path}/bddl\ninit_states: {tmp_path}/init\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        del sys.modules[name]


def simulator(world: Libero) -> Any:
    return world._env


def test_an_episode_begins_as_the_protocol_says(libero: Path) -> None:
    world = make_world({"name": "libero", "size": 8}, "libero_goal/3")
    assert isinstance(world, World)
    assert world.task == "libero_goal/3" and world.task_description == "libero goal put the bowl 3"
    assert world._max_episode_steps == 300 and world.fps == 20
    _, info = world.reset(seed=52)
    assert info == {"is_success": False, "initial_state": 2}  # 52 modulo 50
    calls = simulator(world).calls
    assert calls[:3] == [("seed", 0), ("reset",), ("state", 0.02)]
    assert calls[3:] == [("step", STILL)] * 10
    assert simulator(world).bddl == str(libero / "bddl" / "libero_goal" / "libero_goal_put_the_bowl_3.bddl")
    world.reset(seed=0)
    assert len(calls) == 26  # the same simulator again
    env = simulator(world)
    world.close()
    assert env.closed


def test_pictures_are_turned_and_the_state_has_eight_numbers(libero: Path) -> None:
    world = Libero("libero_goal/0", size=6, cameras=["agentview", "robot0_eye_in_hand"])
    obs, _ = world.reset(seed=1)
    ramp = np.arange(6 * 6 * 3).reshape(6, 6, 3)
    turned = np.rot90(ramp, 2)
    assert list(obs["pixels"]) == ["agentview", "robot0_eye_in_hand"]
    assert np.array_equal(obs["pixels"]["agentview"], turned % 251)
    assert np.array_equal(obs["pixels"]["robot0_eye_in_hand"], (turned + 50) % 251)
    assert np.allclose(obs["agent_pos"], [0.01, 0, 0, 0, 0, np.pi, 0.04, -0.04])
    assert obs in world.observation_space
    assert np.array_equal(world.render(), obs["pixels"]["agentview"])


def test_the_gripper(libero: Path) -> None:
    open_, closed = -1, 1  # what the simulator is sent
    openvla = [(1, open_), (0.6, open_), (0.4, closed), (0, closed)]
    native = [(-1, open_), (-0.2, open_), (0.2, closed), (1, closed)]
    for pairs, openvla_gripper in ((openvla, True), (native, False)):
        world = Libero("libero_goal/0", size=4, openvla_gripper=openvla_gripper)
        world.reset(seed=0)
        for given, sent in pairs:
            world.step([0.5, -2, 0, 0, 0, 0, given])
            assert simulator(world).calls[-1] == ("step", (0.5, -1, 0, 0, 0, 0, sent))


def test_success_and_the_limit_of_steps(libero: Path) -> None:
    world = Libero("libero_goal/0", size=4, max_steps=5)
    world.reset(seed=0)
    ends = [world.advance([1, 0, 0, 0, 0, 0, 0])[1:] for _ in range(5)]
    assert [end[0] for end in ends] == [False, False, False, True, True]
    assert [end[1] for end in ends] == [False] * 4 + [True]
    assert [end[2]["is_success"] for end in ends] == [False, False, False, True, True]
    going_on = Libero("libero_goal/0", size=4, success_ends=False)
    going_on.reset(seed=0)
    assert not any(going_on.advance([1, 0, 0, 0, 0, 0, 0])[1] for _ in range(5))
    with pytest.raises(ConfigError, match="no scripted expert"):
        world.expert()


def test_tasks_by_number_and_by_name(libero: Path) -> None:
    assert Libero("libero_goal_put_the_bowl_3").task == "libero_goal/3"
    assert Libero("libero_goal/libero_goal_put_the_bowl_0").task == "libero_goal/0"
    steps = {suite: steps for suite, (_, steps) in SUITES.items()}
    assert list(steps.values()) == [220, 280, 300, 520, 400]
    for task, told in (
        ("libero_gaol/0", 'no suite "libero_gaol" (did you mean "libero_goal"?)'),
        ("libero_goal/10", "a number below 10"),
        ("libero_goal_put_the_bow_3", 'did you mean "libero_goal_put_the_bowl_3"?'),
    ):
        with pytest.raises(ConfigError) as caught:
            Libero(task)
        assert told in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_one_sentence(libero: Path) -> None:
    world = Libero("libero_goal/7", size=4)
    with pytest.raises(ConfigError, match=r"cannot open it \(FileNotFoundError: assets/.*basket.xml\)"):
        world.reset(seed=0)
    with pytest.raises(ConfigError, match="put_the_bowl_1.pruned_init: not a file of initial states"):
        Libero("libero_goal/1")
    (libero / "bddl" / "libero_goal" / "libero_goal_put_the_bowl_3.bddl").unlink()
    with pytest.raises(ConfigError, match=r"put_the_bowl_3.bddl is missing, see the paths in .*config.yaml"):
        Libero("libero_goal/3")
    (libero / "config.yaml").write_text("init_states: x\n")
    with pytest.raises(ConfigError, match='gives no path for "bddl_files"'):
        Libero("libero_goal/3")
    (libero / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"config.yaml is missing: run `python -c 'import libero.libero'`"):
        Libero("libero_goal/3")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmdiff.tasks.vla.worlds.libero.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="libero is not installed: pip install hf-libero"):
        Libero("libero_goal/0")


def test_initial_states_of_either_numpy_and_nothing_else(tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(50, 9))
    torch.save(states, tmp_path / "new")
    assert np.array_equal(_read_states(tmp_path / "new"), states)
    with zipfile.ZipFile(tmp_path / "new") as new, zipfile.ZipFile(tmp_path / "old", "w") as old:
        for item in new.infolist():
            text = new.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core" in text
                text = text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(item.filename, text)
    assert np.array_equal(_read_states(tmp_path / "old"), states)

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save(Evil(), tmp_path / "evil")
    with pytest.raises(ConfigError, match="not a file of initial states"):
        _read_states(tmp_path / "evil")
    assert not (tmp_path / "touched").exists()


def test_rotations_as_axis_and_angle() -> None:
    """Against Rodrigues' formula: a quaternion and its axis and angle turn a vector alike."""
    rng = np.random.default_rng(0)
    for quat in rng.normal(size=(20, 4)):
        x, y, z, w = quat = quat / np.linalg.norm(quat)
        turned = axis_angle(quat)
        angle = np.linalg.norm(turned)
        k, v = turned / angle, rng.normal(size=3)
        rodrigues = v * np.cos(angle) + np.cross(k, v) * np.sin(angle) + k * (k @ v) * (1 - np.cos(angle))
        u = np.array([x, y, z])
        assert np.allclose(v + 2 * np.cross(u, np.cross(u, v) + w * v), rodrigues)
        assert (angle > np.pi) == (w < 0)
    assert axis_angle([0, 0, 0, 1]).tolist() == [0, 0, 0] and axis_angle([0, 0, 0, 1.0000001]).tolist() == [0, 0, 0]
