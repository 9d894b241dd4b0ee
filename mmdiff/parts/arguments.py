"""Arguments of a part, as a file gives them, against the annotations of its signature.

Plain values are checked: numbers and their ranges, words, lists, mappings. Objects that Python code hands over are left
alone, and so is what an annotation says with `Any` or with a class of another package.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mmdiff.errors import ConfigError, nearest

from .ranges import expected, in_range

NUMBERS = {int: "a whole number", float: "a number"}
WORDS = {bool: "true or false", str: "a string", NoneType: "null", dict: "a mapping", list: "a list"}


def check_argument(kind: Any, value: Any, key: str, *, called: bool = False) -> None:
    """Raise ConfigError for a value that an annotation rules out. key: its dotted key, named by the error.

    called: the value comes from Python code, where a list or a mapping may be an object that an interface describes.
    """
    if not _plain(value):
        return
    wrong = _wrong(kind, value, key, called)
    if wrong is not None:
        raise ConfigError(wrong)


def check_finite(value: Any, key: str) -> None:
    """Raise ConfigError for a number, at any depth of a tree, that is infinite or not a number."""
    if isinstance(value, float) and not in_range(value):
        raise ConfigError(f"{key}={value!r}: expected a finite number")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            check_finite(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            check_finite(inner, f"{key}.{i}")


@cache
def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a function's or class's parameters by name, ranges included.

    Empty where they cannot be looked up: what is only imported for a type checker is not there when a program runs.
    """
    source: Any = function
    if isinstance(function, type) and not is_dataclass(function):
        source = function.__init__  # type: ignore[misc]
    try:
        return get_type_hints(inspect.unwrap(source), include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple | Mapping)


def _wrong(kind: Any, value: Any, key: str, called: bool = False) -> str | None:
    """Returns the error line about a value, None where it is as the annotation says or the annotation says nothing."""
    origin, inner = get_origin(kind), get_args(kind)
    if not _plain(value) or (isinstance(value, Mapping) and "target" in value):
        return None  # an object, or the node of one
    if origin is Annotated:
        base, *marks = inner
        if base in NUMBERS and _is_number(base, value):
            return None if in_range(value, marks) else f"{key}={value!r}: expected {expected(base, marks, value)}"
        return _wrong(base, value, key, called)
    if origin in (Union, UnionType):
        lines = [_wrong(one, value, key, called) for one in inner]
        if None in lines:
            return None
        ranged = next((line for line in lines if line and line.startswith((f"{key}=", f"{key}."))), None)
        words = [word for one in inner if get_origin(one) is Literal for word in get_args(one)]
        others = " or ".join(dict.fromkeys(_named(one) for one in inner if get_origin(one) is not Literal))
        return ranged or f"{key}: {value!r} is not {', '.join(map(str, [*words, others]))}"
    if origin is Literal:
        fits = any(value == word and type(value) is type(word) for word in inner)
        hint = nearest(str(value), map(str, inner))
        hint = hint if "did you mean" in hint else ""
        return None if fits else f"{key}: {value!r} is not one of {', '.join(map(str, inner))}{hint}"
    if kind in NUMBERS:
        if not _is_number(kind, value):
            return f"{key}: {value!r} is not {NUMBERS[kind]}"
        return None if in_range(value) else f"{key}={value!r}: expected {expected(kind, (), value)}"
    if kind in (bool, str, NoneType):
        return None if type(value) is kind else f"{key}: {value!r} is not {WORDS[kind]}"
    base = origin or kind
    if not isinstance(base, type) or base is object:
        return None
    if issubclass(base, Mapping):
        if not isinstance(value, Mapping):
            return f"{key}: {value!r} is not a mapping"
        of = inner[1] if len(inner) == 2 else Any
        return next((line for name, v in value.items() if (line := _wrong(of, v, f"{key}.{name}", called))), None)
    if issubclass(base, Collection) or base is Iterable:
        return _wrong_list(base, inner, value, key, called)
    if issubclass(base, Path):
        return None if isinstance(value, str) else f"{key}: {value!r} is not a path"
    if base.__module__.startswith("mmdiff.") and not (called and isinstance(value, list | tuple | Mapping)):
        return f"{key}: {value!r} is no part, expected {{target: dotted.path, ...}}"
    return None


def _wrong_list(base: type, inner: tuple[Any, ...], value: Any, key: str, called: bool) -> str | None:
    if not isinstance(value, list | tuple):
        return f"{key}: {value!r} is not a list"
    sized = base is tuple and inner and inner[-1] is not ...
    if sized and len(inner) != len(value):
        return f"{key}: {value!r} is not a list of {len(inner)}"
    of = inner if sized else [inner[0] if inner else Any] * len(value)
    return next((line for i, v in enumerate(value) if (line := _wrong(of[i], v, f"{key}.{i}", called))), None)


def _is_number(kind: type, value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int if kind is int else int | float)


def _named(kind: Any) -> str:
    origin = get_origin(kind)
    base = get_args(kind)[0] if origin is Annotated else origin or kind
    if base in NUMBERS:
        return NUMBERS[base]
    if base in WORDS:
        return WORDS[base]
    if isinstance(base, type) and issubclass(base, Mapping):
        return WORDS[dict]
    if isinstance(base, type) and issubclass(base, Collection):
        return WORDS[list]
    return "{target: dotted.path, ...}"
