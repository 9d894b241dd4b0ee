"""A model with its task, loaded once, answering rows (`loaded.py`); what it says, and how a notebook shows that
(`prediction.py`), draft by draft (`drafts.py`).

May import: backbones, canvas, config, data, model, protocols, runs, samplers.
"""

from .loaded import METHODS, Session, dotted, find_model, load
from .prediction import Prediction, canvas_of

__all__ = ["METHODS", "Prediction", "Session", "canvas_of", "dotted", "find_model", "load"]
