"""What an error about a file that is not there lacks: the settings that name the file, and the page about its format.

    data/rows.json: no such file; set train.stages.tune.data.path (docs/data/llava.md)

Templates such as `vqa-own` name files that only a person has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmdiff.config import entries_of, locate
from mmdiff.errors import UserError

MOST = 6  # keys that a line names
MODELS = "docs/backbones.md"
"""The page about folders and hub ids that settings of `model` name."""


@contextmanager
def naming_settings(name: str) -> Iterator[None]:
    """Within it, an error about a path that the configuration `name` writes, and that is not there, names its keys."""
    try:
        yield
    except UserError as error:
        if hint := hint_of(str(error), entries_of(name)):
            error.args = (f"{error}; {hint}",)
        raise


def hint_of(message: str, values: Mapping[str, Any]) -> str:
    """Returns `set KEY, KEY (PAGE)` of the keys whose value is a missing path that a message names; empty without.

    values: {dotted key: value}, as `mmdiff.config.entries_of` gives them.
    """
    keys = [
        key
        for key, value in values.items()
        if isinstance(value, str)
        and "/" in value
        and not os.path.exists(value)
        and re.search(rf"(?<![\w.-]){re.escape(value)}(?![\w.-])", message)
    ]
    if not keys:
        return ""
    pages = {page for key in keys if (page := _page(key, values))}
    shown = ", ".join(keys[:MOST]) + (", ..." if len(keys) > MOST else "")
    return f"set {shown}" + (f" ({', '.join(sorted(pages))})" if pages else "")


def _page(key: str, values: Mapping[str, Any]) -> str | None:
    """The page that the part names (`page`) whose argument this is."""
    target = values.get(f"{key.rpartition('.')[0]}.target")
    page = None if target is None else getattr(locate(target), "page", None)
    return page or (MODELS if key.startswith("model.") else None)
