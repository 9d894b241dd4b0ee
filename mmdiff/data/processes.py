"""Processes that a command starts: Ctrl-C in a terminal reaches them too, and they end when the command ends."""

from __future__ import annotations

import os
import signal
import sys


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have this process get a signal when its parent dies, on Linux: it would go on without it."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def begin_loading(worker: int = 0) -> None:
    """Begin a process of a data loader, whose owner would take its end by Ctrl-C for an error, and ends it itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)


def begin_working() -> None:
    """Begin a process of a pool: Ctrl-C ends it without a word, as its owner does not ask it to stop."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    end_with_parent(signal.SIGKILL)
