"""Transcripts in batches: that batching, padding and interruptions change nothing, and what a record holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from spoken import model, row, saved, wave, write_wave

from mmdiff.errors import ConfigError, DataError
from mmdiff.session import Session, load
from mmdiff.tasks.asr import transcribe as module
from mmdiff.tasks.asr.records import rtf
from mmdiff.tasks.asr.task import ASR
from mmdiff.tasks.asr.transcribe import transcribe
from mmdiff.tasks.dialogue.controls import Without

pytestmark = pytest.mark.needs("torchaudio", "soundfile", "jiwer")

DRAFTS = "mmdiff.samplers.deliberation."
HEARD = "call one two|three|four five six seven|zero||nine nine|call|one two three four five six seven|two".split("|")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("transcribe") / "model")


@pytest.fixture
def session(folder: str) -> Session:
    return load(folder, "task.draft=true")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Sixteen clips of 0.2 to 3 s in no order, with drafts of all lengths."""
    seconds = np.random.default_rng(0).permutation(np.linspace(0.2, 3.0, 16))
    return [row(float(s), n, id=f"u{n}", hypothesis=HEARD[n % 9], text="call one") for n, s in enumerate(seconds)]


def told(records: Sequence[Any]) -> list[Any]:
    """What must not depend on the batch: all but the clock, probabilities in an array of their own."""
    return [
        (r["id"], r["pred_text"], r.get("first_pass"), r["forwards"], [(t, s) for t, s, _ in r["canvas"]])
        for r in records
    ]


def chances(records: Sequence[Any]) -> Any:
    return np.concatenate([[r["confidence"], *(p for _, _, p in r["canvas"])] for r in records])


