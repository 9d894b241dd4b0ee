"""The lines of a run's metrics.jsonl, whatever state a killed run or another program has left them in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdiff.errors import RowError
from mmdiff.files import json_object


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def lines_of(text: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields the lines that are objects with a step, each as it is and as an object; what is damaged is left out."""
    for line in text.split(b"\n"):
        try:
            found = json_object(line)
        except RowError:
            continue
        if is_number(found.get("step")):
            yield line, found


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a metrics.jsonl by step, as `lines_of` does; none where there is no file."""
    for _, found in lines_of(file.read_bytes()) if file.is_file() else ():
        yield found
