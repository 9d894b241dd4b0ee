"""Trees of mappings, lists and plain values, checked against the annotations of a dataclass and made an instance of it.

This is stricter than a conversion: the text "3" is no number and 2 is not true, so that a slip in a file is an error
here and not a strange run later. Fields annotated `Any`, and values of `dict[str, Any]`, are nodes and not looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from functools import cache, partial
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mmdiff.errors import ConfigError, nearest
from mmdiff.parts.ranges import expected, in_range

EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", dict: "a mapping"}


def as_annotated(kind: Any, value: Any, key: str) -> Any:
    """Returns `value` as the annotation `kind` has it. key: its dotted key, named by errors.

    An instance of a dataclass, which Python code may have filled with anything, is checked as a mapping is.
    Raises ConfigError with the field, the value, what was expected and the nearest valid name.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        made, marks = as_annotated(inner[0], value, key), inner[1:]
        if inner[0] in (int, float) and not in_range(made, marks):
            raise ConfigError(f"{key}={value!r:.80}: expected {expected(inner[0], marks, value)}")
        return made
    if is_dataclass(kind):
        hints = hints_of(kind)
        value = vars(value) if isinstance(value, kind) else value  # type: ignore[arg-type]
        for name in _mapping(value, key):
            if name not in hints:
                raise ConfigError(f"{join(key, name)}: no such field{nearest(str(name), hints)}")
        return kind(**{name: as_annotated(hints[name], item, join(key, name)) for name, item in value.items()})  # type: ignore[operator]
    if origin is dict:  # a stage that is null is taken out; what a null node means, its reader knows
        items = {name: item for name, item in _mapping(value, key).items() if item is not None or inner[1] is Any}
        return {str(name): as_annotated(inner[1], item, join(key, name)) for name, item in items.items()}
    if origin in (Union, UnionType):
        return _union(inner, value, key)
    if origin is Literal:
        if value not in inner:
            raise ConfigError(f"{key}: {value!r:.80} is not one of {', '.join(inner)}{_close(value, inner)}")
        return value
    if origin in (list, tuple):
        size = len(inner) if origin is tuple else None
        if not isinstance(value, list | tuple) or size not in (None, len(value)):
            raise ConfigError(f"{key}: {value!r:.80} is not a list{f' of {size}' if size else ''}")
        return origin(as_annotated(inner[i if size else 0], item, join(key, i)) for i, item in enumerate(value))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{key}: {value!r:.80} is not {EXPECTED[kind]}")
    return value


hints_of: Callable[[Any], dict[str, Any]] = cache(partial(get_type_hints, include_extras=True))


def _union(kinds: Sequence[Any], value: Any, key: str) -> Any:
    """A value of `X | None`, or of `Literal[...] | Any`, which is one of those words, a dotted path or a node."""
    if value is None and type(None) in kinds:
        return None
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    node = Any in kinds and (isinstance(value, dict) or callable(value))
    if words and not node and value not in words and not (isinstance(value, str) and "." in value):
        raise ConfigError(
            f"{key}: {value!r:.80} is not one of {', '.join(words)} or a dotted path{_close(value, words)}"
        )
    plain = next(kind for kind in kinds if kind is not type(None) and get_origin(kind) is not Literal)
    return as_annotated(plain, value, key)


def _mapping(value: Any, key: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{at(key)}{value!r:.80} is not {EXPECTED[dict]}")
    return value


def expand(kind: Any, value: Any) -> Any:
    """Returns the tree with every string that stands where a node belongs as `{target: string}`.

    A reference to another key (`${task}`) stays: what it stands for may be a node already.
    """
    if kind is Any:
        return {"target": value} if isinstance(value, str) and "${" not in value else value
    if isinstance(value, dict) and is_dataclass(kind):
        hints = hints_of(kind)
        return {key: expand(hints.get(key), inner) for key, inner in value.items()}
    if isinstance(value, dict) and get_origin(kind) is dict:
        return {key: expand(get_args(kind)[1], inner) for key, inner in value.items()}
    return value


def join(key: str, name: Any) -> str:
    """The dotted key of a field or item below `key`."""
    return f"{key}.{name}" if key else str(name)


def at(key: str) -> str:
    """The beginning of an error line about `key`."""
    return f"{key}: " if key else ""


def _close(value: Any, known: Iterable[str]) -> str:
    hint = nearest(str(value), known)
    return hint if "did you mean" in hint else ""
