"""The page about recognised speech: what stands where, what cannot run, and what its pictures and sounds hold."""

from __future__ import annotations

import base64
import io
import math
import os
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages.html_page import EVIL, Page
from torch import Tensor

from mmdiff.errors import DataError
from mmdiff.tasks.asr.report import (
    PLAYED,
    Example,
    boxes_of,
    card,
    marked,
    outcome,
    side_by_side,
    sound,
    spectrogram,
    ticks,
    write_asr_report,
)
from mmdiff.tasks.asr.words import Word

pytestmark = pytest.mark.needs("jiwer", "soundfile")


def tone(hz: float, seconds: float = 1.0) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(round(16000 * seconds)) / 16000)


def clip(wave_S: Tensor) -> dict[str, Any]:
    return {"array": wave_S.numpy(), "sampling_rate": 16000}


def example(text: str, first_pass: str | None, prediction: str, **more: Any) -> Example:
    """Draft and canvas are the words, one position each; positions of other words were masked again."""
    after = prediction.split()
    draft = [None] * len(after) if first_pass is None else [*first_pass.split(), *["<eos>"] * len(after)][: len(after)]
    canvas = [(new, int(new != old), 0.5) for new, old in zip(after, draft, strict=True)]
    return Example(**{"audio": None, "canvas": canvas, "draft": draft, **more}, **_texts(text, first_pass, prediction))


def _texts(text: str, first_pass: str | None, prediction: str) -> dict[str, Any]:
    return {"text": text, "first_pass": first_pass, "prediction": prediction}


def page(folder: Path, *examples: Example, **more: Any) -> Page:
    file = write_asr_report(folder / "a.html", **{"title": "t", "table": {}, "examples": {"set": examples}, **more})
    return Page(file.read_text())


# Figures


def test_the_lowest_of_each_column_is_marked(tmp_path: Path) -> None:
    table: dict[str, dict[str, float | str]] = {
        "first pass": {"clean": 13.0, "forwards": "0"},
        "low": {"clean": 7.314, "noisy": 18, "forwards": "7"},
        "random": {"clean": 7.306, "noisy": 19.0},
    }
    columns, rows = marked(table)
    assert columns == ["clean", "forwards", "noisy"]
    assert rows == {
        "first pass": [("13.00", False), ("0", False), ("–", False)],
        "low": [("7.31", True), ("7", False), ("18.00", True)],  # equal as shown: both are the best
        "random": [("7.31", True), ("–", False), ("19.00", False)],
    }
    found = page(tmp_path, table=table)
    assert [text for attributes, text in found.find("th") if attributes.get("scope") == "row"] == list(table)
    assert [text for _, text in found.find("td", "best")] == ["7.31", "18.00", "7.31"]


def test_nothing_is_fetched_from_elsewhere(tmp_path: Path) -> None:
    picture = "data:image/png;base64,AAAA"
    found = page(tmp_path, example("a", "b", "a", audio=clip(tone(440))), curves=picture, plots=[("sweep", picture)])
    sources = [value for _, attributes, _ in found.elements for key, value in attributes.items() if key == "src"]
    assert len(sources) == 4 and all(source and source.startswith("data:") for source in sources)
    assert not found.find("link") and "http" not in (tmp_path / "a.html").read_text()


# Order


def test_outcomes() -> None:
    assert [outcome(2, 1), outcome(1, 2), outcome(1, 1), outcome(0, 0)] == ["corrected", "worse", "wrong", "right"]
    assert [outcome(None, 1), outcome(None, 0)] == ["wrong", "right"]


def test_changed_examples_come_first(tmp_path: Path) -> None:
    rows = [
        example("a b", "a b", "a b"),
        example("c d", "c x", "c x"),
        example("e f", "e f", "e x"),
        example("g h", "g x", "g h"),
        example("i j", "x x", "i j"),
    ]
    found = page(tmp_path, *rows)
    cards = [str(attributes["class"]).split()[-1] for attributes, _ in found.find("div", "card")]
    assert cards == ["corrected", "corrected", "worse", "wrong", "right"]
    said = [text for _, text in found.find("span", "said")]
    assert said == "i j g h e f c d a b".split()  # of the corrected, two errors come before one
    filters = [(attributes["value"], attributes.get("type")) for attributes, _ in found.find("input")]
    assert [value for value, kind in filters if kind == "checkbox"] == ["corrected", "worse", "wrong", "right"]


# Words


