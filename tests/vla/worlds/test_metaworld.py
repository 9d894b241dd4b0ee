"""Meta-World: its own environment is the independent implementation; pictures, errors and a clean exit besides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from mmdiff.errors import ConfigError
from mmdiff.tasks.vla.worlds.metaworld import FIXED, TASKS, MetaWorld
from mmdiff.tasks.vla.worlds.rendering import drawing

pytestmark = pytest.mark.needs("metaworld")


@pytest.fixture(scope="module")
def world() -> Iterator[MetaWorld]:
    made = MetaWorld("faucet-open", size=32)
    yield made
    made.close()


def original(task: str) -> Any:
    """Meta-World's own environment, made as its documentation says, its layouts drawn by seed."""
    import metaworld

    benchmark = metaworld.MT1(task, seed=0)
    env = benchmark.train_classes[task]()
    env.set_task(benchmark.train_tasks[0])
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    return env


def same_course(world: MetaWorld, env: Any, seed: int, steps: int) -> bool:
    """Run the expert in both; whether it succeeded. States, rewards and success are equal to the last bit."""
    rng = np.random.default_rng(seed)
    env.seed(seed)
    env.reset(seed=seed)
    world.reset(seed=seed)
    won = False
    for n in range(steps):
        action_D = (world.expert() + rng.normal(0, 0.2, 4)).astype(np.float32)
        obs, reward, _, _, info = env.step(np.clip(action_D, -1, 1))
        told = world.advance(action_D) if n else world.step(action_D)[1:]
        assert np.array_equal(world._obs, obs)
        assert told[0] == reward and told[3]["is_success"] == bool(info["success"])
        won = won or told[3]["is_success"]
    return won


def test_states_rewards_and_success_are_meta_worlds_own(world: MetaWorld) -> None:
    env = original("faucet-open-v3")
    assert same_course(world, env, 5, 90)
    assert same_course(world, env, 6, 20) in (True, False)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_is_meta_worlds_own_and_repeats(task: str) -> None:
    world, env = MetaWorld(task, size=32), original(task)
    first = world.reset(seed=5)[0]["pixels"]["front"]
    for seed in (5, 6):
        same_course(world, env, seed, 60)
    assert np.array_equal(world.reset(seed=5)[0]["pixels"]["front"], first)
    world.close()
    env.close()


def test_a_seed_is_a_layout_a_picture_and_a_course(world: MetaWorld) -> None:
    def course(seed: int, steps: int) -> list[np.ndarray]:
        obs, _ = world.reset(seed=seed)
        seen = [obs["pixels"]["front"], obs["agent_pos"]]
        for _ in range(steps):
            obs = world.step(world.expert())[0]
            seen += [obs["pixels"]["front"], obs["agent_pos"]]
        return seen

    first = course(7, 12)
    other = course(8, 5)
    assert all(np.array_equal(a, b) for a, b in zip(course(7, 12), first, strict=True))
    assert not np.array_equal(other[0], first[0])
    world.reset(seed=7)
    unseeded = [world.reset()[0]["pixels"]["front"] for _ in range(2)]
    world.reset(seed=7)
    assert np.array_equal(world.reset()[0]["pixels"]["front"], unseeded[0])
    assert not np.array_equal(unseeded[0], unseeded[1])


def test_the_first_picture_shows_the_layout(world: MetaWorld) -> None:
    """Meta-World moves objects after a reset's last forward pass; the picture must not show where they were."""
    import mujoco

    for seed in (1, 2):
        first = world.reset(seed=seed)[0]["pixels"]["front"]
        mujoco.mj_forward(world._env.model, world._env.data)
        world._pixels = None
        assert np.array_equal(world.render(), first)


def test_goal_sites_are_hidden(world: MetaWorld) -> None:
    first = world.reset(seed=1)[0]["pixels"]["front"]
    site = world._env.model.site("goal_open")
    before = site.size.copy()
    site.size = [0.05, 0.05, 0.05]  # ten times what it is, many pixels
    world._pixels = None
    assert np.array_equal(world.render(), first)
    site.size = before


def test_faucets_share_a_picture_and_not_an_instruction(world: MetaWorld) -> None:
    import mujoco

    other = MetaWorld("faucet-close-v3", size=32)
    picture = world.reset(seed=4)[0]["pixels"]["front"]
    assert not np.array_equal(other.reset(seed=4)[0]["pixels"]["front"], picture)  # it is spread wider there
    other._env.model.body("faucetBase").pos = world._env.model.body("faucetBase").pos
    mujoco.mj_kinematics(other._env.model, other._env.data)
    other._pixels = None
    assert np.array_equal(other.render(), picture)
    assert world.task_description == "Rotate the faucet counter-clockwise"
    assert other.task_description == "Rotate the faucet clockwise"
    assert not np.allclose(world.expert(), other.expert())
    other.close()


def test_an_episode_ends_with_success_or_at_its_limit(world: MetaWorld) -> None:
    world.reset(seed=3)
    for _ in range(120):
        action_D = world.expert()
        assert np.abs(action_D).max() <= 1 and action_D.dtype == np.float32
        _, terminated, truncated, info = world.advance(action_D)
        if terminated:
            break
    assert info["is_success"] is True and not truncated
    world.success_ends = False
    assert world.advance(world.expert())[1] is False
    world.success_ends = True
    world.reset(seed=3)
    ends = [world.advance(np.zeros(4))[1:3] for _ in range(150)]
    assert ends == [(False, False)] * 149 + [(False, True)]


