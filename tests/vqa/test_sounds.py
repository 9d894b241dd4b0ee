"""Sounds in dialogues: rows, slots, LLaVA-like files with every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.canvas.sample import Media
from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.errors import DataError
from mmdiff.tasks.dialogue.turns import read_turns
from mmdiff.tasks.vqa.llava import LlavaJSON, write_clips
from mmdiff.tasks.vqa.task import VQA

pytestmark = pytest.mark.needs("soundfile")

WORDS = "who speaks a child an old man sure yes no and then".split()


def vocab() -> Vocab:
    made = word_tokenizer(WORDS)
    return Vocab(made, len(made), mask_id=2, eos_id=1, pad_id=0, slot_id=2)


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


# Rows


def told(row: dict[str, Any], kind: str = "image") -> list[list[str]]:
    """Media as [field data], texts as they are."""
    return [
        [f"[{p.kind} {p.data}]" if isinstance(p, Media) else p for p in content] for content, _ in read_turns(row, kind)
    ]


@pytest.mark.parametrize(
    "row, content",
    [
        ({"question": "who", "audio": "a"}, ["[audio a]", "\nwho"]),
        ({"question": "who <audio>", "audio": "a"}, ["[audio a]", "\nwho"]),
        ({"question": "who", "audio": ["a", "b"]}, ["[audio a]", "\n", "[audio b]", "\nwho"]),
        ({"question": "<audio> and <audio>", "audio": ["a", "b"]}, ["[audio a]", " and ", "[audio b]"]),
        ({"question": "who", "audio": "a", "image": "x"}, ["[image x]", "\n", "[audio a]", "\nwho"]),
        ({"question": "<audio> or <image>", "audio": "a", "image": "x"}, ["[audio a]", " or ", "[image x]"]),
        ({"question": "<image> is it", "audio": "a", "image": "x"}, ["[audio a]", "\n", "[image x]", " is it"]),
        ({"question": "<audio>", "audio": "a"}, ["[audio a]"]),
        ({"question": "who", "audio": None}, ["who"]),
    ],
)
def test_slots(row: dict[str, Any], content: list[str]) -> None:
    assert told(row) == [content]


def test_conversations_take_their_sounds_in_order() -> None:
    row = {
        "audio": ["a", "b"],
        "image": ["x"],
        "conversations": [human("<audio>\nwho"), gpt("no"), human("<image><audio> sure"), gpt("yes")],
    }
    assert told(row) == [["[audio a]", "\nwho"], ["[image x]", "[audio b]", " sure"]]
    assert told(row, kind="photo")[1][:2] == ["[photo x]", "[audio b]"]  # `media` of a task is for pictures


@pytest.mark.parametrize("form", ["path", "array"])
def test_sounds_in_any_form(form: str) -> None:
    data: Any = "clip.wav" if form == "path" else {"array": np.zeros(160, np.float32), "sampling_rate": 16000}
    (media,) = [
        p for p in VQA().sample({"audio": data, "question": "who", "answer": "no"}, vocab()) if isinstance(p, Media)
    ]
    assert media.kind == "audio" and media.data is data


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "who <audio>"}, "more <audio> slots than sounds: 1 slots, 0 sounds"),
        ({"question": "<audio> who", "audio": ["a", "b"]}, "fewer <audio> slots than sounds: 1 slots, 2 sounds"),
        ({"question": "<image>", "audio": "a"}, "more <image> slots than pictures: 1 slots, 0 pictures"),
        ({"conversations": [human("who")], "audio": "a"}, "fewer <audio> slots than sounds: 0 slots, 1 sounds"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        VQA().prompt(row, vocab())


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sounds, and others that are none."""
    write_clips(tmp_path)
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    whole = (tmp_path / "tone0.wav").read_bytes()
    (tmp_path / "silent.wav").write_bytes(whole[:40] + bytes(4))  # a header and no samples
    return tmp_path


GOOD = {"audio": "tone0.wav", "question": "who", "answer": "an old man", "options": ["a child", "an old man"]}
TALK = {"audio": "tone1.wav", "conversations": [human("<audio>\nwho"), gpt("a child")]}


def write(folder: Path, *rows: Any) -> str:
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return str(folder / "rows.json")


def test_both_forms(folder: Path) -> None:
    path = write(folder, GOOD, TALK)
    rows = LlavaJSON(path)
    assert rows[0] == {**GOOD, "audio": [str(folder / "tone0.wav")], "where": f"{path} row 0"}
    assert rows[1]["audio"] == [str(folder / "tone1.wav")]
    assert (rows[1]["question"], rows[1]["answer"]) == ("who", "a child")
    assert VQA().parse(list(VQA().sample(rows[1], vocab())[-1].ids or []), vocab()) == "a child"


def test_sounds_and_pictures_lie_in_folders_of_their_own(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pictures = tmp_path_factory.mktemp("pictures")
    (pictures / "x.png").write_bytes(b"")
    path = write(folder.parent, {**GOOD, "image": "x.png"})
    rows = LlavaJSON(path, images=str(pictures), audio=str(folder), verify=False)
    assert rows[0]["audio"] == [str(folder / "tone0.wav")] and rows[0]["image"] == [str(pictures / "x.png")]
    with pytest.raises(DataError, match="audio: .*nowhere is not a folder"):
        LlavaJSON(path, images=str(pictures), audio=str(folder / "nowhere"))
    with pytest.raises(DataError, match="missing sound: "):
        LlavaJSON(path, images=str(pictures))


@pytest.mark.parametrize(
    "reason, audio, detail",
    [
        ("missing sound", "none.wav", "none.wav$"),
        ("unreadable sound", "text.wav", r"text.wav \(not a sound file, expected WAV, FLAC, OGG or MP3\)$"),
        ("unreadable sound", "empty.wav", r"empty.wav \(not a sound file"),
        ("unreadable sound", "silent.wav", r"silent.wav \(holds no samples\)$"),
        ("sound outside the folder", "../tone0.wav", "'../tone0.wav' leads out of"),
        ("audio is not a path", 7, "7$"),
        ("audio is not a path", {"path": "tone0.wav"}, "{'path': 'tone0.wav'}$"),
        ("more <audio> slots than sounds", None, "1 slots, 0 sounds$"),
    ],
)
def test_every_refusal(reason: str, audio: Any, detail: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(folder, GOOD, {**TALK, "audio": audio}, GOOD)
    with pytest.raises(DataError, match=detail) as caught:
        LlavaJSON(path)
    assert str(caught.value).startswith(f"{path} row 1: {reason}") and "\n" not in str(caught.value)
    rows = LlavaJSON(path, on_error="skip")
    assert len(rows) == 2 and rows.skipped == {reason: 1}
    assert capsys.readouterr().err == f"{path}: skipped 1 of 3 rows (1 {reason})\n"


def test_without_verification_only_the_files_are_looked_for(folder: Path) -> None:
    path = write(folder, {**GOOD, "audio": "text.wav"})
    assert len(LlavaJSON(path, verify=False)) == 1


def test_toy_needs_no_files_and_leaves_none() -> None:
    from mmdiff.encoders.media.audio import duration

    rows = LlavaJSON.toy("not/there.json", audio="not/there")
    assert [round(duration(row["audio"][0]), 3) for row in rows] == [0.3, 0.6, 0.9, 1.2]
    assert [row["answer"] for row in rows] == ["zero", "one three", "two four one", "three zero two four"]
    assert ["conversations" in row for row in rows] == [False, True, False, True]
    sound = Path(rows[0]["audio"][0])
    del rows
    assert not sound.exists()
