"""One trial: a mutated copy, the product run on it in a process of its own, and the verdict.

refused     one line on stderr, exit code 2
unaffected  exit code 0, and the result of the undamaged one
different   exit code 0, and another result: right for a row or a picture that was changed, a fault for a folder whose
            content is vouched for by checksums (`Subject.vouched`)
fault       a traceback, another exit code, several lines, a hang, memory beyond the bound, a payload that ran, an
            input that was changed, or a different result that must not be
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

SECONDS, MEGABYTES = 40.0, 600
MARK = "payload-ran"


@dataclass
class Subject:
    """Something that the product reads. Paths are below the working folder of a trial.

    make: writes it, once, into an empty folder, which becomes the working folder of the runs.
    words: the command line that reads it; or `run`, a function that returns (exit code, result).
    mutate: changes the folder, and returns what it did; it may return new words instead of changing files.
    kept: files and folders that the command must not change.
    vouched: checksums or equal content vouch for the result: it is the undamaged one's, or the command refuses.
    """

    name: str
    make: Callable[[Path], Any]
    mutate: Callable[[Path, Random], str | tuple[list[str], str]]
    words: list[str] = field(default_factory=list)
    run: Callable[[], tuple[int, Any]] | None = None
    kept: tuple[str, ...] = ()
    vouched: bool = False
    result: Callable[[Any], Any] = lambda found: found
    same: Callable[[Any, Any], bool] = lambda a, b: bool(a == b)


@dataclass
class Verdict:
    kind: str
    what: str
    why: str = ""


def trial(
    subject: Subject, pristine: Path, folder: Path, dice: Random | None, undamaged: Any = None
) -> tuple[Verdict, Any]:
    """The verdict on one mutation, and the result. dice: None leaves the copy undamaged."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine, folder, symlinks=True)
    words, what = subject.words, "undamaged"
    if dice is not None:
        changed = subject.mutate(folder, dice)
        words, what = (words, changed) if isinstance(changed, str) else changed
    before = {name: prints(folder / name) for name in subject.kept}
    kind, found = in_a_process(lambda: _run(subject, words), folder)
    if kind:
        return Verdict("fault", what, f"{kind}: {found}"), None
    code, out, err, result, megabytes = (found[k] for k in ("code", "out", "err", "result", "megabytes"))
    if (folder / MARK).exists():
        return Verdict("fault", what, "the payload ran"), None
    if "Traceback" in err or "Traceback" in out:
        return Verdict("fault", what, f"traceback: {_short(err or out)}"), None
    if megabytes > MEGABYTES:
        return Verdict("fault", what, f"{megabytes:.0f} MB"), None
    for name, old in before.items():
        if prints(folder / name) != old:
            return Verdict("fault", what, f"{name} was changed"), None
    if code == 2:
        lines = [line for line in err.splitlines() if "error:" in line]
        if subject.run is None and (len(lines) != 1 or not err.rstrip().endswith(lines[0]) or len(lines[0]) > 2000):
            return Verdict("fault", what, f"not one line: {err[-1500:]}"), None
        return Verdict("refused", what, lines[0] if lines else ""), None
    if code != 0:
        return Verdict("fault", what, f"exit code {code}: {err[-800:]}"), None
    if dice is None or subject.same(result, undamaged):
        return Verdict("unaffected", what), result
    if subject.vouched:
        return Verdict("fault", what, f"another result: {str(result)[:300]} for {str(undamaged)[:300]}"), result
    return Verdict("different", what), result


def _run(subject: Subject, words: list[str]) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    result: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if subject.run is not None:
                code, result = subject.run()
            else:
                from mmdiff.commands.cli import main

                code = main([*words, "--json"])
                if code == 0:
                    result = subject.result(json.loads(out.getvalue().splitlines()[-1]))
        except SystemExit as stop:
            code, result = int(stop.code or 0), "help"
        except BaseException:
            code = -1
            traceback.print_exc()
    return {"code": code, "out": out.getvalue()[-3000:], "err": err.getvalue()[-4000:], "result": result}


def in_a_process(function: Callable[[], dict[str, Any]], folder: Path) -> tuple[str, Any]:
    """What a function returns in a fork that stands in `folder`; or ("hang", ...), ("died", ...)."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        os.setpgid(0, 0)
        try:
            os.chdir(folder)
            os.environ["FUZZ_MARK"] = str(folder / MARK)
            devnull = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(devnull, stream)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            space = _virtual() + 6 * 1024**3
            resource.setrlimit(resource.RLIMIT_AS, (space, space))  # the machine goes on
            found = function()
            most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            found["megabytes"] = (most - before) / 1024
            with os.fdopen(send, "w") as pipe:
                json.dump(found, pipe, default=str)
        finally:
            os._exit(0)
    os.close(send)
    text, end = b"", time.monotonic() + SECONDS
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([receive], [], [], left)
        if not ready:
            break
        chunk = os.read(receive, 1 << 16)
        if not chunk:
            break
        text += chunk
    hung = time.monotonic() >= end
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.close(receive)
    _, status = os.waitpid(pid, 0)
    if hung:
        return "hang", f"more than {SECONDS} s"
    if not text:
        return "died", f"status {status}"
    return "", json.loads(text)


def _virtual() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def prints(path: Path) -> Any:
    """What a file or folder holds; of what is neither, that it is there."""
    if path.is_symlink() or not path.exists():
        return os.readlink(path) if path.is_symlink() else None
    if path.is_dir():
        return {p.name: prints(p) for p in sorted(path.iterdir())}
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "special"


def _short(text: str) -> str:
    """The last frames of the product, and the error."""
    lines = text.rstrip().splitlines()
    frames = [line.strip() for line in lines if line.lstrip().startswith("File ")]
    return " | ".join([*frames[-3:], lines[-1]])


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
