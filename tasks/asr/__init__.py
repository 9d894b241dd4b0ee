"""Speech recognition and deliberation: the task, transcripts, word errors and the page about them.

May import: the core, commands, encoders.media, tasks.background, tasks.dialogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdiff.lazy import lazy

if TYPE_CHECKING:
    from .task import ASR as ASR

_HOMES = {"ASR": "task"}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
