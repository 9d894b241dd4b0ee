"""Signals and errors of the system end a command in one line, whatever it is at."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from failures import kills

from mmdiff.commands import cli, ending
from mmdiff.commands.arguments import Output


class Deaf:
    """Its destructor is where a signal comes; Python prints what is raised there and goes on."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def at_once() -> Output:
    os.kill(os.getpid(), signal.SIGTERM)
    return {}, "not reached"


def in_a_destructor() -> Output:
    Deaf()
    time.sleep(30)
    return {}, "not reached"


def turned_into_another() -> Output:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("a data process ended") from None
    return {}, "not reached"


def swallowed() -> Output:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        pass
    return {}, "half of it"


def twice() -> Output:
    for _ in range(2):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            pass
    time.sleep(30)
    return {}, "not reached"


def in_a_child() -> Output:
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    return {}, "the parent goes on"


def command(verb: Callable[[], Output], file: Path) -> tuple[int | None, list[str]]:
    """Run a verb as a process of its own; returns its exit code and lines."""

    def live() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `pytest &` has it ignored
        ending.GRACE = 0.2
        cli.VERBS["x"] = verb
        sys.argv = ["mmdiff", "x"]
        with open(file, "w", buffering=1) as sys.stderr, open(os.devnull, "w") as sys.stdout:
            sys.exit(cli.main())

    child = kills.FORK.Process(target=live)
    child.start()
    child.join(20)
    return child.exitcode, file.read_text().splitlines()


@pytest.mark.parametrize(
    ("verb", "code", "line"),
    [
        (at_once, 143, "mmdiff: terminated"),
        (in_a_destructor, 130, "mmdiff: interrupted"),
        (turned_into_another, 130, "mmdiff: interrupted"),
        (swallowed, 130, "mmdiff: interrupted"),
        (twice, 143, "mmdiff: terminated"),
        (in_a_child, 0, ""),
    ],
)
def test_a_signal_ends_a_command_in_one_line(verb: Callable[[], Output], code: int, line: str, tmp_path: Path) -> None:
    before = time.monotonic()
    found, lines = command(verb, tmp_path / "stderr")
    assert found == code and [said for said in lines if said.startswith("mmdiff: ")] == ([line] if line else [])
    assert time.monotonic() - before < 10


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/a"), "runs/x/a: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "b"), "b: Permission denied"),
        (OSError("no reason"), "no reason"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: OSError, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> Output:
        raise error

    monkeypatch.setitem(cli.VERBS, "x", fails)
    assert cli.main(["x"]) == 2
    assert capsys.readouterr().err == f"mmdiff: error: {line}\n"


def test_handlers_of_the_caller_come_back() -> None:
    before = [signal.getsignal(number) for number in ending.WORDS]
    assert cli.main(["ls"]) == 0
    assert [signal.getsignal(number) for number in ending.WORDS] == before
