"""The reaching world: geometry by hand, the expert, and that only the instruction tells the tasks apart."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from mmdiff.errors import ConfigError
from mmdiff.tasks.vla.worlds.reach import CLOSED, COLORS, OPEN, STRIDE, TABLE, TOUCH, Reach


def run(world: Reach, seed: int) -> tuple[int, bool]:
    """Steps and success of the expert."""
    world.reset(seed=seed)
    for step in range(1, 100):
        _, terminated, truncated, info = world.advance(world.expert())
        if terminated or truncated:
            return step, info["is_success"]
    raise AssertionError("neither terminated nor truncated")


def test_the_expert_reaches_every_disc_by_the_shortest_way() -> None:
    for task in Reach.tasks():
        world = Reach(task)
        for seed in range(60):
            obs, _ = world.reset(seed=seed)
            goal = np.array(world._disc[world.goal])
            way = np.abs(goal - obs["agent_pos"].astype(float)).max()
            steps, success = run(world, seed)
            assert success and steps == max(1, int(np.ceil(way / STRIDE - 1e-6)))


def test_one_picture_goes_with_four_instructions() -> None:
    worlds = [Reach(color) for color in COLORS]
    for seed in range(5):
        pictures = [world.reset(seed=seed)[0]["pixels"]["front"] for world in worlds]
        assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    assert len({world.task_description for world in worlds}) == 4
    assert worlds[0].task_description == "reach the red disc"
    assert len({tuple(world.expert().tolist()) for world in worlds}) == 4


def test_a_layout_follows_its_seed_alone() -> None:
    world = Reach("red")
    first, _ = world.reset(seed=1)
    for _ in range(3):
        world.step(world.action_space.sample())
    other, _ = world.reset(seed=2)
    again, _ = world.reset(seed=1)
    assert np.array_equal(first["pixels"]["front"], again["pixels"]["front"])
    assert np.array_equal(first["agent_pos"], again["agent_pos"])
    assert not np.array_equal(first["pixels"]["front"], other["pixels"]["front"])
    unseeded = [world.reset()[0]["agent_pos"].tolist() for _ in range(3)]
    world.reset(seed=1)
    assert [world.reset()[0]["agent_pos"].tolist() for _ in range(3)] == unseeded and unseeded[0] != unseeded[1]


def test_a_step_by_hand() -> None:
    world = Reach("green")
    world.reset(seed=0)
    world._x, world._y = 0.5, -0.95
    obs, reward, terminated, truncated, info = world.step([0.5, -3.0, 0.0])
    assert obs["agent_pos"].tolist() == pytest.approx([0.55, -1.0])  # clipped to one stride, and to the table
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"is_success": False})


def test_success_takes_nearness_and_a_closed_gripper() -> None:
    world = Reach("blue", success_ends=False)
    world.reset(seed=0)
    x, y = world._disc["blue"]

    def at(dx: float, gripper: float) -> bool:
        world._x, world._y = x + dx, y
        return bool(world.advance([0, 0, gripper])[3]["is_success"])

    assert at(0.99 * TOUCH, 1.0) and at(0.0, 0.01)
    assert not at(1.01 * TOUCH, 1.0) and not at(0.0, 0.0) and not at(0.0, -1.0)
    world._x, world._y = world._disc["red"]
    assert not world.advance([0, 0, 1])[3]["is_success"]
    world._x, world._y = x, y
    assert world.advance([0, 0, 1])[1] is False
    world.success_ends = True
    assert world.advance([0, 0, 1])[:2] == (1.0, True)


def test_the_picture_shows_discs_and_the_tip() -> None:
    world = Reach("red", size=64)
    for seed in range(5):
        world.reset(seed=seed)
        world._x, world._y = -0.97, -0.97  # no disc lies there
        image_HW3 = world.render()

        def pixel(x: float, y: float, image_HW3: np.ndarray = image_HW3) -> tuple[int, ...]:
            return tuple(image_HW3[int((y + 1) * 32), int((x + 1) * 32)].tolist())

        for color, (x, y) in world._disc.items():
            assert pixel(x, y) == COLORS[color]
        assert pixel(-0.97, -0.97) == OPEN and pixel(0.97, 0.97) == TABLE
        world.advance([0, 0, 1])
        assert tuple(world.render()[0, 0].tolist()) == CLOSED


def test_chance_seldom_succeeds() -> None:
    world = Reach("yellow")
    rng = np.random.default_rng(0)
    won = 0
    for seed in range(50):
        world.reset(seed=seed)
        ended = False
        while not ended:
            _, terminated, truncated, info = world.advance(rng.uniform(-1, 1, 3))
            ended = terminated or truncated
        won += info["is_success"]
    assert won <= 10


def test_truncation_and_errors() -> None:
    world = Reach("red", max_steps=2)
    with pytest.raises(ConfigError, match="reach-red: reset the world"):
        world.step([0, 0, 0])
    world.reset(seed=0)
    assert [world.advance([0, 0, -1])[2] for _ in range(2)] == [False, True]
    with pytest.raises(ConfigError, match=r'task: there is no "rad" \(did you mean "reach-red"\?\)'):
        Reach("rad")
    with pytest.raises(ConfigError, match="Reach: size=4: expected a whole number from 8 to 4096"):
        Reach("red", size=4)
