"""Text of a configuration in Markdown, in which it is no markup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

UNKNOWN = "not reported"


def plain(text: str) -> str:
    """Returns text on one line that is no markup: what stands in a configuration may be anything."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)


def code(text: str) -> str:
    """Returns an indented block, which no text in it can end."""
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def as_yaml(tree: Any) -> str:
    """Returns settings as a block of YAML."""
    return code(yaml.safe_dump(_of_yaml(tree), sort_keys=False, allow_unicode=False, width=110))


def _of_yaml(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _of_yaml(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_of_yaml(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def table(values: Mapping[str, Any]) -> str:
    """Returns a table of a row per name."""
    rows = [f"| {plain(str(key))} | {plain(str(value))} |" for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])
