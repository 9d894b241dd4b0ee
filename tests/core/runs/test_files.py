"""Files and folders that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdiff.files import aside, remove, write_text


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
