"""The rules of a step that a configuration names: score proposals, select some to commit, revise what was committed.

A rule is a callable of `state.py`'s signatures. `sampler.remasking` scores, `sampler.select` selects as many as it
likes or as `sampler.schedule` gives, `sampler.revise` revises; each may be the node of a rule from anywhere. Attributes
that tie rules to each other:

    of_score, of a select rule: the class of scores that it needs.
    select, of a revise rule: the select rule that belongs to it, taken where the configuration names none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError
from mmdiff.samplers.unmask_schedule import UNMASK_SCHEDULES, UnmaskSchedule

from .score import LeftToRight, LowConfidence, Margin, NegativeEntropy, Random
from .select import Quota, Threshold
from .state import Revise, Score, Select

SCORES: dict[str, Score] = {
    "low_confidence": LowConfidence(),
    "random": Random(),
    "margin": Margin(),
    "entropy": NegativeEntropy(),
    "left_to_right": LeftToRight(),
}


@dataclass(frozen=True)
class Rules:
    """The rules of one generation. revise: None where committed tokens stay."""

    schedule: UnmaskSchedule
    score: Score
    select: Select
    revise: Revise | None = None

    @property
    def rescore(self) -> bool:
        """True where the `revise` rule needs committed tokens scored again at every step."""
        return bool(getattr(self.revise, "rescore", False))


def rules_of(config: GenerationConfig) -> Rules:
    """Returns the rules that a configuration names.

    Raises ConfigError for a wrong dotted path, wrong arguments, and rules that do not go together.
    """
    score: Score = _named(SCORES, config.remasking, "sampler.remasking")
    schedule: UnmaskSchedule = _named(UNMASK_SCHEDULES, config.schedule, "sampler.schedule")
    revise: Revise | None = None if config.revise is None else build_rule(config.revise, "sampler.revise")
    if getattr(revise, "again", False):
        raise ConfigError(f"sampler.revise: {type(revise).__qualname__} has `again`, which is `rescore` since 0.2")
    own: Select | None = getattr(revise, "select", None)
    if config.select is not None:
        select: Select = build_rule(config.select, "sampler.select")
    elif config.threshold is not None:
        select = Threshold(config.threshold)
    else:
        select = own or Quota()
    needed: type | None = getattr(select, "of_score", None)
    if needed is not None and not isinstance(score, needed):
        word = next(
            (f"sampler.remasking={word}" for word, one in SCORES.items() if type(one) is needed), needed.__qualname__
        )
        names = type(score).__qualname__, type(select).__qualname__
        raise ConfigError("sampler.remasking: {} is not what {} selects by; set {}".format(*names, word))
    return Rules(schedule=schedule, score=score, select=select, revise=revise)


def build_rule(node: Any, where: str, *methods: str) -> Any:
    """Returns the rule of a configuration's node; a rule that was made in Python is returned as it is.

    methods: what it must have ("a|b": one of them); none: it must be callable. Raises ConfigError that names the key
        `where`.
    """
    from mmdiff.config import as_node, build

    plain = node is None or isinstance(node, str | dict | list | tuple | int | float)
    rule = build(as_node(node), where=where) if plain else node
    asked = [name.split("|") for name in methods or ("__call__",)]
    missing = [names[0] for names in asked if not any(callable(getattr(rule, name, None)) for name in names)]
    if missing:
        raise ConfigError(f"{where}: {type(rule).__qualname__} has no `{missing[0]}`, expected a part of another kind")
    return rule


def _named(known: Mapping[str, Any], value: Any, where: str) -> Any:
    """The rule of a word, or of a node."""
    return known[value] if isinstance(value, str) and value in known else build_rule(value, where)
