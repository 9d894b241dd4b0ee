"""The measurements of benchmarks/ still run: what nobody runs for months rots unseen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

SCRIPTS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "benchmarks").rglob("*.py") if p.name != "kit.py")
TINY = {
    "asr": ["--json"],
    "vla": "--width 16 --layers 1 --context 16 --chunk 2 --dims 2 --steps 2 --vocab 100 --repeat 1 --json".split(),
    "protein": "--rows 2 --steps 2 --large-rows 0 --sequences 20 --json".split(),
}


def run(*argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_what_it_measures(script: str, tmp_path: Path) -> None:
    done = run(str(ROOT / script), "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 200 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "vla")) for n in TINY])
def test_ratios_of_one_run_are_the_last_line(name: str, tmp_path: Path) -> None:
    done = run(str(ROOT / f"benchmarks/{name}.py"), *TINY[name], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    numbers = [v for part in figures.values() for v in (part.values() if isinstance(part, dict) else [part])]
    assert len(numbers) >= 3 and all(isinstance(v, float) and v > 0 for v in numbers), figures
