"""Backbones: stock transformers models that attend in both directions; nothing is imported early.

May import: canvas, config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdiff.lazy import lazy

if TYPE_CHECKING:
    from .backbone import Backbone as Backbone
    from .backbone import check_attention as check_attention
    from .family import Facts as Facts
    from .load import backbone_from_folder as backbone_from_folder
    from .load import load_backbone as load_backbone
    from .load import new_backbone as new_backbone

_HOMES = {
    **dict.fromkeys(["Backbone", "check_attention"], "backbone"),
    "Facts": "family",
    **dict.fromkeys(["backbone_from_folder", "load_backbone", "new_backbone"], "load"),
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
