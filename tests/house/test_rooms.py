"""Rooms: imports point one way, none in a circle; a folder is seen at once; `import mmdiff` loads nothing heavy."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from imports import circles, covers, imported, imports_of, leaf, may_import, module_graph, modules, room_graph, shown
from paths import ROOT

import mmdiff

# May not grow: a room that shrinks takes its number along, or leaves.
WIDEST = {"mmdiff": 24, "core": 16}  # rooms and files in a folder, and their tests; 12 elsewhere
LONGEST = 300  # lines of a file

TASKS = tuple(sorted(p.parent.name for p in (ROOT / "tasks").glob("*/task.py")))
DIALOGUE = ("mmdiff.tasks.dialogue", "mmdiff.tasks.background")
GRAPH = module_graph()
PACKAGES = sorted(
    name for name, file in modules().items() if file.name == "__init__.py" and name not in ("mmdiff", "mmdiff.configs")
)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(
    ("source", "package", "name"),
    [
        ("import mmdiff.tasks.vqa", "mmdiff", "mmdiff.tasks.vqa"),
        ("from .encoders import siglip", "mmdiff", "mmdiff.encoders.siglip"),
        ("from . import tasks", "mmdiff", "mmdiff.tasks"),
        ("def f():\n    from ..tasks.vqa import VQA", "mmdiff.encoders", "mmdiff.tasks.vqa.VQA"),
        ("from ... import tasks", "mmdiff.samplers.rules", "mmdiff.tasks"),
        ("if TYPE_CHECKING:\n    from mmdiff.model import MMDiff", "mmdiff.protocols", "mmdiff.model.MMDiff"),
    ],
)
def test_every_form_of_import_is_seen(source: str, package: str, name: str) -> None:
    assert name in imported(source, package)


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_every_module_is_there() -> None:
    assert {"mmdiff.session", "mmdiff.encoders.conv", "mmdiff.tasks.vla.codecs.bins"} <= GRAPH.keys()
    assert (
        "mmdiff.errors" in GRAPH["mmdiff.session.loaded"]
        and "mmdiff.samplers.rules.state" in GRAPH["mmdiff.samplers.loop"]
    )


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("mmdiff.encoders", ("mmdiff.tasks", "mmdiff.configs")),
        ("mmdiff.tasks", ("mmdiff.configs",)),
        ("mmdiff.tasks.dialogue", tuple(f"mmdiff.tasks.{task}" for task in TASKS)),
        ("mmdiff.tasks.background", tuple(f"mmdiff.tasks.{task}" for task in TASKS)),
        *((f"mmdiff.tasks.{one}", tuple(f"mmdiff.tasks.{x}" for x in TASKS if x != one)) for one in TASKS),
        ("mmdiff.tasks.vla.worlds", tuple(f"mmdiff.tasks.vla.{x}" for x in ("data", "task", "rollout", "codecs"))),
    ],
)
def test_imports_point_one_way(lower: str, upper: Sequence[str]) -> None:
    assert any(within(name, lower) for name in GRAPH)
    upward = {
        name: found for name in GRAPH if within(name, lower) if (found := {t for t in GRAPH[name] if within(t, *upper)})
    }
    assert not upward


def test_the_core_names_nothing_above_it() -> None:
    above = ("mmdiff.encoders", "mmdiff.tasks", "mmdiff.configs")
    core = [name for name in GRAPH if not within(name, *above)]
    assert not {name: found for name in core if (found := {t for t in GRAPH[name] if within(t, *above)})}


def test_nobody_imports_a_command_line() -> None:
    lines = ("mmdiff.commands", *(f"mmdiff.tasks.{task}.cli" for task in TASKS))
    allowed = (*lines, "mmdiff.__main__", "mmdiff")  # `mmdiff.check` is handed on
    assert not {
        name: found
        for name in GRAPH
        if not within(name, *lines) and name not in allowed
        if (found := {t for t in GRAPH[name] if within(t, *lines)})
    }
    for task in TASKS:  # and that of a task imports its own room only
        cli = f"mmdiff.tasks.{task}.cli"
        assert not {
            t
            for name in GRAPH
            if within(name, cli)
            for t in GRAPH[name]
            if within(t, *lines[1:]) and not within(t, cli)
        }


def test_no_circle_of_modules_and_none_of_rooms() -> None:
    assert circles(GRAPH) == []
    assert circles(room_graph(GRAPH)) == []


@pytest.mark.parametrize("package", sorted({name.rpartition(".")[0] for name in PACKAGES if name.count(".") > 1}))
def test_no_circle_of_the_rooms_within_a_room(package: str) -> None:
    """Files that stand beside them they may import, and be imported by."""
    inner = {name for name in PACKAGES if name.rpartition(".")[0] == package}

    def holding(module: str) -> str:
        return next((name for name in inner if within(module, name)), "")

    graph: dict[str, set[str]] = {}
    for name in GRAPH:
        if here := holding(name):
            graph.setdefault(here, set()).update({holding(target) for target in GRAPH[name]} - {here, ""})
    assert graph and circles(graph) == []


def test_rooms_are_small_enough_to_see_at_once() -> None:
    tests = {file.parent for file in (ROOT / "tests").rglob("*.py")}
    folders = {file.parent for file in modules().values()} | tests | {ROOT / "tests"} | {ROOT / "tests" / "core"}
    crowded = {str(f.relative_to(ROOT)): n for f in folders if (n := len(shown(f))) > WIDEST.get(f.name, 12)}
    assert not crowded


def test_files_are_short_enough_to_read_at_once() -> None:
    lines = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in modules().values()}
    assert not {file: n for file, n in lines.items() if n > LONGEST}


@pytest.mark.parametrize(
    ("docstring", "names"),
    [
        ("A room.\n\nMay import: canvas, tasks.dialogue.\n", ["canvas", "tasks.dialogue"]),
        ("May import: the core,\nencoders. Must not import torch.", ["the core", "encoders"]),
        ("May import: nothing.", []),
        ("A room.", None),
    ],
)
def test_what_a_room_says_is_understood(docstring: str, names: list[str] | None) -> None:
    assert may_import(docstring) == names


def test_names_cover_what_lies_in_them() -> None:
    assert covers("model", "mmdiff.model") and covers("model", "mmdiff.model.scorer")
    assert not covers("model", "mmdiff.models") and not covers("model", "mmdiff.tasks.model")
    assert covers("the core", "mmdiff.session") and not covers("the core", "mmdiff.encoders.conv")
    assert not covers("the core", "mmdiff.commands.cli")
    assert "mmdiff.samplers.loop" in imports_of("mmdiff.model", GRAPH)
    assert not {t for t in imports_of("mmdiff.model", GRAPH) if t.startswith("mmdiff.model")}


def test_what_every_room_may_import_imports_nothing_else() -> None:
    assert not {name: GRAPH[name] for name in GRAPH if leaf(name) and not all(map(leaf, GRAPH[name]))}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_imports_what_its_docstring_says(package: str) -> None:
    """`errors`, `files`, `lazy` and `parts` need no mention. A name that nothing needs any more is to go."""
    names = may_import(ast.get_docstring(ast.parse(modules()[package].read_text(encoding="utf-8"))) or "")
    assert names is not None, "the docstring of __init__.py does not say: May import: ..."
    found = imports_of(package, GRAPH)
    unsaid = {target for target in found if not any(covers(name, target) for name in names)}
    unused = {name for name in names if not any(covers(name, target) for target in found)}
    assert not unsaid and not unused, "correct the line `May import: ...` in __init__.py, or the imports"


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_no_lazy_name_is_that_of_a_file_beside_it(package: str) -> None:
    """The file, once imported, would take the name's place."""
    room = importlib.import_module(package)
    assert not set(vars(room).get("_HOMES", ())) & {file.stem for file in Path(str(room.__file__)).parent.iterdir()}


def test_import_is_light() -> None:
    heavy = ("torch", "transformers", "omegaconf", "numpy", "yaml")
    assert in_a_new_process(f"import mmdiff, sys; print([n for n in {heavy} if n in sys.modules])") == "[]\n"


def test_command_line_does_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("train: {seed: 3}\n")
    code = (
        "import sys; from mmdiff.commands.cli import main\n"
        f"assert main(['config', {str(tmp_path / 'x.yaml')!r}]) == 0 and main(['ls']) == 0\n"
        "print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    assert in_a_new_process(code).endswith("[]\n")


@pytest.mark.parametrize("name", mmdiff.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(mmdiff, name) is not None
    assert name in dir(mmdiff)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="mmdiff.*no_such_name"):
        mmdiff.no_such_name  # noqa: B018
