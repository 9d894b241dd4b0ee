"""`@part`: a class or function that a folder from elsewhere may name. What that guards is in mmdiff.config.gate.

May import: nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mmdiff.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])


def part(found: T) -> T:
    """Declares a class or function: a saved folder may name it, whoever wrote the folder, with any arguments.

    So a call must do no more than make an object. It writes nothing, starts nothing, and imports nothing that an
    argument names. A subclass is declared on its own.
    """
    if not callable(found):
        raise ConfigError(f"part: {found!r:.80} is neither a class nor a function")
    found.declared_part = True  # type: ignore[attr-defined]
    return found


def is_part(found: object) -> bool:
    """Whether a class or function is declared itself; inheriting from a declared class is not enough."""
    return callable(found) and bool(getattr(found, "__dict__", {}).get("declared_part"))
