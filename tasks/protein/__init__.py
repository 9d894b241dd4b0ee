"""Proteins: the task, the ids of residues, and sessions of models that know them.

May import: the core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdiff.lazy import lazy

if TYPE_CHECKING:
    from .task import Protein as Protein

_HOMES = {"Protein": "task"}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
