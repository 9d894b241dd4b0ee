"""What the measurements share: options with ranges, functions timed in turn, and figures as JSON."""

from __future__ import annotations

import json
import statistics
import time
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from mmdiff.files import without_nan, write_text
from mmdiff.parts.ranges import AtLeast1, expected, in_range


class Options(ArgumentParser):
    """The options of a script, whose help is its docstring. figures: with `--json [FILE]`, see `write_figures`."""

    def __init__(self, about: str | None, *, figures: bool = True) -> None:
        super().__init__(description=about, formatter_class=RawDescriptionHelpFormatter)
        what = "write the figures there, or as JSON on the last line"
        if figures:
            self.add_argument("--json", nargs="?", const="", metavar="FILE", help=what)

    def number(self, name: str, default: float, about: str | None = None, *, of: Any = AtLeast1) -> None:
        """Add an option that is a number. of: its range, an annotation of `mmdiff.parts.ranges`."""
        kind, *marks = get_args(of)

        def read(text: str) -> Any:
            value = kind(text)
            if not in_range(value, marks):
                raise ArgumentTypeError(f"{text}: expected {expected(kind, marks, value)}")
            return value

        read.__name__ = kind.__name__  # which argparse names where `text` is no number
        self.add_argument(name, type=read, default=default, help=about)


def write_figures(figures: Any, where: str | None) -> None:
    """Write figures as JSON. where: what `--json` was given: a file, "" for a line of stdout, None for neither."""
    if where:
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(where), json.dumps(without_nan(figures), indent=2) + "\n")
    elif where == "":
        print(json.dumps(without_nan(figures)), flush=True)


def medians(
    *functions: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Returns the median seconds of each, measured in turn so that a drifting machine hits all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in tqdm(range(repeats + 1), leave=False, disable=None):
        for i, function in enumerate(functions):
            start = clock()
            function()
            if repeat:  # the first round warms up
                times[i].append(clock() - start)
    return [statistics.median(t) for t in times]
