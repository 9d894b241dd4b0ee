"""Rows with fields that nothing reads, with text that is none, and values of any other kind: refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.canvas.vocab import Vocab, check_text, literal, word_tokenizer
from mmdiff.data.fields import EXTRA, check_row
from mmdiff.errors import DataError, UserError
from mmdiff.tasks.asr.data.hypotheses import read_hypotheses
from mmdiff.tasks.asr.data.kaldi import KaldiDir
from mmdiff.tasks.asr.data.manifests import Manifest
from mmdiff.tasks.asr.task import ASR
from mmdiff.tasks.dialogue.choice import MultipleChoice
from mmdiff.tasks.dialogue.controls import Blank, Fixed, Shuffled, Without, WithoutImage
from mmdiff.tasks.vqa.llava import LlavaJSON
from mmdiff.tasks.vqa.task import VQA

Q = {"question": "what", "answer": "red"}
SURROGATE = "red \ud83d"


def vocab() -> Vocab:
    tokenizer = word_tokenizer("what is it red blue a b A. B. answer with one letter".split())
    return Vocab(tokenizer, len(tokenizer), mask_id=2, eos_id=1, pad_id=0, slot_id=2)


@pytest.mark.parametrize(
    "task, row, message",
    [
        (VQA(), {**Q, "img": "a.jpg"}, r"unknown field: 'img' \(did you mean \"image\"\?\)"),
        (VQA(), {**Q, "images": ["a.jpg"]}, 'did you mean "image"'),
        (VQA(), {**Q, "Image": "a.jpg"}, 'did you mean "image"'),
        (VQA(), {**Q, "photo": "a"}, 'did you mean "image"'),
        (VQA(), {**Q, "file": "cat.JPG"}, "'file' .did you mean \"image\""),
        (VQA(), {**Q, "image": "a.jpg", "wav": "b"}, 'did you mean "audio"'),
        (VQA(), {**Q, "x": {"array": [0.0], "sampling_rate": 16000}}, 'did you mean "audio"'),
        (VQA(), {**Q, "where": "rows.json row 3", "img": "a.jpg"}, "^rows.json row 3: unknown field: 'img'"),
        (ASR(), {"text": "red", "audios": "a.wav"}, 'did you mean "audio"'),
        (ASR(), {"text": "red", "audio": "a.wav", "hypotheses": "red"}, 'did you mean "hypothesis"'),
        (MultipleChoice(), {**Q, "options": ["red", "blue"], "picture": "a"}, 'did you mean "image"'),
    ],
)
def test_a_field_that_looks_like_a_missing_one_is_refused(task: Any, row: dict[str, Any], message: str) -> None:
    for make in (task.sample, task.prompt):
        with pytest.raises(DataError, match=message) as caught:
            make(row, vocab())
        assert "\n" not in str(caught.value)


def test_other_fields_of_files_are_kept_and_of_people_refused() -> None:
    row = {**Q, "image": np.zeros((2, 2, 3), np.uint8), "image_source": "coco", "img": None, "judge": 4}
    VQA().sample(row, vocab())
    with pytest.raises(DataError, match=r"unknown field: 'image_source' \(known: answer,"):
        check_row(row, VQA.fields, strict=True)
    check_row({**row, "where": "rows.json row 0"}, VQA.fields, strict=True)
    check_row({**Q, **dict.fromkeys(EXTRA, "x")}, VQA.fields, strict=True)
    check_row(row, None, strict=True)


def test_sources_have_no_field_that_is_refused() -> None:
    from mmdiff.tasks.vqa.scenes import Scenes

    check_row(Scenes(1, 0)[0], VQA.fields, strict=True)


@pytest.mark.parametrize(
    "row",
    [
        {**Q, "question": SURROGATE},
        {**Q, "answer": SURROGATE},
        {**Q, "answer": ["red", SURROGATE]},
        {**Q, "id": SURROGATE},
        {**Q, "meta": {"a": [{"b": SURROGATE}]}},
        {**Q, "meta": {SURROGATE: 1}},
        {"conversations": [{"from": "human", "value": SURROGATE}, {"from": "gpt", "value": "red"}]},
    ],
)
def test_lone_surrogates_are_refused_in_any_field(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lone surrogate"):
        VQA().sample(row, vocab())
    good, bad = json.dumps(Q), json.dumps(row)
    (tmp_path / "a.jsonl").write_text(f"{good}\n{bad}\n")
    with pytest.raises(DataError, match=r"a\.jsonl line 2: lone surrogate"):
        LlavaJSON(str(tmp_path / "a.jsonl"))
    assert len(LlavaJSON(str(tmp_path / "a.jsonl"), on_error="skip")) == 1


def test_unknown_words_are_refused_or_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = vocab()
    with pytest.raises(DataError, match=r"does not know the word 'blu' \(did you mean \"blue\"\?\)"):
        VQA().sample({**Q, "question": "is it blu"}, words)
    assert words.encode("is it blu") == words.encode("it is blu")[1::-1] + [3]
    words.encode("blu a")
    assert capsys.readouterr().err == "the tokenizer does not know the word 'blu' (did you mean \"blue\"?)\n"
    words.encode("<unk> red <mask>")
    assert capsys.readouterr().err == ""
    for encode in (words.encode, lambda text: literal(text, words)):
        with pytest.raises(DataError, match="lone surrogate"):
            encode(SURROGATE)


def test_words_that_a_tokenizer_drops_or_hides_are_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    hidden = Tokenizer(models.WordLevel({"red": 0, "?": 1}, unk_token="?"))
    hidden.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    dropping = Tokenizer(models.BPE({"r": 0, "e": 1, "d": 2}, []))
    for core in (hidden, dropping):
        found = Vocab(PreTrainedTokenizerFast(tokenizer_object=core), 9, mask_id=2, eos_id=1, pad_id=0, slot_id=2)
        assert literal("red", found)
        with pytest.raises(DataError, match="does not know the word 'rot'"):
            literal("red rot", found)


# Files


def rows_file(folder: Path, content: bytes, name: str = "a.jsonl") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    texts = ["what\u2028is", "what\u0085is", "what\x0cis", "what\x1eis"]
    lines = "".join(json.dumps({**Q, "question": text}, ensure_ascii=False) + "\r\n" for text in texts)
    for head in (b"", b"\xef\xbb\xbf"):
        rows = LlavaJSON(rows_file(tmp_path, head + lines.encode()))
        assert [row["question"] for row in rows] == texts  # type: ignore[attr-defined]


BIG = b'{"question": "what", "answer": "red", "n": ' + b"9" * 5000 + b"}"
DEEP = b'{"question": "what", "answer": "red", "n": ' + b"[" * 3000 + b"]" * 3000 + b"}"
FAULTS = [
    (b"", "no row can be used"),
    (b"[]", "no row can be used"),
    (b"null", "not a JSON object"),
    (b"3", "not a JSON object"),
    (b"\xff\xfe{", "not UTF-8 at byte 0"),
    (b"\x1f\x8b\x08\x00", "packed by gzip, expected text; unpack it"),
    (b"{}", "no question"),
    (b'{"question": null, "answer": "red"}', "question is not text"),
    (b'{"question": NaN, "answer": "red"}', "question is not text"),
    (b'{"question": "what", "answer": 1e400}', "answer is not text"),
    (b'{"question": "what", "answer": "red", "image": 3}', "image is not a path"),
    (b'{"question": "what", "answer": "red", "image": ""}', "image is not a path"),
    (b'{"question": "what", "answer": "red", "image": "a\\u0000"}', "image is not a path"),
    (b'{"question": "what", "answer": "red", "image": "."}', "image is not a picture"),
    (b'{"question": "what", "answer": "red", "image": "pipe"}', "image is not a picture: .*a device or pipe"),
    (b'{"question": "what", "answer": "red", "image": "iVBO' + b"AAAA" * 9000 + b'"}', "not a path of"),
    (b'{"question": "what", "answer": "red", "image": "x/' + b"A/AA" * 9000 + b'"}', "not a path of|missing"),
    (BIG, "not JSON|integer string"),
    (b"[" + BIG + b"]", "not JSON"),
    (DEEP, "nested too deeply"),
    (b"[" + DEEP + b"]", "nested too deeply"),
    (b'{"question": "what", "answer": "red", "n": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
    (b'{"question": "what", "answer": "red", "images": "a.png"}', 'unknown field.*did you mean "image"'),
]


@pytest.mark.parametrize("content, message", FAULTS)
def test_rows_that_are_none(content: bytes, message: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = rows_file(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        LlavaJSON(path)
    assert len(str(caught.value)) < 420 and "\n" not in str(caught.value)
    if content[:1] == b"{":
        rows_file(tmp_path, json.dumps(Q).encode() + b"\n" + content)
        assert len(LlavaJSON(path, on_error="skip")) == 1


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "a\0b", "x" * 5000, "\ud800"):
        for read in (LlavaJSON, Manifest, KaldiDir, lambda path: read_hypotheses(path, "lines"), read_hypotheses):
            with pytest.raises(UserError) as caught:
                read(str(tmp_path / name))  # type: ignore[operator]
            assert len(str(caught.value)) < 420 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"audio": "a.wav", "text": SURROGATE},
        {"audio": "a.wav", "text": "red", "hypothesis": SURROGATE},
        {"audio": "a.wav", "text": "red", "nbest": [[SURROGATE, -1.0]]},
        {"audio": "a.wav", "text": "red", "ofset": 1.0},
        {"audio": "a.wav", "text": "red", "start": 1.0},
        {"audio": "a.wav", "text": "red", "durations": 1.0},
        {"audio": "a.wav", "text": "red", "hypothesys": "red"},
        {"audio": "a.wav", "text": "red", "duration": 10**400},
        {"audio": "UklGR" * 9000, "text": "red"},
    ],
)
def test_manifests(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    path = rows_file(tmp_path, json.dumps(raw).encode())
    with pytest.raises(DataError) as caught:
        Manifest(path, verify=False)
    assert len(str(caught.value)) < 420 and str(caught.value).startswith(f"{path} line 1: ")


def test_hypotheses_with_surrogates_are_refused(tmp_path: Path) -> None:
    for value in (SURROGATE, {"hypothesis": SURROGATE}, {"hypothesis": "red", "nbest": [SURROGATE]}):
        with pytest.raises(DataError, match="line 1: lone surrogate"):
            read_hypotheses(rows_file(tmp_path, json.dumps(value).encode()))


# Controls


def test_controls_of_another_medium_are_refused() -> None:
    sounds = [{**Q, "audio": f"{i}.wav"} for i in range(3)]
    with pytest.raises(DataError, match=r"row \d: no field 'image' to shuffle \(known: answer, audio, question\)"):
        Shuffled(sounds, 0)[0]
    assert {row["audio"] for row in Shuffled(sounds, 0, ["audio"])} == {"0.wav", "1.wav", "2.wav"}  # type: ignore
    for control in (Blank, WithoutImage):
        with pytest.raises(DataError, match=f"{control.__name__} is of pictures, this row has audio"):
            control(sounds)[0]
        assert control([Q])[0] == Q
    with pytest.raises(DataError, match="no field 'audios' .did you mean \"audio\""):
        Without(sounds, ["audios"])[0]
    with pytest.raises(DataError, match="no field 'qestion' .did you mean \"question\""):
        Fixed(sounds, {"qestion": ""})[0]
    assert Without(sounds, ["image"])[0] == sounds[0] and Fixed(sounds, {"note": 1})[0]["note"] == 1


def test_controls_leave_what_the_task_refuses() -> None:
    for value in (None, 3, [3], [{"from": 3}], [{"from": "human", "value": None}]):
        for field in ("question", "conversations"):
            row = {**Q, field: value}
            assert WithoutImage([row])[0] == row
    for picture in (3, {}, "gone.png", "A" * 5000, ".", "/dev/zero"):
        with pytest.raises(DataError) as caught:
            Blank([{**Q, "image": picture}])[0]
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value", [3, 10**400, np.zeros((3, 3)), [np.zeros((3, 3))], float("nan"), b"x", {"a": 1}, [[]]]
)
def test_values_of_other_kinds_are_one_line(value: Any) -> None:
    base = {**Q, "text": "red", "options": ["red", "blue"]}
    for task in (VQA(), ASR(draft=True), MultipleChoice()):
        for name in set(task.fields) - {"image", "audio", "protein", "nbest", "duration", "answer_type"} | {"where"}:
            row = {**base, name: value}
            for call in (task.sample, task.prompt, lambda row, _, task=task: task.score("red", row)):
                try:
                    call(row, vocab())
                except DataError as error:
                    assert "\n" not in str(error) and len(str(error)) < 400  # noqa: PT017


@pytest.mark.parametrize(("before", "shown"), [(0, ""), (2, "xx"), (30, "x" * 20)])
def test_a_lone_surrogate_is_shown_with_what_stands_around_it(before: int, shown: str) -> None:
    with pytest.raises(DataError) as error:
        check_text("x" * before + "\ud800" + "y" * 30)
    assert str(error.value).endswith(f", at {before} of '{shown}\\ud800{'y' * 19}'")
