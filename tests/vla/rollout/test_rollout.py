"""Rollouts: who is asked when, what ends an episode, and that nothing depends on what runs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy

from mmdiff.canvas.sample import Media, Target, Text
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.session import Session
from mmdiff.tasks.vla.rollout.policies import Chunk, ExpertPolicy, ModelPolicy, RandomPolicy
from mmdiff.tasks.vla.rollout.rollout import Rollout, noise_index, rollout
from mmdiff.tasks.vla.task import VLA


class Point:
    """A point in the plane is to come within 0.1 of a goal; steps of 0.1 a dimension at most; reward is -distance."""

    fps, _max_episode_steps, task_description = 10.0, 30, "east"
    observation_space = None
    action_space = SimpleNamespace(shape=(2,), low=np.full(2, -1.0), high=np.full(2, 1.0))

    def __init__(self, task: str = "point") -> None:
        self.task, self.drawn, self.log = task, 0, []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.at_2, self.goal_2 = np.random.default_rng(seed).uniform(-1, 1, (2, 2))
        self.log = []
        return self.observe(), {"is_success": False}

    def advance(self, action: Any) -> tuple[float, bool, bool, dict[str, Any]]:
        self.log.append(np.array(action))
        self.at_2 = self.at_2 + 0.1 * np.clip(action, -1, 1)
        far = float(np.linalg.norm(self.at_2 - self.goal_2))
        return -far, far < 0.1, False, {"is_success": far < 0.1}

    def step(self, action: Any) -> Any:
        return self.observe(), *self.advance(action)

    def observe(self) -> dict[str, Any]:
        return {"pixels": {"top": self.render()}, "agent_pos": self.at_2.astype(np.float32)}

    def render(self) -> Any:
        self.drawn += 1
        picture = np.zeros((8, 8, 3), np.uint8)
        for i, (x, y) in enumerate((self.at_2, self.goal_2)):
            picture[int(np.clip(4 + 4 * y, 0, 7)), int(np.clip(4 + 4 * x, 0, 7)), i] = 255
        return picture

    def expert(self) -> Any:
        return np.clip(10 * (self.goal_2 - self.at_2), -1, 1).astype(np.float32)

    def close(self) -> None: ...


class Plan:
    """Gives numbered actions: chunk c is [[c, 0], [c, 1], ...] / 100; keeps what it was asked."""

    sees = True

    def __init__(self, chunk: int) -> None:
        self.chunk, self.asked, self.batches = chunk, [], []

    def act(self, rows: Sequence[Any]) -> list[Chunk]:
        self.asked += rows
        self.batches.append(len(rows))
        return [np.array([[len(self.asked), k] for k in range(self.chunk)]) / 100 for _ in rows]


class Steer(VLA):
    """A task over the toy vocabulary: two words of four an action; each word is a level of one dimension."""

    def __init__(self) -> None:
        self.chunk, self.execute = 3, None

    def prompt(self, row: Any, vocab: Any) -> Any:
        grey = row["image"].astype(np.float32).mean(-1)[None] / 255
        low = vocab.encode(toy.WORDS[1])[0]
        return [
            Media("image", grey),
            Text(vocab.encode(row["instruction"])),
            Target(length=2 * self.chunk, allow=((low, low + 4),)),
        ]

    sample = prompt

    def parse(self, ids: Sequence[int], vocab: Any) -> list[list[float]]:
        levels = [toy.WORDS.index(vocab.piece(i)) / 2 - 1.25 for i in ids]
        return [levels[i : i + 2] for i in range(0, len(levels), 2)]

    def score(self, prediction: Any, row: Any) -> dict[str, float]:
        return {}


@pytest.fixture(scope="module")
def session() -> Session:
    torch.manual_seed(0)
    model = MMDiff(toy.backbone(16, 1), {"image": toy.Patches()}, {"image": toy.Project(width_in=16, width_out=16)}, {})
    return Session(model, Steer(), GenerationConfig(steps=3, temperature=1.0), Path("toy"))


def same(one: Rollout, other: Rollout) -> bool:
    told = ("task", "seed", "success", "steps", "sum_reward", "max_reward", "chunks")
    return all(getattr(one, k) == getattr(other, k) for k in told) and np.array_equal(one.actions_ND, other.actions_ND)


def test_the_expert_succeeds_where_and_when_it_must() -> None:
    done = rollout([Point() for _ in range(5)], range(5), ExpertPolicy())
    for seed, episode in enumerate(done):
        at_2, goal_2 = np.random.default_rng(seed).uniform(-1, 1, (2, 2))
        rewards = []
        while not rewards or rewards[-1] <= -0.1:
            at_2 = at_2 + 0.1 * np.clip(10 * (goal_2 - at_2), -1, 1).astype(np.float32)
            rewards.append(-float(np.linalg.norm(at_2 - goal_2)))
        assert episode.success and episode.seed == seed and episode.steps == episode.chunks == len(rewards)
        assert episode.sum_reward == pytest.approx(sum(rewards)) and episode.max_reward == pytest.approx(max(rewards))
        assert episode.actions_ND.shape == (len(rewards), 2)


@pytest.mark.parametrize("who", ["expert", "random", "model"])
def test_an_episode_does_not_depend_on_what_runs_beside_it(who: str, session: Session) -> None:
    def policy() -> Any:
        return {
            "expert": ExpertPolicy,
            "random": lambda: RandomPolicy(Point.action_space, 3),
            "model": lambda: ModelPolicy(session),
        }[who]()

    seeds = [4, 9, 2, 7]
    options: dict[str, Any] = {"max_steps": 12, "execute": 2 if who == "model" else 1}
    alone = [rollout([Point()], [seed], policy(), **options)[0] for seed in seeds]
    beside = rollout([Point() for _ in seeds], seeds, policy(), **options)
    batched = rollout([Point() for _ in seeds], seeds, policy(), batch=3, **options)
    queued = rollout([Point(), Point()], [seeds[:3], seeds[3:]], policy(), **options)
    turned = rollout([Point() for _ in seeds], seeds[::-1], policy(), **options)[::-1]
    for others in (beside, batched, queued, turned):
        assert all(map(same, alone, others))
    assert not np.array_equal(alone[0].actions_ND[:2], alone[1].actions_ND[:2])  # of the seed it does


def test_noise_follows_task_seed_and_chunk(session: Session) -> None:
    numbers = {noise_index(t, s, c) for t in ("a", "b") for s in range(20) for c in range(20)}
    assert len(numbers) == 800 and all(0 <= n < 2**63 for n in numbers)
    policy, row = ModelPolicy(session), {"image": Point().reset(seed=0)[0]["pixels"]["top"], "instruction": "east"}
    rows = [{**row, "index": i} for i in range(8)]
    together, backwards = policy.act(rows), policy.act(rows[::-1])[::-1]
    assert all(map(np.array_equal, together, backwards))
    assert len({chunk.tobytes() for chunk in together}) > 1
    assert all(map(np.array_equal, policy.act([row] * 8), policy.act([{**row, "index": 16 + i} for i in range(8)])))
    assert (policy.calls, policy.rows, policy.forwards) == (4, 32, 32 * 3) and policy.seconds > 0
    assert np.array_equal(ModelPolicy(session, temperature=0.0).act(rows[:1])[0], policy_greedy(session, row))


def policy_greedy(session: Session, row: Any) -> Any:
    answer = session.predict(row, temperature=0.0)["prediction"]
    return np.asarray(answer)


def test_chunks_are_asked_for_when_they_are_used_up() -> None:
    world, policy = Point(), Plan(5)
    episode = rollout([world], [0], policy, execute=2, max_steps=7)[0]
    assert episode.chunks == 4 and not episode.success
    wanted = [[c, k] for c in (1, 2, 3, 4) for k in (0, 1)][:7]
    np.testing.assert_allclose(episode.actions_ND, np.array(wanted) / 100)
    np.testing.assert_allclose(world.log, np.array(wanted) / 100, rtol=1e-6)
    assert world.drawn == 4  # a picture a chunk, the first of them by the reset
    assert [row["where"] for row in policy.asked] == [f"point seed 0 step {n}" for n in (0, 2, 4, 6)]
    assert [row["index"] for row in policy.asked] == [noise_index("point", 0, c) for c in range(4)]
    assert all("given" not in row for row in policy.asked)
    assert rollout([Point()], [0], Plan(5), max_steps=7)[0].chunks == 2


def test_what_is_left_of_a_chunk_is_given_for_the_next() -> None:
    policy = Plan(5)
    rollout([Point()], [0], policy, execute=2, inpaint=True, max_steps=6)
    assert "given" not in policy.asked[0]
    for n, row in enumerate(policy.asked[1:], start=1):
        np.testing.assert_allclose(row["given"], np.array([[n, k] for k in (2, 3, 4)]) / 100, rtol=1e-6)
    policy = Plan(5)
    rollout([Point()], [0], policy, inpaint=True, max_steps=10)
    assert all("given" not in row for row in policy.asked)


def test_batches_and_worlds_that_leave() -> None:
    def apart(seed: int) -> float:
        return float(np.linalg.norm(np.subtract(*np.random.default_rng(seed).uniform(-1, 1, (2, 2)))))

    policy, near = Plan(1), next(seed for seed in range(1000) if apart(seed) < 0.07)
    done = rollout([Point(), Point(), Point()], [near, 0, 1], policy, max_steps=3)
    assert done[0].success and done[0].steps == 1 and policy.batches == [3, 2, 2]
    policy = Plan(1)
    rollout([Point() for _ in range(5)], range(5), policy, max_steps=1, batch=2)
    assert policy.batches == [2, 2, 1]


def test_rows_pass_the_hook_and_frames_are_kept() -> None:
    policy, told = Plan(2), []
    episodes = rollout(
        [Point("a"), Point("b")], [0, 1], policy, max_steps=5, frames=2, done=told.append,
        edit=lambda row: {**row, "instruction": row["world"].task},
    )  # fmt: skip
    assert {row["instruction"] for row in policy.asked} == {"a", "b"}
    assert {row["state"].shape for row in policy.asked} == {(2,)}
    assert [len(e.frames) for e in episodes] == [4, 4]  # before the first step, after 2, 4 and the last
    assert told == episodes and rollout([Point()], [0], Plan(2), max_steps=5)[0].frames == []


def test_policies_that_look_at_nothing_cost_no_picture() -> None:
    world = Point()
    rollout([world], [0], ExpertPolicy())
    assert world.drawn == 1  # of the reset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"execute": 6}, "execute: 6, expected 1..5, the actions of a chunk"),
        ({"execute": 0}, "execute: 0, expected 1..5"),
        ({"batch": 0}, "batch=0: expected a whole number of at least 1"),
        ({"max_steps": 0}, "max_steps=0: expected a whole number of at least 1"),
    ],
)
def test_arguments_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rollout([Point()], [0], Plan(5), **change)


def test_policies_that_do_not_fit() -> None:
    def answering(chunk: Any) -> Any:
        return SimpleNamespace(chunk=1, sees=False, act=lambda rows: [np.asarray(chunk) for _ in rows])

    with pytest.raises(
        ConfigError, match=r"point: the policy gives a chunk of shape \(1, 7\), expected \(actions, 2\)"
    ):
        rollout([Point()], [0], answering(np.zeros((1, 7))))
    with pytest.raises(ConfigError, match="point seed 5 step 0: actions are not finite"):
        rollout([Point()], [5], answering([[0.0, np.nan]]))
    with pytest.raises(ConfigError, match="has no bounds to draw between"):
        RandomPolicy(SimpleNamespace(low=[-np.inf], high=[1.0]))
    with pytest.raises(ConfigError, match="scripted expert"):
        ExpertPolicy().act([{"world": object()}])


def test_a_random_policy_is_spread_over_its_space() -> None:
    space = SimpleNamespace(low=np.array([-1.0, 2.0]), high=np.array([1.0, 6.0]))
    drawn = np.concatenate(RandomPolicy(space, 0).act([{"index": i} for i in range(2000)]))
    assert (drawn >= space.low).all() and (drawn <= space.high).all()
    # a mean of 2000 uniform numbers lies within 4.5 of its standard deviations of the middle
    assert (abs(drawn.mean(0) - [0, 4]) < 4.5 * np.array([2, 4]) / np.sqrt(12 * 2000)).all()