def test_transcripts_stand_below_the_words_of_the_reference() -> None:
    said = ["a x c d new e f", "more a b d e f"]  # no other alignment of these is as short
    assert list(side_by_side("a b c d e f", said)) == [
        (None, [("", None), ("insert", "more")]),
        ("a", [("equal", "a"), ("equal", "a")]),
        ("b", [("substitute", "x"), ("equal", "b")]),
        ("c", [("equal", "c"), ("delete", None)]),
        ("d", [("equal", "d"), ("equal", "d")]),
        (None, [("insert", "new"), ("", None)]),
        ("e", [("equal", "e"), ("equal", "e")]),
        ("f", [("equal", "f"), ("equal", "f")]),
    ]
    assert list(side_by_side("a", ["a b c"])) == [("a", [("equal", "a")]), (None, [("insert", "b c")])]
    assert list(side_by_side("", ["a b"])) == [(None, [("insert", "a b")])]
    assert list(side_by_side("a b", [""])) == [("a", [("delete", None)]), ("b", [("delete", None)])]


def test_errors_are_marked_without_colour_too(tmp_path: Path) -> None:
    found = page(tmp_path, example("a b c d", "a x c e d", "a b d"))
    legend = 1  # each mark is shown once above
    assert [text for _, text in found.find("ins")][legend:] == ["e"]
    assert [text for _, text in found.find("del")][legend:] == ["c"]  # the word of the reference, struck out
    assert [text for _, text in found.find("span", "substitute")][legend:] == ["x"]
    assert [text for _, text in found.find("span", "fixed")][legend:] == ["b"]
    html = (tmp_path / "a.html").read_text()
    assert "2 &rarr; 1 error in 4 words" in html and "first pass S 1 D 0 I 1;" in html and "result S 0 D 1 I 0" in html


def test_writing_from_nothing_has_no_first_pass(tmp_path: Path) -> None:
    found = page(tmp_path, example("a b", None, "a x"))
    names = [text for _, text in found.find("span")]
    assert "reference" in names and "result" in names and "first pass" not in names
    assert not found.find("span", "was") and [text for _, text in found.find("span", "fixed")] == ["corrected"]


# The canvas


def test_what_happened_at_each_position(tmp_path: Path) -> None:
    canvas = [("a", 0, 0.9), ("b", 2, 0.8), ("c", 5, 0.7), ("d", 2, 0.6)]
    draft = ["a", "b", "x", None]
    states = [(box["state"], box["was"], box["token"], box["step"]) for box in boxes_of(canvas, draft)]
    assert states == [
        ("kept", "a", "a", 0),
        ("confirmed", "b", "b", 2),
        ("changed", "x", "c", 5),
        ("filled", None, "d", 2),
    ]
    with pytest.raises(ValueError, match="shorter"):
        boxes_of(canvas, draft[:3])

    found = page(tmp_path, example("a b c d", "a b x", "a b c d", canvas=canvas, draft=draft))
    boxes = [attributes for attributes, _ in found.find("span", "position")]
    assert [str(box["class"]).split()[1] for box in boxes] == ["kept", "confirmed", "changed", "filled"]
    assert [(box["data-step"], box["data-token"], box.get("data-was")) for box in boxes] == [
        ("0", "a", "a"),
        ("2", "b", "b"),
        ("5", "c", "x"),
        ("2", "d", None),
    ]
    assert boxes[2]["title"] == "position 3: changed, committed at step 5, p = 0.7"
    (slider,) = [attributes for attributes, _ in found.find("input") if attributes.get("type") == "range"]
    assert (slider["data-steps"], slider["max"]) == ("2 5", "3")  # the draft, masked, and after each of two steps


def test_a_canvas_that_was_left_alone_has_no_slider(tmp_path: Path) -> None:
    found = page(tmp_path, example("a", "a", "a"))
    assert len(found.find("span", "position")) == 1
    assert not [attributes for attributes, _ in found.find("input") if attributes.get("type") == "range"]


# What a transcript says does not run


def test_everything_is_escaped(tmp_path: Path) -> None:
    said = EVIL.replace(" ", "_")
    evil = Example(
        clip(tone(440)), f"a {said}", f"{said} b", said, [(EVIL, 1, 0.5)], [EVIL + "x"], [Word(EVIL, 0.0, 0.5, 0.5)]
    )
    more: dict[str, Any] = {"title": EVIL, "notes": [EVIL], "table": {EVIL: {EVIL: 1.0, "b": EVIL}}}
    found = page(tmp_path, examples={EVIL: [evil]}, plots=[(EVIL, EVIL)], **more)
    plain = page(tmp_path, example("a", "b", "a"))
    assert len(found.find("script")) == len(plain.find("script")) == 1
    assert found.find("script") == plain.find("script")
    attributes = {key for _, of_one, _ in found.elements for key in of_one}
    assert not any(key.startswith("on") for key in attributes)
    assert [of_one["src"] for of_one, _ in found.find("img")][0] == EVIL  # one address, and no element of its own
    assert found.find("h1")[0][1] == EVIL and found.find("span", "position")[0][0]["data-token"] == EVIL


