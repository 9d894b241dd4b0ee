"""Who imports whom, read from the source: modules, the rooms they lie in, and circles among either.

`python tests/support/imports.py` prints what there is. An import under `if TYPE_CHECKING` or in a function counts as
any other; that a package is imported before its modules does not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from paths import ROOT

from mmdiff.parts import is_part

FOLDERS = ("mmdiff", "encoders", "tasks", "configs")
HIDDEN = ("__init__.py", "conftest.py")  # every folder may have one
Graph = Mapping[str, set[str]]


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the product; a package has the name of its folder."""
    found = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts if parts[0] == "mmdiff" else ("mmdiff", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(source: str, package: str) -> set[str]:
    """Absolute names of everything that code in `package` imports, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            home = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{home}.{alias.name}" for alias in node.names}
    return names


@cache
def module_graph() -> dict[str, set[str]]:
    """Module -> the modules it imports. A name that a package hands on (`mmdiff.config.build`) is the package."""
    files = modules()
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set()
        for full in imported(file.read_text(encoding="utf-8"), package):
            while full not in files and "." in full:
                full = full.rpartition(".")[0]
            if full in files and full not in (name, "mmdiff"):
                graph[name].add(full)
    return graph


def room(module: str) -> str:
    """The folder a module lies in; a file beside rooms is a room itself; rooms within a room of the core are one."""
    files = modules()
    parts = module.split(".")
    depth = 4 if parts[1:2] == ["tasks"] else 2 if parts[1:2] != ["encoders"] else 3
    parts = parts[:depth]
    while len(parts) > 2 and files.get(".".join(parts), Path("x.py")).name != "__init__.py":
        if any(
            file.name == "__init__.py" and name.startswith(".".join(parts[:-1]) + ".") for name, file in files.items()
        ):
            break  # beside rooms
        parts = parts[:-1]
    return ".".join(parts)


def room_graph(graph: Graph) -> dict[str, set[str]]:
    """Room -> the rooms that its modules import."""
    out: dict[str, set[str]] = {}
    for name, targets in graph.items():
        out.setdefault(room(name), set()).update(room(target) for target in targets if room(target) != room(name))
    return out


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes, two or more, that reach each other (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


LEAVES = ("mmdiff.errors", "mmdiff.files", "mmdiff.lazy", "mmdiff.parts")  # any room may import these


def leaf(name: str) -> bool:
    """Whether a module is one of `LEAVES`, or lies in one."""
    return any(name == one or name.startswith(f"{one}.") for one in LEAVES)


def may_import(docstring: str) -> list[str] | None:
    """The names after "May import:", up to the end of the sentence; none for "nothing"; None where nothing is said."""
    said = re.search(r"May import: (.*?)\.(?=\s|$)", docstring, re.DOTALL)
    if said is None:
        return None
    return [] if said[1] == "nothing" else [" ".join(name.split()) for name in said[1].split(",")]


def covers(name: str, module: str) -> bool:
    """A name of a room stands for all that lies in it, "the core" for what lies below encoders, but for its verbs."""
    if name == "the core":
        return module.split(".")[1] not in ("commands", "encoders", "tasks", "configs")
    return f"{module}.".startswith(f"mmdiff.{name}.")


def imports_of(package: str, graph: Graph) -> set[str]:
    """What the files of a package import from elsewhere; its own rooms, and `LEAVES`, are left out."""
    files = modules()
    own = [
        name for name in graph if package == (name if files[name].name == "__init__.py" else name.rpartition(".")[0])
    ]
    found = {target for name in own for target in graph[name]}
    return {target for target in found if not f"{target}.".startswith(f"{package}.") and not leaf(target)}


def arrows(graph: Graph) -> int:
    return sum(len(targets) for targets in graph.values())


def shown(folder: Path) -> list[Path]:
    """The files and rooms that a reader of a folder sees."""
    rooms = (x for x in folder.iterdir() if x.is_dir() and any(x.rglob("*.py")))
    return [*rooms, *(x for x in folder.iterdir() if x.suffix in (".py", ".html") and x.name not in HIDDEN)]


def declared() -> list[Any]:
    """Every class and function of a module of ours that is decorated with `@part` or `@saveable`."""
    found = []
    for name, file in modules().items():
        if "@part" in (text := file.read_text(encoding="utf-8")) or "@saveable" in text:
            found += [
                x for x in vars(import_module(name)).values() if callable(x) and is_part(x) and x.__module__ == name
            ]
    return found


if __name__ == "__main__":
    graph = module_graph()
    rooms = room_graph(graph)
    print(f"{len(graph)} modules, {arrows(graph)} arrows, circles {circles(graph)}")
    print(f"{len(rooms)} rooms, {arrows(rooms)} arrows, circles {circles(rooms)}")
    for name in sorted(rooms):
        print(f"{name:34} -> {', '.join(sorted(r.removeprefix('mmdiff.') for r in rooms[name]))}")
