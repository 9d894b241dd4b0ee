"""Text: pre-training, instruction tuning, infilling and rewriting.

May import: the core, commands, tasks.background, tasks.dialogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdiff.lazy import lazy

if TYPE_CHECKING:
    from .task import PlainText as PlainText

_HOMES = {"PlainText": "task"}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
