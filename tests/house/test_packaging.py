"""What is shipped: every package and data file, in a wheel that works outside the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from paths import ROOT

import mmdiff
from mmdiff.config import load_config

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: Mapping[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def run(command: Sequence[str | Path], folder: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names(listing: str) -> list[str]:
    return [line.split()[0] for line in listing.splitlines() if line]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing in the working tree and finds nothing of earlier builds."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", *PROJECT["project"]["license-files"], PROJECT["project"].get("readme")]:
        if name:
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so both are tested."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout], out)
    assert len(list(out.glob("*.tar.gz"))) == 1
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a new environment that holds the wheel; the packages it needs are borrowed from this one."""
    env = tmp_path_factory.mktemp("env")
    run([sys.executable, "-m", "venv", "--without-pip", env], env)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(env), "platbase": str(env)}))
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    scripts = Path(sysconfig.get_path("scripts", "venv", {"base": str(env), "platbase": str(env)}))
    run([sys.executable, "-m", "pip", "--python", scripts / "python", "install", "-q", "--no-deps", wheel], env)
    return scripts


def test_every_package_is_named() -> None:
    found = {
        ".".join([name, *init.parent.relative_to(ROOT / folder).parts])
        for name, folder in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.needs("build")
def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        "/".join([*name.split("."), *path.relative_to(ROOT / folder).parts])
        for name, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == wanted


@pytest.mark.slow
@pytest.mark.needs("build")
def test_wheel_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    assert run([installed / "mmdiff", "--version"], tmp_path) == f"mmdiff {mmdiff.__version__}\n"
    assert names(run([installed / "mmdiff", "ls"], tmp_path)) == CONFIGS
    every = f"from mmdiff.commands.cli import main; raise SystemExit(any([main(['config', c]) for c in {CONFIGS}]))"
    shown = re.findall(r"^name: (.*)$", run([installed / "python", "-c", every], tmp_path), re.MULTILINE)
    assert shown == [load_config(name).name for name in CONFIGS]
    where = "import mmdiff.encoders, mmdiff.tasks; print(mmdiff.encoders.__file__, *mmdiff.__path__, sep='\\n')"
    encoders, *path = run([installed / "python", "-c", where], tmp_path).splitlines()
    assert Path(encoders).is_relative_to(installed.parent) and len(path) == 1


@pytest.mark.slow
@pytest.mark.needs("build")
def test_wheel_works_beside_folders_of_the_same_names(installed: Path, tmp_path: Path) -> None:
    for name in ("tasks", "configs", "encoders"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')\n")
    run([installed / "python", "-c", "import mmdiff.tasks, mmdiff.configs, mmdiff.encoders"], tmp_path)


def test_bare_checkout_works(checkout: Path) -> None:
    assert names(run([sys.executable, "-m", "mmdiff", "ls"], checkout)) == CONFIGS
    where = (
        "import mmdiff.encoders as e, mmdiff.tasks as t, mmdiff.configs as c; print(*(m.__file__ for m in (e, t, c)))"
    )
    for file in run([sys.executable, "-c", where], checkout).split():
        assert Path(file).is_relative_to(checkout.resolve())
