"""Files and folders that are whole or not there: written aside, made durable, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def flat(tree: Any, key: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings and lists."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, list | tuple):
        items = list(enumerate(tree))
    else:
        return {key: tree}
    out: dict[str, Any] = {}
    for name, value in items:
        out |= flat(value, f"{key}.{name}" if key else str(name))
    return out


def write_text(file: Path, text: str) -> None:
    """Write aside, then rename: the file is the old one or the new one, never half of it."""
    aside = file.with_name(f".{file.name}.part-{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, file)


def link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def replace_folder(aside: Path, folder: Path) -> None:
    """Make `aside` durable, then give it its name in one step."""
    for file in [*aside.rglob("*"), aside]:
        sync(file)
    if folder.exists():
        folder.rmdir()  # empty, or this fails
    os.rename(aside, folder)
    sync(folder.parent)


def sync(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
