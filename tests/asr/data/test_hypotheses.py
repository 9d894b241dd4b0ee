"""First-pass hypotheses: every layout, how they find their rows, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.asr.data.hypotheses import WithHypotheses, read_hypotheses

Write = Callable[[str, str], str]
ROWS = [{"id": id, "text": f"text {id}", "where": f"rows line {n}"} for n, id in enumerate("abc", 1)]
HEARD = {"a": "call one", "b": "", "c": "call two two"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str) -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return str(tmp_path / name)

    return write


def texts(rows: Any) -> list[str]:
    return [rows[i]["hypothesis"] for i in range(len(rows))]


BY_ID = [
    ("text", "a call one\nb\n\nc call two two\n"),  # Kaldi: an id alone is an empty hypothesis, a blank line is nothing
    ("heard.txt", "c\tcall two two\r\nb\r\na   call one\r\n"),
    ("heard.trn", ";; sclite\ncall one (a)\n(b)\ncall two two (c) \n"),
    ("heard.json", json.dumps(HEARD)),
    ("heard.json", json.dumps(HEARD, indent=2)),
    ("heard.json", json.dumps([{"id": id, "text": text} for id, text in HEARD.items()])),
    ("heard.jsonl", "\n\n".join(json.dumps({"id": id, "hypothesis": text}) for id, text in HEARD.items())),
    # NeMo: `text` beside `pred_text` is the reference; its files of JSON lines end in .json
    ("heard.json", "\n".join(json.dumps({"id": i, "text": "ref", "pred_text": t}) for i, t in HEARD.items())),
    ("heard.json", json.dumps({id: [[text, -1.5], "other"] for id, text in HEARD.items()})),
]


@pytest.mark.parametrize(("name", "content"), BY_ID)
def test_by_id(name: str, content: str, write: Write) -> None:
    path = write(name, content)
    assert texts(WithHypotheses(ROWS, path)) == ["call one", "", "call two two"]
    assert texts(WithHypotheses(ROWS[::-1], path)) == ["call two two", "", "call one"]


BY_ORDER = [
    ("heard.txt", "call one\n\ncall two two\n"),  # a blank line is an utterance in which nothing was heard
    ("heard.txt", "\ufeffcall one\n\ncall two two"),
    ("heard.json", json.dumps(list(HEARD.values()))),
    ("heard.jsonl", "\n".join(map(json.dumps, HEARD.values()))),
    ("heard.jsonl", "\n".join(json.dumps({"text": text}) for text in HEARD.values())),
    (
        "heard.json",
        "\n".join(json.dumps({"audio_filepath": "x", "text": "ref", "pred_text": t}) for t in HEARD.values()),
    ),
]


@pytest.mark.parametrize(("name", "content"), BY_ORDER)
def test_by_order(name: str, content: str, write: Write) -> None:
    path = write(name, content)
    assert texts(WithHypotheses(ROWS, path)) == ["call one", "", "call two two"]
    anonymous = [{"text": "x"}] * 3
    assert texts(WithHypotheses(anonymous, path)) == ["call one", "", "call two two"]
    with pytest.raises(DataError, match=r"^\S+: 3 hypotheses without ids for 2 rows, expected as many$"):
        WithHypotheses(ROWS[:2], path)


def test_rows_keep_what_they_have(write: Write) -> None:
    path = write("text", "a one\nb two\nc three\n")
    rows = [{**row, "nbest": [{"text": "of another recogniser"}], "hypothesis": "old"} for row in ROWS]
    joined = WithHypotheses(rows, path)
    assert len(joined) == 3
    assert joined[1] == {
        "id": "b",
        "text": "text b",
        "hypothesis": "two",
        "where": f"rows line 2 with {path} line 2",
    }
    assert rows[1]["hypothesis"] == "old"
    path = write("7.txt", "7 one")
    assert WithHypotheses([{"id": 7}], path)[0] == {"id": 7, "hypothesis": "one", "where": f"{path} line 1"}


def test_several_hypotheses_with_scores(write: Write) -> None:
    lines = [
        {"id": "a", "nbest": [{"text": "best ", "score": -1}, {"text": "second", "score": -2.5}]},
        {"id": "b", "hypothesis": "own", "nbest": [["best", -1.0], ["second", -2]]},
        {"id": "c", "nbest": ["best", "second"]},
    ]
    rows = WithHypotheses(ROWS, write("heard.jsonl", "\n".join(map(json.dumps, lines))))
    assert texts(rows) == ["best", "own", "best"]
    assert rows[0]["nbest"] == [{"text": "best", "score": -1.0}, {"text": "second", "score": -2.5}]
    assert rows[1]["nbest"] == [{"text": "best", "score": -1.0}, {"text": "second", "score": -2.0}]
    assert rows[2]["nbest"] == [{"text": "best"}, {"text": "second"}]


def test_text_with_and_without_ids(write: Write) -> None:
    path = write("heard.txt", "a one\nb two\nc three\n")
    assert isinstance(read_hypotheses(path), list)  # nothing says that the first words are ids
    assert [h["hypothesis"] for h in read_hypotheses(path)] == ["a one", "b two", "c three"]  # type: ignore[union-attr]
    by_id = read_hypotheses(path, ids=["a", "b", "c"])
    assert by_id == read_hypotheses(path, layout="ids") == read_hypotheses(path, ids=["a", "b", "x"])
    assert isinstance(by_id, dict) and by_id["b"] == {"hypothesis": "two", "where": f"{path} line 2"}
    assert isinstance(read_hypotheses(path, ids=["a", "x", "y"]), list)
    assert texts(WithHypotheses(ROWS, path, layout="lines")) == ["a one", "b two", "c three"]


def test_ids_that_do_not_match(write: Write) -> None:
    path = write("text", "a one\nx two\nb three\n")
    with pytest.raises(DataError) as caught:
        WithHypotheses(ROWS, path)
    assert str(caught.value) == f"{path}: no hypothesis for 1 of 3 rows ('c'), 1 ids that no row has ('x')"
    with pytest.raises(DataError, match=r": no hypothesis for 1 of 3 rows \('c'\)$"):
        WithHypotheses(ROWS, path, subset=True)
    with pytest.raises(DataError, match=r": 1 ids that no row has \('x'\)$"):
        WithHypotheses(ROWS[:2], path)
    assert texts(WithHypotheses(ROWS[:2], path, subset=True)) == ["one", "three"]
    many = [{"id": str(n)} for n in range(9)]
    with pytest.raises(DataError, match=r"for 8 of 9 rows \('1', '2', '3', '4', '5', ...\)$"):
        WithHypotheses(many, write("0.txt", "0 one"), layout="ids")
    with pytest.raises(DataError, match=r"0.txt: has ids, and row 1 has none to join it by$"):
        WithHypotheses([{"id": 0}, {}], write("0.txt", "0 one"), layout="ids")


BAD = [
    ("text", "a one\nb two\na three\n", r"text line 3: duplicate id 'a', that of .*text line 1 too$"),
    ("x.trn", "one (a)\ntwo\n", r"x.trn line 2: 'two' does not end in an \(id\)$"),
    ("x.trn", "one (a b)\n", r"line 1: .* does not end in an \(id\)$"),
    ("x.jsonl", '{"id": "a", "text": "x"}\n{"id": \n', r"x.jsonl line 2: not JSON: .* at column \d+; expected"),
    ("x.json", '["a",\n"b"', r"x.json: not JSON: .* at line 2"),
    ("x.json", '["a", 7]', r"x.json row 1: 7 is neither a text nor an object$"),
    ("x.jsonl", '{"id": "a", "text": "x"}\n{"text": "y"}', r"x.jsonl line 2: no id, others have one$"),
    ("x.jsonl", '{"id": "a", "txt": "x"}\n{"id": "b", "txt": "x"}', r"line 1: no hypothesis, expected a field hypoth"),
    ("x.jsonl", '{"id": "a", "nbest": []}', r"line 1: no hypothesis"),
    ("x.json", '[{"text": 3}]', r"row 0: text is not text: 3$"),
    ("x.json", '{"a": null}', r"x.json id 'a': no hypothesis"),
    ("x.json", '{"a": 3}', r"x.json id 'a': hypothesis is not text: 3$"),
    ("x.json", '[{"nbest": "x"}]', r"row 0: nbest is not a list: 'x'$"),
    ("x.json", '[{"nbest": [["x", "y"]]}]', r"row 0: nbest entry is not text and score: \['x', 'y'\]$"),
    ("x.json", '[{"nbest": [{"score": 1}]}]', r"row 0: nbest entry is not text and score"),
    ("x.json", "[]", r"x.json: no hypotheses$"),
    ("x.txt", "", r"x.txt: no hypotheses$"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_every_refusal(name: str, content: str, message: str, write: Write) -> None:
    with pytest.raises(DataError, match=message) as caught:
        WithHypotheses(ROWS, write(name, content))
    assert "\n" not in str(caught.value)


def test_files_and_arguments(write: Write, tmp_path: Path) -> None:
    path = write("heard.txt", "x")
    with pytest.raises(DataError, match=r'herd.txt: no such file \(did you mean "heard.txt"\?\)$'):
        read_hypotheses(str(tmp_path / "herd.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        read_hypotheses(str(tmp_path))
    (tmp_path / "latin.txt").write_bytes(b"o\xf9")
    with pytest.raises(DataError, match="latin.txt: not UTF-8 at byte 1"):
        read_hypotheses(str(tmp_path / "latin.txt"))
    with pytest.raises(ConfigError, match=r"layout: 'line' \(did you mean \"lines\"\?\)$"):
        read_hypotheses(path, layout="line")


def test_toy_needs_no_file() -> None:
    rows = WithHypotheses.toy(ROWS, "not/there.trn", layout="trn", subset=True)
    assert texts(rows) == [row["text"] for row in ROWS]
