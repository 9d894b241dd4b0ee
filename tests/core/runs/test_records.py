"""Results in a file: what is kept through an interruption, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mmdiff.errors import ConfigError
from mmdiff.runs.records import JsonlStore

SETTINGS = {"run": "runs/x", "sampler": {"steps": 4, "draft": None}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out.jsonl"


MARK = hashlib.sha256((json.dumps(SETTINGS, indent=2, sort_keys=True) + "\n").encode()).hexdigest()[:12]


def lines(file: Path) -> list[Any]:
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    assert all(list(line)[:2] == ["row", "settings"] and line.pop("settings") == MARK for line in found)
    return found


def test_records_are_added_and_come_back_in_the_order_of_their_rows(file: Path) -> None:
    log = JsonlStore(file, SETTINGS)
    log.add({2: {"text": "c"}, 0: {"text": "a"}})
    assert lines(file) == [{"row": 2, "text": "c"}, {"row": 0, "text": "a"}]
    again = JsonlStore(file, SETTINGS)
    assert again.records == {2: {"text": "c"}, 0: {"text": "a"}}
    again.add({1: {"text": "b"}})
    assert again.finish() == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert [line["row"] for line in lines(file)] == [0, 1, 2]
    assert JsonlStore(file, SETTINGS).finish() == again.finish()


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = JsonlStore(None, SETTINGS)
    log.add({1: {"text": "b"}, 0: {"text": "a"}})
    assert log.finish() == [{"text": "a"}, {"text": "b"}] and not list(tmp_path.iterdir())


ODD = {"text": "a\u2028b\x85c é 好"}  # what `str.splitlines` takes for the end of a line, and characters of many bytes


def test_a_line_cut_anywhere_is_dropped_and_no_other(file: Path) -> None:
    log = JsonlStore(file, SETTINGS)
    log.add({0: ODD})
    first = file.read_bytes()
    log.add({1: ODD})
    whole = file.read_bytes()
    for cut in range(len(first), len(whole) + 1):
        file.write_bytes(whole[:cut])
        again = JsonlStore(file, SETTINGS)
        assert again.records == ({0: ODD} if cut < len(whole) - 1 else {0: ODD, 1: ODD}), cut
        again.add({1: ODD})
        assert [line["row"] for line in lines(file)][-1] == 1 and again.finish() == [ODD, ODD]
        assert file.read_bytes() == whole


def test_lines_that_are_no_records_are_dropped(file: Path) -> None:
    JsonlStore(file, SETTINGS).add({0: {"text": "a"}})
    with open(file, "a") as handle:
        handle.write('[1]\n7\n{"text": "no row"}\n{"row": "1"}\n\n')
    assert JsonlStore(file, SETTINGS).records == {0: {"text": "a"}}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"run": "runs/y"}, "run ('runs/x', now 'runs/y')"),
        ({"sampler": {"steps": 8, "draft": None}}, "sampler.steps (4, now 8)"),
        ({"sampler": {"steps": 4, "draft": {"target": "x"}}}, "sampler.draft (None, now {'target': 'x'})"),
        ({"words": True}, "words (None, now True)"),
    ],
)
def test_another_setting_is_refused_and_named(changed: dict[str, Any], says: str, file: Path) -> None:
    JsonlStore(file, SETTINGS).add({0: {"text": "a"}})
    with open(file, "a") as handle:
        handle.write('{"row": 1, "te')
    before = file.read_bytes()
    with pytest.raises(ConfigError) as caught:
        JsonlStore(file, {**SETTINGS, **changed})
    assert str(caught.value) == f"{file} was written with another {says}; choose another file"
    assert file.read_bytes() == before


@pytest.mark.parametrize("beside", [None, "", "{", "[]", b"\xff"])
def test_a_file_of_other_origin_is_refused_and_left_alone(beside: Any, file: Path) -> None:
    file.parent.mkdir()
    file.write_text("mine\n")
    if beside is not None:
        settings = file.with_name(file.name + ".settings.json")
        settings.write_bytes(beside if isinstance(beside, bytes) else beside.encode())
    with pytest.raises(ConfigError, match="is there already and was not written by this command"):
        JsonlStore(file, SETTINGS)
    assert file.read_text() == "mine\n"


def test_a_kill_before_the_first_record_leaves_room_for_other_settings(file: Path) -> None:
    JsonlStore(file, SETTINGS)
    log = JsonlStore(file, {"run": "runs/y"})
    log.add({0: {"text": "a"}})
    assert JsonlStore(file, {"run": "runs/y"}).records == {0: {"text": "a"}}


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, says in (
        (tmp_path, "a folder"),
        (Path("."), "a folder"),
        (tmp_path / "file" / "out", "cannot be written"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            JsonlStore(path, SETTINGS)
        assert "\n" not in str(caught.value)
