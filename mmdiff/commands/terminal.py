"""The terminal besides results: a line when a command is loading, and no warnings of other packages."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

OTHERS = r"(?!mmdiff\b|__main__\b)"  # modules that are not ours
SILENCED = (DeprecationWarning, FutureWarning, UserWarning)


def log(line: str) -> None:
    """Print a line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def silence_other_packages() -> None:
    """Keep warnings of other packages off the terminal. Ours still show; all do under `python -W` or PYTHONWARNINGS."""
    if not sys.warnoptions:
        for category in SILENCED:
            warnings.filterwarnings("ignore", category=category, module=OTHERS)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
    if logging.lastResort is not None:  # what prints for packages that set up no logging
        logging.lastResort.setLevel(logging.ERROR)


@contextmanager
def loading_logged(argv: Sequence[str]) -> Iterator[None]:
    """Within it, one line is logged when torch is about to be imported, which takes seconds.

    argv: the words of the command, whose first ones the line repeats: `mmdiff: loading PyTorch for train vqa-demo`.
    """
    hook = _BeforeTorch(" ".join(takewhile(lambda word: word[0] != "-" and "=" not in word, filter(None, argv[:3]))))
    sys.meta_path.insert(0, hook)
    try:
        yield
    finally:
        sys.meta_path.remove(hook)


class _BeforeTorch:
    """An import finder that finds nothing, but sees what is looked for."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.logged = os.environ.get("RANK", "0") != "0"  # under torchrun every process gets here

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch" and not self.logged:
            self.logged = True
            log(f"mmdiff: loading PyTorch for {self.command}")
