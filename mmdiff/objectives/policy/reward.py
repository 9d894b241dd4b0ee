"""Rewards: what a prediction is worth, a number. One's own is a class with this call, or any function by its path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from mmdiff.config import locate
from mmdiff.errors import ConfigError, DataError, nearest, shown
from mmdiff.parts import part
from mmdiff.protocols import Row, Task


class Reward(Protocol):
    """What a generation is worth."""

    def __call__(self, prediction: Any, row: Row, task: Task) -> float:
        """Returns what a prediction is worth. row: as its source has it, answer and all else included."""
        ...


@part
@dataclass(frozen=True)
class Scored:
    """A score of the task (`Task.score`): a prediction against the row's answer. name: of the score."""

    name: str

    def __call__(self, prediction: Any, row: Row, task: Task) -> float:
        scores = task.score(prediction, row)
        if self.name not in scores:
            raise DataError(f"objective.reward.name: {self.name!r}{nearest(self.name, scores)}")
        return scores[self.name]


@dataclass(frozen=True)
class Called:
    """A function of prediction and row, in a module of one's own. function: its dotted path.

    No `@part`: a saved folder may not name it, for it may be any function. Raises ConfigError where it is not there.
    """

    function: str

    def __post_init__(self) -> None:
        locate(self.function, "objective.reward.function")

    def __call__(self, prediction: Any, row: Row, task: Task) -> float:
        found: Callable[[Any, Row], float] = locate(self.function, "objective.reward.function")
        return found(prediction, row)


LARGEST = 1e30
"""Of a reward: sums of such numbers are still within the range of fp32."""


def checked(value: Any, reward: Any) -> float:
    """Returns a reward as a float, also one of numpy's or torch's. Raises ConfigError for what is no finite number, and
    for what is so large that its group has no mean."""
    try:
        number = float(value) if isinstance(value, Real | Tensor | np.bool_) else math.nan
    except (ValueError, RuntimeError, OverflowError):  # several numbers, or an integer of hundreds of digits
        number = math.nan
    if not abs(number) <= LARGEST:
        raise ConfigError(f"objective.reward: {reward} gave {_text(value)}, expected a finite number")
    return number


def _text(value: Any) -> str:
    try:
        return shown(repr(value), 60)
    except ValueError:  # Python has no text for integers of thousands of digits
        return "an integer of thousands of digits"
