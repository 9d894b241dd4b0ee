"""A disk that is full, from the n-th change of its files on: every command ends in one line, and goes on afterwards.

disks.full_everywhere(lambda folder: ["protein", "generate", ..., "--out", f"{folder}/x.fasta"], tmp_path, capsys)
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kills
import pytest

from mmdiff.commands.cli import main

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Disk:
    """Counts openings for writing, new names and new folders below a folder; from the n-th on they fail."""

    def __init__(self) -> None:
        self.folder, self.left, self.hit = "", 0, False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.folder or event not in ("open", "os.rename", "os.mkdir", "os.link"):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITES):
            return
        names = [os.fsdecode(name) for name in args[:2] if isinstance(name, str | bytes | os.PathLike)]
        if any(os.path.join(os.getcwd(), name).startswith(self.folder) for name in names):
            self.left -= 1
            if self.left < 0:
                self.hit = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), names[0])


DISK = _Disk()
sys.addaudithook(DISK)  # which nothing takes away again


@contextmanager
def full(folder: Path, after: int) -> Iterator[_Disk]:
    """Below the folder, `after` changes succeed, and no more."""
    DISK.folder, DISK.left, DISK.hit = str(folder), after, False
    try:
        yield DISK
    finally:
        DISK.folder = ""


def full_everywhere(
    words: Callable[[Path], Sequence[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], every: int = 1
) -> int:
    """Check a command at every `every`-th change. Returns the number of changes. words: of results below a folder."""
    whole = tmp_path / "whole"
    assert main([str(word) for word in words(whole)]) == 0
    for after in range(0, 1000, every):
        folder = tmp_path / f"full-{after}"
        command = [str(word) for word in words(folder)]
        capsys.readouterr()
        with full(folder, after) as disk:
            code = main(command)
        if not disk.hit:
            return after
        said = capsys.readouterr().err.strip().splitlines()
        assert code == 2 and said[-1].startswith("mmdiff: error: "), f"at change {after}: {said[-3:]}"
        assert "No space left on device" in said[-1], said[-1]
        assert main(command) == 0, f"after a full disk at change {after}: {capsys.readouterr().err[-500:]}"
        assert not kills.litter(folder)
        ours, theirs = (kills.files_in(one) for one in (folder, whole))
        assert ours.keys() == theirs.keys(), f"at change {after}: {sorted(ours.keys() ^ theirs.keys())}"
    raise AssertionError("no end of changes")
