"""Demonstrations: what is recorded is the expert's clean action at what was seen, whatever was executed."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.vla.data.episode import Episode, check_episode
from mmdiff.tasks.vla.rollout.record import Attempt, demonstrate, disturbances, record, record_dataset
from mmdiff.tasks.vla.worlds.reach import Reach
from mmdiff.tasks.vla.worlds.world import make_world

SPEC = {"name": "reach", "size": 16}


def equal(one: Episode, other: Episode) -> bool:
    return (
        one.instruction == other.instruction
        and np.array_equal(one.action, other.action)
        and np.array_equal(one.state, other.state)
        and np.array_equal(one.images["front"], other.images["front"])
    )


def test_episodes_are_whole_and_in_order() -> None:
    found = list(record(SPEC, ["red", "blue"], 3, seed=5))
    assert [episode.instruction for episode in found] == ["reach the red disc"] * 3 + ["reach the blue disc"] * 3
    for episode in found:
        check_episode(episode, dims=3, state_dims=2, cameras={"front": (16, 16, 3)})
        assert episode.success and episode.fps == 10 and episode.action.dtype == episode.state.dtype == np.float32
        assert np.abs(episode.action).max() <= 1


def test_the_clean_action_is_recorded_and_another_one_executed() -> None:
    world = Reach("red", size=16)
    episode = demonstrate(world, 3, noise=0.3, share=0.5, extra=3)
    disturbed = 0
    for n, (state_S, action_D) in enumerate(zip(episode.state, episode.action, strict=True)):
        world._x, world._y = (float(v) for v in state_S)
        assert np.allclose(world.expert(), action_D, atol=1e-5)
        world.advance(action_D)
        if n + 1 < len(episode):
            disturbed += not np.allclose((world._x, world._y), episode.state[n + 1], atol=1e-5)
    assert 0 < disturbed < len(episode)


def test_without_noise_the_recorded_actions_lead_to_the_goal() -> None:
    world = Reach("green", size=16)
    for noise, share in ((0.0, 1.0), (0.3, 0.0)):
        episode = demonstrate(world, 7, noise, share, extra=3)
        obs, _ = world.reset(seed=7)
        won = []
        for n, action_D in enumerate(episode.action):
            assert np.array_equal(obs["pixels"]["front"], episode.images["front"][n])
            assert np.array_equal(obs["agent_pos"], episode.state[n])
            obs, *_, info = world.step(action_D)
            won.append(info["is_success"])
        assert won[-3:] == [True] * 3 and sum(won) == 3  # ends with the third successful step


def test_share_and_deviation_of_what_is_added() -> None:
    class Watched(Reach):
        def advance(self, action: Any) -> Any:
            added.append(np.asarray(action, float) - self.expert())
            return super().advance(action)

    added: list[np.ndarray] = []
    world = Watched("red", size=8, max_steps=2000)
    world.expert = lambda: np.array([0.0, 0.0, -1.0], np.float32)  # type: ignore[method-assign]
    demonstrate(world, 0, noise=0.3, share=0.25, extra=3)
    moved = np.stack(added)[:, :2]
    hit = moved.any(1)
    assert len(hit) == 2000 and not np.stack(added)[:, 2].any()  # the gripper is left alone
    assert abs(hit.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)
    assert abs(moved[hit].std() - 0.3) < 5 * 0.3 / np.sqrt(2 * 2 * hit.sum())


def test_an_episode_is_a_function_of_task_and_seed() -> None:
    four = list(record(SPEC, ["red", "yellow"], 4, seed=10))
    two = list(record(SPEC, ["yellow"], 2, seed=12))
    assert all(equal(a, b) for a, b in zip(four[6:], two, strict=True))
    assert not np.array_equal(four[0].images["front"][0], four[1].images["front"][0])


def test_failures_are_told_and_left_out() -> None:
    spec = {**SPEC, "max_steps": 8}  # the nearer half
    told: list[Attempt] = []
    found = list(record(spec, ["red"], 12, seed=0, extra=1, log=told.append))
    assert [attempt.seed for attempt in told] == list(range(12))
    assert 0 < len(found) < 12 and len(found) == sum(attempt.success for attempt in told)
    assert all(attempt.steps == 8 for attempt in told if not attempt.success)


def test_two_processes_give_what_one_gives() -> None:
    told: list[Attempt] = []
    one = list(record(SPEC, ["red", "blue"], 3))
    two = list(record(SPEC, ["red", "blue"], 3, processes=2, log=told.append))
    assert len(one) == len(two) == 6 and all(equal(a, b) for a, b in zip(one, two, strict=True))
    names = "reach-red", "reach-blue"
    assert [(a.task, a.seed) for a in told] == [(name, s) for name in names for s in (1000, 1001, 1002)]


def test_an_error_of_a_process_comes_through_as_it_is() -> None:
    with pytest.raises(ConfigError, match='there is no "rod"'):
        list(record(SPEC, ["rod"], 2, processes=2))


@pytest.mark.parametrize("named", [{"episodes": 0}, {"share": 1.5}, {"noise": -1}, {"extra": 0}, {"processes": 0}])
def test_numbers_that_are_none(named: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(named))):
        list(record(SPEC, ["red"], **{"episodes": 1, **named}))


@pytest.mark.needs("metaworld")
def test_meta_world_is_recorded_with_the_expert() -> None:
    (episode,) = record({"name": "metaworld", "size": 16}, ["faucet-open"], 1, seed=1000)
    check_episode(episode, dims=4, state_dims=4, cameras={"front": (16, 16, 3)})
    assert episode.instruction == "Rotate the faucet counter-clockwise" and 30 < len(episode) < 150
    assert episode.fps == 80


@pytest.mark.needs("pyarrow")
def test_a_data_set_holds_the_episodes_and_what_they_were_made_with(tmp_path: Path) -> None:
    from mmdiff.tasks.vla.data.dataset import LeRobot

    folder = tmp_path / "demos"
    count = record_dataset(folder, SPEC, ["red", "blue"], 2, seed=5, progress=False)
    assert count == {"reach-red": (2, 2), "reach-blue": (2, 2)}
    data = LeRobot(folder)
    expected = list(record(SPEC, ["red", "blue"], 2, seed=5))
    assert len(data) == 4 and data.fps == 10 and list(data.action_names) == ["dx", "dy", "gripper"]
    for i, episode in enumerate(expected):
        read = data.episode(i)
        assert read.instruction == episode.instruction
        assert np.array_equal(read.action, episode.action) and np.array_equal(read.state, episode.state)
        assert np.array_equal(np.stack(list(read.images["front"])), episode.images["front"])
    kept = json.loads((folder / "meta" / "world.json").read_text())
    assert kept.pop("layouts") == [["reach-red", 5], ["reach-red", 6], ["reach-blue", 5], ["reach-blue", 6]]
    how = {"seed": 5, "noise": 0.3, "share": 0.5, "extra": 3, "hold": 1}
    assert kept == {"world": SPEC, "tasks": ["red", "blue"], "episodes": 2, **how}
    assert make_world(kept["world"], kept["tasks"][0]).size == 16
    with pytest.raises((ConfigError, DataError), match="demos"):
        record_dataset(folder, SPEC, ["red"], 1, progress=False)


@pytest.mark.needs("pyarrow")
def test_a_task_that_always_fails_leaves_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="red: the expert succeeded in none of 2 layouts"):
        record_dataset(tmp_path / "demos", {**SPEC, "max_steps": 1}, ["red"], 2, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.needs("pyarrow")
def test_a_task_that_fails_takes_nothing_from_the_others(tmp_path: Path) -> None:
    from mmdiff.tasks.vla.data.dataset import LeRobot

    spec = {**SPEC, "max_steps": 3}  # enough for red in this layout, and not for yellow
    with pytest.raises(DataError, match=r"^reach-yellow: .* none of 1 layouts; .*demos holds the other tasks$"):
        record_dataset(tmp_path / "demos", spec, ["red", "yellow"], 1, seed=2, progress=False, extra=1)
    assert len(LeRobot(tmp_path / "demos")) == 1 and (tmp_path / "demos" / "meta" / "world.json").is_file()


def test_a_disturbance_lasts_as_long_as_it_is_held() -> None:
    one = list(islice(disturbances("t", 3, 0.5, 0.5, 3), 40))
    held = list(islice(disturbances("t", 3, 0.5, 0.5, 3, hold=4), 160))
    assert all(np.array_equal(held[i], one[i // 4]) for i in range(160))
    assert not np.stack(one)[:, -1].any() and 0.2 < np.stack(one).any(1).mean() < 0.8
    with pytest.raises(ConfigError, match="hold=0: expected a whole number of at least 1"):
        list(record(SPEC, ["red"], 1, hold=0))
