"""Signatures of parts read from their source text, so that `mmdiff config` checks arguments without importing torch.

What text alone does not say (a decorator that changes a signature, a name that a module makes as it runs) is left to
`mmdiff check` and to the run itself, which import the parts: a signature that is not found here is not checked here.
"""

from __future__ import annotations

import ast
import inspect
import sys
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import annotated_types

from mmdiff.errors import nearest
from mmdiff.parts import ranges

from .moved import today

KINDS = inspect.Parameter
PLAIN: dict[str, Any] = {
    **{name: value for name, value in vars(ranges).items() if name[0].isupper()},
    **{name: getattr(annotated_types, name) for name in ("Ge", "Gt", "Interval", "Le", "Lt")},
    **{kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)},
    **{kind.__name__: kind for kind in (Collection, Iterable, Mapping, Sequence, Path)},
    **{name: getattr(typing, name) for name in ("Annotated", "Any", "Literal", "Optional", "Union")},
    "__builtins__": {},
}
"""The names that an annotation may consist of; one that has others says nothing here."""


def signature_of(target: str) -> inspect.Signature | None:
    """Returns the signature of what a dotted path names, annotations evaluated; None where the source does not say."""
    module, names = _module(today(target).split("."))
    found = _definition(module, names[0]) if module and len(names) == 1 else None
    if found is None:
        return None
    where, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, skip=0)
    made = _class(where, node)
    return None if made is None else inspect.Signature(made)


def absent(target: str) -> str | None:
    """Returns the line that says what a module of mmdiff does not have; None where its source has it, or may have."""
    file, names = _module(today(target).split("."))
    tree = _tree(file) if file and target.startswith("mmdiff.") and names else None
    if file is None or tree is None:
        return None
    inside = [path.stem for path in file.parent.iterdir()] if file.name == "__init__.py" else []
    bound = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {a.asname or a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    if names[0] in {*bound, *inside, "*"} or "*" in bound:
        return None
    module = ".".join(today(target).split(".")[: -len(names)])
    return f'{module} has no "{names[0]}"{nearest(names[0], {name for name in {*bound, *inside} if name[0] != "_"})}'


def _module(parts: Sequence[str]) -> tuple[Path | None, Sequence[str]]:
    """Returns the file of the longest part of a dotted path that is a module, and the names after it."""
    if parts[0] == "mmdiff":
        roots: Any = sys.modules["mmdiff"].__path__
        file, used = Path(next(iter(roots))) / "__init__.py", 1
    else:
        roots, file, used = None, None, 0
    for n in range(used, len(parts)):
        try:
            spec = PathFinder.find_spec(".".join(parts[: n + 1]), roots)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not (spec.origin or "").endswith(".py"):
            break
        file, used, roots = Path(str(spec.origin)), n + 1, spec.submodule_search_locations
        if roots is None:
            break
    return file, parts[used:]


@cache
def _tree(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None


def _definition(file: Path, name: str, depth: int = 0) -> tuple[Path, ast.FunctionDef | ast.ClassDef] | None:
    """Returns the class or function of that name, wherever a module imports it from, and its file."""
    tree = _tree(file)
    if tree is None or depth > 8:
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return file, node
    for found in ast.walk(tree):  # imports for a type checker are those of lazy packages
        for alias in found.names if isinstance(found, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name and isinstance(found, ast.ImportFrom):
                home = _imported(file, found)
                return None if home is None else _definition(home, alias.name, depth + 1)
    return None


def _imported(file: Path, node: ast.ImportFrom) -> Path | None:
    if not node.level:
        home, left = _module((node.module or "").split("."))
        return None if left else home
    folder = file.parents[node.level - 1]
    below = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
    return next((path for path in (below.with_suffix(".py"), below / "__init__.py") if path.is_file()), None)


def _class(file: Path, node: ast.ClassDef, depth: int = 0) -> list[inspect.Parameter] | None:
    """Returns the parameters of a class: those of its `__init__`, or its fields, with those of its bases."""
    if depth > 8:
        return None
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name in ("__init__", "__new__"):
            return list(_of_function(inner, skip=1).parameters.values())
    own = list(_fields(node)) if any("dataclass" in ast.unparse(one) for one in node.decorator_list) else []
    known: dict[str, inspect.Parameter] = {}
    for base in node.bases:
        name = ast.unparse(base).partition("[")[0]
        if name in ("Protocol", "Generic", "object"):
            continue
        found = _definition(file, name)
        made = _class(found[0], found[1], depth + 1) if found and isinstance(found[1], ast.ClassDef) else None
        if made is None:
            return None
        known |= {p.name: p for p in made}
    known |= {p.name: p for p in own}
    return sorted(known.values(), key=lambda p: p.kind)


def _fields(node: ast.ClassDef) -> Iterator[inspect.Parameter]:
    for inner in node.body:
        if not isinstance(inner, ast.AnnAssign) or not isinstance(inner.target, ast.Name):
            continue
        value, default = inner.value, ast.unparse(inner.value) if inner.value else ""
        if ast.unparse(inner.annotation).startswith("ClassVar") or "init=False" in default:
            continue
        required = value is None or (default.startswith("field(") and "default" not in default)
        # keyword-only for all: arguments of a file have names, and a required field may follow others
        yield KINDS(
            inner.target.id,
            KINDS.KEYWORD_ONLY,
            default=KINDS.empty if required else None,
            annotation=_evaluated(inner.annotation),
        )


def _of_function(node: ast.FunctionDef, *, skip: int) -> inspect.Signature:
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    first = len(positional) - len(given.defaults)
    pairs = [(arg, i < first) for i, arg in enumerate(positional)][skip:]
    pairs += [(arg, default is None) for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    made = [
        KINDS(
            arg.arg,
            KINDS.KEYWORD_ONLY,
            default=KINDS.empty if required else None,
            annotation=_evaluated(arg.annotation),
        )
        for arg, required in pairs
    ]
    if given.kwarg is not None:
        made.append(KINDS(given.kwarg.arg, KINDS.VAR_KEYWORD))
    return inspect.Signature(made)


def _evaluated(node: ast.expr | None) -> Any:
    if node is None or any(isinstance(inner, ast.Attribute) for inner in ast.walk(node)):
        return Any
    try:
        return eval(compile(ast.Expression(node), "annotation", "eval"), dict(PLAIN))
    except Exception:
        return Any
