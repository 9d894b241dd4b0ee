"""Ordered stores: records in order, whose number alone is kept in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff.errors import ConfigError
from mmdiff.runs.records import JsonlStore

SETTINGS = {"run": "runs/x", "methods": ["bound"]}
ODD = {"id": "a\u2028b\x85c é 好", "score": 0.1}  # what other readers take for the end of a line, and wide characters


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out.jsonl"


def test_a_command_goes_on_behind_the_last_whole_line_wherever_it_was_cut(file: Path) -> None:
    log = JsonlStore(file, SETTINGS, ordered=True)
    log.add([ODD, ODD])
    two = file.read_bytes()
    log.add([ODD])
    whole = file.read_bytes()
    for cut in range(len(two), len(whole) + 1):
        file.write_bytes(whole[:cut])
        again = JsonlStore(file, SETTINGS, ordered=True)
        assert again.count == (3 if cut == len(whole) else 2), cut
        again.add([ODD] * (3 - again.count))
        assert file.read_bytes() == whole and list(again.read()) == [ODD] * 3


def test_a_new_file_has_no_lines(file: Path) -> None:
    log = JsonlStore(file, SETTINGS, ordered=True)
    assert log.count == 0 and list(log.read()) == []
    log.add([])
    assert JsonlStore(file, SETTINGS, ordered=True).count == 0


def test_files_of_other_settings_or_origin_are_refused_and_left(file: Path) -> None:
    JsonlStore(file, SETTINGS, ordered=True).add([ODD])
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="written with another methods"):
        JsonlStore(file, SETTINGS | {"methods": []}, ordered=True)
    assert file.read_bytes() == before
    other = file.with_name("mine.txt")
    other.write_text("my notes")
    with pytest.raises(ConfigError, match="was not written by this command"):
        JsonlStore(other, SETTINGS, ordered=True)
    assert other.read_text() == "my notes"
    with pytest.raises(ConfigError, match="a folder, expected a file"):
        JsonlStore(file.parent, SETTINGS, ordered=True)


def test_lines_are_numbered_on_from_what_is_there(file: Path) -> None:
    log = JsonlStore(file, SETTINGS, ordered=True)
    log.add([ODD, ODD])
    log.add([ODD])
    again = JsonlStore(file, SETTINGS, ordered=True)
    again.add([ODD, ODD])
    lines = file.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["row"] for line in lines[:-1]] == [0, 1, 2, 3, 4] and again.count == 5


def test_what_cannot_be_written_is_one_line_and_counts_nothing(file: Path) -> None:
    log = JsonlStore(file, SETTINGS, ordered=True)
    log.add([ODD])
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match="out.jsonl: cannot be written"):
        log.add([ODD])
    assert log.count == 1


def test_one_process_at_a_time_writes(file: Path) -> None:
    JsonlStore(file, SETTINGS, ordered=True).add([ODD])
    hold = "from pathlib import Path; from mmdiff.runs.records import JsonlStore; "
    hold += f"a = JsonlStore(Path({str(file)!r}), {SETTINGS!r}, ordered=True);"
    other = subprocess.Popen(
        [sys.executable, "-c", hold + "print(a.count, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin and other.stdout
    assert other.stdout.readline() == "1\n"
    with pytest.raises(ConfigError, match="another process is writing to it"):
        JsonlStore(file, SETTINGS, ordered=True)
    other.communicate("\n")
    assert JsonlStore(file, SETTINGS, ordered=True).count == 1
