"""The model: encoders, connectors and one backbone (`model.py`), with LoRA, prefixes, scores and saving.

May import: backbones, canvas, config, diffusion, protocols, samplers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdiff.lazy import lazy

if TYPE_CHECKING:
    from .build import build_model as build_model
    from .media_reader import MediaReader as MediaReader
    from .model import MMDiff as MMDiff

_HOMES = {"MMDiff": "model", "MediaReader": "media_reader", "build_model": "build"}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