def test_the_state_is_that_of_the_hand_and_nothing_is_drawn_by_advance(
    world: MetaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.reset(seed=3)
    drawn = []
    draw = world._draw
    monkeypatch.setattr(world, "_draw", lambda *view: drawn.append(view) or draw(*view))
    world.advance([1, 1, 1, 1])
    assert not drawn
    state_S = world.observe()["agent_pos"]
    assert np.array_equal(state_S, world._obs[:4].astype(np.float32)) and len(drawn) == 1  # type: ignore[index]
    world.render()
    assert len(drawn) == 1


def test_cameras_by_name_order_and_place() -> None:
    side = {"lookat": [0, 0.68, 0.1], "azimuth": -60, "elevation": -35}
    world = MetaWorld("faucet-open", size=24, cameras={"b": "corner2", "a": "front", "side": side, "top": "topview"})
    obs, _ = world.reset(seed=1)
    pixels = obs["pixels"]
    assert list(pixels) == ["b", "a", "side", "top"] and np.array_equal(world.render(), pixels["b"])
    assert np.array_equal(pixels["a"], pixels["side"])  # the same place, said in other words
    assert not np.array_equal(pixels["b"], pixels["a"])
    assert all(picture.shape == (24, 24, 3) and picture.dtype == np.uint8 for picture in pixels.values())
    assert obs in world.observation_space
    camera, upside_down = world._views["b"]
    assert upside_down and np.array_equal(world._draw(camera, False)[::-1, ::-1], pixels["b"])
    assert world._env.model.cam_pos[2].tolist() == [0.75, 0.075, 0.7]
    assert [world._env.model.camera(i).name for i in range(world._env.model.ncam)] == list(FIXED)
    assert world._env.model.vis.global_.offwidth == 24  # the one buffer there is
    world.close()


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"task": "faucet-opn"}, 'task: Meta-World has no "faucet-opn" (did you mean "faucet-open-v3"?)'),
        ({"cameras": "forward"}, 'cameras: there is no camera "forward"'),
        ({"cameras": ["front", "front"]}, "expected one name or several different ones"),
        ({"cameras": []}, "expected one name or several different ones"),
        ({"cameras": {"a": {"azimut": 3}}}, 'cameras.a.azimut: a camera has no such field (did you mean "azimuth"?)'),
        ({"cameras": {"a": {"azimuth": "left"}}}, "cameras.a.azimuth: 'left', expected a number"),
        ({"cameras": {"a": {"lookat": [0, 1]}}}, "cameras.a.lookat: [0, 1], expected 3 numbers"),
        ({"max_steps": 501}, "MetaWorld: max_steps=501: expected a whole number from 1 to 500"),
        ({"size": 0}, "MetaWorld: size=0: expected a whole number from 1 to 4096"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(named: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MetaWorld(**{"task": "faucet-open", **named})
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_actions_that_are_none(world: MetaWorld) -> None:
    world.reset(seed=0)
    with pytest.raises(ConfigError, match=r"action: has shape \(7,\), expected \(4,\)"):
        world.step(np.zeros(7))
    with pytest.raises(ConfigError, match="reset the world"):
        MetaWorld("faucet-open").step(np.zeros(4))


def test_the_tasks_are_those_of_the_package() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    assert sorted(ALL_V3_ENVIRONMENTS) == sorted(TASKS) and set(TASKS) <= set(ENV_POLICY_MAP)


class _Half:
    """A graphics context that fails as it is made, and once more as it is deleted."""

    def __init__(self) -> None:
        raise AttributeError("'NoneType' object has no attribute\n'eglQueryString'")

    def __del__(self) -> None:
        raise AttributeError("_context")


@pytest.mark.parametrize(
    ("chosen", "package"),
    [("egl", "libegl1 libegl-mesa0 libgl1-mesa-dri"), ("osmesa", "libosmesa6"), ("", "MUJOCO_GL=egl")],
)
def test_a_missing_library_is_one_sentence(
    chosen: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", chosen)
    with pytest.raises(ConfigError) as caught:
        drawing(_Half)
    assert package in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


DRAW = """
from mmdiff.errors import ConfigError
from mmdiff.tasks.vla.worlds.world import make_world
try:
    world = make_world({"name": "metaworld", "size": 16}, "faucet-open")
    world.reset(seed=1)
except ConfigError as error:
    print(error)
else:
    print("drawn")
"""
NO_EGL = """
import ctypes, ctypes.util
find, init = ctypes.util.find_library, ctypes.CDLL.__init__
ctypes.util.find_library = lambda name: None if "EGL" in name else find(name)
def load(self, name, *more, **named):
    if "EGL" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    init(self, name, *more, **named)
ctypes.CDLL.__init__ = load
"""


def started(code: str, **environment: str) -> tuple[str, str]:
    """stdout and stderr of a fresh interpreter on a machine without a display, all warnings shown."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    command = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_nothing_is_said_at_the_end_by_a_world_that_was_not_closed() -> None:
    assert started("import mujoco\n" + DRAW) == ("drawn", "")  # even where MuJoCo has chosen to draw in a window


@pytest.mark.skipif(find_library("OSMesa") is not None, reason="OSMesa is installed")
def test_no_osmesa() -> None:
    out, err = started(DRAW, MUJOCO_GL="osmesa")
    assert "apt-get install libosmesa6" in out and "\n" not in out and err == ""


def test_no_egl() -> None:
    out, err = started(NO_EGL + DRAW)
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in out and "\n" not in out and err == ""


@pytest.mark.slow
def test_training_may_follow_drawing() -> None:
    """In a process of its own: a crash would take this one along."""
    code = (
        "from mmdiff.tasks.vla.worlds.world import make_world\n"
        "make_world({'name': 'metaworld', 'size': 16}, 'reach-v3').reset(seed=1)\n"
        "import torch\n"
        "torch.optim.AdamW([torch.zeros(1, requires_grad=True)])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
