"""Robots: pictures, an instruction and a state to a chunk of actions, as action tokens.

May import: the core, tasks.dialogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdiff.lazy import lazy

if TYPE_CHECKING:
    from .task import VLA as VLA

_HOMES = {"VLA": "task"}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
