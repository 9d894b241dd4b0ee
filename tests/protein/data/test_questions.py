"""Rows of questions about proteins: both forms, where the proteins stand, and what is refused, by file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy import backbone

from mmdiff.canvas.sample import Media
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.protein.data.questions import ProteinQuestions
from mmdiff.tasks.vqa.task import VQA

FIRST = {"id": "p1", "protein": "MKV", "question": "where", "answer": "north"}
PAIR = [
    {"from": "human", "value": "<protein>\n<protein>\nwhere"},
    {"from": "gpt", "value": "east"},
    {"from": "human", "value": "south"},
    {"from": "gpt", "value": "west"},
]
TALK = {"protein": ["MKV", "GSH"], "conversations": PAIR}


def written(folder: Path, rows: list[Any], lines: bool = False) -> str:
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    (folder / "rows.json").write_text(text)
    return str(folder / "rows.json")


@pytest.mark.parametrize("lines", [False, True])
def test_proteins_reach_the_canvas_in_the_order_of_their_slots(tmp_path: Path, lines: bool) -> None:
    rows = ProteinQuestions(written(tmp_path, [FIRST, TALK, {"question": "where", "answer": "south"}], lines))
    task, vocab = VQA(), backbone().vocab
    media = [[p for p in task.sample(row, vocab) if isinstance(p, Media)] for row in rows]
    assert [[(m.kind, m.data) for m in of_row] for of_row in media] == [
        [("protein", "MKV")],
        [("protein", "MKV"), ("protein", "GSH")],
        [],
    ]
    place = "line 1" if lines else "row 0"
    assert rows[0]["where"] == f"{tmp_path / 'rows.json'} {place}" and rows[0]["protein"] == "MKV"
    assert (rows[1]["question"], rows[1]["answer"]) == ("south", "west")
    assert [isinstance(p, Media) for p in task.prompt(rows[0], vocab)][0]
    assert len(ProteinQuestions(written(tmp_path, [FIRST, TALK], lines), limit=1)) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (FIRST | {"protein": "MJV"}, "row 1: protein: residue 2 is 'J'"),
        (FIRST | {"protein": "MKVG"}, "row 1: protein: 4 residues, max_length is 3"),
        (FIRST | {"protein": [7]}, "row 1: protein: 7 is no sequence"),
        (FIRST | {"answer": None}, "row 1: no answer"),
        (FIRST | {"image": "cat.png"}, "row 1: row is not of proteins alone: image"),
        (FIRST | {"question": "<image> where"}, "row 1: more <image> slots than pictures: 1 slots, 0 pictures"),
        (FIRST | {"question": "<protein> <protein>"}, "row 1: more <protein> slots than proteins: 2 slots, 1 proteins"),
        (TALK | {"protein": ["MKV"] * 3}, "row 1: fewer <protein> slots than proteins"),
        (TALK | {"conversations": PAIR[:3]}, "row 1: no answer"),
        (TALK | {"conversations": ["hello"]}, "row 1: turn is not a mapping"),
        (TALK | {"conversations": "hello"}, "row 1: no conversation"),
        ("hello", "row 1: not a JSON object"),
        ({"protein": "MKV", "answer": "north"}, "row 1: no question"),
    ],
)
def test_what_cannot_be_used_is_named_by_row(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        ProteinQuestions(written(tmp_path, [FIRST, row]), max_length=3)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_no_rows_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        ProteinQuestions(written(tmp_path, []))
    with pytest.raises(DataError, match="no such file"):
        ProteinQuestions(str(tmp_path / "absent.json"))
    with pytest.raises(ConfigError, match="limit=0: expected a whole number of at least 1"):
        ProteinQuestions(written(tmp_path, [FIRST]), limit=0)
