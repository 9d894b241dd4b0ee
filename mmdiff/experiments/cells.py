"""`cells.jsonl`: what a sweep has evaluated, a line per cell and set, with the settings that its figures depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdiff.errors import DataError
from mmdiff.files import json_object

Known = dict[str, dict[str, Any]]
"""The lines of cells.jsonl by their settings."""


def read_cells(file: Path) -> Known:
    """Returns the lines of cells.jsonl by their settings. A line that is not whole is left out, and run again."""
    known = {}
    for text in file.read_bytes().split(b"\n") if file.is_file() else []:
        try:
            line = json_object(text)
            known[key_of(line["settings"])] = {key: line[key] for key in ("cell", "settings", "figures")}
        except (DataError, KeyError, TypeError):
            continue
    return known


def key_of(settings: Mapping[str, Any]) -> str:
    """Returns the settings of a line as text, under which it is known."""
    return json.dumps(settings, sort_keys=True)
