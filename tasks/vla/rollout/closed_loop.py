"""The episodes of one policy and of its ablations, one group of tasks after another in open simulators."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mmdiff.errors import ConfigError
from mmdiff.session import Session, load
from mmdiff.tasks.vla.data.video_writer import write_gif, write_mp4
from mmdiff.tasks.vla.worlds.world import World, make_world, row_of

from .ablations import without_image, without_language
from .policies import ExpertPolicy, ModelPolicy, Policy, RandomPolicy
from .report import Film
from .rollout import Edit, Rollout, rollout
from .success import by_task, rates

FILM_FPS = 20  # pictures per second of a film, about
SHOWN = 160  # pixels of a GIF's side at least; small pictures are enlarged by a whole number

Lanes = Mapping[str, Sequence[World]]
"""Simulators by task."""


class ComparisonPolicy(NamedTuple):
    """Another policy beside the one that is evaluated, on some of the tasks (full names)."""

    policy: Session | Policy | str | Path
    tasks: tuple[str, ...]
    edit: Edit | None = None


@dataclass(frozen=True)
class EvalSetup:
    """What is evaluated on; see `evaluate_policy`."""

    spec: Mapping[str, Any]
    instructions: Mapping[str, str]  # of the tasks, by their full names
    episodes: int
    seed: int
    execute: int | None
    inpaint: bool
    max_steps: int | None
    batch: int | None
    ablations: tuple[str, ...]
    swapped: Mapping[str, tuple[str, str]]  # task -> another one, and its instruction
    sampler: Mapping[str, Any]

    def name(self) -> str:
        """Of a folder: the simulator, the first seed, and a digest of everything."""
        settings = json.dumps(asdict(self), default=str, sort_keys=True)
        digest = hashlib.blake2b(settings.encode(), digest_size=3).hexdigest()
        return f"closed-loop-{str(self.spec['name']).rpartition('.')[2]}-seed{self.seed}-{digest}"


class ClosedLoop:
    """The episodes of a policy and of its ablations, added to by each group of tasks."""

    def __init__(self, policy: Policy, setup: EvalSetup) -> None:
        self.policy, self.setup = policy, setup
        self.done: dict[str, list[Rollout]] = {"full": []}
        self.films: list[Film] = []
        self.notes: list[str] = []
        self.timed: dict[str, Any] = {}
        self.seconds = 0.0  # of the full policy's episodes, simulation included
        self._spent = np.zeros(3)

    def full(self, lanes: Lanes) -> None:
        start, before = time.perf_counter(), spent(self.policy)
        self.done["full"] += self._episodes("full", lanes, self.policy, None)
        self.seconds += time.perf_counter() - start
        self._spent += spent(self.policy) - before

    def ablations(self, lanes: Lanes) -> None:
        for name in self.setup.ablations:
            self._ablation(name, lanes)

    def other(self, name: str, other: ComparisonPolicy, lanes: Lanes) -> None:
        """Run a comparison policy on those of its tasks that these simulators are of."""
        own = {task: of for task, of in lanes.items() if task in other.tasks}
        if own:
            policy = load(other.policy) if isinstance(other.policy, str | Path) else other.policy
            self.done.setdefault(name, []).extend(self._episodes(name, own, policy_of(policy), other.edit))

    def _ablation(self, name: str, lanes: Lanes) -> None:
        policy, edit = self.policy, None
        if name == "random":
            policy = RandomPolicy(next(iter(lanes.values()))[0].action_space, self.setup.seed)
        elif name == "expert":
            policy = ExpertPolicy()
        elif name == "swapped" and not self.setup.swapped:
            return self._note("swapped: a single task has no other instruction; name one with `pairs`")
        else:
            edit = {"no_image": without_image, "no_language": without_language, "swapped": self._swap}[name]
        try:
            found = self._episodes(name, lanes, policy, edit)
        except ConfigError as error:
            if name != "expert":
                raise
            return self._note(f"expert: {error}")  # not every simulator has one
        self.done.setdefault(name, []).extend(found)

    def film(self, lanes: Lanes, folder: Path, count: int, mp4: bool) -> None:
        """Run chosen episodes of the full policy once more, and write their pictures as films."""
        chosen = {task: picked(of, count) for task, of in by_task(self.done["full"]).items() if task in lanes}
        for task, seeds in chosen.items():
            world = lanes[task][0]
            every = max(1, round(world.fps / FILM_FPS))
            for episode in self._rollout([world], [seeds], self.policy, None, frames=every):
                end = "success" if episode.success else "failure"
                name = Path("videos") / f"{task}_0" / f"{task}-seed{episode.seed}-{end}"
                scale = -(-SHOWN // min(episode.frames[0].shape[:2]))
                rate = world.fps / every
                pause = episode.frames[-1:] * round(rate)  # the end stays visible before the film begins again
                gif = write_gif(folder / f"{name}.gif", episode.frames + pause, rate, scale=scale)
                files = [f"{name}.gif"]
                if mp4:
                    write_mp4(folder / f"{name}.mp4", episode.frames, rate)
                    files.append(f"{name}.mp4")
                text = world.task_description
                self.films.append(
                    Film(task, text, episode.seed, episode.success, episode.steps, tuple(files), gif.read_bytes())
                )

    def add(self, other: ClosedLoop) -> None:
        """Add what another process has run."""
        for name, episodes in other.done.items():
            self.done.setdefault(name, []).extend(episodes)
        self.films += other.films
        for note in other.notes:
            self._note(note)
        self.timed = self.timed or other.timed
        self.seconds += other.seconds
        self._spent += other._spent

    def sort(self) -> None:
        """Put the tasks in the order of the settings."""
        order = {task: i for i, task in enumerate(self.setup.instructions)}
        names = ["full", *self.setup.ablations]
        names += [name for name in self.done if name not in names]
        self.done = {name: sorted(self.done[name], key=lambda e: order[e.task]) for name in names if name in self.done}
        self.films.sort(key=lambda film: order[film.task])

    def figures(self) -> dict[str, Any]:
        full = self.done["full"]
        forwards, rows, seconds = self._spent
        costs = {"forwards_per_chunk": forwards / rows} if rows else {}
        if seconds:
            costs["actions_per_second"] = sum(e.steps for e in full) / seconds
        ablations = {name: rates(of) for name, of in self.done.items() if name != "full"}
        return {**rates(full), "ablations": ablations, **self.timed, **costs, "notes": self.notes}

    def _episodes(self, name: str, lanes: Lanes, policy: Policy, edit: Edit | None) -> list[Rollout]:
        """Returns the episodes of every task, by seed; the seeds of a task are shared out among its simulators."""
        first, last = self.setup.seed, self.setup.seed + self.setup.episodes
        pairs = [(w, range(first + i, last, len(of))) for of in lanes.values() for i, w in enumerate(of)]
        with tqdm(total=len(lanes) * (last - first), desc=name, file=sys.stderr, leave=False) as bar:
            worlds, seeds = [w for w, _ in pairs], [list(s) for _, s in pairs]
            found = self._rollout(worlds, seeds, policy, edit, done=lambda _: bar.update())
        order = {of[0].task: i for i, of in enumerate(lanes.values())}
        return sorted(found, key=lambda e: (order[e.task], e.seed))

    def _rollout(
        self, worlds: Sequence[World], seeds: Sequence[list[int]], policy: Policy, edit: Edit | None, **more: Any
    ) -> list[Rollout]:
        setup = self.setup
        ours: dict[str, Any] = {}
        if policy.sees:  # the others act step by step
            ours = {"execute": setup.execute and min(setup.execute, policy.chunk), "inpaint": setup.inpaint}
        common: dict[str, Any] = {"max_steps": setup.max_steps, "batch": setup.batch, "edit": edit}
        return rollout(worlds, seeds, policy, **ours, **common, **more)

    def _swap(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**row, "instruction": self.setup.swapped[row["world"].task][1]}

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def policy_of(session: Session | Policy, **sampler: Any) -> Policy:
    """Returns the policy of a session; a policy stays as it is."""
    return ModelPolicy(session, **sampler) if isinstance(session, Session) else session


def timing(policy: Policy, world: World, setup: EvalSetup, n: int) -> dict[str, Any]:
    """Returns the milliseconds per chunk of a single row, and the actions per second that follow; the first call is
    not counted."""
    row = row_of(world.reset(seed=setup.seed)[0], world.task_description)
    seconds = []
    for i in range(n + 1):
        start = time.perf_counter()
        policy.act([{**row, "index": i, "world": world}])
        seconds.append(time.perf_counter() - start)
    p50, p95 = np.percentile(seconds[1:], [50, 95]).tolist()
    executed = setup.execute or policy.chunk
    return {"latency_ms": {"p50": 1000 * p50, "p95": 1000 * p95, "n": n}, "control_hz": executed * n / sum(seconds[1:])}


def spent(policy: Policy) -> Any:
    """Returns (forwards, rows, seconds) so far, zeros for a policy that does not count."""
    return np.array([getattr(policy, name, 0) for name in ("forwards", "rows", "seconds")], np.float64)


def picked(episodes: Sequence[Rollout], count: int) -> list[int]:
    """Returns the seeds of the first `count` successes and the first `count` failures."""
    groups = [[e.seed for e in episodes if e.success is success] for success in (True, False)]
    return [seed for seeds in groups for seed in seeds[:count]]


@contextmanager
def simulators(spec: Mapping[str, Any], tasks: Sequence[str], each: int) -> Iterator[Lanes]:
    """Yield `each` simulators per task; all are closed in the end."""
    lanes: dict[str, list[World]] = {}
    try:
        for task in tasks:
            of = [make_world(spec, task) for _ in range(each)]
            lanes[of[0].task] = of
        yield lanes
    finally:
        for of in lanes.values():
            for world in of:
                world.close()
