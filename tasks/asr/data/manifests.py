"""Rows of speech from manifests (JSON lines), Kaldi folders and LibriSpeech folders, checked before they are used.

Rows are as `mmdiff.tasks.asr.data.utterances` describes them.

All sources share these arguments:
    on_error: "stop" raises a DataError for the first row that cannot be used; "skip" leaves such rows out, says so in
        one line on stderr, and counts them by reason in `skipped`. Either way before any row is handed out.
    limit: read the first rows only.
    verify: read the header of every file now (threads share the work): broken and empty files, and segments outside
        their file, are found, and `duration` is filled in. A file that is cut off may have a good header; it ends the
        run when it is met. False looks only whether the files are there.
    empty: whether a transcript may be empty (silence, noise) or missing: a row without one can be written down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmdiff.data.token_budget import batch_by_tokens
from mmdiff.encoders.media.audio import write_tones
from mmdiff.errors import DataError, nearest
from mmdiff.protocols import Row, Source
from mmdiff.tasks.dialogue.rows import OnError, RowError, read_json, read_lines

from .hypotheses import heard_in
from .utterances import Entry, Make, audio_path, folder_at, usable


class Manifest:
    """A JSON object a line (a JSON list will do), as NeMo and others write them.

    `audio` (or `audio_filepath`) and `text` must be there; `id`, else the name of the file; `speaker`; `offset` and
    `duration` of a part of the file, in seconds (a `duration` alone must be the file's: nothing is cut off in silence);
    `hypothesis` (or `pred_text`) and `nbest` as in `mmdiff.tasks.asr.data.hypotheses`. Other fields are handed on.

    audio_root: where relative paths start, and must not lead out of; None: the folder of the manifest.
    """

    def __init__(
        self,
        path: str,
        audio_root: str | None = None,
        on_error: OnError = "stop",
        limit: int | None = None,
        verify: bool = True,
        empty: bool = False,
    ) -> None:
        root = folder_at("audio_root", Path(path).parent if audio_root is None else Path(audio_root))
        entries = ((where, partial(_manifest_row, raw, root, empty)) for where, raw in read_json(Path(path)))
        self._rows, self.skipped = usable(entries, path, on_error, limit, verify, empty)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def length(self, index: int) -> float:
        """Seconds; 0 where they are not known (`verify: false`)."""
        return float(self._rows[index].get("duration", 0.0))

    @classmethod
    def toy(cls, path: str, audio_root: str | None = None, **checks: Any) -> Manifest:
        """A manifest of tones instead of `path`, written and read back."""
        kept = TemporaryDirectory()
        manifest = Path(kept.name) / "rows.jsonl"
        files = write_tones(manifest.parent, "wav")
        lines = [json.dumps({"audio": file.name, "text": text, "speaker": "tone"}) for file, text in files]
        manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
        source = cls(str(manifest), None, **checks)
        source._kept = kept
        return source

    _kept: TemporaryDirectory[str] | None = None  # lives as long as the rows that name its files


class KaldiDir:
    """A Kaldi data folder: `wav.scp` and `text`, and where they are there `segments` and `utt2spk`.

    Commands in `wav.scp` (pipes) are never run. A segment may end at -1, the end of its recording.

    audio_root: where relative paths of `wav.scp` start, and must not lead out of; None: the folder itself. (In Kaldi
        it is wherever a command is run.)
    """

    def __init__(
        self,
        path: str,
        audio_root: str | None = None,
        on_error: OnError = "stop",
        limit: int | None = None,
        verify: bool = True,
        empty: bool = False,
    ) -> None:
        folder = folder_at("path", Path(path))
        root = folder_at("audio_root", folder if audio_root is None else Path(audio_root))
        self._rows, self.skipped = usable(_kaldi_entries(folder, root, empty), path, on_error, limit, verify, empty)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def length(self, index: int) -> float:
        """Seconds; 0 where they are not known (`verify: false`)."""
        return float(self._rows[index].get("duration", 0.0))

    @classmethod
    def toy(cls, path: str, audio_root: str | None = None, **checks: Any) -> KaldiDir:
        """A folder of tones instead of `path`, each recording one segment."""
        kept = TemporaryDirectory()
        folder = Path(kept.name)
        files = write_tones(folder, "wav")
        tables = {
            "wav.scp": [f"{file.stem} {file.name}" for file, _ in files],
            "segments": [f"{file.stem}-0 {file.stem} 0.1 -1" for file, _ in files],
            "text": [f"{file.stem}-0 {text}" for file, text in files],
            "utt2spk": [f"{file.stem}-0 tone" for file, _ in files],
        }
        for name, lines in tables.items():
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        source = cls(kept.name, None, **checks)
        source._kept = kept
        return source

    _kept: TemporaryDirectory[str] | None = None


class LibriSpeech:
    """The folders of LibriSpeech as they are: `root/split/speaker/chapter/*.flac`, and the chapter's `*.trans.txt`.

    root: the folder of the splits. split: the name of one, or a list of them.
    """

    def __init__(
        self,
        root: str,
        split: str | Sequence[str],
        on_error: OnError = "stop",
        limit: int | None = None,
        verify: bool = True,
        empty: bool = False,
    ) -> None:
        top = folder_at("root", Path(root))
        splits = [split] if isinstance(split, str) else list(split)
        for name in splits:
            if not name or not (top / name).is_dir():
                there = [p.name for p in top.iterdir() if p.is_dir()]
                raise DataError(f"split: no folder {name!r} in {root}{nearest(name, there)}")
        entries = (entry for name in splits for entry in _librispeech_entries(top / name))
        self._rows, self.skipped = usable(entries, root, on_error, limit, verify, empty)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def length(self, index: int) -> float:
        """Seconds; 0 where they are not known (`verify: false`)."""
        return float(self._rows[index].get("duration", 0.0))

    @classmethod
    def toy(cls, root: str, split: str | Sequence[str], **checks: Any) -> LibriSpeech:
        """A split of one chapter of tones instead of those named."""
        kept = TemporaryDirectory()
        chapter = Path(kept.name) / "toy" / "7" / "42"
        chapter.mkdir(parents=True)
        files = write_tones(chapter, "flac", name="7-42-{:04d}")
        lines = [f"{file.stem} {text.upper()}" for file, text in files]
        (chapter / "7-42.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        source = cls(kept.name, "toy", **checks)
        source._kept = kept
        return source

    _kept: TemporaryDirectory[str] | None = None


def by_duration(rows: Source, seconds: float) -> list[list[int]]:
    """Batches of row numbers, each of rows that are about as long, the longest first.

    Every row is in one batch. A batch, padded to its longest row, holds at most `seconds` of sound: rows x longest.
    Raises DataError for a row that is longer than that, or has no `duration`.
    """
    lengths = []
    for i in range(len(rows)):
        row = rows[i]
        length, where = row.get("duration"), row.get("where", f"row {i}")
        if length is None:
            raise DataError(f"{where}: no duration, which a source with `verify` fills in")
        if length > seconds:
            raise DataError(f"{where}: {length:g} s of sound, batches hold {seconds:g} s")
        lengths.append(length)
    return batch_by_tokens(lengths, seconds)


# Manifest


def _manifest_row(raw: Any, root: Path, empty: bool) -> dict[str, Any]:
    if isinstance(raw, RowError):
        raise raw
    if not isinstance(raw, dict):
        raise RowError("not a JSON object", f"{raw!r:.60}")
    given = next((name for name in ("audio", "audio_filepath") if name in raw), None)
    if given is None:
        raise RowError("no audio", nearest("audio_filepath", raw).strip())
    path = audio_path(raw[given], root)
    if raw.get("text") is None and not empty:
        raise RowError("missing transcript", "text: null" if "text" in raw else f"no text{nearest('text', raw)}")
    if not isinstance(raw.get("text", ""), str | None):
        raise RowError("text is not text", f"{raw['text']!r:.60}")
    start, length = _seconds(raw, "offset"), _seconds(raw, "duration")
    if length == 0:
        raise RowError("zero length", f"duration: {length:g}")
    audio: str | dict[str, Any] = path
    if start is not None:
        audio = {"path": path, "start": start} | ({} if length is None else {"end": start + length})
    id = raw.get("id")
    if id is None:
        id = Path(path).stem + (f"@{start:g}" if start else "")
    elif isinstance(id, bool) or not isinstance(id, str | int) or id == "":
        raise RowError("id is not a name", f"{id!r:.60}")
    read = {"audio", "audio_filepath", "offset", "duration", "hypothesis", "pred_text", "nbest"}
    row = {name: value for name, value in raw.items() if name not in read and value is not None}
    row |= {"audio": audio, "id": str(id)} | ({} if raw.get("text") is None else {"text": raw["text"].strip()})
    return row | ({} if length is None else {"duration": length}) | heard_in(raw, ("hypothesis", "pred_text"))


def _seconds(raw: Mapping[str, Any], name: str) -> float | None:
    value = raw.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise RowError(f"{name} is not a number of seconds", f"{value!r:.60}")
    return float(value)


# Kaldi


def _kaldi_entries(folder: Path, root: Path, empty: bool) -> Iterator[Entry]:
    text = _table(folder / "text") if not empty or (folder / "text").is_file() else {}
    speakers = {}
    if (folder / "utt2spk").is_file():
        speakers = _table(folder / "utt2spk")

    def row(id: str, audio: Make) -> dict[str, Any]:
        if id not in text and not empty:
            raise RowError("missing transcript", f"{id!r} is not in {folder / 'text'}")
        found = {"id": id, **audio()}
        if id in text:
            found["where"], found["text"] = text[id]
        return found | ({"speaker": speakers[id][1]} if id in speakers else {})

    if (folder / "segments").is_file():
        recordings = _table(folder / "wav.scp")
        utterances = list(_records(folder / "segments"))
        for where, id, rest in utterances:
            yield where, partial(row, id, partial(_segment, rest, recordings, root))
    else:
        utterances = list(_records(folder / "wav.scp"))
        for where, id, rest in utterances:
            yield where, partial(row, id, partial(_recording, rest, root))
    known = {id for _, id, _ in utterances}
    for id, (where, _) in text.items():
        if id not in known:
            yield where, partial(_without_audio, id)


def _records(path: Path) -> Iterator[tuple[str, str, str]]:
    """(file and line, id, what follows)."""
    for where, line in read_lines(path):
        if line:
            id, *rest = line.split(maxsplit=1)
            yield where, id, rest[0] if rest else ""


def _table(path: Path) -> dict[str, tuple[str, str]]:
    table: dict[str, tuple[str, str]] = {}
    for where, id, rest in _records(path):
        if id in table:
            raise DataError(f"{where}: duplicate id {id!r}, that of {table[id][0]} too")
        table[id] = where, rest
    return table


def _recording(extended: str, root: Path) -> dict[str, Any]:
    if extended.startswith("|") or extended.endswith("|"):
        raise RowError("pipe in wav.scp", f"{extended!r:.60} is a command, which is not run; write its sound to a file")
    return {"audio": audio_path(extended, root)}


def _segment(rest: str, recordings: Mapping[str, tuple[str, str]], root: Path) -> dict[str, Any]:
    fields = rest.split()
    if len(fields) != 3:
        raise RowError("not a segment", f"{rest!r:.60}, expected: utterance recording start end")
    recording = fields[0]
    if recording not in recordings:
        raise RowError("no recording", f"{recording!r} is not in wav.scp{nearest(recording, recordings)}")
    try:
        start, end = float(fields[1]), float(fields[2])
    except ValueError:
        raise RowError("not a segment", f"{rest!r:.60}, start and end are seconds") from None
    if not (0 <= start < end < math.inf or (0 <= start < math.inf and end == -1)):
        raise RowError("not a segment", f"from {start:g} to {end:g} s")
    path = _recording(recordings[recording][1], root)["audio"]
    if end == -1:
        return {"audio": {"path": path, "start": start}}
    return {"audio": {"path": path, "start": start, "end": end}, "duration": end - start}


def _without_audio(id: str) -> dict[str, Any]:
    raise RowError("no audio", f"{id!r} has a transcript, and is neither in segments nor in wav.scp")


# LibriSpeech


def _librispeech_entries(split: Path) -> Iterator[Entry]:
    for chapter in sorted(path for path in split.glob("*/*") if path.is_dir()):
        said = set()
        for transcripts in sorted(chapter.glob("*.trans.txt")):
            for where, id, text in _records(transcripts):
                said.add(id)
                yield where, partial(_librispeech_row, chapter, id, text)
        for file in sorted(chapter.glob("*.flac")):
            if file.stem not in said:
                yield str(file), partial(_untranscribed, chapter)


def _librispeech_row(chapter: Path, id: str, text: str) -> dict[str, Any]:
    return {"audio": audio_path(f"{id}.flac", chapter), "text": text, "id": id, "speaker": chapter.parent.name}


def _untranscribed(chapter: Path) -> dict[str, Any]:
    raise RowError("missing transcript", f"no line in {chapter}/*.trans.txt")
