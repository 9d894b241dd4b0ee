"""`@part`: a class or function that a folder from elsewhere may name (what that guards is in mmdiff.config.gate), whose
arguments are checked against its annotations (`arguments.py`), ranges of numbers included (`ranges.py`).

May import: nothing. Must not import torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from itertools import chain
from typing import Any, TypeVar

from mmdiff.errors import ConfigError

from .arguments import annotations_of, check_argument

T = TypeVar("T", bound=Callable[..., Any])


def part(found: T) -> T:
    """Declares a class or function: a saved folder may name it, whoever wrote the folder, with any arguments.

    So a call must do no more than make an object. It writes nothing, starts nothing, and imports nothing that an
    argument names. A subclass is declared on its own. A class refuses plain arguments that its annotations rule out,
    `Denoise.copies=0: expected a whole number of at least 1`, whoever calls it; a configuration is checked by the same
    function before anything is built, and its error names the dotted key.
    """
    if not callable(found):
        raise ConfigError(f"part: {found!r:.80} is neither a class nor a function")
    if isinstance(found, type) and "__init__" in vars(found):
        found.__init__ = _checked(found)  # type: ignore[misc]
    found.declared_part = True  # type: ignore[attr-defined]
    return found


def _checked(cls: type) -> Callable[..., None]:
    original = cls.__init__  # type: ignore[misc]
    names = [p.name for p in inspect.signature(original).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @wraps(original)
    def __init__(self: Any, *args: Any, **named: Any) -> None:
        kinds = annotations_of(cls)
        for name, value in chain(zip(names[1:], args, strict=False), named.items()):
            if name in kinds:
                check_argument(kinds[name], value, f"{cls.__name__}.{name}", called=True)
        original(self, *args, **named)

    return __init__


def is_part(found: object) -> bool:
    """Whether a class or function is declared itself; inheriting from a declared class is not enough."""
    return callable(found) and bool(getattr(found, "__dict__", {}).get("declared_part"))
