"""The gate for what saved folders name: declared parts (`@mmdiff.part`) or trust. See docs/security.md.

A saved model and the configuration in a run's folder name classes and functions by dotted path. The user's own
configuration may name anything that can be imported; a folder whose signature is not this user's may name declared
parts only, whatever stands in it, and nothing else is imported or called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError, line_of
from mmdiff.files import signed
from mmdiff.parts import is_part

from .nodes import NOT_A_PART, build, locate
from .schema import join

_trusting: ContextVar[bool] = ContextVar("trusting", default=False)


@contextmanager
def trusting(on: bool = True) -> Iterator[None]:
    """Within it, every folder is trusted as if this user had written it (`--trust`)."""
    token = _trusting.set(on or _trusting.get())
    try:
        yield
    finally:
        _trusting.reset(token)


def is_trusting() -> bool:
    """Whether every folder is trusted now, see `trusting`."""
    return _trusting.get()


def trusted(file: Path) -> bool:
    """Whether what a file names may be called: this user's mmdiff wrote it and it is unchanged, or `trusting` is on.

    Of a trusted file below the working folder, modules of the working folder may be imported too.
    """
    if not (_trusting.get() or signed(file)):
        return False
    import_from_here(file)
    return True


def import_from_here(file: Path) -> None:
    """Let modules of the working folder be imported, after all others, if a file of this user lies in or below it."""
    here = Path.cwd()
    if file.resolve().is_relative_to(here) and str(here) not in sys.path and os.access(here, os.X_OK):
        sys.path.append(str(here))


def build_part(node: Mapping[str, Any], *, where: str, **run_time: Any) -> Any:
    """Returns the object of a node that a part builds itself, from an argument that a saved folder may hold.

    It may name declared parts only, whoever wrote it. Raises ConfigError.
    """
    check_parts(node, where)
    return build(node, where=where, **run_time)


def build_saved(node: Mapping[str, Any], where: str) -> Any:
    """Returns the object of a node of a saved folder. Raises ConfigError for arguments it cannot be made of, too."""
    try:
        return build(node, where=where)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        cause = line_of(error)
        raise ConfigError(f"{where}: {node['target']} cannot be made of its arguments: {cause}") from error


def check_parts(tree: Any, where: str, key: str = "") -> None:
    """Raise ConfigError for a node, at any depth of a tree, that names anything but a declared part.

    Nothing is called, and nothing is imported but modules of mmdiff.
    where: the file, named by errors. key: of the tree in it.
    """
    if isinstance(tree, Mapping):
        if "target" in tree:
            found = locate(tree["target"], f"{where}: {join(key, 'target')}", importing=False)
            if not is_part(found):
                raise ConfigError(f"{where}: {join(key, 'target')}: {tree['target']} {NOT_A_PART}")
        for name, inner in tree.items():
            check_parts(inner, where, join(key, name))
    elif isinstance(tree, list | tuple):
        for i, inner in enumerate(tree):
            check_parts(inner, where, join(key, i))
