"""What JSON can hold: it has no NaN and no infinity, and readers other than Python's refuse them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def without_nan(value: Any) -> Any:
    """Returns the value with null for NaN and infinity, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def infinite_in(value: Any, name: str = "") -> str:
    """Returns the path of the first number at any depth that is infinite, as in `heldout.bound`, "" without one."""
    if isinstance(value, Mapping):
        found = (infinite_in(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        found = (infinite_in(inner, f"{name}[{n}]") for n, inner in enumerate(value))
    else:
        return name if isinstance(value, float) and math.isinf(value) else ""
    return next(filter(None, found), "")
