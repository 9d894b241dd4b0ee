"""Docstrings for the reference: paragraphs of `name: what it is` lines become lists, as they read in the source."""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^(\w+(?:, \w+)*): (?=\S)", re.M)


def as_lists(text: str) -> str:
    """Returns a docstring in which every paragraph that begins with `name: ` is a list, an item per name.

    A line that is indented, or that begins with no name, belongs to the item above it.
    """
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        if ENTRY.match(paragraph) and not paragraph.startswith(("Args:", "Returns:", "Raises:")):
            lines = [
                ENTRY.sub(r"- `\1`: ", line) if ENTRY.match(line) else f"    {line.strip()}"
                for line in paragraph.split("\n")
            ]
            paragraph = "\n".join(lines)
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


class Lists(griffe.Extension):
    """Rewrites the docstrings of what is documented, before they are rendered."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_lists(obj.docstring.value)
