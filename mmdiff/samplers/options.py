"""Generation options by name, checked before anything runs."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, nearest

from .rules.rules import SCORES
from .unmask_schedule import SHARES

EOS_POLICIES = ("none", "suppress", "last")


def generation_config(config: GenerationConfig | None = None, **named: Any) -> GenerationConfig:
    """`config`, or the defaults, with `named` over it. Raises ConfigError for an unknown name, an impossible value."""
    known = [f.name for f in fields(GenerationConfig)]
    for name in named:
        if name not in known:
            raise ConfigError(f"sampler.{name}: no such option{nearest(name, known)}")
    out = replace(config or GenerationConfig(), **named)
    check(out)
    return out


def check(config: GenerationConfig) -> None:
    """Raises ConfigError for the first value that cannot be."""
    _whole("max_new_tokens", config.max_new_tokens)
    if config.steps is not None:
        _whole("steps", config.steps)
    if config.block_length is not None:
        _whole("block_length", config.block_length)
    if config.schedule not in SHARES:
        known = nearest(str(config.schedule), SHARES)
        raise ConfigError(f"sampler.schedule={config.schedule!r}: no such schedule{known}")
    _number("temperature", config.temperature)
    if config.temperature_end is not None:
        _number("temperature_end", config.temperature_end)
    _number("guidance_scale", config.guidance_scale)
    if config.threshold is not None:
        _number("threshold", config.threshold)
        if not 0 < config.threshold <= 1:
            raise ConfigError(f"sampler.threshold={config.threshold}: expected a probability above 0 and up to 1")
        if config.remasking == "random" and config.select is None:
            raise ConfigError("sampler.threshold: random scores say nothing of certainty; use remasking=low_confidence")
    if config.remasking not in SCORES and "." not in config.remasking:
        raise ConfigError(f"sampler.remasking={config.remasking!r}: no such score{nearest(config.remasking, SCORES)}")
    if config.eos_policy not in EOS_POLICIES:
        known = nearest(str(config.eos_policy), EOS_POLICIES)
        raise ConfigError(f"sampler.eos_policy={config.eos_policy!r}: no such policy{known}")


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"sampler.{name}={value!r}: expected a whole number of at least 1")


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"sampler.{name}={value!r}: expected a number of at least 0")