# Sound


def pixels(uri: str) -> Any:
    """(rows from the bottom up, columns): brightness"""
    from PIL import Image

    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=int).sum(2)[::-1]


def mel(hz: float) -> float:
    """Slaney's scale: linear up to 1 kHz, then 27 steps to a factor of 6.4."""
    return hz / (200 / 3) if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


@pytest.mark.parametrize("hz", [300, 1000, 3000, 6500])
def test_a_tone_is_brightest_in_its_mel_band(hz: float) -> None:
    seen = pixels(spectrogram(tone(hz)))
    assert seen.shape == (80, 100)
    centre = mel(hz) / mel(8000) * 81 - 1  # 80 triangles between 82 points
    assert abs(int(seen.mean(1).argmax()) - centre) <= 0.75


def test_time_goes_from_left_to_right() -> None:
    seen = pixels(spectrogram(torch.cat([torch.zeros(8000), tone(1000, 1.5)])))
    assert seen.shape == (80, 200)
    loud = seen.max(0) > 600
    assert not loud[:48].any() and loud[52:].all()


def test_silence_is_dark_and_a_long_clip_is_narrowed() -> None:
    assert pixels(spectrogram(torch.zeros(16000))).max() < 30
    assert pixels(spectrogram(tone(440, 30))).shape == (80, 2000)
    assert pixels(spectrogram(tone(440, 0.001))).shape == (80, 1)


def test_the_clip_can_be_played() -> None:
    wave_S = torch.cat([tone(440, 0.1), torch.tensor([1.5, -1.5, 1.0, -1.0])])  # beyond full scale
    kind, data = sound(wave_S).split(",")
    assert kind == "data:audio/wav;base64"
    with wave.open(io.BytesIO(base64.b64decode(data))) as out:
        assert (out.getnchannels(), out.getsampwidth(), out.getframerate()) == (1, 2, 16000)
        samples = np.frombuffer(out.readframes(out.getnframes()), dtype="<i2")
    assert np.abs(samples / 32767 - wave_S.clamp(-1, 1).numpy()).max() < 1.6 / 32767  # either full scale


@pytest.mark.parametrize("seconds, played", [(PLAYED, 1), (PLAYED + 0.1, 0)])
def test_long_clips_are_only_shown(tmp_path: Path, seconds: float, played: int) -> None:
    found = page(tmp_path, example("a", "b", "a", audio=clip(tone(440, seconds))))
    assert len(found.find("audio")) == played and len(found.find("img")) == 1
    assert ("too long" in (tmp_path / "a.html").read_text()) == (not played)


def test_words_stand_where_they_were_said(tmp_path: Path) -> None:
    words = [Word("one", 0.5, 1.0, 0.9), Word("two", 1.0, 1.75, 0.25)]
    (tmp_path / "x").mkdir()
    found = page(tmp_path / "x", example("one two", "one", "one two", audio=clip(tone(440, 2.0)), words=words))
    styles = {text: attributes for attributes, text in found.find("span") if "left" in (attributes.get("style") or "")}
    assert styles["one"]["style"] == "left: 25.00%; width: 25.00%"
    assert styles["two"]["style"] == "left: 50.00%; width: 37.50%"
    assert styles["two"]["title"] == "1.00 to 1.75 s, p = 0.25"
    assert styles["0.5"]["style"] == "left: 25.00%"


@pytest.mark.parametrize(
    "seconds, labels",
    [(0.35, "0 0.1 0.2 0.3"), (1.8, "0 0.2 0.4 0.6 0.8 1 1.2 1.4 1.6"), (2.0, "0 0.5 1 1.5"), (3600, "0 360 720")],
)
def test_ticks(seconds: float, labels: str) -> None:
    found = ticks(seconds)
    assert " ".join(label for label, _ in found).startswith(labels) and len(found) <= 10
    assert all(share == pytest.approx(float(label) / seconds) and share <= 0.96 for label, share in found)


def test_sound_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DataError, match="nowhere.wav: no such file"):
        card(example("a", "b", "a", audio="nowhere.wav"))


# The file


def test_the_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page(tmp_path, title="old")
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    replace: Callable[..., None] = os.replace
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        page(tmp_path, title="new")
    assert "<h1>old</h1>" in (tmp_path / "a.html").read_text()
    monkeypatch.setattr(os, "replace", replace)
    page(tmp_path, title="new")
    assert "<h1>new</h1>" in (tmp_path / "a.html").read_text()
