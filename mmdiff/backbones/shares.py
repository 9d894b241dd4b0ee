"""What the tensors of a published file hold: parameters under other names, several in one, or parts of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Share(NamedTuple):
    """What of a parameter a published tensor holds.

    ours: the parameter, or buffer. at: which part of it, an index; (): the whole. rows: the first row of the tensor
    that belongs to it, and the one behind the last, where a tensor holds several one below the other; None: all of it.
    """

    ours: str
    at: tuple[Any, ...] = ()
    rows: tuple[int, int] | None = None


Published = Mapping[str, tuple[Share, ...]]
"""Published tensor -> what it holds."""
