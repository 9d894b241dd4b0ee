"""Text that is on every machine with Python: the docstrings of its standard library, and the topics of its help.

{"text": "Basic date and time types. ...", "where": "datetime.py"}
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Self

from mmdiff.errors import DataError
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row

SHORTEST = 500  # characters of a document
LEFT_OUT = frozenset("test tests idlelib lib2to3 pydoc_data turtledemo encodings site-packages dist-packages".split())
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@part
@dataclass(eq=False)
class StandardLibrary:
    """Documents of Python's standard library, about 2 MB: one per module, its docstrings in order with blank lines
    between them, and one per topic of `pydoc`, where Python has them. They differ between versions of Python.

    limit: only the first documents.
    """

    limit: AtLeast1 | None = None

    def __iter__(self) -> Iterator[Row]:
        for where, text in islice(_documents(), self.limit):
            yield {"text": text, "where": where}

    @classmethod
    def toy(cls, **arguments: Any) -> Self:
        """The first few."""
        return cls(limit=min(20, arguments.get("limit") or 20))


def _documents() -> Iterator[tuple[str, str]]:
    yield from _topics()
    root, found = Path(sysconfig.get_path("stdlib")), False
    for file in sorted(root.rglob("*.py")):
        if LEFT_OUT.isdisjoint(file.relative_to(root).parts) and len(text := _docstrings(file)) >= SHORTEST:
            found = True
            yield str(file.relative_to(root)), text
    if not found:
        raise DataError(f"{root}: no module of the standard library has its source there")


@cache  # to parse them all takes seconds, and a run reads them several times
def _docstrings(file: Path) -> str:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):  # another encoding, or written to be wrong
        return ""
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, DEFINITIONS))
    return "\n\n".join(text.strip() for text in found if text) + "\n"


def _topics() -> list[tuple[str, str]]:
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        return []
    return [(f"topic {name}", text) for name, text in sorted(topics.items()) if len(text) >= SHORTEST]
