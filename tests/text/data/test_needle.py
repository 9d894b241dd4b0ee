"""The needle task: what its rows hold, and the grid of readers whose memory is known."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdiff.backbones import new_backbone
from mmdiff.canvas.sample import Target, Text
from mmdiff.commands.cli import main
from mmdiff.errors import ConfigError, DataError
from mmdiff.evaluation.evaluate import evaluate
from mmdiff.model import MMDiff
from mmdiff.model.saving import save_model
from mmdiff.session import Session
from mmdiff.tasks.text.data.needle import Needles, grid
from mmdiff.tasks.text.task import PlainText
from mmdiff.tasks.text.tokenizer import byte_pairs

LINES = [{"text": "\n".join(f"Line {n} of document {d} is here.\n" for n in range(40))} for d in range(3)]
WORDS = byte_pairs([*LINES, {"text": "The secret number of Lisbon is 12345."}], 320)
LENGTHS, DEPTHS = (160, 250, 500), (0.0, 0.5, 1.0)
FACT = re.compile(r"The secret number of (\w+) is (\d{5})\.\n")


def needles(**given: Any) -> Needles:
    return Needles(WORDS, LINES, **{"lengths": LENGTHS, "depths": DEPTHS, "count": 3, **given})


def tokens(text: str) -> int:
    return len(WORDS(text)["input_ids"])


@pytest.mark.parametrize("others", [0, 2])
def test_a_row_hides_its_fact_at_its_depth_and_fills_its_length(others: int) -> None:
    rows = needles(others=others)
    assert len(rows) == 27
    longest = max(tokens(f"{line}\n") for line in LINES[0]["text"].splitlines())
    for n in range(len(rows)):
        row, (length, depth) = rows[n], rows.cell(n)
        text, gap = row["text"]
        assert row["kind"] == f"{length} tokens, depth {depth:g}" and gap == tokens(f" {row['answer']}")
        facts = FACT.findall(text)
        city = text.rsplit(" is", 1)[0].rsplit(" ", 1)[1]
        assert text.endswith(f"The secret number of {city} is") and (city, row["answer"]) in facts
        assert len(facts) == len({c for c, _ in facts}) == 1 + others
        canvas = PlainText().prompt(row, vocab_of())
        assert isinstance(canvas[-1], Target) and canvas[-1].length == gap
        size = gap + sum(len(part.ids) for part in canvas if isinstance(part, Text))
        assert length - longest - 8 <= size <= length  # merges across lines may save a few
        hay = FACT.sub("", text[: text.rindex("The secret")])
        before = FACT.sub("", text[: text.index(f"The secret number of {city} is {row['answer']}")])
        assert abs(tokens(before) - depth * tokens(hay)) <= longest
        assert depth not in (0.0, 1.0) or before == (hay if depth else "")


def vocab_of() -> Any:
    return MMDiff(new_backbone(tokenizer=WORDS, hidden_size=16, layers=1, heads=2)).vocab


def test_rows_are_those_of_their_seed_and_number() -> None:
    rows, again = needles(), needles()
    assert [rows[n] for n in range(27)] == [again[n] for n in reversed(range(27))][::-1]
    assert len({rows[n]["answer"] for n in range(27)}) > 24
    assert rows[0] != needles(seed=1)[0] and rows[0]["answer"] == needles(others=2)[0]["answer"]


@dataclass(repr=False)
class Reader(Session[PlainText]):
    """Sees the last `window` characters, and names the number of the city that is asked for, or the last one there."""

    window: int = 0
    careless: bool = False

    def predict_many(self, rows: Any, **_: Any) -> list[dict[str, Any]]:
        return [{"prediction": f" {self._found(row['text'][0])}", "forwards": 1} for row in rows]

    def _found(self, text: str) -> str:
        city = text.rsplit(" is", 1)[0].rsplit(" ", 1)[1]
        facts = FACT.findall(text[-self.window :])
        return next((number for name, number in reversed(facts) if self.careless or name == city), "")


def read(rows: Needles, window: int, careless: bool = False) -> dict[int, dict[float, float]]:
    reader = Reader(None, PlainText(), None, Path(), window, careless)  # type: ignore[arg-type]
    figures, records = evaluate(reader, rows)
    found = grid(rows, records)
    assert figures["exact_match"] == pytest.approx(sum(sum(own.values()) for own in found.values()) / (len(rows) / 3))
    return found


def test_the_grid_of_readers_whose_memory_is_known() -> None:
    rows = needles()
    assert read(rows, 10**6) == {length: dict.fromkeys(DEPTHS, 1.0) for length in LENGTHS}
    assert read(rows, 60) == {length: {0.0: 0.0, 0.5: 0.0, 1.0: 0.0} for length in LENGTHS}
    near = read(rows, 90)  # the question and the fact before it
    assert near == {length: {0.0: 0.0, 0.5: 0.0, 1.0: 1.0} for length in LENGTHS}
    size = {n: len(rows[i]["text"][0]) for i, n in ((0, 160), (9, 250), (18, 500))}
    half = read(rows, size[250])
    assert half[160] == half[250] | {0.0: 1.0} == dict.fromkeys(DEPTHS, 1.0) and half[500][0.0] == 0.0
    many = needles(others=2, depths=(0.0,))
    assert read(many, 10**6) == {length: {0.0: 1.0} for length in LENGTHS}
    assert read(many, 10**6, careless=True) == {length: {0.0: 0.0} for length in LENGTHS}


def test_the_verb_asks_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = MMDiff(new_backbone(tokenizer=WORDS, hidden_size=16, layers=1, heads=2))
    save_model(model, tmp_path / "m", extra={"task": {"target": "mmdiff.tasks.text.PlainText"}, "sampler": {}})
    given = ["rows.lengths=[100,140]", "rows.depths=[0,1]", "rows.count=1", "rows.documents.target=x", "--json"]
    (tmp_path / "a.txt").write_text(LINES[0]["text"])
    given[3] = f"rows.documents={{target: mmdiff.tasks.text.data.documents.Documents, path: {tmp_path / 'a.txt'}}}"
    assert main(["text", "needle", str(tmp_path / "m"), *given, "sampler.steps=2"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert out["by_length"] == {"100": {"0": 0.0, "1": 0.0}, "140": {"0": 0.0, "1": 0.0}} and out["found"] == 0.0
    assert [record["forwards"] for record in out["records"]] == [2] * 4
    for wrong, line in (
        ("rows.depths=[2]", "rows.depths.0=2"),
        ("rows.lengths=[20]", "lengths: 20: facts and question"),
    ):
        assert main(["text", "needle", str(tmp_path / "m"), *given, wrong]) == 2
        assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "error", "line"),
    [
        ({"lengths": ()}, ConfigError, "expected at least one of each"),
        ({"lengths": (2**40,)}, ConfigError, "lengths: 1099511627776, expected at most"),
        ({"others": 26}, ConfigError, "others: 26, expected at most 25"),
    ],
)
def test_what_cannot_be_asked_is_one_line(given: dict[str, Any], error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=line):
        needles(**given)
    with pytest.raises(DataError, match="no line of text"):
        Needles(WORDS, [{"text": "\n\n"}])
