"""Questions about pictures or sounds: the task, its rows, metrics (also of captions, and POPE), verbs, demonstration.

May import: the core, commands, encoders.media, tasks.background, tasks.dialogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdiff.lazy import lazy

if TYPE_CHECKING:
    from .task import VQA as VQA

_HOMES = {"VQA": "task"}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
