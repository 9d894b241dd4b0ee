"""The declared parts of the product."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from imports import modules

from mmdiff.parts import is_part


def declared() -> list[Any]:
    """Every class and function of a module of ours that is decorated with `@part` or `@saveable`."""
    found = []
    for name, file in modules().items():
        if "@part" in (text := file.read_text(encoding="utf-8")) or "@saveable" in text:
            module = import_module(name)
            found += [x for x in vars(module).values() if callable(x) and is_part(x) and x.__module__ == name]
    return found
