"""Closed-loop evaluation: success by task with intervals, beside random actions, the scripted expert, and the policy
without pictures, without an instruction or with another one, all on the same layouts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from mmdiff.config.typed import typed
from mmdiff.data.processes import begin_working
from mmdiff.errors import ConfigError, nearest, require
from mmdiff.evaluation.report import curves
from mmdiff.files import aside, without_nan, write_text
from mmdiff.parts.ranges import AtLeast0, AtLeast1
from mmdiff.session import Session
from mmdiff.tasks.vla.task import VLA

from .ablations import ABLATIONS, instructions, swaps
from .closed_loop import ClosedLoop, ComparisonPolicy, EvalSetup, policy_of, simulators, timing
from .policies import Policy
from .report import summary, write_vla_report
from .rollout import Rollout
from .success import eval_info, write_eval_info


@typed
def evaluate_policy(
    session: Session[VLA] | Policy,
    spec: Mapping[str, Any] | str,
    tasks: Sequence[str],
    *,
    out: Path | None = None,
    episodes: AtLeast1 = 10,
    seed: AtLeast0 = 0,
    execute: int | None = None,
    inpaint: bool = False,
    max_steps: AtLeast1 | None = None,
    ablations: Sequence[str] = ABLATIONS,
    pairs: Mapping[str, str] | None = None,
    others: Mapping[str, ComparisonPolicy] | None = None,
    videos: AtLeast0 = 1,
    mp4: bool = False,
    worlds: AtLeast1 = 8,
    processes: AtLeast1 = 1,
    batch: AtLeast1 | None = None,
    latency: AtLeast0 = 20,
    title: str = "Closed loop",
    notes: Sequence[str] = (),
    metrics: Path | None = None,
    **sampler: Any,
) -> dict[str, Any]:
    """Evaluate a policy on `episodes` layouts per task, of seeds `seed`, `seed` + 1, ..., the same for every ablation.

    Returns the figures.

    session: a model with its task, `sampler` being fields of GenerationConfig for it; or any Policy.
    spec, tasks: see `make_world`.
    out: a folder that does not exist yet, for eval_info.json (lerobot's), figures.json, episodes.jsonl, report.html and
        videos/; None: one beside the model, named by what is evaluated. It is written aside and renamed.
    execute, inpaint, max_steps, batch: see `rollout`; execute, where it is None, is the task's own.
    ablations: of `ABLATIONS`. no_image: every picture is grey. no_language: the instruction is empty. swapped: it is
        that of another task, which `pairs` names (else the next one); success is judged on the task itself.
    others: further policies by name, that stand beside the ablations.
    videos: successes and failures per task that are filmed at most; 0: none. mp4: besides GIFs.
    worlds: simulators open at once per process, shared out among its tasks.
    processes: the tasks are shared out among so many; the episodes are the same. A script that asks for more than one
        needs `if __name__ == "__main__":`, because they are spawned.
    latency: chunks that are generated one by one to time them; 0: not timed.
    title, notes, metrics: of the report; metrics is a run's metrics.jsonl, for its curves.
    Raises ConfigError for a folder that is there, names that are unknown and what `rollout` refuses.
    """
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    instruction_of = instructions(spec, tasks)
    if execute is None and isinstance(session, Session):
        execute = session.task.execute
    chunk = policy_of(session, **sampler).chunk
    if execute is not None and not 1 <= execute <= chunk:
        raise ConfigError(f"execute: {execute}, expected 1..{chunk}, the actions of a chunk")
    swapped = swaps(spec, instruction_of, pairs) if "swapped" in ablations else {}
    setup = EvalSetup(
        spec, instruction_of, episodes, seed, execute, inpaint, max_steps, batch, tuple(ablations), swapped, sampler
    )
    check(setup)
    if videos:
        require("PIL", "vla")
    if videos and mp4:
        require("av", "vla")
    out = home(session) / setup.name() if out is None else Path(out)
    start = time.perf_counter()
    with _new_folder(out) as folder:
        worker = EvalWorker(session, setup, others or {}, folder, videos, mp4, worlds, latency)
        parts = _parts(list(instruction_of), min(processes, len(instruction_of)))
        if len(parts) == 1:
            run = worker(parts[0])
        else:
            run = ClosedLoop(policy_of(session, **sampler), setup)
            with ProcessPoolExecutor(len(parts), get_context("spawn"), _threads, (torch.get_num_threads(),)) as pool:
                for part in pool.map(worker, parts):
                    run.add(part)
            run.sort()
        figures = {**run.figures(), "seconds": time.perf_counter() - start, "settings": asdict(setup)}
        films = {task: [f for film in run.films if film.task == task for f in film.files] for task in instruction_of}
        write_eval_info(folder / "eval_info.json", eval_info(run.done["full"], seconds=run.seconds, videos=films))
        write_text(folder / "figures.json", json.dumps(without_nan(figures), indent=2, default=str) + "\n")
        write_text(folder / "episodes.jsonl", "".join(_lines(run.done)))
        shown = curves(metrics) if metrics is not None else None
        page = folder / "report.html"
        write_vla_report(page, title=title, figures=figures, films=run.films, notes=notes, curves=shown)
    print(summary(figures), file=sys.stderr)
    return {**figures, "report": str(out / "report.html")}


@dataclass(frozen=True)
class EvalWorker:
    """One process of an evaluation: called with tasks, it runs all episodes of them."""

    session: Session[VLA] | Policy
    setup: EvalSetup
    others: Mapping[str, ComparisonPolicy]
    folder: Path  # of films
    videos: int
    mp4: bool
    worlds: int
    latency: int

    def __call__(self, tasks: Sequence[str]) -> ClosedLoop:
        policy = policy_of(self.session, **self.setup.sampler)
        run = ClosedLoop(policy, self.setup)
        for group in _split(tasks, max(1, self.worlds)):
            with simulators(self.setup.spec, group, max(1, self.worlds // len(group))) as lanes:
                run.full(lanes)
                if self.videos:
                    run.film(lanes, self.folder, self.videos, self.mp4)
                if self.latency and policy.sees and not run.timed:
                    run.timed = timing(policy, lanes[group[0]][0], self.setup, self.latency)
                run.ablations(lanes)
                for name, other in self.others.items():
                    run.other(name, other, lanes)
        run.policy = None  # type: ignore[assignment]  # a process does not send the model back
        return run


def check(setup: EvalSetup) -> None:
    """Raise ConfigError for what cannot be evaluated."""
    for name in setup.ablations:
        if name not in ABLATIONS:
            raise ConfigError(f'ablations: there is no "{name}"{nearest(name, ABLATIONS)}')


def home(session: Session[VLA] | Policy) -> Path:
    """Returns the folder of a session's run; the working directory for another policy."""
    if not isinstance(session, Session):
        return Path()
    folder = session.folder
    if folder.parent.name == "checkpoints":
        return folder.parent.parent
    return folder.parent if folder.name == "model" else folder


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder aside that becomes `out`, which must not exist, or be empty."""
    out = out.resolve()  # "." has no name
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already; choose another folder")
    with aside(out) as part:
        try:
            part.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None
        yield part


def _split(tasks: Sequence[str], size: int) -> list[Sequence[str]]:
    return [tasks[i : i + size] for i in range(0, len(tasks), size)]


def _parts(tasks: Sequence[str], n: int) -> list[Sequence[str]]:
    """Returns `n` parts of about the same length."""
    return [tasks[i::n] for i in range(n)]


def _threads(n: int) -> None:
    begin_working()
    torch.set_num_threads(n)


def _lines(done: Mapping[str, Sequence[Rollout]]) -> Iterator[str]:
    kept = ("task", "seed", "success", "steps", "chunks", "sum_reward", "max_reward")
    for name, episodes in done.items():
        for episode in episodes:
            yield json.dumps({"policy": name, **{key: getattr(episode, key) for key in kept}}) + "\n"
