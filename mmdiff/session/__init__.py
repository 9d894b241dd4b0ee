"""A model with its task, loaded once, that predicts the answers of rows (`loaded.py`); its predictions, and how a
notebook shows them (`prediction.py`), draft by draft (`drafts.py`).

May import: backbones, canvas, config, data, model, protocols, runs, samplers.
"""

from .loaded import METHODS, Session, dotted, find_model, load
from .prediction import Prediction, canvas_of

__all__ = ["METHODS", "Prediction", "Session", "canvas_of", "dotted", "find_model", "load"]
