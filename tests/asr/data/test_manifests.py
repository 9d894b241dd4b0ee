"""Manifests, Kaldi and LibriSpeech folders: what is read, and every refusal, by stopping and by skipping."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdiff.canvas.vocab import Vocab, word_tokenizer
from mmdiff.encoders.media.audio import read_waveform, write_tones
from mmdiff.errors import ConfigError, DataError
from mmdiff.tasks.asr.data.kaldi import KaldiDir
from mmdiff.tasks.asr.data.librispeech import LibriSpeech
from mmdiff.tasks.asr.data.manifests import Manifest, by_duration
from mmdiff.tasks.asr.task import ASR

pytestmark = pytest.mark.needs("soundfile")

Write = Callable[..., str]
RATE = 8000


def tone(path: Path, seconds: float) -> None:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(round(seconds * RATE))), RATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sounds of several sorts, good and damaged."""
    tone(tmp_path / "a.wav", 1.0)
    tone(tmp_path / "b.flac", 2.5)
    tone(tmp_path / "empty.wav", 0.0)
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "nothing.flac").write_bytes(b"")
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Write:
    def write(*rows: Any, name: str = "rows.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(folder / name)

    return write


GOOD = {"audio": "a.wav", "text": "call one", "id": "good"}
LAST = {"audio": "b.flac", "text": "call two", "id": "last"}


# Manifest


def test_rows_of_a_manifest(write: Write, folder: Path) -> None:
    path = write(
        {"audio": "a.wav", "text": " call one\n", "id": 7, "speaker": "x", "lang": "en", "channel": None},
        "",
        {"audio_filepath": str(folder / "b.flac"), "duration": 2.4, "text": "call two", "pred_text": "call to"},
        {"audio": "b.flac", "offset": 0.5, "duration": 1.25, "text": "two", "nbest": [["too", -1]]},
        {"audio": "b.flac", "offset": 1.5, "text": "three"},
    )
    rows = Manifest(path)
    assert len(rows) == 4 and not rows.skipped
    a, b = str(folder / "a.wav"), str(folder / "b.flac")
    assert rows[0] == {
        "audio": a, "text": "call one", "id": "7", "speaker": "x", "lang": "en", "duration": 1.0,
        "where": f"{path} line 1",
    }  # fmt: skip
    assert rows[1] == {
        "audio": b, "text": "call two", "id": "b", "hypothesis": "call to", "duration": 2.5, "where": f"{path} line 3",
    }  # fmt: skip
    assert rows[2] == {
        "audio": {"path": b, "start": 0.5, "end": 1.75}, "text": "two", "id": "b@0.5", "duration": 1.25,
        "hypothesis": "too", "nbest": [{"text": "too", "score": -1.0}], "where": f"{path} line 4",
    }  # fmt: skip
    assert rows[3]["audio"] == {"path": b, "start": 1.5} and rows[3]["duration"] == 1.0
    for row in (rows[i] for i in range(len(rows))):  # the durations are those of what is read
        assert len(read_waveform(row["audio"], RATE)) == row["duration"] * RATE
    unverified = Manifest(path, verify=False)
    assert [unverified[i].get("duration") for i in range(4)] == [None, 2.4, 1.25, None]


def test_files_of_one_name_in_several_folders_are_several_utterances(write: Write, folder: Path) -> None:
    for name in ("yes/0.wav", "no/0.wav", "no/1.wav"):  # as Speech Commands has them
        tone(folder / name, 0.5)
    lines = [{"audio": name, "text": name.split("/")[0]} for name in ("yes/0.wav", "./no/0.wav", "no/1.wav")]
    rows = Manifest(write(*lines, {**lines[2], "offset": 0.25}, {**lines[0], "offset": 0.25}))
    assert [rows[i]["id"] for i in range(5)] == ["yes/0.wav", "./no/0.wav", "1", "1@0.25", "yes/0.wav@0.25"]
    with pytest.raises(DataError, match="line 2: duplicate id: '1' is that of .*line 1 too"):
        Manifest(write(lines[2], {**lines[2], "audio": str(folder / "no/1.wav")}))


def test_audio_elsewhere_and_a_json_list(write: Write, folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    tone(other / "deep" / "c.wav", 0.5)
    path = write(json.dumps([{**GOOD, "audio": "deep/c.wav"}, {**LAST, "audio": str(folder / "a.wav")}]))
    rows = Manifest(path, audio_root=str(other))
    assert [r["audio"] for r in (rows[0], rows[1])] == [str(other / "deep" / "c.wav"), str(folder / "a.wav")]
    assert rows[1]["where"] == f"{path} row 1"
    with pytest.raises(DataError, match=r"line 1: audio outside the folder: '../"):
        Manifest(write({**GOOD, "audio": f"../{folder.name}/a.wav"}))


BAD: list[tuple[str, Any, str]] = [
    ("missing audio", {**GOOD, "audio": "none.wav"}, "none.wav$"),
    ("audio is not a path", {**GOOD, "audio": 7}, "7$"),
    ("audio is not a path", {**GOOD, "audio": ""}, "''$"),
    ("no audio", {"text": "x", "audio_path": "a.wav"}, r"\(did you mean \"audio_path\"\?\)$"),
    ("unreadable audio", {**GOOD, "audio": "empty.wav"}, "empty.wav: holds no samples$"),
    ("unreadable audio", {**GOOD, "audio": "text.wav"}, "text.wav: not a sound file"),
    ("unreadable audio", {**GOOD, "audio": "nothing.flac"}, "nothing.flac: not a sound file"),
    ("unreadable audio", {**GOOD, "offset": 1.0, "duration": 0.2}, "a.wav: no segment from 1 to 1.2 s in 1 s of sound"),
    ("unreadable audio", {**GOOD, "offset": 0.5, "duration": 1.2}, "a.wav: no segment from 0.5 to 1.7 s"),
    ("wrong duration", {**LAST, "duration": 1.0}, "1 s, and .*b.flac has 2.5 s; a part of a file has an `offset`$"),
    ("zero length", {**GOOD, "duration": 0}, "duration: 0$"),
    ("duration is not a number of seconds", {**GOOD, "duration": "1"}, "'1'$"),
    ("duration is not a number of seconds", '{"audio": "a.wav", "text": "x", "duration": NaN}', "nan$"),
    ("offset is not a number of seconds", {**GOOD, "offset": -1}, "-1$"),
    ("missing transcript", {"audio": "a.wav"}, "no text"),
    ("missing transcript", {"audio": "a.wav", "transcript": "x", "texts": "x"}, r"did you mean \"texts\"\?\)$"),
    ("missing transcript", {"audio": "a.wav", "text": None}, "text: null$"),
    ("text is not text", {**GOOD, "text": ["x"]}, r"\['x'\]$"),
    ("empty text", {**GOOD, "text": " "}, "of 'good'; `empty` allows it$"),
    ("duplicate id", {**GOOD, "id": "first"}, "'first' is that of .*rows.jsonl line 1 too$"),
    ("id is not a name", {**GOOD, "id": ""}, "''$"),
    ("id is not a name", {**GOOD, "id": ["x"]}, r"\['x'\]$"),
    ("hypothesis is not text", {**GOOD, "hypothesis": 3}, "3$"),
    ("nbest is not a list", {**GOOD, "nbest": "x"}, "'x'$"),
    ("not a JSON object", '["x"]', r"\['x'\]$"),
    ("not JSON", '{"audio": ', r"at column \d+; expected a list, or one object per line$"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "bad", "detail"), BAD)
def test_every_refusal(reason: str, bad: Any, detail: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write({**GOOD, "id": "first"}, bad, {**GOOD, "id": "third"})
    with pytest.raises(DataError, match=detail) as caught:
        Manifest(path)
    said = str(caught.value)
    assert said.startswith(f"{path} line 2: {reason}") and "\n" not in said
    rows = Manifest(path, on_error="skip")
    assert [rows[i]["where"] for i in range(len(rows))] == [f"{path} line 1", f"{path} line 3"]
    assert rows.skipped == {reason: 1}
    assert capsys.readouterr().err == f"{path}: skipped 1 of 3 rows (1 {reason})\n"


def test_skipping_counts_by_reason_in_one_line(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{**GOOD, "id": name, "audio": name} for name in ("none.wav", "empty.wav", "no.wav", "text.wav", "gone.wav")]
    Manifest(write(*bad, GOOD, {**GOOD, "text": ""}), on_error="skip")
    said = capsys.readouterr().err
    assert said.endswith("skipped 6 of 7 rows (3 missing audio, 2 unreadable audio, 1 empty text)\n")
    Manifest(write(GOOD), on_error="skip")
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match=r"no row can be used \(1 missing audio\)$"):
        Manifest(write(bad[0]), on_error="skip")


def test_a_duplicate_of_a_row_that_was_left_out_is_none(write: Write) -> None:
    rows = Manifest(write({**GOOD, "audio": "none.wav"}, GOOD), on_error="skip")
    assert len(rows) == 1 and rows.skipped == {"missing audio": 1}


def test_arguments(write: Write, folder: Path) -> None:
    path = write(GOOD, {**LAST, "text": ""}, {**LAST, "audio": "none.wav"})
    assert len(Manifest(path, limit=1)) == 1  # the others are not looked at
    assert Manifest(path, limit=2, empty=True)[1]["text"] == ""
    with pytest.raises(DataError, match="line 3: missing audio"):
        Manifest(path, empty=True, verify=False)
    with pytest.raises(ConfigError, match=r"on_error: 'skpi' is not one of stop, skip \(did you mean \"skip\"\?\)"):
        Manifest(path, on_error="skpi")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="limit=0: expected a whole number of at least 1"):
        Manifest(path, limit=0)
    with pytest.raises(DataError, match="audio_root: .*nowhere is not a folder"):
        Manifest(path, audio_root=str(folder / "nowhere"))
    with pytest.raises(DataError, match=r'row.jsonl: no such file \(did you mean "rows.jsonl"\?\)$'):
        Manifest(str(folder / "row.jsonl"))
    with pytest.raises(DataError, match=r"none.jsonl: no row can be used \(it has none\)$"):
        Manifest(write("", name="none.jsonl"))


def test_without_verification_only_the_files_are_looked_for(write: Write) -> None:
    assert len(Manifest(write({**GOOD, "audio": "text.wav"}), verify=False)) == 1


def test_words_without_an_id_are_named_by_line(write: Write) -> None:
    words = word_tokenizer(["call", "one"])
    vocab = Vocab(words, len(words), mask_id=2, eos_id=1, pad_id=0, slot_id=2)
    path = write(GOOD, LAST)
    rows = Manifest(path)
    ASR().sample(rows[0], vocab)
    with pytest.raises(DataError, match=rf"^{path} line 2: .*two"):
        ASR().sample(rows[1], vocab)


# Kaldi


@pytest.fixture
def kaldi(folder: Path) -> Callable[..., str]:
    """A data folder of given tables over a good one."""
    good = {"wav.scp": "r1 a.wav\nr2 b.flac\n", "text": "r1 CALL ONE\nr2\tCALL TWO\n", "utt2spk": "r1 s1\nr2 s2\n"}

    def make(**tables: str) -> str:
        for name, content in (good | {k.replace("_", "."): v for k, v in tables.items()}).items():
            (folder / name).write_text(content, encoding="utf-8")
        return str(folder)

    return make


SEGMENTS = "u1 r2 0.5 1.25\nu2 r2 1.5 -1\nu3 r1 0 1.1\n"
SAID = "u1 ONE\nu2 TWO\nu3 THREE\n"


def test_rows_of_a_kaldi_folder(kaldi: Callable[..., str], folder: Path) -> None:
    rows = KaldiDir(kaldi())
    assert len(rows) == 2
    assert rows[1] == {
        "audio": str(folder / "b.flac"), "text": "CALL TWO", "id": "r2", "speaker": "s2", "duration": 2.5,
        "where": f"{folder / 'text'} line 2",
    }  # fmt: skip
    (folder / "utt2spk").unlink()
    assert "speaker" not in KaldiDir(str(folder))[0]


def test_segments(kaldi: Callable[..., str], folder: Path) -> None:
    path = kaldi(segments=SEGMENTS, text=SAID)
    rows = KaldiDir(path)
    a, b = str(folder / "a.wav"), str(folder / "b.flac")
    assert [rows[i]["audio"] for i in range(3)] == [
        {"path": b, "start": 0.5, "end": 1.25}, {"path": b, "start": 1.5}, {"path": a, "start": 0.0, "end": 1.1}
    ]  # fmt: skip
    assert [rows[i]["duration"] for i in range(3)] == [0.75, 1.0, 1.0]  # the last is rounded over the end of its file
    assert [rows[i]["text"] for i in range(3)] == ["ONE", "TWO", "THREE"]
    assert rows[2]["where"] == f"{folder / 'text'} line 3"
    assert [len(read_waveform(rows[i]["audio"], RATE)) for i in range(3)] == [0.75 * RATE, RATE, RATE]
    unverified = KaldiDir(path, verify=False)
    assert [unverified[i].get("duration") for i in range(3)] == [0.75, None, 1.1]


KALDI_BAD: list[tuple[str, dict[str, str], str, str]] = [
    ("pipe in wav.scp", {"wav_scp": "r1 a.wav\nr2 sph2pipe b.sph |\n"}, "wav.scp line 2", "'sph2pipe .* command"),
    ("missing audio", {"wav_scp": "r1 a.wav\nr2 c.wav\n"}, "wav.scp line 2", "c.wav$"),
    ("missing audio", {"wav_scp": "r1 a.wav\nr2 b.ark:17\n"}, "wav.scp line 2", "b.ark:17$"),
    ("audio is not a path", {"wav_scp": "r1 a.wav\nr2\n"}, "wav.scp line 2", "''$"),
    ("audio outside the folder", {"wav_scp": "r1 a.wav\nr2 ../b.flac\n"}, "wav.scp line 2", "leads out of"),
    ("duplicate id", {"wav_scp": "r1 a.wav\nr2 b.flac\nr1 b.flac\n"}, "wav.scp line 3", "'r1' is that of .*line 1"),
    ("unreadable audio", {"wav_scp": "r1 a.wav\nr2 text.wav\n"}, "wav.scp line 2", "text.wav: not a sound file"),
    ("missing transcript", {"text": "r1 CALL ONE\n"}, "wav.scp line 2", "'r2' is not in .*text$"),
    ("empty text", {"text": "r1 CALL ONE\nr2\n"}, "wav.scp line 2", "of 'r2'; `empty` allows it$"),
    ("no audio", {"text": "r1 ONE\nr2 TWO\nr3 THREE\n"}, "text line 3", "'r3' has a transcript, and is neither"),
    ("no recording", {"segments": "r1 r1 0 1\nr2 r3 0 1\n"}, "segments line 2", "'r3' is not in wav.scp"),
    ("not a segment", {"segments": "r1 r1 0 1\nr2 r2 0\n"}, "segments line 2", "'r2 0', expected: utterance recording"),
    ("not a segment", {"segments": "r1 r1 0 1\nr2 r2 0 1 A\n"}, "segments line 2", "'r2 0 1 A', expected"),
    ("not a segment", {"segments": "r1 r1 0 1\nr2 r2 0 x\n"}, "segments line 2", "start and end are seconds$"),
    ("not a segment", {"segments": "r1 r1 0 1\nr2 r2 1 1\n"}, "segments line 2", "from 1 to 1 s$"),
    ("not a segment", {"segments": "r1 r1 0 1\nr2 r2 -1 1\n"}, "segments line 2", "from -1 to 1 s$"),
    ("not a segment", {"segments": "r1 r1 0 1\nr2 r2 nan 1\n"}, "segments line 2", "from nan to 1 s$"),
    ("unreadable audio", {"segments": "r1 r1 0 1\nr2 r2 3 4\n"}, "segments line 2", "b.flac: no segment from 3 to 4 s"),
    ("pipe in wav.scp", {"segments": "r1 r1 0 1\nr2 r2 0 1\n", "wav_scp": "r1 a.wav\nr2 x|"}, "segments line 2",
     "wav.scp line 2: 'x"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "tables", "where", "detail"), KALDI_BAD)
def test_every_refusal_of_kaldi(
    reason: str, tables: dict[str, str], where: str, detail: str, kaldi: Callable[..., str], folder: Path
) -> None:
    path = kaldi(**tables)
    with pytest.raises(DataError, match=detail) as caught:
        KaldiDir(path)
    said = str(caught.value)
    assert said.startswith(f"{folder}/{where}: {reason}") and "\n" not in said
    rows = KaldiDir(path, on_error="skip")
    assert rows[0]["id"] == "r1" and rows.skipped == {reason: 1}


def test_kaldi_tables(kaldi: Callable[..., str], folder: Path) -> None:
    with pytest.raises(DataError, match=r"text line 3: duplicate id 'r1', that of .*text line 1 too$"):
        KaldiDir(kaldi(text="r1 ONE\nr2 TWO\nr1 ONE\n"))
    path = kaldi()
    (folder / "wav.scp").unlink()
    with pytest.raises(DataError, match="wav.scp: no such file"):
        KaldiDir(path)
    with pytest.raises(DataError, match="path: .*nowhere is not a folder"):
        KaldiDir(str(folder / "nowhere"))


def test_a_pipe_is_not_run(kaldi: Callable[..., str], folder: Path) -> None:
    for command in (f"touch {folder}/ran |", f"| touch {folder}/ran"):
        with pytest.raises(DataError, match="pipe in wav.scp"):
            KaldiDir(kaldi(wav_scp=f"r1 {command}\n"))
        assert not (folder / "ran").exists()


# LibriSpeech


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    for split, speaker, chapter in (("test-clean", 61, 70968), ("test-clean", 1089, 134686), ("test-other", 367, 1)):
        at = tmp_path / split / str(speaker) / str(chapter)
        lines = []
        for n in range(2):
            tone(at / f"{speaker}-{chapter}-{n:04d}.flac", 0.5 + n)
            lines.append(f"{speaker}-{chapter}-{n:04d} HE SAID {'ONE TWO'.split()[n]}\n")
        (at / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    (tmp_path / "README.TXT").write_text("x")
    return tmp_path


def test_rows_of_librispeech(libri: Path) -> None:
    rows = LibriSpeech(str(libri), "test-clean")
    assert [rows[i]["id"] for i in range(4)] == [f"{of}-{n:04d}" for of in ("1089-134686", "61-70968") for n in (0, 1)]
    chapter = libri / "test-clean" / "61" / "70968"
    assert rows[3] == {
        "audio": str(chapter / "61-70968-0001.flac"), "text": "HE SAID TWO", "id": "61-70968-0001", "speaker": "61",
        "duration": 1.5, "where": f"{chapter / '61-70968.trans.txt'} line 2",
    }  # fmt: skip
    both = LibriSpeech(str(libri), ["test-other", "test-clean"], limit=3)
    assert [both[i]["speaker"] for i in range(3)] == ["367", "367", "1089"]


def test_refusals_of_librispeech(libri: Path) -> None:
    root, chapter = str(libri), libri / "test-other" / "367" / "1"
    with pytest.raises(DataError, match=r"split: no folder 'test-clear' in .* \(did you mean \"test-clean\"\?\)$"):
        LibriSpeech(root, "test-clear")
    with pytest.raises(DataError, match="root: .* is not a folder"):
        LibriSpeech(str(libri / "none"), "test-clean")
    with pytest.raises(DataError, match=r"no row can be used \(it has none\)$"):
        LibriSpeech(str(libri / "test-other"), "367")
    tone(chapter / "367-1-0002.flac", 0.5)
    with pytest.raises(DataError, match=rf"^{chapter}/367-1-0002.flac: missing transcript: no line in .*trans.txt$"):
        LibriSpeech(root, "test-other")
    assert LibriSpeech(root, "test-other", on_error="skip").skipped == {"missing transcript": 1}
    (chapter / "367-1-0002.flac").unlink()
    (chapter / "367-1-0001.flac").write_bytes(b"fLaC")
    with pytest.raises(DataError, match=r"367-1.trans.txt line 2: unreadable audio: .*367-1-0001.flac: not a sound"):
        LibriSpeech(root, "test-other")
    (chapter / "367-1-0001.flac").unlink()
    with pytest.raises(DataError, match=r"367-1.trans.txt line 2: missing audio: .*367-1-0001.flac$"):
        LibriSpeech(root, "test-other")
    assert len(LibriSpeech(root, ["test-clean", "test-other"], on_error="skip")) == 5


# Toys and batches


@pytest.mark.parametrize(
    "make",
    [
        lambda: Manifest.toy("not/there.jsonl", audio_root="not/there", on_error="skip"),
        lambda: KaldiDir.toy("not/there", limit=4),
        lambda: LibriSpeech.toy("not/there", ["train-clean-100", "train-other-500"], verify=True),
    ],
)
def test_toys_need_no_files_and_leave_none(make: Callable[[], Any]) -> None:
    rows = make()
    assert len(rows) == 4
    assert [len(rows[i]["text"].split()) for i in range(4)] == [1, 2, 3, 4]
    paths = [r["audio"]["path"] if isinstance(r["audio"], dict) else r["audio"] for r in (rows[i] for i in range(4))]
    for i in range(4):
        assert len(read_waveform(rows[i]["audio"])) == round(rows[i]["duration"] * 16000) > 0
    del rows
    assert not any(Path(path).exists() for path in paths)


def lasting(*durations: float) -> list[dict[str, Any]]:
    return [{"duration": seconds} for seconds in durations]


def test_batches_by_duration() -> None:
    assert by_duration(lasting(1, 5, 2, 2, 5), 10) == [[1, 4], [2, 3, 0]]
    assert by_duration(lasting(3, 3, 3), 9) == [[0, 1, 2]]  # exactly full
    assert by_duration(lasting(3, 3, 3), 8) == [[0, 1], [2]]
    assert by_duration([], 8) == []
    with pytest.raises(DataError, match="^row 1: 9 s of sound, batches hold 8 s$"):
        by_duration(lasting(1, 9), 8)
    with pytest.raises(DataError, match="^rows line 1: no duration, which a source with `verify` fills in$"):
        by_duration([{"where": "rows line 1"}], 8)


def test_batches_hold_every_row_once_within_the_limit() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.uniform(0.2, 30) for _ in range(rng.randint(1, 60))]
        batches = by_duration(lasting(*lengths), 60)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert all(len(batch) * max(lengths[i] for i in batch) <= 60 for batch in batches)
        assert batches == by_duration(lasting(*lengths), 60)
        ends = [(max(lengths[i] for i in batch), min(lengths[i] for i in batch)) for batch in batches]
        assert all(ends[n][1] >= ends[n + 1][0] for n in range(len(ends) - 1))  # alike in length
        full = [(len(b) + 1) * ends[n][0] > 60 for n, b in enumerate(batches[:-1])]
        assert all(full)  # no batch could have taken one more


def test_rows_without_a_transcript_are_taken_where_that_is_allowed(tmp_path: Path) -> None:
    """What is to be written down has none yet; a Kaldi folder then needs no `text` file."""
    files = write_tones(tmp_path, "wav")
    lines = [{"audio": file.name} if i else {"audio": file.name, "text": "one"} for i, (file, _) in enumerate(files)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match="missing transcript"):
        Manifest(str(tmp_path / "rows.jsonl"))
    rows = Manifest(str(tmp_path / "rows.jsonl"), empty=True)
    assert [rows[i].get("text") for i in range(len(rows))] == ["one", None, None, None]
    (tmp_path / "wav.scp").write_text("".join(f"{file.stem} {file.name}\n" for file, _ in files))
    kaldi = KaldiDir(str(tmp_path), empty=True)
    assert len(kaldi) == 4 and all("text" not in kaldi[i] and kaldi[i]["duration"] > 0 for i in range(4))
    with pytest.raises(DataError, match="text"):
        KaldiDir(str(tmp_path))
