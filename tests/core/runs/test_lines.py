"""Ordered stores: records in order, whose number alone is kept in memory."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

import pytest

from mmdiff.errors import ConfigError
from mmdiff.runs import records
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


@pytest.mark.parametrize("ordered", [True, False])
def test_one_process_at_a_time_writes(ordered: bool, file: Path) -> None:
    """From before it looks at the settings, so that none writes records of its own under those of another."""
    hold = "from pathlib import Path; from mmdiff.runs.records import JsonlStore; "
    hold += f"a = JsonlStore(Path({str(file)!r}), {SETTINGS!r}, ordered={ordered});"
    other = subprocess.Popen(
        [sys.executable, "-c", hold + "print(a.count, flush=True); input(); a.add({0: {'id': 'theirs'}})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin and other.stdout
    assert other.stdout.readline() == "0\n"
    for settings in (SETTINGS, {"run": "runs/y"}):
        with pytest.raises(ConfigError, match="out.jsonl: another process is writing to it"):
            JsonlStore(file, settings, ordered=ordered)
    other.communicate("\n")
    assert sorted(p.name for p in file.parent.iterdir()) == [file.name, f"{file.name}.settings.json"]
    with pytest.raises(ConfigError, match="written with another methods"):
        JsonlStore(file, {"run": "runs/x"}, ordered=ordered)
    assert JsonlStore(file, SETTINGS, ordered=ordered).count == 1


def test_the_lock_of_a_killed_process_is_taken_and_one_that_its_owner_removed_is_asked_for_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.parent.mkdir()
    held = file.with_name(f".{file.name}.lock")
    held.touch()
    asked, inner = [], records.lock

    def removed(path: Path, busy: str) -> TextIO:
        handle = inner(path, busy)
        asked.append(path)
        if len(asked) < 3:
            path.unlink()
            if len(asked) == 2:
                path.touch()  # by the next that asks
        return handle

    monkeypatch.setattr(records, "lock", removed)
    log = JsonlStore(file, SETTINGS, ordered=True)
    assert asked == [held] * 3 and held.exists()
    del log
    assert not held.exists()


@pytest.mark.parametrize("ordered", [True, False])
def test_records_of_other_settings_are_refused_however_they_got_there(ordered: bool, file: Path) -> None:
    for name, run in (("a.jsonl", "runs/a"), ("b.jsonl", "runs/b")):
        JsonlStore(file.with_name(name), {"run": run}, ordered=ordered).add([ODD])
    ours, theirs = (file.with_name(name).read_bytes() for name in ("a.jsonl", "b.jsonl"))
    for content, line in ((theirs, 1), (ours + theirs.replace(b'"row": 0', b'"row": 1'), 2)):
        file.with_name("a.jsonl").write_bytes(content)
        before = file.with_name("a.jsonl").read_bytes()
        with pytest.raises(ConfigError, match=rf"line {line} was written with other settings.*choose another file"):
            JsonlStore(file.with_name("a.jsonl"), {"run": "runs/a"}, ordered=ordered)
        assert file.with_name("a.jsonl").read_bytes() == before


@pytest.mark.parametrize("line", [b"{}\n", b"[1]\n", b"{'row'\n", b"\xff\n", b'{"row": 0}\n', b'{"row": true}\n'])
def test_a_line_in_the_middle_that_is_no_record_is_named(line: bytes, file: Path) -> None:
    JsonlStore(file, SETTINGS, ordered=True).add([ODD])
    first = file.read_bytes()
    file.write_bytes(first + line + first.replace(b'"row": 0', b'"row": 1'))
    with pytest.raises(ConfigError, match="out.jsonl line 2: not record 1"):
        JsonlStore(file, SETTINGS, ordered=True)
    assert file.read_bytes().startswith(first + line)


def test_halves_of_surrogate_pairs_come_back(file: Path) -> None:
    odd = {"id": "a\ud800é", "text": "好"}
    log = JsonlStore(file, SETTINGS, ordered=True)
    log.add([odd, ODD])
    assert list(log.read()) == [odd, ODD]
    assert JsonlStore(file, SETTINGS, ordered=True).count == 2
    assert "é" not in file.read_text(encoding="utf-8").split("\n")[0]  # an escape, and the line is ASCII


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_goes_on_later(
    function: str, ordered: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    JsonlStore(file, SETTINGS, ordered=ordered).add([ODD])
    before = file.read_bytes()
    log = JsonlStore(file, SETTINGS, ordered=ordered)
    with monkeypatch.context() as patched:
        patched.setattr(os, function, full)
        with pytest.raises(ConfigError, match=r"out.jsonl: cannot be written \(No space left on device\)"):
            log.add([ODD]) if function == "fsync" else JsonlStore(file.with_name("new-out.jsonl"), SETTINGS)
            log.finish()
    del log
    assert file.read_bytes().startswith(before)
    assert JsonlStore(file, SETTINGS, ordered=ordered).count >= 1


def test_names_that_are_too_long_are_refused_and_not_printed_whole(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written .File name too long") as caught:
        JsonlStore(file.with_name("x" * 5000), SETTINGS)
    assert len(str(caught.value)) < 300
    JsonlStore(file, {"long": "x" * 9999}).add({0: ODD})
    with pytest.raises(ConfigError, match="another long") as caught:
        JsonlStore(file, {"long": "y" * 9999})
    assert len(str(caught.value)) < 800
