"""Closed-loop episodes: simulators advance in lockstep, and those that need a chunk of actions share one batch.

Shape letters: K actions of a chunk, D dimensions of an action, N steps of an episode, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.config.typed import typed
from mmdiff.errors import ConfigError
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row
from mmdiff.tasks.vla.worlds.world import World, row_of

from .policies import Chunk, Policy

Edit = Callable[[Row], Row]


@dataclass
class Rollout:
    """One episode. success: whether the simulator reported it at any step; the episode ends there.

    chunks: how many the policy predicted. actions_ND: those executed. frames: the picture before the first step and
    after every n-th, uint8 (H, W, 3), where they are kept.
    """

    task: str
    seed: int
    success: bool = False
    steps: int = 0
    sum_reward: float = 0.0
    max_reward: float = -np.inf
    chunks: int = 0
    actions_ND: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    frames: list[NDArray[np.uint8]] = field(default_factory=list)


@typed
def rollout(
    worlds: Sequence[World],
    seeds: Sequence[int] | Sequence[Sequence[int]],
    policy: Policy,
    *,
    execute: int | None = None,
    inpaint: bool = False,
    max_steps: AtLeast1 | None = None,
    edit: Edit | None = None,
    frames: int = 0,
    batch: AtLeast1 | None = None,
    done: Callable[[Rollout], None] | None = None,
) -> list[Rollout]:
    """Returns episodes in the order of `worlds`, then of their seeds. An episode is a function of (task, seed, policy)
    and of the arguments, not of other episodes.

    seeds: one per world, or several that it runs one after the other.
    execute: actions of a chunk that are executed before the next chunk; None: all.
    inpaint: the rest of a chunk is given as the beginning of the next one (`row["given"]`).
    max_steps: None: each world's own limit.
    edit: changes a row before the policy sees it, for ablations.
    frames: keep every n-th picture; 0: none.
    batch: the most rows per batch of the policy; None: no limit.
    done: called with every episode as it ends.
    Raises ConfigError when policy and simulator do not fit each other, or the policy's actions are not finite.
    """
    execute = policy.chunk if execute is None else execute
    if not 1 <= execute <= policy.chunk:
        raise ConfigError(f"execute: {execute}, expected 1..{policy.chunk}, the actions of a chunk")
    queues = [[seed] if isinstance(seed, int | np.integer) else list(seed) for seed in seeds]
    lanes = [_Lane(w, q, max_steps, frames) for w, q in zip(worlds, queues, strict=True)]
    while alive := [lane for lane in lanes if lane.busy]:
        waiting = [lane for lane in alive if lane.at >= min(execute, len(lane.chunk))]
        for group in _split(waiting, batch):
            rows = [lane.row(policy.sees, inpaint) for lane in group]
            chunks = policy.act(rows if edit is None else [edit(row) for row in rows])
            for lane, chunk in zip(group, chunks, strict=True):
                lane.take(chunk)
        for lane in alive:
            ended = lane.step()
            if ended is not None and done is not None:
                done(ended)
    return [episode for lane in lanes for episode in lane.episodes]


class _Lane:
    """One simulator, which runs its seeds one after the other."""

    def __init__(self, world: World, seeds: Sequence[int], max_steps: int | None, every: int) -> None:
        self.world, self.every = world, every
        self.left = [int(seed) for seed in seeds]
        self.limit = world._max_episode_steps if max_steps is None else max_steps
        self.episodes: list[Rollout] = []
        self.busy = bool(self.left)
        if self.busy:
            self._begin()

    def _begin(self) -> None:
        seed = self.left.pop(0)
        self.seen: Mapping[str, Any] | None = self.world.reset(seed=seed)[0]
        self.now = Rollout(self.world.task, seed)
        self.chunk: Chunk = np.empty((0, 0))
        self.at = 0  # actions of the chunk that were executed
        self.done: list[NDArray[np.float64]] = []
        if self.every:
            self.now.frames.append(self.world.render())

    def row(self, sees: bool, inpaint: bool) -> Row:
        instruction = self.world.task_description
        row: dict[str, Any] = {"instruction": instruction}
        if sees:
            row = dict(row_of(self.world.observe() if self.seen is None else self.seen, instruction))
        if inpaint and self.at < len(self.chunk):
            row["given"] = self.chunk[self.at :].astype(np.float32)
        where = f"{self.now.task} seed {self.now.seed} step {self.now.steps}"
        return {
            **row,
            "index": noise_index(self.now.task, self.now.seed, self.now.chunks),
            "world": self.world,
            "where": where,
        }

    def take(self, chunk: Chunk) -> None:
        self.chunk, self.at = np.asarray(chunk, np.float64), 0
        self.now.chunks += 1
        shape_D = self.world.action_space.shape
        if self.chunk.ndim != 2 or not len(self.chunk) or self.chunk.shape[1:] != shape_D:
            found = f"the policy gives a chunk of shape {self.chunk.shape}, expected (actions, {shape_D[0]})"
            raise ConfigError(f"{self.now.task}: {found}")
        if not np.isfinite(self.chunk).all():
            raise ConfigError(f"{self.now.task} seed {self.now.seed} step {self.now.steps}: actions are not finite")

    def step(self) -> Rollout | None:
        """Execute the next action. Returns the episode if it has ended."""
        action_D = self.chunk[self.at]
        reward, terminated, truncated, info = self.world.advance(action_D.astype(np.float32))
        self.seen = None
        self.at += 1
        self.done.append(action_D)
        now = self.now
        now.steps += 1
        now.sum_reward += float(reward)
        now.max_reward = max(now.max_reward, float(reward))
        now.success = now.success or bool(info["is_success"])
        over = now.success or terminated or truncated or now.steps >= self.limit
        if self.every and (over or now.steps % self.every == 0):
            now.frames.append(self.world.render())
        if not over:
            return None
        now.actions_ND = np.stack(self.done)
        self.episodes.append(now)
        self.busy = bool(self.left)
        if self.busy:
            self._begin()
        return now


def noise_index(task: str, seed: int, chunk: int) -> int:
    """Returns the number, of 63 bits, under which the noise of a chunk is drawn, whatever shares its batch."""
    digest = hashlib.blake2b(f"{task} {seed} {chunk}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _split(lanes: list[_Lane], size: int | None) -> list[list[_Lane]]:
    size = size or max(1, len(lanes))
    return [lanes[i : i + size] for i in range(0, len(lanes), size)]
