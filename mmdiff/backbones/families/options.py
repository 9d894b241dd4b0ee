"""Options of a family: what a user may choose of a model that its weights do not decide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmdiff.errors import ConfigError, nearest


def check_options(family: str, known: Mapping[str, Any], options: Mapping[str, Any] | None) -> None:
    """Raise ConfigError for an option that the family does not have."""
    for name in options or ():
        if not known:
            raise ConfigError(f"options.{name}: {family} has no options")
        if name not in known:
            raise ConfigError(f"options.{name}: no such option of {family}{nearest(name, known)}")


def with_options(config: Any, known: Mapping[str, Any], raw: Mapping[str, Any], given: Mapping[str, Any] | None) -> Any:
    """Returns the configuration; its field `mmdiff` holds the options: given ones, else those of a folder, else usual.

    Raises ConfigError for a `shift` that is neither 0 nor 1.
    """
    if known:
        config.mmdiff = {**known, **{name: raw[name] for name in known if name in raw}, **(given or {})}
        if config.mmdiff.get("shift", 0) not in (0, 1) or isinstance(config.mmdiff.get("shift"), bool):
            raise ConfigError(f"options.shift: {config.mmdiff['shift']!r}, expected 0 or 1")
    return config


def stock_fields(config: Any) -> dict[str, Any]:
    """Returns config.json as transformers itself writes it for the model."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in fields.items() if name not in ("is_causal", "mmdiff")}
