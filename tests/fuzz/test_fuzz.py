"""Mutations with a fixed seed: `make fuzz` tries thousands, the tests a few of each subject."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from paths import ROOT

from tests.fuzz.judge import Subject, trial


@pytest.mark.slow
@pytest.mark.needs("timm", "soundfile", "starlette", "pyarrow")
def test_no_mutation_is_a_fault() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--number", "170", "--seed", "7", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert sum(sum(counts.values()) for counts in json.loads(done.stdout.splitlines()[-1]).values()) == 170


def judged(tmp_path: Path, run: str, **more: object) -> str:
    """The kind of verdict on a subject whose run executes some Python."""
    (tmp_path / "pristine").mkdir()
    (tmp_path / "pristine" / "in.txt").write_text("1")
    space = {"Path": Path}
    exec(f"def f():\n    from pathlib import Path\n    import sys, os, time\n    {run}", space)
    subject = Subject("toy", lambda folder: None, lambda folder, dice: "it", run=space["f"], **more)  # type: ignore[arg-type]
    verdict, _ = trial(subject, tmp_path / "pristine", tmp_path / "copy", Random(0), undamaged="1")
    return verdict.kind


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        ("return 0, Path('in.txt').read_text()", "unaffected"),
        ("return 0, '2'", "different"),
        ("return 2, None", "refused"),
        ("return 1, None", "fault"),
        ("raise ValueError", "fault"),
        ("os._exit(3)", "fault"),
        ("x = bytearray(700 << 20); return 0, '1'", "fault"),
        ("Path('payload-ran').touch(); return 0, '1'", "fault"),
        ("Path('in.txt').write_text('2'); return 0, '1'", "fault"),
    ],
)
def test_the_judge_sees_each_kind_of_fault(tmp_path: Path, run: str, kind: str) -> None:
    assert judged(tmp_path, run, kept=("in.txt",)) == kind


def test_a_hang_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.judge.SECONDS", 0.3)
    assert judged(tmp_path, "time.sleep(60)") == "fault"


def test_a_different_result_of_what_is_vouched_for_is_a_fault(tmp_path: Path) -> None:
    assert judged(tmp_path, "return 0, '2'", vouched=True) == "fault"
