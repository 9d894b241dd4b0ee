"""Kills a call or a command line at every change of its files, and checks that giving it again heals everything.

    deaths = kills.everywhere(["train", "vqa-demo"], tmp_path)          # a command line
    deaths = kills.everywhere(lambda: write(Path("out")), tmp_path)     # a call; the working folder is its own

The call is made in a forked process whose working folder is new, below `tmp_path`; what it writes there is watched. It
is killed (SIGKILL) before the n-th change: an opening for writing, a name given, moved or taken away. An opening counts
twice, the second time when the file is there and empty. Then the same call is made again: it must end well, and leave
the files of a call that was never disturbed, and no others. What a call imports should be imported before: each process
would do so again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdiff.commands.cli import main
from mmdiff.files import SUMS

FORK = multiprocessing.get_context("fork")  # torch is imported already, and has one thread
Call = Callable[[], Any] | Sequence[str]
"""A call without arguments, or the words of a command line behind `mmdiff`."""

CHANGES = {
    "os.rename": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
}
"""Audit events, and how many of their first arguments are names."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CLOCK = re.compile(rb'"(\w*seconds\w*|\w+_per_second|latency\w*|date|time)": ("[^"]*"|[-+.\deE]+|null)')
LOCKS = ("*.lock", "*.sqlite-wal", "*.sqlite-shm")  # may be left: they are empty or say nothing of their own


def everywhere(
    call: Call,
    tmp_path: Path,
    *,
    again: Call | None = None,
    prepare: Callable[[], Any] | None = None,
    every: int = 1,
    first: int = 1,
    ignore: Iterable[str] = (),
    plain: Callable[[str, bytes], Any] | None = None,
) -> int:
    """Check every `every`-th kill from the `first` on. Returns the number of changes of an undisturbed call.

    again: what is called after the kill; default: `call`.
    prepare: called before, in the same working folder, undisturbed.
    ignore: patterns of names whose files are not compared.
    plain: (name, content) -> what is compared; default: `without_clock`.
    """
    ignored, plain = (*LOCKS, *ignore), plain or without_clock
    whole = tmp_path / "whole"
    changes = _done(call, whole, prepare)
    expected = files_in(whole, ignored, plain)
    assert not litter(whole), f"an undisturbed call leaves {litter(whole)}"
    assert changes, "the call changes no file in its working folder"
    for n in range(first, changes + 1, every):
        folder = tmp_path / f"killed-{n}"
        where = _killed(call, folder, prepare, n)
        if where is None:  # it took fewer changes this time
            continue
        _done(call if again is None else again, folder, None, f"after a kill at change {n}, {where}: ")
        found = files_in(folder, ignored, plain)
        assert not litter(folder), f"a kill at change {n}, {where}, leaves {litter(folder)}"
        assert found.keys() == expected.keys(), f"change {n}, {where}: {sorted(found.keys() ^ expected.keys())}"
        wrong = [name for name in expected if found[name] != expected[name]]
        assert not wrong, f"after a kill at change {n}, {where}, other content: {wrong}"
        shutil.rmtree(folder)
    return changes


def files_in(folder: Path, ignored: Iterable[str] = LOCKS, plain: Callable[[str, bytes], Any] | None = None) -> Any:
    """Returns the content of all files below a folder by name; folders have None."""
    names = [p for p in sorted(folder.rglob("*")) if not any(fnmatch(p.name, pattern) for pattern in ignored)]
    shown = plain or without_clock
    return {(name := str(p.relative_to(folder))): shown(name, p.read_bytes()) if p.is_file() else None for p in names}


