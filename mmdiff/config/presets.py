"""Published settings of samplers by the name of a checkpoint, and of a benchmark: `sampler.preset=llada-8b-instruct`.

A preset is a file of `configs/presets/` whose head says what it is for and where the numbers come from. Settings that
it does not name have their defaults, whatever a base has, so that nothing is mixed into what was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import yaml

from mmdiff.errors import ConfigError, nearest

from .schema import expand
from .settings import Config, GenerationConfig


def presets() -> list[str]:
    """Returns the names of the presets, sorted."""
    folder = files("mmdiff.configs") / "presets"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def preset(name: str) -> dict[str, Any]:
    """Returns the settings of a preset, as `generate` of a model takes them by name.

    Raises ConfigError for a name that there is not.
    """
    if name not in (known := presets()):
        raise ConfigError(f"sampler.preset: {name!r}: no preset of that name{nearest(str(name), known)}")
    text = (files("mmdiff.configs") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    settings: dict[str, Any] = expand(Config, {"sampler": yaml.safe_load(text)})["sampler"]
    return {**asdict(GenerationConfig()), **settings}


def split_preset(sampler: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the preset that `sampler` names, {} for none, and what it names besides."""
    rest = dict(sampler)
    name = rest.pop("preset", None)
    return ({} if name is None else preset(name)), rest
