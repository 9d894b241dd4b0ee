"""Nodes of a configuration, `{target: dotted.path, **arguments}`: looked up, checked against the signature, built."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from importlib import import_module
from types import ModuleType
from typing import Any

from mmdiff.errors import ConfigError, MissingExtra, nearest, within_memory
from mmdiff.parts.arguments import annotations_of, check_argument, check_finite

from .moved import today
from .schema import at, join
from .settings import Config
from .sources import absent, signature_of

RUN_TIME = {"model.connectors": {"width_in", "width_out"}, "model.heads": {"width_in", "vocab_size"}}
"""Arguments that no file gives, for the model knows them when it builds those nodes."""
OFFERED = {"model.extras": {"width", "vocab_size", "mask_id"}}
"""The same, of nodes whose targets need not take them."""
OPTIMIZER = re.compile(r"train\.stages\.[^.]+\.optimizer")
"""Nodes that are given `params` and `lr`, and `weight_decay` if they take it: a stage says what these are."""
REUSED = ("model.encoders", "model.connectors", "model.heads", "model.extras")
"""Where `weights` may name a saved model, which says what the node leaves out (`mmdiff.model.build`)."""

LARGE = 10_000
"""Numbers from here on are named where a node takes more memory than there is."""

NOT_A_PART = "is not made to be part of a model; it was not called (a folder that you trust loads with --trust)"


def build(node: Any, /, *, where: str = "", toy: bool = False, **run_time: Any) -> Any:
    """Returns the object of a node `{target: dotted.path, **arguments}`, after those of nodes among its arguments.

    node: files may write a dotted path alone where a node belongs; `load_config` makes it a node, here it is refused.
    where: the dotted key of the node, named by errors.
    toy: call `target.toy(...)` instead, with the same arguments, of every target that has it.
    run_time: arguments that no file can know (widths, say); the node must not give them too.

    Raises ConfigError, before the target is called, for a target that is not there, and for arguments that are unknown,
    missing, or not as the annotations of the signature say; MissingExtra when the target's module needs a package that
    is not installed.
    """
    if not isinstance(node, Mapping) or "target" not in node:
        raise ConfigError(f"{at(where)}{node!r} is not a node, expected {{target: dotted.path, ...}}")
    return _build(node, where, toy, run_time)


def as_node(value: Any) -> Any:
    """Returns a dotted path as a node without arguments, and all else as it is, references to other keys too."""
    return {"target": value} if isinstance(value, str) and "${" not in value else value


def check_nodes(config: Config, *, importing: bool = True) -> None:
    """Check the target and the arguments of every node; nothing is built. Raises as `build` does.

    importing: False imports no part, and checks the arguments of those whose source says what they are.
    """

    def check(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            if "target" in value:
                above = key.rpartition(".")[0]
                run_time, offered = RUN_TIME.get(above, set()), OFFERED.get(above, set())
                if OPTIMIZER.fullmatch(key):
                    run_time, offered = {"params", "lr"}, {"weight_decay"}
                target, where = value["target"], join(key, "target")
                reused = above in REUSED and isinstance(value.get("weights"), str)
                if importing:
                    function = locate(target, where)
                    _check_arguments(function, value, run_time | taken(function, offered), key, reused)
                elif line := absent(_dotted(target, where)):
                    raise ConfigError(f"{at(where)}{line}")
                elif found := signature_of(target):
                    run_time = run_time | (offered & found.parameters.keys())
                    kinds = {name: p.annotation for name, p in found.parameters.items()}
                    _check_against(found, kinds, value, run_time, key, reused)
            for name, inner in value.items():
                check(inner, join(key, name))
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                check(inner, join(key, i))

    tree = asdict(config)
    for key in _node_keys(config):
        value: Any = tree
        for name in key:
            value = value[name]
        if isinstance(name, int):  # of a list, in which a file may write dotted paths
            check(value := as_node(value), ".".join(map(str, key)))
        if value is not None and not callable(value) and not (isinstance(value, Mapping) and "target" in value):
            raise ConfigError(
                f"{'.'.join(map(str, key))}: {value!r:.80} is not a node, expected {{target: dotted.path, ...}}"
            )
    check(tree, "")


def _node_keys(config: Config) -> Iterable[tuple[str | int, ...]]:
    """Yields where a configuration has one node or null."""
    yield from (("model", "backbone"), ("model", "attention"), ("task",))
    yield from (("sampler", name) for name in ("select", "revise", "draft", "process", "constraint"))
    yield from (("sampler", "denoise", n) for n in range(len(config.sampler.denoise)))
    for name in ("encoders", "connectors", "heads", "extras"):
        yield from (("model", name, kind) for kind in getattr(config.model, name))
    for stage in config.train.stages:
        yield from (("train", "stages", stage, name) for name in ("objective", "optimizer", "eval"))
    yield from (("eval", "data", name) for name in config.eval.data)


def taken(function: Callable[..., Any], offered: Collection[str]) -> set[str]:
    """Returns those of the names that are arguments of a class or function."""
    try:
        return set(offered) & inspect.signature(function).parameters.keys()
    except ValueError:  # `build` says that it has no signature
        return set()


def locate(target: Any, where: str = "", *, importing: bool = True) -> Callable[..., Any]:
    """Returns what a dotted path names: a class, a function, or a class method. Raises as `build` does.

    importing: False imports no module but those of mmdiff; others are found if they are imported already.
    """
    module, names = _module(today(_dotted(target, where)), where, importing)
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
    with within_memory(where or str(value.get("target", "")), _largest(arguments)):
        return function(**arguments, **run_time)


def _largest(arguments: Mapping[str, Any]) -> str:
    """Returns the arguments of a node that may be why it takes too much memory, in words."""
    large = [f"{name}={v}" for name, v in arguments.items() if isinstance(v, int | float) and abs(v) >= LARGE]
    return f"; {', '.join(large)}" if large else ""


def _check_arguments(
    function: Callable[..., Any],
    node: Mapping[str, Any],
    run_time: Collection[str],
    where: str,
    reused: bool = False,
) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:
        raise ConfigError(f"{at(where)}{node['target']} does not say which arguments it takes") from None
    _check_against(signature, annotations_of(function), node, run_time, where, reused)


def _check_against(
    signature: inspect.Signature,
    annotations: Mapping[str, Any],
    node: Mapping[str, Any],
    run_time: Collection[str],
    where: str,
    reused: bool,
) -> None:
    target, given = node["target"], [name for name in node if name != "target"]
    parameters = signature.parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in [*given, *run_time]:
            if name not in named and not (reused and name == "weights"):
                known = named.keys() - set(run_time)
                raise ConfigError(f"{join(where, name)}: {target} takes no such argument{nearest(str(name), known)}")
    for name in given:
        if name in run_time:
            raise ConfigError(f"{join(where, name)}: set at run time, leave it out")
    for name, p in named.items():
        if p.default is p.empty and name not in given and name not in run_time and not reused:
            raise ConfigError(f'{at(where)}{target} needs "{name}"')
    for name in given:
        check_finite(node[name], join(where, name))
        check_argument(annotations.get(name, Any), node[name], join(where, name))


def _dotted(target: Any, where: str) -> str:
    if not isinstance(target, str) or "." not in target or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{at(where)}{target!r} is not a dotted path")
    return target


def _module(target: str, where: str, importing: bool) -> tuple[ModuleType, list[str]]:
    """Returns the longest part of a dotted path that is a module, and the names after it."""
    parts = target.split(".")
    for n in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:n])
        if not importing and parts[0] != "mmdiff":
            if path in sys.modules:
                return sys.modules[path], parts[n:]
            continue
        try:
            return import_module(path), parts[n:]
        except ModuleNotFoundError as error:
            if error.name is None or not f"{path}.".startswith(f"{error.name}."):  # the module is there, and needs it
                raise MissingExtra(f"{at(where)}{path} needs {error.name}, which is not installed") from error
    if not importing:
        raise ConfigError(f"{at(where)}{target} {NOT_A_PART}")
    raise ConfigError(f"{at(where)}{target}: there is no module {parts[0]!r}")


def _public(module: ModuleType) -> Iterable[str]:
    """Returns the names defined in a module, and the modules in a package."""
    own = [n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", None) == module.__name__]
    return [
        *own,
        *getattr(module, "__all__", []),
        *(found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))),
    ]


def flatten(tree: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings and lists as {dotted key: value}: `{"a": {"b": [1]}}` becomes `{"a.b.0": 1}`."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, list | tuple):
        items = list(enumerate(tree))
    else:
        return {key: tree}
    out: dict[str, Any] = {}
    for name, value in items:
        out |= flatten(value, f"{key}.{name}" if key else str(name))
    return out
