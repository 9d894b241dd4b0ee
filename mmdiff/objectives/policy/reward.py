"""Rewards: what a prediction is worth, a number. One's own is a class with this call, or any function by its path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mmdiff.config import locate
from mmdiff.errors import ConfigError, DataError, nearest
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


def checked(value: Any, reward: Any) -> float:
    """Returns a reward as a float. Raises ConfigError for what is no finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"objective.reward: {reward} gave {value!r:.60}, expected a finite number")
    return float(value)
