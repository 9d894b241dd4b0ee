"""Runs that a sweep trains: what is there of each, and the processes that train them, one or several at a time.

Each run has a process of its own, `mmdiff train NAME ...`: where one fails, diverges or is killed, the others go on.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from time import monotonic, sleep
from typing import Any

from mmdiff.config.settings import Config
from mmdiff.runs.folder import LONGEST, RUNS, conflict, run_name
from mmdiff.runs.progress import checkpoints_in, read_progress
from mmdiff.runs.summary import Summary, summary_of

from .grid import Cell

WAIT = 0.1  # seconds between looks at the processes
GRACE = 2.0  # seconds that processes have to end when the sweep is interrupted
ERROR = "mmdiff: error: "


@dataclass(frozen=True)
class Training:
    """One run of a sweep.

    cell: the values of the axes that training depends on. words: the overrides of `config`, its name among them.
    """

    cell: Cell
    name: str
    words: list[str]
    config: Config

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    def command(self, what: str, *, fresh: bool = False, trust: bool = False) -> list[str]:
        """Returns the words of the command that trains it."""
        options = [*(["--fresh"] if fresh else []), *(["--trust"] if trust else [])]
        return ["train", what, *self.words, *options]


@dataclass(frozen=True)
class Standing:
    """What is there of a run that is to be trained.

    state: of `mmdiff.runs.summary`, or `new`. steps: by stage, of the configuration. conflict: why it cannot be trained
    in its folder. done: nothing is left to train.
    """

    state: str
    step: int
    steps: dict[str, int]
    conflict: str | None
    done: bool

    def line(self, *, fresh: bool = False) -> str:
        """Returns what training would do, in a few words."""
        total = sum(self.steps.values())
        if fresh:
            return (
                f"moves what is there aside, trains {total} steps" if self.state != "new" else f"trains {total} steps"
            )
        if self.conflict:
            return f"is refused: {self.conflict}"
        if self.done:
            return f"finished: nothing is left of {total} steps"
        if self.state == "training":
            return f"is refused: another process is training it, at step {self.step} of {total}"
        return f"resumes at step {self.step} of {total}" if self.step else f"trains {total} steps"


def standing_of(config: Config) -> Standing:
    """Returns what is there of the run of a configuration. Nothing is written. Raises ConfigError for a wrong name."""
    folder = RUNS / run_name(config)
    steps = {name: stage.steps for name, stage in config.train.stages.items()}
    if not folder.exists() and not folder.is_symlink():
        return Standing("new", 0, steps, None, False)
    found: Summary = summary_of(folder)
    wrong = conflict(config)
    done = wrong is None and found.state == "finished" and found.total == sum(steps.values())
    return Standing(found.state, _resumed(folder) if not done else found.step or 0, steps, wrong, done)


def _resumed(folder: Path) -> int:
    """Returns the step from which a run is resumed: that of its last checkpoint."""
    checkpoints = checkpoints_in(folder / "checkpoints")
    return read_progress(checkpoints[-1]).step if checkpoints else 0


def name_of(base: str, text: str) -> str:
    """Returns the name of a run: that of the configuration, and a label, without what no folder's name can have.

    Where that changes or shortens it, digits of a checksum keep two labels apart.
    """
    plain = "".join(c if c.isalnum() or c in "=.,+-_()" else "_" for c in text)
    name = f"{base}-{plain}"
    if plain != text or len(name.encode()) > LONGEST:
        digits = hashlib.sha256(text.encode()).hexdigest()[:8]
        cut = name.encode()[: LONGEST - 9].decode("utf-8", "ignore")
        name = f"{cut}-{digits}"
    return name


def train_all(
    what: str,
    trainings: Sequence[Training],
    logs: Path,
    *,
    jobs: int,
    fresh: bool,
    trust: bool,
    log: Callable[[str], None],
) -> dict[str, str]:
    """Train the runs, `jobs` at a time, and return why those failed that did, by name.

    what: the configuration, as the command line names it. logs: a folder for what each process prints; one at a time
    also prints it here. log: is called with a line where a run begins and ends.
    """
    waiting = list(enumerate(trainings))
    active: dict[int, _Process] = {}
    failed: dict[str, str] = {}
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or active:
            for slot in range(jobs):
                if slot not in active and waiting:
                    number, training = waiting.pop(0)
                    log(f"run {number + 1} of {len(trainings)}, {training.folder}: {shlex.join(_shown(training))}")
                    words = training.command(what, fresh=fresh, trust=trust)
                    active[slot] = _Process(training, words, logs, _environment(slot, jobs))
            sleep(WAIT)
            for slot, process in list(active.items()):
                ended = process.child.poll()
                if jobs == 1:
                    process.show()
                if ended is None:
                    continue
                del active[slot]
                line = process.end(ended)
                seconds = monotonic() - process.began
                log(f"{process.training.folder}: " + (f"failed: {line}" if line else f"done in {seconds:.0f} s"))
                if line:
                    failed[process.training.name] = line
    finally:
        for process in active.values():
            process.child.terminate()
        for process in active.values():
            process.stop()
    return failed


class _Process:
    """A process that trains a run, and the file of what it prints."""

    def __init__(self, training: Training, words: Sequence[str], logs: Path, environment: Mapping[str, str]) -> None:
        self.training, self.file = training, logs / f"{training.name}.log"
        self.began, self.seen = monotonic(), 0
        with open(self.file, "wb") as out:
            command = [sys.executable, "-m", "mmdiff", *words]
            self.child = Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=out, env=dict(environment))

    def show(self) -> None:
        """Print on stderr what has come since the last look."""
        with open(self.file, "rb") as handle:
            handle.seek(self.seen)
            new = handle.read()
        self.seen += len(new)
        sys.stderr.write(new.decode("utf-8", "replace"))
        sys.stderr.flush()

    def end(self, code: int) -> str | None:
        """Returns why it failed, None where it did not."""
        if code == 0:
            return None
        lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in reversed(lines):
            if line.startswith(ERROR):
                return line.removeprefix(ERROR)
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{how} ({last[:200]}); see {self.file}"

    def stop(self) -> None:
        """Wait until it has ended, and end it where that takes long: files are whole whenever that happens."""
        try:
            self.child.wait(GRACE)
        except TimeoutExpired:
            self.child.kill()
            self.child.wait()


def _shown(training: Training) -> list[str]:
    return [word for word in training.words if not word.startswith("name=")] or ["as it is"]


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """Returns the environment of a process: it ends with this one, and shares the machine with `jobs - 1` others."""
    out = {**os.environ, "MMDIFF_ENDS_WITH_PARENT": "1", "PYTHONPATH": os.pathsep.join(_further_paths())}
    if jobs > 1:
        out.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        if device := device_of(slot, os.environ.get("CUDA_VISIBLE_DEVICES"), _devices()):
            out["CUDA_VISIBLE_DEVICES"] = device
    return out


def device_of(slot: int, visible: str | None, count: int) -> str | None:
    """Returns the device of one of several processes, each in turn; None where there is no choice.

    visible: CUDA_VISIBLE_DEVICES. count: devices of the machine.
    """
    names = [name for name in visible.split(",") if name] if visible is not None else [str(i) for i in range(count)]
    return names[slot % len(names)] if len(names) > 1 else None


def _devices() -> int:
    import torch

    return torch.cuda.device_count()


def _further_paths() -> list[str]:
    """Returns where this process finds modules besides the Python that it runs; never the working folder, whose files
    must not hide packages."""
    known = [Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    here = os.getcwd()
    own = [p for p in sys.path if p and p != here and not any(Path(p).is_relative_to(prefix) for prefix in known)]
    return list(dict.fromkeys([*filter(None, given), *own]))


def dry_run_of(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Returns what training a configuration would do: its folder, what is there, the steps of its stages."""
    standing = standing_of(config)
    return {
        "run": str(RUNS / run_name(config)),
        "would": standing.line(fresh=fresh),
        "state": standing.state,
        "step": 0 if fresh else standing.step,
        "steps": standing.steps,
    }
