"""Statistics of actions and states by key: computed from a LeRobot folder, or read from a file that others wrote."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdiff.errors import ConfigError, DataError, located, nearest
from mmdiff.tasks.vla.codecs.normalise import Normaliser, Statistics

from .dataset import LeRobot
from .reading import read_json

Entry = Mapping[str, Statistics]
"""{"action": ..., "state": ...}; without `state` where nothing is measured."""

OPENVLA = "dataset_statistics.json"
DEFAULT = "default"  # the key of statistics that come without one
NAMES = {"action": ("action",), "state": ("state", "observation.state", "proprio")}  # ours, lerobot's, OpenVLA's


class NoStatistics(ConfigError):
    """There is no file or folder under the path that a configuration gives for statistics."""


def statistics_of(path: str | Path) -> dict[str, Statistics]:
    """{"action", "state" where there is one} of a LeRobot folder; every frame is read, no picture. Raises DataError."""
    data, found = LeRobot(path), {}
    for role, values_ND, names in (
        ("action", data.actions(), data.action_names),
        ("state", data.states(), data.state_names),
    ):
        if values_ND is not None:
            with located(f"{path}: {role}"):
                found[role] = Statistics.of(values_ND, names or ())
    return found


def read_statistics(node: str | Path | Mapping[str, Any]) -> dict[str, Entry]:
    """{key: {"action", "state" where there is one}} of what a configuration gives.

    node: a path, {key: path}, {key: {"action": {...}, "state": {...}}} or the inner mapping alone. A path is a LeRobot
        folder, which is read as `statistics_of` does; a folder with OpenVLA's `dataset_statistics.json`; or a JSON file
        of the mappings above (OpenVLA: `proprio` is the state), or lerobot's `stats.json` (`observation.state` is).
        What comes without a key is called by its folder, or "default".

    Raises NoStatistics for a path that is not there, ConfigError for a folder of something else, DataError for what it
    holds.
    """
    if isinstance(node, str | Path):
        return _at(Path(node))
    return _entries(node, "statistics", DEFAULT)


def choose(statistics: Mapping[str, Entry], key: str | None = None) -> str:
    """The key whose statistics to use; it may be left out where there is one. Raises ConfigError, which lists them."""
    keys = ", ".join(sorted(statistics))
    if key is None:
        if len(statistics) != 1:
            raise ConfigError(f"key: the statistics are of {len(statistics)} data sets, name one of them: {keys}")
        return next(iter(statistics))
    if key not in statistics:
        near = nearest(key, statistics)
        raise ConfigError(f'key: no statistics of "{key}"{near if "did you mean" in near else ""}; there are: {keys}')
    return key


def warn_of_rare(node: Any, actions: Mapping[str, Normaliser]) -> None:
    """Print a warning for each dimension whose rare values are clipped, see `Normaliser.lost`.

    node: what the statistics were read from. Of numbers nothing is said: the policy that holds them is trained already.
    """
    read = node.values() if isinstance(node, Mapping) else [node]
    if any(isinstance(one, str | Path) for one in read):
        for key, normaliser in actions.items():
            for line in normaliser.lost():
                tqdm.write(f"warning: actions of {key}: {line}", file=sys.stderr)


def to_json(statistics: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
    """Plain values, which `read_statistics` reads."""
    return {key: {role: one.to_json() for role, one in entry.items()} for key, entry in statistics.items()}


def _at(path: Path) -> dict[str, Entry]:
    if (path / "meta" / "info.json").is_file():
        return {path.resolve().name: statistics_of(path)}
    file = path / OPENVLA if path.is_dir() else path
    if not file.is_file():
        if path.is_dir():
            raise ConfigError(f"statistics: {path}: holds neither meta/info.json nor {OPENVLA}")
        raise NoStatistics(f"statistics: {path}: no such file")
    folder = file.resolve().parent
    return _entries(read_json(file), str(file), (folder.parent if folder.name == "meta" else folder).name or DEFAULT)


def _entries(found: Any, where: str, name: str) -> dict[str, Entry]:
    """`found` may be one entry, which is then called `name`, or entries by key."""
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"{where}: expected a mapping of keys to statistics of actions")
    if any(isinstance(found.get(known), Mapping | Statistics) for names in NAMES.values() for known in names):
        return {name: _entry(found, where)}
    return {str(key): _picked(value, f"{where}.{key}", str(key)) for key, value in found.items()}


def _picked(value: Any, where: str, key: str) -> Entry:
    if isinstance(value, str | Path):
        inner = _at(Path(value))
        if key not in inner and len(inner) > 1:
            raise ConfigError(f"{where}: {value} holds {', '.join(sorted(inner))}; the key must be one of them")
        return inner[key] if key in inner else next(iter(inner.values()))
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {value!r:.60} is neither a path nor a mapping with `action`")
    return _entry(value, where)


def _entry(found: Mapping[str, Any], where: str) -> Entry:
    entry: dict[str, Statistics] = {}
    for role, names in NAMES.items():
        one = next((found[name] for name in names if found.get(name) is not None), None)
        if isinstance(one, Statistics):
            entry[role] = one
        elif one is not None:
            try:
                entry[role] = Statistics.from_json({"count": found.get("num_transitions", 0), **one})
            except (DataError, TypeError) as error:
                raise DataError(f"{where}.{role}: {error}") from None
    if "action" not in entry:
        raise DataError(f"{where}: no statistics of `action`, there are: {', '.join(map(str, found))}")
    return entry
