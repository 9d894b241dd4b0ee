"""mmdiff: masked-diffusion language models, in which every application is a configuration.

The names below are loaded on first use: `mmdiff config` and `mmdiff ls` need not wait for torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .lazy import lazy

if TYPE_CHECKING:
    from .backbones import Backbone as Backbone
    from .backbones import load_backbone as load_backbone
    from .canvas.batch import Batch as Batch
    from .canvas.sample import Item as Item
    from .canvas.sample import Media as Media
    from .canvas.sample import Sample as Sample
    from .canvas.sample import Target as Target
    from .canvas.sample import Text as Text
    from .canvas.vocab import Vocab as Vocab
    from .commands.check import check as check
    from .config import build as build
    from .config import load_config as load_config
    from .config import trusting as trusting
    from .config.settings import Config as Config
    from .config.settings import GenerationConfig as GenerationConfig
    from .data.collate import collate as collate
    from .errors import UserError as UserError
    from .evaluation.evaluate import evaluate as evaluate
    from .model import MMDiff as MMDiff
    from .parts import part as part
    from .session import Session as Session
    from .session import load as load
    from .training.train import train as train

__version__ = "0.1.0"
_HOMES = {
    **dict.fromkeys(["Backbone", "load_backbone"], "backbones"),
    "Batch": "canvas.batch",
    **dict.fromkeys(["Item", "Media", "Sample", "Target", "Text"], "canvas.sample"),
    "Vocab": "canvas.vocab",
    "check": "commands.check",
    **dict.fromkeys(["build", "load_config", "trusting"], "config"),
    **dict.fromkeys(["Config", "GenerationConfig"], "config.settings"),
    "collate": "data.collate",
    "UserError": "errors",
    "evaluate": "evaluation.evaluate",
    "MMDiff": "model",
    "part": "parts",
    **dict.fromkeys(["Session", "load"], "session"),
    "train": "training.train",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():  # a source checkout: encoders/, tasks/ and configs/ lie beside mmdiff/
    __path__.append(str(_root))
