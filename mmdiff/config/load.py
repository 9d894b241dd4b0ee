"""Configuration files: YAML, its `base:` and overrides `key=value` become checked dataclasses.

Files are read in three steps: `load_config` lays a file over its base and the overrides over both, then checks every
value against the annotations in `mmdiff.config.settings`; `check_nodes` looks every node's target up and checks its
arguments against the signature; `build` does the same for one node, and calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmdiff.errors import ConfigError, nearest
from mmdiff.files import SUMS, regular

from .gate import check_parts, import_from_here, trusted
from .moved import renewed
from .nodes import as_node, flatten
from .presets import split_preset
from .schema import as_annotated, expand, join
from .settings import Config, GenerationConfig, ModelConfig
from .typed import typed

RUN_FILE = "config.yaml"  # the resolved configuration in a run's folder
YAML_BYTES = 4 * 1024**2
PARTS = ("backbone", "encoders", "connectors", "heads", "extras")  # of a model, which `model.weights` brings
RUN_SIGNS = ("checkpoints", "metrics.jsonl", "model", SUMS)  # what lies beside it, and not beside a person's own


@typed
def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Returns one configuration, resolved and checked against the annotations of its dataclasses.

    name: of a packaged configuration, a path that ends in `.yaml`, or a run's folder.
    overrides: `dotted.key=value`, the value in YAML. `null` takes a part or a stage out; where a node stands, a dotted
        path alone is short for `{target: path}`; items of a list are addressed by number.

    A configuration that a person wrote may name whatever can be imported. The one in a run's folder is trusted if this
    user's training wrote it; else it may name declared parts only (mmdiff.config.parts).

    A file lies over its `base` key by key. A node that names another target than its base replaces it whole, for the
    arguments of one class mean nothing to another. A file that sets `model.weights` takes the base's parts of the model
    away, for that model has its own; parts set beside it are refused. Raises ConfigError.
    """
    name = str(name)
    tree, stem = _read(name, Path(), (), own=True)
    given: dict[str, Any] = {}
    for override in overrides:
        _set(given, override)
    if "base" in given:
        raise ConfigError("base: only a file can have one, write its settings over another configuration instead")
    merged = _over(tree, renewed(_expanded(given)))
    try:
        resolved: Any = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or name}: {_line(error)}") from None
    config: Config = as_annotated(Config, _expanded(resolved), "")
    config.name = config.name or stem
    check_weights(config.model)
    return config


def entries_of(name: str | Path) -> dict[str, Any]:
    """Returns {dotted key: value} of what a file and its bases write; what refers to another key is left out.

    name: as `load_config` takes it. Raises ConfigError as it does.
    """
    tree, _ = _read(str(name), Path(), (), own=True)
    resolved = flatten(OmegaConf.to_container(OmegaConf.create(tree), resolve=True))
    return {
        key: resolved[key]
        for key, value in flatten(tree).items()
        if key in resolved and not (isinstance(value, str) and "${" in value and "oc.env" not in value)
    }


def task_and_sampler(task: Any, sampler: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Any, GenerationConfig]:
    """Returns a saved model's task node and sampler settings, with `task.` and `sampler.` overrides laid over them.

    Raises ConfigError for another key, and for settings that do not exist or have the wrong type.
    """
    given: dict[str, Any] = {}
    for override in overrides:
        _set(given, override)
    given = _with_preset(given)
    for key in given:
        if key not in ("task", "sampler"):
            near = nearest(key, ("task", "sampler"))
            raise ConfigError(f"{key}: a saved model takes settings of `task` and `sampler`{near}")
    if "task" in given:
        given["task"] = as_node(given["task"])
    tree = _merge(renewed({"task": task, "sampler": dict(sampler)}), renewed(given))
    return tree["task"], as_annotated(GenerationConfig, tree["sampler"], "sampler")


def sampler_nodes(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the rules that sampler settings name, as nodes, whatever form they were written in."""
    single = ("select", "revise", "draft", "process", "constraint")
    nodes = {key: sampler[key] for key in single if sampler.get(key) is not None}
    for key in ("remasking", "schedule"):  # a word, or a node
        if isinstance(rule := sampler.get(key), dict) or isinstance(rule, str) and "." in rule:
            nodes[key] = rule
    links = sampler.get("denoise")
    nodes |= {f"denoise[{i}]": link for i, link in enumerate(links if isinstance(links, list) else [links]) if link}
    return {key: as_node(node) for key, node in nodes.items()}


def parsed(override: str) -> tuple[str, Any]:
    """Returns (dotted.key, value) of `dotted.key=value`, the value read as YAML. Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{override!r} is not an override, expected dotted.key=value")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{key}: {text!r} is not YAML: {_line(error)}") from None
    assert isinstance(value, dict)
    return key, value["value"]


def packaged() -> list[str]:
    """Returns the names of the packaged configurations, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in files("mmdiff.configs").iterdir() if f.name.endswith(".yaml"))


def to_yaml(config: Config) -> str:
    """Returns the whole configuration as YAML, defaults included; `load_config` of it gives an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


# Files


