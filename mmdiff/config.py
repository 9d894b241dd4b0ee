"""Configurations: YAML + `base:` + `key=value` -> checked dataclasses -> objects.

Files are read in three steps: `load_config` lays a file over its base and the overrides over both, then checks every
value against the annotations in `mmdiff.settings`; `check_nodes` looks every node's target up and checks its arguments
against the signature; `build` does the same for one node, and calls it.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import ConfigError, MissingExtra, nearest
from .settings import Config, GenerationConfig
from .typed import at, expand, join, typed

RUN_FILE = "config.yaml"  # the resolved configuration in a run's folder
RUN_TIME = {"model.connectors": {"width_in", "width_out"}, "model.heads": {"width_in", "vocab_size"}}
"""Arguments that no file gives, for the model knows them when it builds those nodes."""


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read, resolve and check one configuration.

    name: of a packaged configuration, a path that ends in `.yaml`, or a run's folder.
    overrides: `dotted.key=value`, the value in YAML. `null` takes a part or a stage out; where a node stands, a dotted
        path alone is short for `{target: path}`; items of a list are addressed by number.

    A file lies over its `base` key by key. A node that names another target than its base replaces it whole, for the
    arguments of one class mean nothing to another. Raises ConfigError.
    """
    tree, stem = _read(name, Path(), ())
    given: dict[str, Any] = {}
    for override in overrides:
        _set(given, override)
    if "base" in given:
        raise ConfigError("base: only a file can have one, write its settings over another configuration instead")
    merged = _merge(tree, expand(Config, given))
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or name}: {_line(error)}") from None
    config: Config = typed(Config, resolved, "")
    config.name = config.name or stem
    return config


def typed_sampler(task: Any, sampler: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Any, GenerationConfig]:
    """A saved model's task node and sampler settings with `task.` and `sampler.` overrides laid over them."""
    given: dict[str, Any] = {}
    for override in overrides:
        _set(given, override)
    for key in given:
        if key not in ("task", "sampler"):
            near = nearest(key, ("task", "sampler"))
            raise ConfigError(f"{key}: a saved model takes settings of `task` and `sampler`{near}")
    tree = _merge({"task": task, "sampler": dict(sampler)}, given)
    return tree["task"], typed(GenerationConfig, tree["sampler"], "sampler")


def parsed(override: str) -> tuple[str, Any]:
    """`dotted.key=value` -> (dotted.key, the value read as YAML). Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{override!r} is not an override, expected dotted.key=value")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}: {text!r} is not YAML: {_line(error)}") from None
    assert isinstance(value, dict)
    return key, value["value"]


def packaged() -> list[str]:
    """Names of the packaged configurations."""
    return sorted(f.name.removesuffix(".yaml") for f in files("mmdiff.configs").iterdir() if f.name.endswith(".yaml"))


def to_yaml(config: Config) -> str:
    """The whole configuration, defaults included; `load_config` of it gives an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def build(node: Any, /, *, where: str = "", toy: bool = False, **run_time: Any) -> Any:
    """`{target: dotted.path, **arguments}` -> the object, nodes among the arguments first. A string is a bare target.

    where: the key of the node, named by errors.
    toy: call `target.toy(...)` instead, with the same arguments, of every target that has it.
    run_time: arguments that no file can know (widths, say); the node must not give them too.

    Raises ConfigError, before the target is called, for a target that is not there, and for arguments that are unknown
    or missing; MissingExtra when the target's module needs a package that is not installed.
    """
    if isinstance(node, str):
        node = {"target": node}
    if not isinstance(node, Mapping) or "target" not in node:
        raise ConfigError(f"{at(where)}{node!r} is not a node, expected {{target: dotted.path, ...}}")
    return _build(node, where, toy, run_time)


