"""What a step writes and where: propose tokens, score them, select the positions to commit, revise what was committed.

Shape letters: P wanted positions (the open positions of the current block of every row, row after row), R rows of the step,
N wanted positions of one row, L canvas length, V vocabulary. A rule is a callable; a configuration names any other one by
its dotted path (`sampler.remasking` scores, `sampler.select` selects, `sampler.revise` revises).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmdiff.config.settings import GenerationConfig

from .score import LowConfidence, Random
from .select import Quota, Threshold
from .state import Revise, Score, Select

# A configuration's rules ---------------------------------------------------------------------------------------------

SCORES: dict[str, Callable[[], Score]] = {"low_confidence": LowConfidence, "random": Random}


@dataclass(frozen=True)
class Rules:
    score: Score
    select: Select
    revise: Revise | None = None

    @property
    def again(self) -> bool:
        """Whether what is written is scored again at every step."""
        return bool(getattr(self.revise, "again", False))


def rules_of(config: GenerationConfig) -> Rules:
    """The rules a configuration names. Raises ConfigError where a dotted path or its arguments are wrong."""
    score = SCORES[config.remasking]() if config.remasking in SCORES else build_rule({"target": config.remasking})
    select: Select = Quota() if config.threshold is None else Threshold(config.threshold)
    return Rules(
        score=score,
        select=select if config.select is None else build_rule(config.select),
        revise=None if config.revise is None else build_rule(config.revise),
    )


def build_rule(node: Any) -> Any:
    """A node of a configuration, or a rule made in Python."""
    from mmdiff.config import build

    return node if callable(node) else build(node)
