"""Worlds by name, and what any of them has to do: Gymnasium's own checker is the independent judge."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from mmdiff.errors import ConfigError
from mmdiff.tasks.vla.worlds.world import World, clipped_action, make_world, row_of, tasks_of

METAWORLD = pytest.param(
    {"name": "metaworld", "size": 32}, "faucet-open", marks=pytest.mark.needs("metaworld"), id="metaworld"
)
REACH = pytest.param({"name": "reach"}, "red", id="reach")


@pytest.mark.parametrize(("spec", "task"), [REACH, METAWORLD])
def test_gymnasium_accepts_a_world(spec: dict[str, Any], task: str) -> None:
    from gymnasium.utils.env_checker import check_env

    world = make_world(spec, task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        check_env(world)  # spaces, seeding, determinism of a step, passive checks
    assert isinstance(world, World)
    world.close()


@pytest.mark.parametrize(("spec", "task"), [REACH])
def test_advance_is_step_without_the_picture(spec: dict[str, Any], task: str) -> None:
    seen, unseen = make_world(spec, task), make_world(spec, task)
    seen.reset(seed=3), unseen.reset(seed=3)
    for _ in range(4):
        action_D = seen.expert()
        assert np.array_equal(action_D, unseen.expert())
        obs, *told = seen.step(action_D)
        assert unseen.advance(action_D) == tuple(told)
    after = unseen.observe()
    assert np.array_equal(after["agent_pos"], obs["agent_pos"]) and after["agent_pos"].dtype == np.float32
    for camera, picture in obs["pixels"].items():
        assert np.array_equal(after["pixels"][camera], picture)
    assert np.array_equal(seen.render(), next(iter(obs["pixels"].values())))
    for made in (seen, unseen):
        made.close()


def test_a_world_by_name_and_by_dotted_path() -> None:
    named = make_world({"name": "reach", "size": 16}, "reach-blue")
    dotted = make_world({"name": "mmdiff.tasks.vla.worlds.reach.Reach", "size": 16}, "blue")
    assert type(named) is type(dotted) and named.task == dotted.task == "reach-blue"
    assert make_world("reach", "blue").size == 32
    assert named.observation_space == dotted.observation_space


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"name": "metaword"}, 'world.name: there is no simulator "metaword" (did you mean "metaworld"?)'),
        (
            {"name": "reach", "sise": 16},
            'world.sise: mmdiff.tasks.vla.worlds.reach.Reach takes no such argument (did you mean "size',
        ),
        ({"name": "reach", "task": "red"}, "world.task: set at run time"),
        ({"size": 16}, "world.name: None, expected a simulator (known: libero, metaworld, reach)"),
    ],
)
def test_a_wrong_specification_is_one_line(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_world(spec, "red")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_the_tasks_of_every_world() -> None:
    assert len(tasks_of("metaworld")) == 50 and "faucet-open-v3" in tasks_of("metaworld")
    assert tasks_of({"name": "reach", "size": 16}) == ["reach-red", "reach-green", "reach-blue", "reach-yellow"]
    assert len(tasks_of("libero")) == 130 and tasks_of("libero")[0] == "libero_spatial/0"
    assert tasks_of({"name": "builtins.dict"}) == []


def test_an_observation_as_a_row() -> None:
    front, side = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    row = row_of({"pixels": {"front": front}, "agent_pos": [0.5, 1.0]}, "go")
    assert row["image"] is front and row["instruction"] == "go" and row["state"].dtype == np.float32
    row = row_of({"pixels": {"side": side, "front": front}}, "go")
    assert row["image"][0] is side and row["image"][1] is front and "state" not in row


def test_actions_are_clipped_and_checked() -> None:
    assert clipped_action([3, -0.5, -9], 3).tolist() == [1.0, -0.5, -1.0]
    with pytest.raises(ConfigError, match=r"action: has shape \(2,\), expected \(3,\)"):
        clipped_action([0, 0], 3)
    with pytest.raises(ConfigError, match="is not finite"):
        clipped_action([0, 0, float("nan")], 3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": "abc"}, "size: 'abc' is not a whole number"),
        ({"size": None}, "size: None is not a whole number"),
        ({"max_steps": 1.5}, "max_steps: 1.5 is not a whole number"),
        ({"success_ends": 1}, "success_ends: 1 is not true or false"),
        ({"size": 1_000_000}, "size=1000000: expected a whole number from 8 to 4096"),
        ({"size": 7}, "size=7: expected"),
        ({"max_steps": 0}, "max_steps=0: expected a whole number from 1 to 100000"),
        ({"max_steps": 10**9}, "max_steps=1000000000: expected"),
        ({"name": "metaworld", "size": 4097}, "size=4097: expected a whole number from 1 to 4096"),
        ({"name": "metaworld", "max_steps": 501}, "max_steps=501: expected a whole number from 1 to 500"),
        ({"name": "libero", "settle": -1}, "settle=-1: expected a whole number from 0 to 1000"),
        ({"name": "libero", "max_steps": 0}, "max_steps=0: expected"),
    ],
)
def test_options_of_another_kind_or_size(option: dict[str, Any], message: str) -> None:
    """What a saved model says of its simulator may have been written by anyone."""
    with pytest.raises(ConfigError, match=f"^world.{message}"):
        make_world({"name": "reach", **option}, "red")
