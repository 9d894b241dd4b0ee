"""Demonstrations of a world's scripted expert, as episodes or as a LeRobotDataset.

The expert is disturbed while it works: on a share of the steps noise is added to what is executed, and its clean action
is what is recorded. Demonstrations then show how to return to the expert's path (DART, Laskey et al. 2017).

Shape letters: N frames, D dimensions of an action, S of the state, H W pixels.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator, Philox, SeedSequence

from mmdiff.config.typed import typed
from mmdiff.data.processes import begin_working
from mmdiff.errors import ConfigError, DataError
from mmdiff.parts.ranges import AtLeast0, AtLeast1, NotNegative, Share
from mmdiff.tasks.vla.data.episode import Episode
from mmdiff.tasks.vla.worlds.world import OneWorld, make_world

from .ablations import instructions

Spec = Mapping[str, Any] | str


class Attempt(NamedTuple):
    """One attempt at a layout of a task (its full name). success: whether the simulator reports it."""

    task: str
    seed: int
    success: bool
    steps: int


@typed
def record(
    spec: Spec,
    tasks: Sequence[str],
    episodes: AtLeast1,
    *,
    seed: AtLeast0 = 1000,
    noise: NotNegative = 0.3,
    share: Share = 0.5,
    extra: AtLeast1 = 3,
    hold: AtLeast1 = 1,
    processes: AtLeast1 = 1,
    log: Callable[[Attempt], None] | None = None,
) -> Iterator[Episode]:
    """Successful episodes, task by task. Of `episodes` layouts per task (seed, seed + 1, ...), those where the expert
    fails are left out: no other layout replaces them, so that all others stay unseen.

    noise: standard deviation of what is added to an executed action, in all but the last dimension (the gripper's).
    share: of the steps that are disturbed. hold: steps per disturbance; longer ones lead farther from the path.
    extra: successful steps after which an episode ends, so that it shows what to do after success.
    processes: simulators side by side; the episodes are the same. A script that asks for more than one needs
        `if __name__ == "__main__":`, because they are spawned.
    log: called with every attempt, failures too.
    """
    layouts = [(task, s) for task in dict.fromkeys(tasks) for s in range(seed, seed + episodes)]
    for attempt, episode in _all(spec, layouts, (noise, share, extra, hold), processes):
        if log is not None:
            log(attempt)
        if attempt.success:
            yield episode


def demonstrate(world: Any, seed: int, noise: float, share: float, extra: int, hold: int = 1) -> Episode:
    """Returns an episode of the expert, successful or not. Its noise is a function of (task, seed)."""
    obs, _ = world.reset(seed=seed)
    disturbed = disturbances(world.task, seed, noise, share, world.action_space.shape[0], hold)
    actions, states = [], []
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in obs["pixels"]}
    successes = 0
    while True:
        action_D = world.expert()
        actions.append(action_D)
        states.append(obs["agent_pos"])
        for camera, picture in obs["pixels"].items():
            images[camera].append(picture)
        _, terminated, truncated, info = world.advance(np.asarray(action_D, np.float64) + next(disturbed))
        successes += info["is_success"]
        if successes >= extra or truncated or (terminated and not info["is_success"]):
            break
        obs = world.observe()
    return Episode(
        instruction=world.task_description,
        action=np.stack(actions).astype(np.float32),
        state=np.stack(states).astype(np.float32),
        images=images,
        fps=world.fps,
        success=successes > 0,
    )


def disturbances(task: str, seed: int, noise: float, share: float, dims: int, hold: int = 1) -> Iterator[np.ndarray]:
    """Yield the noise of each executed action of an episode, float64 (D,); 0 in the last dimension, the gripper."""
    rng = Generator(Philox(SeedSequence((zlib.crc32(task.encode()), seed))))
    while True:
        added_D = np.zeros(dims)
        if rng.random() < share:
            added_D[:-1] = rng.normal(0.0, noise, dims - 1)
        yield from [added_D] * hold


def record_dataset(
    folder: str | Path,
    spec: Spec,
    tasks: Sequence[str],
    episodes: int,
    *,
    video: bool = False,
    progress: bool = True,
    seed: int = 1000,
    noise: float = 0.3,
    share: float = 0.5,
    extra: int = 3,
    hold: int = 1,
    processes: int = 1,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, tuple[int, int]]:
    """Write the episodes of `record` as a LeRobotDataset. Returns successes and attempts by task.

    `meta/world.json` holds the world's `spec`, the (task, seed) of every episode and the disturbance. notes: further
    files of `meta/`, see `LeRobotWriter`.
    Raises ConfigError where the folder exists, DataError when the expert has succeeded in no layout of a task; the
    episodes of the other tasks are written all the same.
    """
    from tqdm import tqdm

    from mmdiff.tasks.vla.data.writer import LeRobotWriter

    tasks = list(dict.fromkeys(tasks))
    if len(tasks) > 1:
        instructions({"name": spec} if isinstance(spec, str) else spec, tasks)  # raises for one under two names
    if not tasks:
        raise ConfigError("tasks: none are given")
    world = make_world(spec, tasks[0])
    count: dict[str, tuple[int, int]] = {}
    layouts: list[tuple[str, int]] = []
    how: dict[str, Any] = {"seed": seed, "noise": noise, "share": share, "extra": extra, "hold": hold}

    def log(attempt: Attempt) -> None:
        good, tried = count.get(attempt.task, (0, 0))
        count[attempt.task] = good + attempt.success, tried + 1
        if attempt.success:
            layouts.append((attempt.task, attempt.seed))
        bar.update()
        bar.set_postfix_str(f"{attempt.task}, {sum(t - g for g, t in count.values())} failed")

    with (
        LeRobotWriter(
            folder,
            fps=world.fps,
            robot_type=spec if isinstance(spec, str) else spec["name"],
            video=video,
            action_names=getattr(world, "action_names", None),
            state_names=getattr(world, "state_names", None),
        ) as writer,
        tqdm(total=len(tasks) * episodes, unit="episode", disable=not progress) as bar,
    ):
        world.close()
        for episode in record(spec, tasks, episodes, processes=processes, log=log, **how):
            writer.add(episode)
        failed = ", ".join(task for task, (good, _) in count.items() if not good)
        if failed and not len(writer):
            raise DataError(f"{failed}: the expert succeeded in none of {episodes} layouts")
        kept = {"world": {"name": spec} if isinstance(spec, str) else dict(spec), "tasks": tasks, "episodes": episodes}
        writer.notes |= {"world.json": {**kept, **how, "layouts": layouts}, **(notes or {})}
    if failed:
        raise DataError(f"{failed}: the expert succeeded in none of {episodes} layouts; {folder} holds the other tasks")
    return count


def _attempt(worlds: OneWorld, task: str, seed: int, how: tuple[float, float, int, int]) -> tuple[Attempt, Episode]:
    world = worlds.get(task)
    episode = demonstrate(world, seed, *how)
    return Attempt(world.task, seed, bool(episode.success), len(episode)), episode


def _all(
    spec: Spec, layouts: Sequence[tuple[str, int]], how: tuple[float, float, int, int], processes: int
) -> Iterator[tuple[Attempt, Episode]]:
    """Yield attempts in the order of `layouts`; at most twice as many as there are processes are pending."""
    if processes == 1:
        with closing(OneWorld(spec)) as worlds:
            for task, seed in layouts:
                yield _attempt(worlds, task, seed, how)
        return
    # spawned: what a graphics library and threads hold does not survive a fork
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(spec,))
    try:
        under_way: deque[Future[tuple[Attempt, Episode]]] = deque()
        for task, seed in layouts:
            under_way.append(pool.submit(_work, task, seed, how))
            if len(under_way) >= 2 * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_mine: OneWorld | None = None  # of a worker process


def _start(spec: Spec) -> None:
    global _mine
    begin_working()
    _mine = OneWorld(spec)


def _work(task: str, seed: int, how: tuple[float, float, int, int]) -> tuple[Attempt, Episode]:
    assert _mine is not None
    return _attempt(_mine, task, seed, how)