def _read(name: str, folder: Path, readers: tuple[str, ...], *, own: bool) -> tuple[dict[str, Any], str]:
    """Returns the tree of a file laid over its bases, and the file's stem.

    folder: where relative paths start. own: whether the file that names this one is this user's.
    """
    shipped = in_run = False
    if name.endswith(".yaml"):
        path = folder / name
        stem = path.stem
    elif name in packaged():
        path = Path(str(files("mmdiff.configs") / f"{name}.yaml"))
        stem, shipped = name, True
    elif (folder / name / RUN_FILE).exists():
        path = folder / name / RUN_FILE
        stem, in_run = (folder / name).resolve().name, True
    else:
        where = f"{readers[-1]}: base: " if readers else ""
        raise ConfigError(f'{where}no configuration, .yaml file or run folder "{name}"{nearest(name, packaged())}')
    key = str(path.resolve())
    if key in readers:
        raise ConfigError(f"base: goes round in a circle: {' -> '.join([*readers, key])}")
    try:
        regular(path, YAML_BYTES)
        tree = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")), resolve=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({_line(error)})") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:  # ValueError: a number of too many digits
        raise ConfigError(f"{path}: not YAML: {_line(error)}") from None
    except AssertionError:  # OmegaConf's own, of a file that holds one value
        raise ConfigError(f"{path}: holds one value, expected a mapping") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, expected a mapping")
    tree = renewed(_expanded(tree))
    if not shipped:
        in_run = in_run or (path.name == RUN_FILE and any((path.parent / sign).exists() for sign in RUN_SIGNS))
        own = trusted(path) if in_run else own
        if in_run and isinstance(model := tree.get("model"), dict) and model.get("weights"):
            tree["model"] = {name: value for name, value in model.items() if name not in PARTS}  # of 0.1: never built
        if own:
            import_from_here(path)
        else:
            _check_foreign(tree, str(path))
    if in_run and not name.endswith(".yaml"):
        tree["name"] = stem  # of the folder, which may have been renamed since
    base = tree.pop("base", None)
    if base is None:
        return tree, stem
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {base!r} is not a string")
    below, _ = _read(base, path.parent, (*readers, key), own=own)
    below.pop("name", None)  # two configurations must not write into one run
    return _over(below, tree), stem


def _expanded(tree: dict[Any, Any]) -> dict[str, Any]:
    """Returns the tree with a node for every dotted path that stands where one belongs, those of mixtures included."""
    tree = _with_preset(expand(Config, tree))
    stages = tree["train"].get("stages") if isinstance(tree.get("train"), dict) else None
    for stage in stages.values() if isinstance(stages, dict) else ():
        data = stage.get("data") if isinstance(stage, dict) else None
        for entry in data.values() if isinstance(data, dict) and "target" not in data else ():
            for key in ("rows", "task") if isinstance(entry, dict) else ():
                if key in entry:
                    entry[key] = as_node(entry[key])
    return tree


def _with_preset(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree with the settings of the preset that its sampler names, under those that it names itself."""
    if not isinstance(sampler := tree.get("sampler"), Mapping):
        return tree
    below, above = split_preset(sampler)
    return {**tree, "sampler": _merge(below, above, "sampler") if below else above}


def _check_foreign(tree: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a tree from elsewhere that names anything but declared parts, or could when resolved."""
    for key, value in flatten(tree).items():
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{where}: {key}: {value[:80]!r} is an interpolation, which no run's configuration has")
    check_parts(tree, where)
    if isinstance(sampler := tree.get("sampler"), Mapping):
        check_parts(sampler_nodes(sampler), where, "sampler")


def _set(tree: dict[str, Any], override: str) -> None:
    """Put one `dotted.key=value` into a tree of overrides."""
    key, value = parsed(override)
    parts = key.split(".")
    for part in parts[:-1]:
        below = tree.get(part)
        if isinstance(below, str):  # `task=dotted.Path task.key=value`
            below = {"target": below}
        tree[part] = below if isinstance(below, dict) else {}
        tree = tree[part]
    tree[parts[-1]] = value


def checked_config(config: Config | str | Path) -> Config:
    """Returns a configuration as it is, or the one of that name. Raises ConfigError as files do."""
    if not isinstance(config, Config):
        return load_config(config)
    as_annotated(Config, config, "")
    return config


def check_weights(model: ModelConfig) -> None:
    """Raise ConfigError for parts beside `model.weights`: a saved model has its own, theirs would be lost."""
    given = [name for name in PARTS if any(v for v in _values(getattr(model, name)))]
    if model.weights and given:
        raise ConfigError(
            f"model.{given[0]}: the model comes whole from model.weights={model.weights}, settings of its parts "
            f"would be lost; leave {'this' if len(given) == 1 else ', '.join(given)} out, or model.weights"
        )


def _values(value: Any) -> list[Any]:
    return [value] if not isinstance(value, Mapping) or "target" in value else list(value.values())


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Returns a file's settings laid over those of its base. Where they name `model.weights`, the base's parts go."""
    model, base = above.get("model"), below.get("model")
    if isinstance(model, dict) and model.get("weights") and isinstance(base, dict):
        below = {**below, "model": {name: value for name, value in base.items() if name not in PARTS}}
    merged: dict[str, Any] = _merge(below, above)
    return merged


def _merge(below: Any, above: Any, key: str = "") -> Any:
    """Returns `above` laid over `below`; a mapping of numbers over a list replaces those items."""
    if isinstance(below, list) and isinstance(above, dict) and above and all(str(i).isdigit() for i in above):
        changes = {int(i): item for i, item in above.items()}
        if max(changes) >= len(below):
            raise ConfigError(f"{join(key, max(changes))}: the list has {len(below)} items")
        return [_merge(item, changes[i], join(key, i)) if i in changes else item for i, item in enumerate(below)]
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "target" in above and above["target"] != below.get("target"):
        return above
    return below | {k: _merge(below[k], item, join(key, k)) if k in below else item for k, item in above.items()}


def _line(error: Exception) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split())
