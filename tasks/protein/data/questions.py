"""Questions about proteins from a JSON list or JSON lines, in the forms that `mmdiff.tasks.dialogue.turns` reads.

    {"protein": "MKTAYIAK...", "question": "What does this protein do?", "answer": "It binds zinc."}
    {"protein": ["MKT...", "GSH..."], "conversations": [{"from": "human", "value": "<protein>\\n<protein>\\n..."}, ...]}

`protein` is a sequence or a list of them, or left out; `<protein>` in a human turn is where one stands.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmdiff.encoders.protein import residues
from mmdiff.errors import DataError, RowError, located
from mmdiff.files import as_object
from mmdiff.parts import part
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.rows import read_json
from mmdiff.tasks.dialogue.turns import SLOTS, answers, media_of, read_turns


@part
class ProteinQuestions:
    """The rows of one file, for `VQA`. Every row must have an answer and the proteins of its question.

    path: the file. limit: read the first rows only. max_length: residues of a protein; None: the encoder decides when
        it meets a longer one.

    Rows are those of the file, with `where` (file and row) and, of a conversation, its last `question` and
    `answer` (for reports).
    Raises DataError that names file and row, before any row is handed out.
    """

    page = "docs/data/llava.md"

    def __init__(self, path: str, limit: AtLeast1 | None = None, max_length: AtLeast1 | None = None) -> None:
        self._rows: list[Row] = []
        for where, raw in read_json(Path(path))[:limit]:
            with located(where):
                self._rows.append(_row(raw, max_length) | {"where": where})
        if not self._rows:
            raise DataError(f"{path}: no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    @classmethod
    def toy(cls, path: str, limit: AtLeast1 | None = None, max_length: AtLeast1 | None = None) -> ProteinQuestions:
        """A small file instead of `path`, written and read back; proteins of 5 to 14 residues."""
        first = [{"protein": "MKTAY" + "GS" * i, "question": "what is it", "answer": "a helix"} for i in range(3)]
        talk = [{"from": "human", "value": "<protein>\nis it long"}, {"from": "gpt", "value": "no"}]
        talk += [{"from": "human", "value": "does it bind zinc"}, {"from": "gpt", "value": "yes"}]
        with TemporaryDirectory() as folder:
            file = Path(folder) / "rows.json"
            file.write_text(json.dumps([*first, {"protein": "CPHCGKAFHRSTLX", "conversations": talk}]), "utf-8")
            return cls(str(file), limit, max_length)


def _row(raw: Any, max_length: int | None) -> dict[str, Any]:
    """The row as it is handed out. Raises DataError."""
    raw = as_object(raw)
    for field in ("image", "audio"):
        if field in raw:
            raise RowError("row is not of proteins alone", f"{field}: {raw[field]!r:.60}")
    for one in media_of(raw, "protein"):
        residues(one, max_length)
    turns, accepted = read_turns(raw), answers(raw)
    if turns[-1][1] is None or not accepted:
        raise RowError("no answer")
    if "conversations" not in raw:
        return raw
    human = [turn["value"] for turn in raw["conversations"] if turn["from"] == "human"]
    return {**raw, "question": SLOTS.sub("", human[-1]).strip(), "answer": raw.get("answer", accepted[0])}
