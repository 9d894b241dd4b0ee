"""Writes a package with a part of one's own, its configuration, its test and a README, outside this repository.

A template is a folder of Jinja files. `package` in a path becomes the name of the package, and `.jinja` goes.
"""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

from mmdiff import __version__
from mmdiff.errors import UserError, nearest, shown
from mmdiff.files import aside, write_text

KINDS = ("task", "encoder")
NAME = re.compile(r"[a-z](?:[a-z0-9_]*[a-z0-9])?")
LONGEST = 50  # letters of a name
TAKEN = ("test", "tests", "runs", "setup", "conftest")  # what else is called so in the folder of a package


def new(kind: str, name: str, out: Path = Path()) -> Path:
    """Write a package `out/name` and return its folder: pyproject.toml, README.md, name.yaml, name/, tests/.

    kind: task or encoder. name: of the package, a module that does not exist yet.
    Raises UserError for another kind or name, and for a folder that is there.
    """
    if kind not in KINDS:
        raise UserError(f"new: {shown(kind)!r} is neither a task nor an encoder{nearest(kind, KINDS)}")
    check_name(name)
    if not out.is_dir():
        raise UserError(f"--out: {out} is no folder")
    folder = out / name
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder}: is there already, nothing was written")
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    values = {"name": name, "title": name.replace("_", " "), "class_name": class_name(name), "version": __version__}
    with aside(folder) as part:
        for path, text in _templates(files("mmdiff.commands.start") / "templates" / kind):
            target = part / path.replace("package", name).removesuffix(".jinja")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, environment.from_string(text).render(values))
    return folder


def check_name(name: str) -> None:
    """Raise UserError for what cannot be the name of a new package: one that Python or a package index refuses, a
    module that exists, and names that its own folder needs."""
    expected = "expected small letters, digits and _, such as bird_songs"
    if len(name) > LONGEST:
        raise UserError(f"name: has {len(name)} letters, expected at most {LONGEST}")
    if not NAME.fullmatch(name):
        raise UserError(f"name: '{shown(name)}' is no name of a package, {expected}")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UserError(f"name: {name!r} is a word of Python, {expected}")
    if name in TAKEN or name in sys.stdlib_module_names or find_spec(name) is not None:
        raise UserError(f"name: there is a module {name!r} already, choose another")


def class_name(name: str) -> str:
    """Returns the name of the package as that of a class: `bird_songs` is `BirdSongs`."""
    return "".join(word.capitalize() for word in name.split("_"))


def _templates(folder: Traversable, above: str = "") -> list[tuple[str, str]]:
    """Returns (path, text) of every file of a template."""
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        path = f"{above}{entry.name}"
        if entry.is_dir():
            found += _templates(entry, f"{path}/")
        elif entry.name.endswith(".jinja"):
            found.append((path, entry.read_text(encoding="utf-8")))
    return found
