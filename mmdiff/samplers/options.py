"""Generation options by name, checked before anything runs."""

from __future__ import annotations

from typing import Any

from mmdiff.config.schema import as_annotated
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, nearest

from .rules.rules import SCORES


def generation_config(config: GenerationConfig | None = None, **named: Any) -> GenerationConfig:
    """Returns `config`, or the defaults, with `named` over it.

    Raises ConfigError for an unknown name, a value of the wrong type (as in a file) and a number out of range.
    """
    if not isinstance(config, GenerationConfig | None):
        raise ConfigError(f"generation_config: {config!r:.80} is no GenerationConfig")
    out: GenerationConfig = as_annotated(GenerationConfig, {**vars(config or GenerationConfig()), **named}, "sampler")
    score = out.remasking
    if isinstance(score, str) and "." not in score and score not in SCORES:
        raise ConfigError(f"sampler.remasking: {score!r:.80} is no score{nearest(score, SCORES)}")
    if not isinstance(score, str | dict) and not callable(score):
        raise ConfigError(f"sampler.remasking: {score!r:.80} is neither a name nor the node of a score")
    if out.threshold is not None and out.remasking == "random" and out.select is None:
        raise ConfigError("sampler.threshold: random scores are no confidence; use remasking=low_confidence")
    return out