def litter(folder: Path) -> list[str]:
    """Returns the names below a folder of what was written half."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if ".part-" in p.name or p.name.startswith("tmp")]


def without_clock(name: str, content: bytes) -> bytes:
    """Returns the content without what a clock said; of checksums, which depend on it, the names alone."""
    if name.endswith(SUMS):
        return b"\n".join(sorted(line.split()[-1] for line in content.splitlines() if not line.startswith(b"#")))
    return CLOCK.sub(rb'"\1": 0', content)


def _done(call: Call, folder: Path, prepare: Callable[[], Any] | None, when: str = "") -> int:
    """Make the call undisturbed; returns the number of its changes."""
    code, said, report = _child(call, folder, prepare, 0)
    assert code == 0, f"{when}exit code {code}: {said[-3000:]}"
    return int(report)


def _killed(call: Call, folder: Path, prepare: Callable[[], Any] | None, n: int) -> str | None:
    """Returns where the call was killed; None where it came to its end before."""
    code, said, report = _child(call, folder, prepare, n)
    assert code in (0, -signal.SIGKILL), f"before change {n}: exit code {code}: {said[-3000:]}"
    return report if code else None


def _child(call: Call, folder: Path, prepare: Callable[[], Any] | None, n: int) -> tuple[int, str, str]:
    report = folder.with_name(f"{folder.name}.report")

    def live() -> int:
        if prepare is not None:
            prepare()
        watch = Watch(folder, n, report)
        code = (call() and 0) if callable(call) else main(list(call))
        watch.on = False
        report.write_text(str(watch.seen))
        return code or 0

    folder.mkdir(parents=True, exist_ok=True)
    report.write_text("0")
    code, said = in_a_child(live, folder)
    return code, said, report.read_text()


def in_a_child(live: Callable[[], int], folder: Path) -> tuple[int, str]:
    """Run a function in a forked process that stands in a folder; returns its exit code, and what it printed."""
    folder.mkdir(parents=True, exist_ok=True)
    said, writer = os.pipe()

    def run() -> None:
        os.chdir(folder)
        tqdm.set_lock(threading.RLock())  # its own is shared by all processes, and one is killed that holds it
        with open(writer, "w") as handle, contextlib.redirect_stdout(handle), contextlib.redirect_stderr(handle):
            try:
                code = live()
            except BaseException:
                traceback.print_exc()
                code = 1
        os._exit(code)

    child = FORK.Process(target=run)
    child.start()
    os.close(writer)
    parts = []
    while said in wait([child.sentinel, said]) and (part := os.read(said, 1 << 16)):
        parts.append(part)
    child.join()
    os.close(said)
    assert child.exitcode is not None
    return child.exitcode, b"".join(parts).decode(errors="replace")


class Watch:
    """Counts the changes below a folder, and dies before the n-th; n = 0: never."""

    def __init__(self, folder: Path, n: int, report: Path) -> None:
        self.folder, self.n, self.report = os.path.realpath(folder), n, report
        self.seen, self.on, self.owner = 0, True, os.getpid()
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or os.getpid() != self.owner:
            return
        if event == "open" and isinstance(args[2], int) and args[2] & WRITES and self._below(args[0]):
            self.change(event, args[0])
            self.change("empty", args[0], args[2])
        elif event == "sqlite3.connect" and self._below(args[0]):
            self.change(event, args[0])
        elif event in CHANGES:
            at = args[CHANGES[event]] if event in ("os.remove", "os.rmdir") and len(args) > 1 else -1
            if any(self._below(name, at) for name in args[: CHANGES[event]]):
                self.change(event, args[0])

    def _below(self, name: Any, at: int = -1) -> bool:
        if not isinstance(name, str | bytes | os.PathLike):
            return False
        self.on = False  # what is done here is no change
        try:
            path = os.fsdecode(name)
            if isinstance(at, int) and at >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{at}"), path)
            return os.path.abspath(path).startswith(self.folder + os.sep)
        finally:
            self.on = True

    def change(self, event: str, name: Any, flags: int | None = None) -> None:
        self.seen += 1
        if self.seen == self.n:
            self.on = False
            if flags is not None:
                os.open(name, flags)
            self.report.write_text(f"{event} of {os.fsdecode(name)}")
            os.kill(os.getpid(), signal.SIGKILL)
