"""Generation options by name, checked before anything runs."""

from __future__ import annotations

import math
from typing import Any

from mmdiff.config.schema import as_annotated
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError

LEAST = {
    **dict.fromkeys(["max_new_tokens", "steps", "block_length"], 1),
    **dict.fromkeys(["temperature", "temperature_end", "guidance_scale"], 0),
}


def generation_config(config: GenerationConfig | None = None, **named: Any) -> GenerationConfig:
    """Returns `config`, or the defaults, with `named` over it.

    Raises ConfigError for an unknown name, a value of the wrong type (as in a file) and a number out of range.
    """
    out: GenerationConfig = as_annotated(GenerationConfig, {**vars(config or GenerationConfig()), **named}, "sampler")
    for name, least in LEAST.items():
        value = getattr(out, name)
        if value is not None and not least <= value < math.inf:
            whole = "whole " if least else ""
            raise ConfigError(f"sampler.{name}={value!r}: expected a {whole}number of at least {least}")
    if out.threshold is not None:
        if not 0 < out.threshold <= 1:
            raise ConfigError(f"sampler.threshold={out.threshold}: expected a probability above 0 and up to 1")
        if out.remasking == "random" and out.select is None:
            raise ConfigError("sampler.threshold: random scores are no confidence; use remasking=low_confidence")
    return out
