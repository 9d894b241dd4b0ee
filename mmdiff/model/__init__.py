"""The model: encoders, connectors and one backbone (`model.py`), with LoRA, prefixes, scores and saving.

May import: backbones, canvas, config, data, protocols, samplers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdiff.lazy import lazy

if TYPE_CHECKING:
    from .build import build_model as build_model
    from .model import MMDiff as MMDiff

_HOMES = {"MMDiff": "model", "build_model": "build"}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