def check_nodes(config: Config) -> None:
    """Check the target and the arguments of every node; nothing is built. Raises as `build` does."""

    def check(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            if "target" in value:
                run_time = RUN_TIME.get(key.rpartition(".")[0], ())
                _check_arguments(locate(value["target"], join(key, "target")), value, run_time, key)
            for name, inner in value.items():
                check(inner, join(key, name))
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                check(inner, join(key, i))

    check(asdict(config), "")


def locate(target: Any, where: str = "") -> Callable[..., Any]:
    """What a dotted path names: a class, a function, or a class method. Raises as `build` does."""
    if not isinstance(target, str) or "." not in target or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{at(where)}{target!r} is not a dotted path")
    module, names = _module(target, where)
    found: Any = module
    path = module.__name__
    for name in names:
        if not hasattr(found, name):
            known = _public(found) if isinstance(found, ModuleType) else [n for n in dir(found) if n[0] != "_"]
            raise ConfigError(f'{at(where)}{path} has no "{name}"{nearest(name, known)}')
        found, path = getattr(found, name), f"{path}.{name}"
    if not callable(found):
        raise ConfigError(f"{at(where)}{target} is a {type(found).__name__}, expected a class or a function")
    result: Callable[..., Any] = found
    return result


# Files


def _read(name: str, folder: Path, readers: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The tree of a file over its bases, and the file's stem. `folder` is where relative paths start."""
    if name.endswith(".yaml"):
        path = folder / name
        stem = path.stem
    elif name in packaged():
        path = Path(str(files("mmdiff.configs") / f"{name}.yaml"))
        stem = name
    elif (folder / name / RUN_FILE).is_file():
        path = folder / name / RUN_FILE
        stem = (folder / name).resolve().name
    else:
        where = f"{readers[-1]}: base: " if readers else ""
        raise ConfigError(f'{where}no configuration, .yaml file or run folder "{name}"{nearest(name, packaged())}')
    key = str(path.resolve())
    if key in readers:
        raise ConfigError(f"base: goes round in a circle: {' -> '.join([*readers, key])}")
    try:
        tree = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")), resolve=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({_line(error)})") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not YAML: {_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, expected a mapping")
    tree = expand(Config, tree)
    base = tree.pop("base", None)
    if base is None:
        return tree, stem
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {base!r} is not a string")
    below, _ = _read(base, path.parent, (*readers, key))
    below.pop("name", None)  # two configurations must not write into one run
    return _merge(below, tree), stem


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


def _merge(below: Any, above: Any, key: str = "") -> Any:
    """`above` laid over `below`; a mapping of numbers over a list replaces those items."""
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


# Nodes


def _build(value: Any, where: str, toy: bool, run_time: Mapping[str, Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_build(item, join(where, i), toy, {}) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    function: Callable[..., Any] = dict  # a mapping that is no node
    if "target" in value:
        function = locate(value["target"], join(where, "target"))
        _check_arguments(function, value, run_time, where)
        if toy:
            function = getattr(function, "toy", function)
    arguments = {name: _build(item, join(where, name), toy, {}) for name, item in value.items() if name != "target"}
    return function(**arguments, **run_time)


def _check_arguments(
    function: Callable[..., Any], node: Mapping[str, Any], run_time: Collection[str], where: str
) -> None:
    target, given = node["target"], [name for name in node if name != "target"]
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise ConfigError(f"{at(where)}{target} does not say which arguments it takes") from None
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in [*given, *run_time]:
            if name not in named:
                known = named.keys() - set(run_time)
                raise ConfigError(f"{join(where, name)}: {target} takes no such argument{nearest(str(name), known)}")
    for name in given:
        if name in run_time:
            raise ConfigError(f"{join(where, name)}: set at run time, leave it out")
    for name, p in named.items():
        if p.default is p.empty and name not in given and name not in run_time:
            raise ConfigError(f'{at(where)}{target} needs "{name}"')


def _module(target: str, where: str) -> tuple[ModuleType, list[str]]:
    """The longest part of a dotted path that is a module, and the names left over."""
    parts = target.split(".")
    for n in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:n])
        try:
            return import_module(path), parts[n:]
        except ModuleNotFoundError as error:
            if error.name is None or not f"{path}.".startswith(f"{error.name}."):  # the module is there, and needs it
                raise MissingExtra(f"{at(where)}{path} needs {error.name}, which is not installed") from error
    raise ConfigError(f"{at(where)}{target}: there is no module {parts[0]!r}")


def _public(module: ModuleType) -> Iterable[str]:
    """Names defined in a module, and the modules in a package."""
    own = [n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", None) == module.__name__]
    return [
        *own,
        *getattr(module, "__all__", []),
        *(found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))),
    ]


def _line(error: Exception) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split())
