"""mmdiff: masked-diffusion language models, in which every application is a configuration.

The names below are loaded on first use: `mmdiff config` and `mmdiff ls` need not wait for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import Backbone, load_backbone
    from .batch import Batch, Item, Media, Sample, Target, Text, collate
    from .check import check
    from .config import build, load_config
    from .errors import UserError
    from .evaluate import evaluate
    from .model import MMDiff
    from .session import load
    from .settings import Config, GenerationConfig
    from .train import train
    from .vocab import Vocab

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "Batch",
    "Config",
    "GenerationConfig",
    "Item",
    "MMDiff",
    "Media",
    "Sample",
    "Target",
    "Text",
    "UserError",
    "Vocab",
    "build",
    "check",
    "collate",
    "evaluate",
    "load",
    "load_backbone",
    "load_config",
    "train",
]
_HOMES = {
    **dict.fromkeys(["Backbone", "load_backbone"], "backbones"),
    **dict.fromkeys(["Batch", "Item", "Media", "Sample", "Target", "Text", "collate"], "batch"),
    **dict.fromkeys(["build", "load_config"], "config"),
    **dict.fromkeys(["Config", "GenerationConfig"], "settings"),
    "MMDiff": "model",
    "UserError": "errors",
    "Vocab": "vocab",
    "check": "check",
    "evaluate": "evaluate",
    "load": "session",
    "train": "train",
}


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in _HOMES:
        raise AttributeError(f"module 'mmdiff' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Python sets a module on its package once it is imported; here `mmdiff.train` stays the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():  # a source checkout: encoders/, tasks/ and configs/ lie beside mmdiff/
    __path__.append(str(_root))
