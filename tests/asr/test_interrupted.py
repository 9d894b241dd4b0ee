"""Verbs of speech that are killed, or whose disk is full or cannot be written, are given again and lose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from failures import disks, kills
from spoken import saved, write_wave

from mmdiff.commands.cli import main

pytestmark = pytest.mark.needs("torchaudio", "soundfile", "jiwer")

OUT = ["--out", "new/x.jsonl", "sampler.steps=2"]
EVAL = ["asr", "eval", "run", "--manifest", "m.jsonl", *OUT, "--report", "new/x.html"]
COMMANDS = {
    "transcribe": ["asr", "transcribe", "run", "--manifest", "m.jsonl", "--seconds", "1", *OUT],
    "deliberate": ["asr", "deliberate", "run", "--manifest", "m.jsonl", "--first-pass", *OUT],
    "rescore": ["asr", "rescore", "run", "--manifest", "m.jsonl", "--hypotheses", "nbest.jsonl", *OUT],
    "eval": [*EVAL, "--first-pass", "--standalone"],
}
CLOCKED = ["x.html"]  # real-time factors


def plain(name: str, content: bytes) -> object:
    """Records without the seconds that they took."""
    if not (name.startswith("new/") and name.endswith(".jsonl")):
        return kills.without_clock(name, content)
    return [{**json.loads(line), "seconds": 0} for line in content.splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("asr")
    saved(home / "run")
    rows = [{"audio": write_wave(home / f"{n}.wav", 0.8, n), "text": "one two", "id": f"u{n}"} for n in range(2)]
    (home / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nbest = [{"id": row["id"], "nbest": [["one nine", -1.0], ["one two", -1.5]]} for row in rows]
    (home / "nbest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nbest))
    paths = [str(home / word) if (home / word).exists() else word for word in EVAL[:5]]
    assert main([*paths, "--report", str(home / "x.html")]) == 0  # its imports, once
    return home


@pytest.fixture
def there(home: Path) -> Callable[[], None]:
    def links() -> None:
        for name in ("run", "m.jsonl", "nbest.jsonl"):
            Path(name).symlink_to(home / name)

    return links


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_every_change(name: str, there: Callable[[], None], tmp_path: Path) -> None:
    assert kills.everywhere(COMMANDS[name], tmp_path, prepare=there, ignore=CLOCKED, plain=plain) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("disk", [disks.full, disks.small])
def test_a_full_disk(disk: Callable[..., int], name: str, there: Callable[[], None], tmp_path: Path) -> None:
    assert disk(COMMANDS[name], tmp_path, prepare=there, ignore=CLOCKED, plain=plain) > 1


@pytest.mark.parametrize("name", ["transcribe", *(pytest.param(n, marks=pytest.mark.slow) for n in [*COMMANDS][1:])])
def test_a_folder_that_cannot_be_written(name: str, there: Callable[[], None], tmp_path: Path) -> None:
    disks.read_only(COMMANDS[name], tmp_path, prepare=there, ignore=CLOCKED, plain=plain)
