"""Files and folders that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from failures import kills

from mmdiff.errors import ConfigError
from mmdiff.files import aside, clear, lock, part_of, remove, write_text


def test_a_file_gets_its_name_when_it_is_whole_and_keeps_its_ending_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "a.fasta.gz"
    write_text(file, "old")
    with aside(file) as part:
        part.write_text("new")
        assert file.read_text() == "old" and part.parent == tmp_path and part.name.endswith("a.fasta.gz")
        assert list(tmp_path.glob(".*.part-*")) == [part]
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for attempt in range(2):
        try:
            with aside(folder) as part:
                (part / "inside").mkdir(parents=True)
                (part / "inside" / "x").write_text(str(attempt))
        except OSError:
            assert attempt == 1
    assert (folder / "inside" / "x").read_text() == "0" and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("is_folder", [False, True])
def test_after_an_error_nothing_is_left(tmp_path: Path, is_folder: bool) -> None:
    with pytest.raises(ValueError, match="half"), aside(tmp_path / "x") as part:
        part.mkdir() if is_folder else part.write_text("h")
        raise ValueError("half")
    assert not list(tmp_path.iterdir())


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    remove(tmp_path / "none")
    remove(tmp_path / "file" / "none")
    remove(tmp_path / "file")
    assert not list(tmp_path.iterdir())


# Kills


def write() -> None:
    write_text(Path("a"), "1")
    with aside(Path("b")) as part:
        part.mkdir()
        (part / "x").write_text("2")
        (part / "y").write_text(json.dumps({"seconds": os.getpid()}))


def once() -> None:
    if not Path("b").exists():
        write()


def test_what_is_written_aside_heals_after_a_kill_at_every_change(tmp_path: Path) -> None:
    assert kills.everywhere(once, tmp_path) == 9  # a: opened, empty, moved; b: made, two files, moved


def carelessly() -> None:
    if not Path("a").exists():
        Path("a").write_text("1")


def with_litter() -> None:
    Path(f".{os.getpid()}.part-a").write_text("1")
    os.rename(f".{os.getpid()}.part-a", "a")


def strict() -> None:
    if Path("a").exists():
        raise SystemExit(2)
    Path("a").mkdir()
    Path("a/b").mkdir()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (carelessly, r"after a kill at change 2, empty of a, other content: \['a'\]"),
        (with_litter, r"a kill at change 2, empty of .*, leaves \['.\d+.part-a'\]"),
        (strict, r"after a kill at change 2, os.mkdir of a/b: exit code 1"),
    ],
)
def test_the_harness_sees_what_does_not_heal(call: Callable[[], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=message):
        kills.everywhere(call, tmp_path)


def test_a_command_line_is_killed_as_well(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="changes no file"):
        kills.everywhere(["ls"], tmp_path)


def test_parts_of_a_live_process_and_of_another_machine_stay(tmp_path: Path) -> None:
    live = part_of(tmp_path / "a").name
    dead = live.replace(str(os.getpid()), "4194305")  # Linux has no process of such a number
    elsewhere = dead.replace(os.uname().nodename, "elsewhere")
    parent = live.replace(str(os.getpid()), str(os.getppid()))
    for name in (dead, elsewhere, parent, live, f"{dead}b", "a"):
        (tmp_path / name).touch()
    clear(tmp_path, "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([elsewhere, parent, live, f"{dead}b", "a"])
    clear(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([elsewhere, parent, live, "a"])
    clear(tmp_path / "nothing")
    clear(tmp_path / "a")


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(ConfigError, match="lock: is a folder, device or pipe"):
        lock(tmp_path / "lock", "busy")
