"""Estimates of log p: bounds on both sides, exact ones, and those of policy gradients, by one sum over forwards.

May import: canvas, diffusion, model, protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdiff.lazy import lazy

if TYPE_CHECKING:
    from .elbo import grid as grid
    from .estimates import Bound as Bound
    from .estimates import bound as bound
    from .estimates import estimate as estimate
    from .score import next_targets as next_targets
    from .score import next_token as next_token
    from .score import score_masked as score_masked

_HOMES = {
    "Bound": "estimates",
    "bound": "estimates",
    "estimate": "estimates",
    "grid": "elbo",
    "next_targets": "score",
    "next_token": "score",
    "score_masked": "score",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
