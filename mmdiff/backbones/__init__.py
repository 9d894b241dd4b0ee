"""Backbones: stock transformers models that attend in both directions. One file a family; nothing is imported early."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbone import Backbone as Backbone
    from .backbone import check_bidirectional as check_bidirectional
    from .family import Facts as Facts
    from .load import backbone_from_folder as backbone_from_folder
    from .load import load_backbone as load_backbone
    from .load import new_backbone as new_backbone

_HOME = {
    "Backbone": "backbone",
    "check_bidirectional": "backbone",
    "Facts": "family",
    "backbone_from_folder": "load",
    "load_backbone": "load",
    "new_backbone": "load",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
