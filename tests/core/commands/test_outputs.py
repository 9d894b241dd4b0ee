"""Files that options name: what cannot be made is refused before anything is read or computed, in every verb."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdiff.commands.cli import main
from mmdiff.errors import UserError
from mmdiff.files import make_folder, output_file

VERBS = [  # none of these runs and files is there, so that an output that is looked at later gives another line
    ["text", "infill", "none", "none.txt", "--out"],
    ["text", "rewrite", "none", "none.txt", "--out"],
    ["text", "embed", "none", "none.txt", "--out"],
    ["asr", "transcribe", "none", "none.wav", "--out"],
    ["asr", "eval", "none", "--manifest", "none.jsonl", "--report"],
    ["protein", "score", "none", "none.fasta", "--out"],
    ["protein", "generate", "none", "--length", "9", "--out"],
    ["protein", "eval", "none", "none.fasta", "--report"],
    ["vla", "stats", "none", "--out"],
    ["vla", "codec", "none", "--out"],
    ["compare", "none", "other", "--html"],
    ["card", "none", "--out"],
]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: "-".join(words[:2]))
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("file.txt/made.npy", "cannot be written (file.txt is a file)"),
        ("folder.npy", "'folder.npy' is not the name of a file"),
        (f"{'x' * 200}.npy", "a name of more than 120 bytes"),
    ],
)
def test_an_output_that_cannot_be(
    words: list[str],
    name: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.npy").mkdir()
    assert main([*words, name]) == 2
    error = capsys.readouterr().err
    assert f"{words[-1]}: " in error and why in error and error.count("\n") == 1, error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "folder.npy"]


def test_what_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "of" / "it.csv"
    assert output_file("--out", file) == file and not (tmp_path / "new").exists()
    make_folder("--out", file)
    assert file.parent.is_dir() and not list(file.parent.iterdir())
    assert output_file("--out", None) is None
    file.touch()
    assert output_file("--out", str(file)) == file
    with pytest.raises(UserError, match=r"--out: .*it\.csv is there already; choose another file"):
        output_file("--out", file, new=True)
