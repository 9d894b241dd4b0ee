"""A second mmdiff command beside this one, on the other core: what demonstrations train for comparison."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from mmdiff.errors import UserError


@contextmanager
def in_background(arguments: list[str]) -> Iterator[None]:
    """Run an mmdiff command while the block runs, without its progress. Raises UserError with its last line."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "mmdiff", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            yield
            if process.wait():
                log.seek(0)
                raise UserError(f"mmdiff {' '.join(arguments)} failed: {log.read().strip().splitlines()[-1]}")
        finally:
            process.terminate()
            process.wait()