WAYS: dict[str, dict[str, Any]] = {
    "standalone": {},
    "threshold": {"threshold": 0.9},
    "random": {"draft": {"target": DRAFTS + "MaskRandom", "ratio": 0.5}},
    "low_confidence": {"draft": {"target": DRAFTS + "MaskLeastConfident", "ratio": 0.5}},
    "leave_one_out": {"draft": {"target": DRAFTS + "MaskLeastConfident", "ratio": 0.3, "probe": "leave_one_out"}},
    "semi_autoregressive": {"draft": {"target": DRAFTS + "MaskChunks", "ratio": 0.25}},
    "heard": {"draft": {"target": DRAFTS + "MaskLeastConfident", "ratio": 0.5}, "first": True, "words": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_is_its_utterances(way: str, session: Session, rows: list[dict[str, Any]]) -> None:
    named = WAYS[way]
    source = rows if "draft" in named else Without(rows, ["hypothesis"])
    whole = transcribe(session, source, seconds=1000, **named)
    some = transcribe(session, source, seconds=8, **named)
    alone = transcribe(session, source, seconds=0.01, **named)  # every clip is longer: a batch of its own
    assert [r["id"] for r in whole] == [f"u{n}" for n in range(16)]
    assert told(whole) == told(some) == told(alone)
    np.testing.assert_allclose(chances(whole), chances(alone), atol=1.1e-4)
    assert len({r["pred_text"] for r in whole}) > 4  # they listen
    if way == "threshold":
        assert len({r["forwards"] for r in whole}) > 1  # rows end at different steps
    if "draft" in named:
        assert any(r["pred_text"] != r["first_pass"] for r in whole)
    if way == "heard":
        assert [r["words"] for r in whole] == [r["words"] for r in alone]


def test_batches_hold_clips_that_are_about_as_long(
    session: Session, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    inner = module._records

    def spy(s: Any, group: Any, index: Any, *rest: Any) -> Any:
        batches.append([rows[i]["duration"] for i in index])
        return inner(s, group, index, *rest)

    monkeypatch.setattr(module, "_records", spy)
    transcribe(session, rows, seconds=6.0)
    assert sum(map(len, batches)) == 16 and len(batches) > 3
    assert all(max(batch) * len(batch) <= 6.0 for batch in batches)
    flat = [length for batch in batches for length in batch]
    assert flat == sorted(flat, reverse=True)
    batches.clear()
    transcribe(session, rows, seconds=2.0)  # some clips are longer than that: alone, and others no fuller for it
    assert [len(batch) for batch in batches if max(batch) > 2.0] == [1] * sum(r["duration"] > 2.0 for r in rows)
    assert all(max(batch) * len(batch) <= 2.0 for batch in batches if max(batch) <= 2.0)


def test_sound_is_read_when_its_batch_is_due_and_once(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads and records come in turns, whatever is asked for: not all sound is held."""
    rows = [{"audio": write_wave(tmp_path / f"{n}.wav", 0.5, n), "id": str(n)} for n in range(6)]
    log: list[str] = []
    encoder = session.model.encoders["audio"]
    read, forward = encoder.read, encoder.forward
    monkeypatch.setattr(encoder, "read", lambda data: log.append("read") or read(data))  # type: ignore[func-returns-value]
    monkeypatch.setattr(encoder, "forward", lambda *a: log.append("encode") or forward(*a))  # type: ignore[func-returns-value]
    draft = {"target": DRAFTS + "MaskLeastConfident"}
    transcribe(session, rows, seconds=1.0, out=tmp_path / "o.jsonl", words=True, first=True, draft=draft)
    assert log == ["read", "read", "encode"] * 3


def test_a_record(session: Session, tmp_path: Path) -> None:
    path = write_wave(tmp_path / "a.wav", 1.5)
    part = {
        "audio": {"path": path, "start": 0.5, "end": 1.0},
        "text": "one",
        "speaker": "s",
        "where": "m line 2",
        "id": 7,
    }
    part["hypothesis"] = "call one two"
    made = {"array": wave(1.0), "sampling_rate": 16000}
    records = transcribe(
        session,
        [part, {"audio": made}, {"audio": path, "snr": 3}],
        draft={"target": DRAFTS + "MaskChunks"},
        words=True,
    )
    first, second, third = records
    assert {k: first[k] for k in ("id", "text", "speaker", "where", "first_pass", "duration", "audio")} == {
        **{k: part[k] for k in ("text", "speaker", "where", "audio")},
        "id": "7",
        "first_pass": "call one two",
        "duration": 0.5,
    }
    assert "audio" not in second and second["duration"] == 1.0 and second["id"] == "1" and "text" not in second
    assert third["audio"] == path and "first_pass" not in third and "snr" not in third
    assert len(first["canvas"]) == 5 and len(second["canvas"]) == 6  # the draft and two places; six from nothing
    for record in records:
        said = [token for token, _, _ in record["canvas"] if token not in ("<eos>", "<pad>", "<unk>")]
        assert record["pred_text"] == " ".join(said)
        assert [w["word"] for w in record["words"]] == said
        assert record["confidence"] == min((w["confidence"] for w in record["words"]), default=1.0)
        assert all(0 <= w["start"] < w["end"] <= record["duration"] for w in record["words"])
        assert set(record["seconds"]) == {"read", "encoder", "decoder"}
    assert json.loads(json.dumps(records[0])) is not None


def test_real_time_factors_add_up(
    session: Session, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: Iterator[int] = iter(range(0, 10**9, 2))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    records = transcribe(session, rows, seconds=1000)
    sound = sum(r["duration"] for r in rows)
    assert sum(r["seconds"]["read"] for r in records) == pytest.approx(2, abs=1e-4)  # of the one batch, shared out
    longest = max(records, key=lambda r: r["duration"])
    assert longest["seconds"]["decoder"] == pytest.approx(2 * longest["duration"] / sound, abs=1e-5)
    speed = rtf(records)
    assert speed["read"] == speed["encoder"] == speed["decoder"] == pytest.approx(2 / sound, abs=1e-5)
    assert speed["total"] == pytest.approx(6 / sound, abs=1e-5)
    assert speed["forwards"] == sum(r["forwards"] for r in records) / 16
    with pytest.raises(DataError, match="no utterance"):
        rtf([])


def test_long_recordings_are_windowed_and_not_cut(session: Session) -> None:
    """31.5 s are two windows; only what is said in the last second tells these two apart."""
    same = wave(31.5, 1)
    other = same.copy()
    other[-16000:] = wave(1.0, 9)
    rows = [{"audio": {"array": a, "sampling_rate": 16000}} for a in (same, other)] + [row(0.5, 3)]
    item = session.model.readers["audio"].read(rows[0]["audio"])
    assert len(item.tokens) == 2 and sum(item.tokens) == 375 + 19
    records = transcribe(session, rows, seconds=1000, words=True, first=True)
    assert records[0]["duration"] == 31.5
    assert records[0]["first_pass"] != records[1]["first_pass"]
    assert records[0]["canvas"] != records[1]["canvas"]
    assert told(records) == told(transcribe(session, rows, seconds=1, words=True, first=True))


# Files that a run goes on with


def without_clock(file: Path) -> list[Any]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_an_interrupted_run_goes_on_and_ends_alike(
    session: Session, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"seconds": 5.0, "settings": {"rows": "m"}, "draft": {"target": DRAFTS + "MaskRandom"}}
    done = transcribe(session, rows, out=tmp_path / "whole.jsonl", **options)
    file, inner, calls = tmp_path / "out.jsonl", module._records, []

    def killed(*args: Any) -> Any:
        calls.append(args[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return inner(*args)

    monkeypatch.setattr(module, "_records", killed)
    with pytest.raises(KeyboardInterrupt):
        transcribe(session, rows, out=file, **options)
    written = len(without_clock(file))
    assert 0 < written < 16 and written == len(calls[0]) + len(calls[1])
    file.write_bytes(file.read_bytes()[:-9])  # a kill while the last line was written
    again = transcribe(session, rows, out=file, **options)
    assert sum(map(len, calls[3:])) == 16 - (written - 1) and not set(calls[0]) & {i for c in calls[3:] for i in c}
    assert told(again) == told(done) == told(transcribe(session, rows, out=file, **options))
    np.testing.assert_allclose(chances(again), chances(done), atol=1.1e-4)
    rounded = [{**line, "canvas": 0, "confidence": 0} for line in without_clock(file)]
    assert rounded == [{**line, "canvas": 0, "confidence": 0} for line in without_clock(tmp_path / "whole.jsonl")]
    assert [line["row"] for line in without_clock(file)] == list(range(16))


def test_a_failing_row_keeps_what_was_done(session: Session, tmp_path: Path) -> None:
    good = [{"audio": write_wave(tmp_path / f"{n}.wav", 1.0 + n, n), "duration": 1.0 + n} for n in range(2)]
    bad = {"audio": str(tmp_path / "gone.wav"), "duration": 0.5}
    file = tmp_path / "o.jsonl"
    with pytest.raises(DataError, match=r"^row 2: .*gone.wav: no such file$"):
        transcribe(session, [*good, bad], out=file, seconds=1.0)
    assert len(without_clock(file)) == 2
    write_wave(tmp_path / "gone.wav", 0.5)
    assert len(transcribe(session, [*good, bad], out=file, seconds=1.0)) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": {"rows": "other"}}, r"with another rows \('m', now 'other'\)"),
        ({"words": True}, r"with another words \(False, now True\)"),
        ({"steps": 3}, r"with another sampler.steps \(6, now 3\)"),
        ({"draft": {"target": DRAFTS + "MaskRandom"}}, r"with another sampler.draft"),
        ({"rows": [1, 0, 2]}, r"was written for other rows \(row 0 is 'u0'\)"),
        ({"rows": [0, 1]}, r"was written for other rows \(row 2 is 'u2'\)"),
    ],
)
def test_a_file_of_other_settings_is_refused_and_untouched(
    changed: dict[str, Any], message: str, session: Session, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "o.jsonl"
    transcribe(session, rows[:3], out=file, settings={"rows": "m"})
    before = file.read_bytes()
    order = changed.pop("rows", [0, 1, 2])
    with pytest.raises(ConfigError, match=message):
        transcribe(session, [rows[i] for i in order], out=file, **{"settings": {"rows": "m"}, **changed})
    assert file.read_bytes() == before


def test_a_model_that_was_trained_anew_is_another(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    import os

    session = load(saved(tmp_path / "model"))
    transcribe(session, rows[:1], out=tmp_path / "o.jsonl")
    os.utime(tmp_path / "model" / "config.json", (1, 1))
    with pytest.raises(ConfigError, match="another model.saved"):
        transcribe(session, rows[:1], out=tmp_path / "o.jsonl")


# Refusals


def test_rows_and_models_that_cannot_be_used(session: Session, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^row 0: duration: None, expected seconds above 0$"):
        transcribe(session, [{"text": "one"}])
    with pytest.raises(DataError, match="^m line 4: duration: 0.0, expected"):
        transcribe(session, [{"audio": "x.wav", "duration": 0.0, "where": "m line 4"}])
    with pytest.raises(DataError, match="^row 0: x.wav: no such file$"):
        transcribe(session, [{"audio": "x.wav"}])
    with pytest.raises(DataError, match="the tokenizer does not know the word 'won'"):
        transcribe(session, [row(0.3, hypothesis="call won")])
    with pytest.raises(DataError, match="^row 0: no audio$"):
        transcribe(session, [{"duration": 1.0}], first=True)
    for seconds in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="^seconds: "):
            transcribe(session, [row(0.3)], seconds=seconds)
    deaf = Session(model(head=False), ASR(4), session.sampler, tmp_path)
    for option in ("words", "first"):
        with pytest.raises(ConfigError, match="need a CTC head"):
            transcribe(deaf, [row(0.3)], **{option: True})
    with pytest.raises(ConfigError, match="sampler.step: no such field"):
        transcribe(session, [row(0.3)], step=3)
    assert transcribe(session, []) == []


def test_rows_without_sound_are_worked_on_too(session: Session) -> None:
    """The control of a model that does not hear."""
    rows = [{"duration": 1.0, "hypothesis": "call one"}, row(0.5, hypothesis="call one")]
    silent, heard = transcribe(session, rows, draft={"target": DRAFTS + "MaskRandom", "ratio": 1.0})
    assert "audio" not in silent and len(silent["canvas"]) == 4 and silent["canvas"] != heard["canvas"]
    (alone,) = transcribe(session, rows[:1], draft={"target": DRAFTS + "MaskRandom", "ratio": 1.0})
    assert told([alone]) == told([silent])
