"""The CTC head as a recogniser: greedy transcripts, and first passes as rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from spoken import VOCAB, ids, letters, model, planted, row, saved

from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.asr import ctc
from mmdiff.tasks.asr.ctc import FirstPass, emitted, encoded, first_pass, greedy, read_clip

pytestmark = pytest.mark.needs("torchaudio", "soundfile")

BLANK = VOCAB.mask_id


def test_greedy_by_hand() -> None:
    one, two = ids("one two")
    b = BLANK
    assert greedy(planted([b, one, one, b, two, two, two, b]), VOCAB) == "one two"
    assert greedy(planted([one, b, one, one, two, b, two]), VOCAB) == "one one two two"  # a blank between: said twice
    assert greedy(planted([b, b, b]), VOCAB) == ""
    bytes_ = letters()
    spelled = [i for letter in bytes_.encode(" ab ba") for i in (letter, bytes_.mask_id)]
    assert greedy(planted(spelled, size=bytes_.size), bytes_) == "ab ba"


def test_first_passes_do_not_depend_on_the_batch() -> None:
    net = model()
    rows = [row(seconds, n) for n, seconds in enumerate((1.3, 0.4, 2.1, 0.9, 0.4))]
    alone = [first_pass(net, [one])[0] for one in rows]
    assert len(set(alone)) == 5 and all(alone)
    assert first_pass(net, rows) == first_pass(net, rows, batch_size=2) == alone
    log_p = emitted(net, encoded(net, [read_clip(net, one) for one in rows]))
    assert [len(log_p_TV) for log_p_TV in log_p] == [17, 6, 27, 12, 6]  # a feature to 80 ms, rounded up
    torch.testing.assert_close(log_p[1], emitted(net, encoded(net, [read_clip(net, rows[1])]))[0], atol=1e-4, rtol=0)
    assert [greedy(log_p_TV, net.vocab) for log_p_TV in log_p] == alone


def test_what_cannot_be_heard() -> None:
    with pytest.raises(ConfigError, match=r"model.heads.audio: there is no head"):
        first_pass(model(head=False), [row(0.4)])
    with pytest.raises(DataError, match="^m.jsonl line 2: no audio$"):
        first_pass(model(), [{"text": "one", "where": "m.jsonl line 2"}])
    with pytest.raises(ConfigError, match=r'model.encoders: none is for audi \(did you mean "audio"\?\)'):
        first_pass(model(), [row(0.4)], kind="audi")


class Counted:
    """Rows that count how often each was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return row(0.3 + 0.2 * index, index, text="one two three", id=str(index))


def test_first_pass_rows_have_what_the_run_hears_and_hold_no_sound(tmp_path: Path) -> None:
    rows = Counted()
    source = FirstPass(rows, saved(tmp_path / "model"))
    assert rows.asked == [0, 1, 2] and len(source) == 3
    assert source[1]["hypothesis"] == first_pass(model(), [rows[1]])[0] and source[1]["id"] == "1"
    rows.asked.clear()
    assert source[2]["text"] == "one two three" and rows.asked == [2]


def test_toy_hears_all_but_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc, "load", None)
    source = FirstPass.toy([{"text": "one two", "id": n} for n in range(20)], "runs/none")
    assert len(source) == 8 and source[7] == {"text": "one two", "id": 7, "hypothesis": "one"}
