"""The rules of a step that a configuration names: score proposals, select some to commit, revise what was committed.

A rule is a callable of `state.py`'s signatures. `sampler.remasking` scores, `sampler.select` selects, `sampler.revise`
revises; each may be the dotted path of a rule from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError

from .score import LowConfidence, Random
from .select import Quota, Threshold
from .state import Revise, Score, Select

SCORES: dict[str, Callable[[], Score]] = {"low_confidence": LowConfidence, "random": Random}


@dataclass(frozen=True)
class Rules:
    """The rules of one generation. revise: None where committed tokens stay."""

    score: Score
    select: Select
    revise: Revise | None = None

    @property
    def rescore(self) -> bool:
        """True where the `revise` rule needs committed tokens scored again at every step."""
        return bool(getattr(self.revise, "rescore", False))


def rules_of(config: GenerationConfig) -> Rules:
    """Returns the rules that a configuration names. Raises ConfigError for a wrong dotted path or wrong arguments."""
    named = SCORES.get(config.remasking) if isinstance(config.remasking, str) else None
    score: Score = named() if named else build_rule(config.remasking, "sampler.remasking")
    select: Select = Quota() if config.threshold is None else Threshold(config.threshold)
    revise: Revise | None = None if config.revise is None else build_rule(config.revise, "sampler.revise")
    if getattr(revise, "again", False):
        raise ConfigError(f"sampler.revise: {type(revise).__qualname__} has `again`, which is `rescore` since 0.2")
    return Rules(
        score=score,
        select=select if config.select is None else build_rule(config.select, "sampler.select"),
        revise=revise,
    )


def build_rule(node: Any, where: str) -> Any:
    """Returns the rule of a configuration's node; a rule that was made in Python is returned as it is.

    Raises ConfigError that names the key `where`.
    """
    from mmdiff.config import as_node, build

    return build(as_node(node), where=where) if isinstance(node, str | dict) else node
