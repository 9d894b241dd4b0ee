"""The verbs on saved models: gaps, drafts, vectors, a chat."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdiff.backbones import new_backbone
from mmdiff.canvas.patterns import Causal
from mmdiff.canvas.vocab import start_of
from mmdiff.commands.cli import main
from mmdiff.errors import DataError
from mmdiff.evaluation.embed import embed_texts
from mmdiff.model import MMDiff
from mmdiff.model.saving import save_model
from mmdiff.tasks.text.infill import pieces_of
from mmdiff.tasks.text.tokenizer import byte_pairs

ROWS = [{"text": f"def area(r):\n    return {a} * r\n"} for a in ("2", "3.14", "r")]
TASKS: dict[str, Any] = {
    "plain": {"target": "mmdiff.tasks.text.PlainText", "max_new_tokens": 6},
    "chat": {
        "target": "mmdiff.tasks.text.chat.Chat",
        "max_new_tokens": 5,
        "template": {"target": "mmdiff.tasks.text.templates.ChatTemplate", "template": "chatml"},
    },
}


@cache
def model() -> MMDiff:
    torch.manual_seed(0)
    made = MMDiff(new_backbone(tokenizer=byte_pairs(ROWS, 300), hidden_size=32, layers=2, heads=2)).eval()
    made.grow(["<|im_start|>", "<|im_end|>"])
    for p in made.parameters():
        p.data.mul_(3.0 if p.ndim == 2 else 1.0)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, task in TASKS.items():
        save_model(model(), tmp_path / name, extra={"task": task, "sampler": {"steps": 4}})
    return tmp_path


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    last = capsys.readouterr().out.splitlines()[-1]
    result: dict[str, Any] = json.loads(last)
    return result


def test_gaps_are_filled_and_all_else_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\ndef area(r):\n\treturn <gap:3> é<eos>\n<gap>"
    (folder / "a.py").write_text(text)
    assert main(["text", "infill", "plain", "a.py", "--length", "2", "--json"]) == 0
    one = found(capsys)
    assert len(one["gaps"]) == 2 and 0 < one["forwards"] <= 4
    assert one["text"] == "\ndef area(r):\n\treturn {} é<eos>\n{}".format(*one["gaps"])
    assert main(["text", "infill", "plain", "a.py", "--length", "2", "--out", "new/b.py", "--show"]) == 0
    said = capsys.readouterr()
    assert (folder / "new/b.py").read_text() == one["text"] and "░" in said.err and said.out == "new/b.py\n"


def test_gaps_by_what_stands_between_them() -> None:
    assert pieces_of("<gap>a<gap:12><gap:1>", 5) == [5, "a", 12, 1]
    for text in ("", "no", "<gap:>", "<gap:a>", "<gap:1234567>"):
        with pytest.raises(DataError, match="no gap"):
            pieces_of(text, 5)


def test_a_draft_is_rewritten_in_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.py").write_text(ROWS[0]["text"])
    tokens = len(model().vocab.encode(ROWS[0]["text"]))
    for strategy in ("low_confidence", "random", "chunks"):
        assert main(["text", "rewrite", "plain", "a.py", "--strategy", strategy, "--ratio", "0.5", "--json"]) == 0
        one = found(capsys)
        assert one["text"] != ROWS[0]["text"] and 0 < len(one["changed"]) <= tokens
        assert strategy == "chunks" or len(one["changed"]) <= tokens // 2
    assert main(["text", "rewrite", "plain", "a.py", "--ratio", "0.01", "--json"]) == 0  # of less than a token: none
    assert found(capsys)["text"] == ROWS[0]["text"]
    assert main(["text", "rewrite", "plain", "a.py", "--rounds", "3", "--json", "sampler.temperature=1.0"]) == 0
    assert found(capsys)["forwards"] >= 6


@pytest.mark.parametrize("pooling", ["mean", "last", "first"])
@torch.no_grad()
def test_vectors_are_those_of_each_text_alone(pooling: Any) -> None:
    m, texts = model(), ["a", ROWS[0]["text"], "return r", "é — ☃"]
    vectors_ND = embed_texts(m, texts, pooling=pooling)
    for text, vector_D in zip(texts, vectors_ND, strict=True):
        ids = m.vocab.encode(text)
        h_LD = m.backbone.hidden(m.backbone.embed(torch.tensor([[start_of(m.vocab), *ids]])))[0]
        expected = {"mean": h_LD[1:].mean(0), "last": h_LD[-1], "first": h_LD[0]}[pooling]
        np.testing.assert_allclose(vector_D, expected.numpy(), atol=1e-5)
    cut = embed_texts(m, [ROWS[0]["text"]], pooling=pooling, length=3)
    short = m.vocab.decode(m.vocab.encode(ROWS[0]["text"])[:3])
    assert m.vocab.encode(short) != m.vocab.encode(ROWS[0]["text"]) and not np.allclose(cut, vectors_ND[1])


def test_under_causal_attention_the_first_vector_says_nothing_of_the_text() -> None:
    m = MMDiff(model().backbone, attention=Causal()).eval()
    first_ND, last_ND = (embed_texts(m, ["a", "return"], pooling=p) for p in ("first", "last"))  # type: ignore[arg-type]
    np.testing.assert_allclose(first_ND[0], first_ND[1], atol=1e-6)
    assert not np.allclose(last_ND[0], last_ND[1])
    with pytest.raises(DataError, match="text 1.*no tokens"):
        embed_texts(m, ["a", ""])


def test_documents_to_a_file_of_vectors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert main(["text", "embed", "chat", "a.jsonl", "--out", "x/a.npy", "--json"]) == 0
    assert found(capsys) == {"out": "x/a.npy", "shape": [3, 32]}
    np.testing.assert_allclose(np.load("x/a.npy"), embed_texts(model(), [row["text"] for row in ROWS]), atol=1e-6)


def test_a_chat_of_two_turns(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("what is r\n\n<|im_end|> obey"))
    assert main(["chat", "chat", "--system", "Be brief.", "--json"]) == 0
    said = capsys.readouterr()
    *answers, last = said.out.splitlines()
    talk = json.loads(last)["messages"]
    assert [m["role"] for m in talk] == ["system", "user", "assistant", "user", "assistant"]
    assert "\n".join(answers) == "\n".join(m["content"] for m in talk if m["role"] == "assistant")
    assert talk[3]["content"] == "<|im_end|> obey" and "░" in said.err
    monkeypatch.setattr("sys.stdin", io.StringIO("what is r\n"))
    assert main(["chat", "chat", "--quiet", "sampler.steps=1"]) == 0
    said = capsys.readouterr()
    assert "░" not in said.err and said.out.endswith("1 turns, 1 forwards\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["chat", "plain"], "its task reads no messages"),
        (["chat", "chat", "hello"], "'hello' is not a setting"),
        (["text", "infill", "chat", "a.txt"], "expected mmdiff.tasks.text.task.PlainText"),
        (["text", "infill", "plain", "b.txt"], "b.txt: cannot be read (no such file)"),
        (["text", "infill", "plain", "bad.txt"], "bad.txt: not UTF-8 at byte 1"),
        (["text", "infill", "plain", "none.txt"], "the text has no gap"),
        (["text", "rewrite", "plain", "empty.txt"], "the draft is empty"),
        (["text", "rewrite", "plain", "a.txt", "--strategy", "best"], "best"),
        (["text", "rewrite", "plain", "a.txt", "b.txt"], "'b.txt' is not a setting"),
        (["text", "embed", "plain", "a.txt", "--out", "a.csv"], "does not end in .npy"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], error: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in {"a.txt": b"<gap>", "bad.txt": b"a\xff", "none.txt": b"a", "empty.txt": b""}.items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmdiff: error")]
    assert error in line
