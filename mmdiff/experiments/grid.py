"""A grid of settings: axes, the cells that they span, and names for both in few letters.

An axis is a dotted key and its values, `{"sampler.steps": [1, 2, 4], "train.seed": [0, 1]}`; a cell has one value of
each.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.config import parsed
from mmdiff.errors import ConfigError

Axes = Mapping[str, Sequence[Any]]
Cell = dict[str, Any]
"""The value of each axis, as it was given."""


def read_axes(words: Sequence[str]) -> dict[str, list[Any]]:
    """Read the axes of the command line, `key=[a,b]` in YAML. Raises ConfigError."""
    axes: dict[str, list[Any]] = {}
    for word in words:
        key, values = parsed(word)
        if not isinstance(values, list):
            raise ConfigError(f"{key}: {values!r} is not a list of values, expected --axis {key}=[a,b]")
        if key in axes:
            raise ConfigError(f"{key}: two axes of one key")
        axes[key] = values
    return axes


def check_axes(axes: Axes, overrides: Sequence[str]) -> None:
    """Raise ConfigError for axes that span nothing, or that settings of all cells contradict."""
    if not axes:
        raise ConfigError("a sweep needs an axis")
    given = [parsed(override)[0] for override in overrides]
    for key, values in axes.items():
        if key in given:
            raise ConfigError(f"{key}: an axis, and a setting of all cells")
        if not values:
            raise ConfigError(f"{key}: an axis without values")
        if len({json.dumps(value) for value in values}) < len(values):
            raise ConfigError(f"{key}: a value stands twice in {list(values)}")


def cells_of(axes: Axes) -> Iterator[Cell]:
    """Yield every cell; the last axis changes fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def words_of(cell: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Returns the overrides of a cell: those of all cells, and the values of its axes.

    `sampler.draft=...` comes before `sampler.draft.ratio=...`, which changes a field of it.
    """
    values = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in cell.items()]
    return sorted([*overrides, *values], key=lambda word: word.partition("=")[0].count("."))


def folder_name(name: str | None, axes: Axes) -> str:
    """Returns the name of a sweep, made of the axes' keys where none is given. Raises ConfigError."""
    name = "-".join(names(axes).values()) if name is None else name
    if name in ("", ".", "..") or Path(name).name != name:
        raise ConfigError(f"{name!r} is not a name of a folder")
    return name


def names(keys: Iterable[str]) -> dict[str, str]:
    """Returns a short name per key: its last word (`sampler.draft.target`: `draft`), the key where two are alike."""
    keys = list(keys)
    last = [key.removesuffix(".target").rpartition(".")[2] for key in keys]
    return {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}


def shown(value: Any) -> str:
    """Returns a value in few letters; of a dotted path or node its last name, `Random(ratio=0.3)`."""
    if isinstance(value, Mapping) and "target" in value:
        given = ", ".join(f"{name}={shown(inner)}" for name, inner in value.items() if name != "target")
        return shown(value["target"]) + (f"({given})" if given else "")
    if isinstance(value, str):
        parts = value.split(".")
        return parts[-1] if all(part.isidentifier() for part in parts) else value
    return json.dumps(value, ensure_ascii=False)


def label(cell: Mapping[str, Any], axes: Axes, between: str = " ") -> str:
    """Returns a label of a cell, or of some of its axes, in few letters; no two cells have the same."""
    key_names = names(axes)
    return between.join(f"{key_names[key]}={shown_among(value, axes[key])}" for key, value in cell.items())


def shown_among(value: Any, values: Sequence[Any]) -> str:
    """Returns a value as `shown`, or whole where another of the axis would look the same."""
    text = shown(value)
    return text if sum(shown(other) == text for other in values) == 1 else json.dumps(value, ensure_ascii=False)


def is_seed(key: str) -> bool:
    """Whether an axis is a seed, over which figures are averaged."""
    return key.rpartition(".")[2] == "seed"
