"""Learning rates as a function of the step, so that nothing about them needs to be saved."""

from __future__ import annotations

import math
from collections.abc import Callable

from mmdiff.config.settings import StageConfig

DECAY: dict[str, Callable[[float], float]] = {  # share of the way after warm-up -> factor
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 1 - x,
    "constant": lambda x: 1.0,
}


def lr_factor(step: int, stage: StageConfig) -> float:
    """Returns the factor on every learning rate at a step, counted from 0: linear warm-up, then decay to `lr_end`."""
    warmup = round(stage.warmup * stage.steps) if stage.warmup < 1 else int(stage.warmup)
    if step < warmup:
        return (step + 1) / warmup
    along = (step - warmup) / max(stage.steps - warmup, 1)
    return stage.lr_end + (1 - stage.lr_end) * DECAY[stage.lr_schedule](along)
