"""Gives a call a disk that is full or cannot be written, and checks that it ends in one line and that nothing is lost.

    disks.full(["asr", "transcribe", "run", "a.wav", "--out", "x.jsonl"], tmp_path)   # a command line
    disks.small(lambda: train(config), tmp_path)                                      # a call

As in `kills`, the call is made in a forked process whose working folder is its own. It must end with exit code 2 and
one line of error, leave nothing half written, and do all of its work once there is room.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mmdiff.commands.arguments import Output
from mmdiff.commands.cli import VERBS, main

from .kills import LOCKS, Call, Watch, files_in, in_a_child, litter

Prepare = Callable[[], Any] | None
Plain = Callable[[str, bytes], Any] | None
Files = Callable[[Path], Any]
NEED_NO_ROOM = ("empty", "os.remove", "os.rmdir", "os.truncate", "sqlite3.connect")


class _Full(Watch):
    """From the n-th change on that needs room, there is none."""

    def change(self, event: str, name: Any, flags: int | None = None) -> None:
        if event not in NEED_NO_ROOM:
            self.seen += 1
            if self.n and self.seen >= self.n:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(name))


def full(
    call: Call,
    tmp_path: Path,
    *,
    prepare: Prepare = None,
    every: int = 1,
    ignore: Iterable[str] = (),
    plain: Plain = None,
) -> int:
    """Check a disk that is full from the n-th file, folder or name on, for every `every`-th n. Returns their number."""
    count = tmp_path / "count"

    def whole() -> int:
        watch = _Full(tmp_path / "whole", 0, count)
        code = code_of(call)
        watch.on = False
        count.write_text(str(watch.seen))
        return code

    shown = _shown(ignore, plain)
    expected = _whole(whole, tmp_path, prepare, shown)
    changes = int(count.read_text())
    for n in range(1, changes + 1, every):

        def limited(n: int = n) -> int:
            _Full(tmp_path / "full", n, count)
            return code_of(call)

        _check(call, limited, tmp_path / "full", prepare, expected, f"full at change {n}", shown)
    return changes


def small(
    call: Call, tmp_path: Path, *, prepare: Prepare = None, ignore: Iterable[str] = (), plain: Plain = None
) -> int:
    """Check a disk on which each file in turn, by size, is the first that is cut off. Returns their number."""
    shown = _shown(ignore, plain)
    expected = _whole(lambda: code_of(call), tmp_path, prepare, shown)
    _prepared(prepare, tmp_path / "small")
    before, after = (files_in(tmp_path / name, LOCKS, lambda _, content: content) for name in ("small", "whole"))
    sizes = sorted({len(content) for name, content in after.items() if content and content != before.get(name)})
    shutil.rmtree(tmp_path / "small")
    for size in sizes:

        def limited(size: int = size) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, resource.RLIM_INFINITY))
            code = code_of(call)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return code

        _check(call, limited, tmp_path / "small", prepare, expected, f"files below {size} bytes", shown, some=True)
    return len(sizes)


def read_only(
    call: Call, tmp_path: Path, *, prepare: Prepare = None, ignore: Iterable[str] = (), plain: Plain = None
) -> None:
    """Check a working folder that cannot be written: nothing in it changes."""
    shown = _shown(ignore, plain)
    expected = _whole(lambda: code_of(call), tmp_path, prepare, shown)
    folder = tmp_path / "read-only"
    _prepared(prepare, folder)
    before = files_in(folder, ())
    _writable(folder, False)

    def limited() -> int:
        without_privileges()
        return code_of(call)

    try:
        code, said = in_a_child(limited, folder)
    finally:
        _writable(folder, True)
    _one_line(code, said, "read-only", ("Permission denied", "is read-only"))
    assert files_in(folder, ()) == before
    _heals(call, folder, expected, "read-only", shown)


def without_privileges() -> None:
    """Have this process obey the modes of files, root or not; for a child only."""
    if sys.platform != "linux":
        pytest.skip("who runs this may write everywhere")
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # _LINUX_CAPABILITY_VERSION_3
    assert ctypes.CDLL(None).capset(header, none) == 0


def code_of(call: Call) -> int:
    """The exit code of a command line; a call is made within one."""
    if not callable(call):
        return main(list(call))
    made = call

    def verb() -> Output:
        made()
        return {}, ""

    VERBS["call"] = verb
    return main(["call"])


def _shown(ignore: Iterable[str], plain: Plain) -> Files:
    return lambda folder: files_in(folder, (*LOCKS, *ignore), plain)


def _whole(body: Callable[[], int], tmp_path: Path, prepare: Prepare, shown: Files) -> Any:
    folder = tmp_path / "whole"
    _prepared(prepare, folder)
    code, said = in_a_child(body, folder)
    assert code == 0, said[-3000:]
    assert not litter(folder), f"an undisturbed call leaves {litter(folder)}"
    return shown(folder)


def _prepared(prepare: Prepare, folder: Path) -> None:
    def live() -> int:
        if prepare is not None:
            prepare()
        return 0

    code, said = in_a_child(live, folder)
    assert code == 0, said[-3000:]


def _check(
    call: Call,
    limited: Callable[[], int],
    folder: Path,
    prepare: Prepare,
    expected: Any,
    when: str,
    shown: Files,
    *,
    some: bool = False,
) -> None:
    """some: the call may be one that needs less this time."""
    _prepared(prepare, folder)
    code, said = in_a_child(limited, folder)
    if not (some and code == 0):
        _one_line(code, said, when, ("No space left on device", "File too large", "disk is full", "disk I/O error"))
    assert not litter(folder), f"{when}: leaves {litter(folder)}"
    _heals(call, folder, expected, when, shown)
    shutil.rmtree(folder)


def _one_line(code: int, said: str, when: str, reasons: tuple[str, ...]) -> None:
    lines = said.rpartition("\r")[2].strip().splitlines()
    assert code == 2 and "Traceback" not in said, f"{when}: exit code {code}: {said[-3000:]}"
    errors = [line for line in lines if line.startswith("mmdiff: error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], f"{when}: {lines[-5:]}"
    assert any(reason in errors[0] for reason in reasons), f"{when}: {errors[0]}"


def _heals(call: Call, folder: Path, expected: Any, when: str, shown: Files) -> None:
    code, said = in_a_child(lambda: code_of(call), folder)
    assert code == 0, f"after {when}: exit code {code}: {said[-3000:]}"
    found = shown(folder)
    assert not litter(folder), f"after {when}: leaves {litter(folder)}"
    assert found.keys() == expected.keys(), f"after {when}: {sorted(found.keys() ^ expected.keys())}"
    wrong = [name for name in expected if found[name] != expected[name]]
    assert not wrong, f"after {when}: other content: {wrong}"


def _writable(folder: Path, so: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod((0o755 if so else 0o555) if path.is_dir() else (0o644 if so else 0o444))
