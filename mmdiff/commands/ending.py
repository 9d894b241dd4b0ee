"""How a command ends: Ctrl-C, a termination and a full disk are one line each, and none of them is swallowed.

Files are written whole or not at all, so a command may end anywhere.
"""

from __future__ import annotations

import _thread
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmdiff.data.processes import end_with_parent
from mmdiff.errors import UserError, within_memory

from .terminal import log

PARENT = "MMDIFF_ENDS_WITH_PARENT"  # set in the environment of a process that a sweep starts
GRACE = 3.0  # seconds from a signal to the end, whatever the command is at
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal ends the command."""


class Signals:
    """SIGINT and SIGTERM within a command: `received` is the first that came.

    It is raised as `Stopped`. Where that is swallowed (Python drops what is raised in a destructor or a callback of the
    garbage collector), the process ends `GRACE` seconds later all the same, and at once after a second signal. Forked
    processes end at once, without a word.

    whole_process: the process ends with the command, so this holds until it has ended.
    """

    def __init__(self, *, whole_process: bool = True) -> None:
        self.received: signal.Signals | None = None
        self.reported = False
        self._whole = whole_process
        self._owner, self._open = os.getpid(), True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in WORDS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._on)
            if "TORCHELASTIC_RUN_ID" in os.environ or PARENT in os.environ:
                end_with_parent()
        return self

    def __exit__(self, *_: object) -> None:
        if self._whole:
            gc.freeze()  # once torch is imported, looking for cycles one last time takes more than a second
        if self._whole and self.received:
            return
        self._open = False
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def code(self) -> int:
        return 128 + (self.received or signal.SIGINT)

    def say(self, *, asking: bool = True) -> None:
        """Print the one line about the signal. Under torchrun, where all processes get it, the first one prints, unless
        another has said why they end. asking: False does not ask, for that may take a while."""
        if not self.reported and os.environ.get("RANK", "0") == "0" and (not asking or speaks()):
            log(f"mmdiff: {WORDS[self.received or signal.SIGINT]}")
        self.reported = True

    def _on(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            os._exit(128 + number)
        if self.received is not None:
            self._end()
        self.received = signal.Signals(number)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # torch's would raise errors about data processes that ended too
        _thread.start_new_thread(self._end_later, ())  # not `threading`, whose locks may be held just now
        raise Stopped

    def _end_later(self) -> None:
        time.sleep(GRACE)
        self._end()

    def _end(self) -> None:
        if self._open:
            self.say(asking=False)
            os._exit(self.code)


def speaks() -> bool:
    """Whether this process says why the command ends: of several under torchrun, the first that gets here."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return True
    if distributed.get_world_size() == 1:
        return True
    try:
        return bool(distributed.distributed_c10d._get_default_store().add("mmdiff/said", 1) == 1)
    except RuntimeError:  # the process that holds the store is gone, and has spoken
        return False


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Within it, an error of the operating system is raised as a UserError: the file, and the reason; so is memory that
    is not there, where nothing nearer says for what."""
    try:
        with within_memory("this command"):
            yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"{error.filename}: {reason}" if error.filename is not None else reason) from error
