"""Imports point one way, core <- encoders <- tasks, and `import mmdiff` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmdiff

ROOT = Path(__file__).resolve().parent.parent
ABOVE = {
    "mmdiff": ("mmdiff.encoders", "mmdiff.tasks", "mmdiff.configs"),
    "encoders": ("mmdiff.tasks", "mmdiff.configs"),
    "tasks": ("mmdiff.configs",),
}


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


@pytest.mark.parametrize(
    ("source", "package", "name"),
    [
        ("import mmdiff.tasks.vqa", "mmdiff", "mmdiff.tasks.vqa"),
        ("from .encoders import siglip", "mmdiff", "mmdiff.encoders.siglip"),
        ("from . import tasks", "mmdiff", "mmdiff.tasks"),
        ("def f():\n    from ..tasks.vqa import Vqa", "mmdiff.encoders", "mmdiff.tasks.vqa.Vqa"),
        ("from ... import tasks", "mmdiff.samplers.rules", "mmdiff.tasks"),
    ],
)
def test_every_form_of_import_is_seen(source: str, package: str, name: str) -> None:
    assert name in imported(source, package)


@pytest.mark.parametrize("folder", ABOVE)
def test_imports_point_one_way(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        parts = file.relative_to(ROOT).parent.parts
        package = ".".join(parts if parts[0] == "mmdiff" else ("mmdiff", *parts))
        upward = [
            name
            for name in imported(file.read_text(encoding="utf-8"), package)
            for above in ABOVE[folder]
            if name == above or name.startswith(f"{above}.")
        ]
        assert not upward, f"{file.relative_to(ROOT)} imports {upward}"


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    heavy = ("torch", "transformers", "omegaconf", "numpy", "yaml")
    assert in_a_new_process(f"import mmdiff, sys; print([n for n in {heavy} if n in sys.modules])") == "[]\n"


def test_command_line_does_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("train: {seed: 3}\n")
    code = (
        "import sys; from mmdiff.cli import main\n"
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


def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    """`import mmdiff.train` sets the attribute `train` of the package to the module, unless the package declines."""
    code = "import mmdiff, mmdiff.train; from mmdiff.train import train; print(mmdiff.train is train)"
    assert in_a_new_process(code) == "True\n"
