"""`@typed`: the arguments of a public function are checked against its annotations when it is called from Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from reprlib import repr as short
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, Protocol, TypeVar, Union, get_args, get_origin

from mmdiff.errors import ConfigError
from mmdiff.parts.arguments import NUMBERS, WORDS, annotations_of, check_argument

P = ParamSpec("P")
R = TypeVar("R")


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Has a function or method refuse arguments of another type than its annotations say, in one ConfigError.

    Items of lists and values of mappings are checked too; what an annotation says with `Any`, or with a name that is
    only imported for a type checker, is taken as it is. `**named` is left to the function.
    """
    signature = inspect.signature(function)
    name_of = function.__qualname__.removesuffix(".__init__")
    rest = {p.name: p.kind for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ConfigError(f"{name_of}: {error}") from None
        kinds = annotations_of(function)
        for name, value in given.items():
            if rest.get(name) is inspect.Parameter.VAR_KEYWORD:
                continue
            kind = Sequence[kinds.get(name, Any)] if name in rest else kinds.get(name, Any)  # type: ignore[misc]
            if get_origin(kind) is Literal or (isinstance(value, int | float) and fits(kind, value)):
                check_argument(kind, value, f"{name_of}: {name}")
            elif not fits(kind, value):
                raise ConfigError(f"{name_of}: {name}: {short(value)} is no {named(kind)}")
        return function(*args, **kwargs)

    return checked


def fits(kind: Any, value: Any) -> bool:
    """Whether a value is of the type that an annotation says."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(inner[0], value)
    if origin in (Union, UnionType):
        return any(fits(one, value) for one in inner)
    if origin is Literal:
        return any(value is word or (type(value) is type(word) and value == word) for word in inner)
    if kind in NUMBERS:
        return not isinstance(value, bool) and isinstance(value, Integral if kind is int else Real)
    base = origin or kind
    if kind is None or base is NoneType:
        return value is None
    if base is type:
        return isinstance(value, type)
    if not isinstance(base, type) or base is object or base.__module__ == "typing":
        return True
    if getattr(base, "_is_protocol", False) and base.__module__.startswith("mmdiff."):
        return not isinstance(value, str | Mapping) and all(hasattr(value, name) for name in _methods(base))
    if not isinstance(value, base) or (issubclass(base, Sequence) and base is not str and isinstance(value, str)):
        return False
    if isinstance(value, Mapping) and len(inner) == 2:
        return all(fits(inner[1], value[name]) for name in value)
    if isinstance(value, Sequence) and inner and base is not tuple:
        return all(fits(inner[0], one) for one in value)
    return True


def named(kind: Any) -> str:
    """Returns an annotation in words: `Config or a string`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return named(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(named(one) for one in inner if one is not NoneType))
    if origin is Literal:
        return ", ".join(map(str, inner))
    base = origin or kind
    words = {**NUMBERS, **WORDS}
    if base in words:
        return words[base].removeprefix("a ")
    if isinstance(base, type) and issubclass(base, Mapping):
        return "mapping" + (f" to {named(inner[1])}" if inner and inner[1] is not Any else "")
    if isinstance(base, type) and issubclass(base, Sequence):
        return "list" + (f" of {named(inner[0])}" if inner else "")
    return str(getattr(base, "__name__", base))


def _methods(protocol: type) -> list[str]:
    own = [name for cls in protocol.__mro__ if cls not in (object, Protocol) for name in vars(cls)]
    return [name for name in own if name in ("__len__", "__getitem__", "__call__") or not name.startswith("_")]
