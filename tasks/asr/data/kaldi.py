"""Rows of speech from Kaldi data folders.

    wav.scp    rec1 clips/rec1.wav
    segments   rec1-0 rec1 0.1 -1
    text       rec1-0 turn left
    utt2spk    rec1-0 s1

Arguments that all sources of speech share are described in `mmdiff.tasks.asr.data.utterances`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmdiff.encoders.media.audio import write_tones
from mmdiff.errors import DataError, RowError, nearest
from mmdiff.parts import part
from mmdiff.protocols import Row
from mmdiff.tasks.dialogue.rows import Entry, Make, file_under, folder_at

from .utterances import SpeechRows, id_lines


@part
@dataclass(eq=False)
class KaldiDir(SpeechRows):
    """A Kaldi data folder: `wav.scp` and `text`, and `segments` and `utt2spk` where they are there.

    Commands in `wav.scp` (pipes) are never run. A segment may end at -1, the end of its recording.

    audio_root: where relative paths of `wav.scp` start, and must not lead out of; None: the folder itself. (In Kaldi
        it is the folder in which a command is run.)
    """

    path: str
    audio_root: str | None = None
    _lines: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # file and line of each sound, by id

    def origin(self) -> str:
        return self.path

    def utterances(self) -> Iterator[Entry]:
        folder = folder_at("path", Path(self.path))
        root = folder_at("audio_root", folder if self.audio_root is None else Path(self.audio_root))
        text = _by_id(folder / "text") if not self.empty or (folder / "text").is_file() else {}
        speakers = _by_id(folder / "utt2spk") if (folder / "utt2spk").is_file() else {}

        def row(id: str, audio: Make) -> dict[str, Any]:
            if id not in text and not self.empty:
                raise RowError("missing transcript", f"{id!r} is not in {folder / 'text'}")
            found = {"id": id, **audio()}
            if id in text:
                found["where"], found["text"] = text[id]
            return found | ({"speaker": speakers[id][1]} if id in speakers else {})

        if (folder / "segments").is_file():
            recordings = _by_id(folder / "wav.scp")
            utterances = list(id_lines(folder / "segments"))
            for where, id, rest in utterances:
                self._lines[id] = where
                yield where, partial(row, id, partial(_segment, rest, recordings, root))
        else:
            utterances = list(id_lines(folder / "wav.scp"))
            for where, id, rest in utterances:
                self._lines[id] = where
                yield where, partial(row, id, partial(_recording, rest, root))
        known = {id for _, id, _ in utterances}
        for id, (where, _) in text.items():
            if id not in known:
                yield where, partial(_without_audio, id)

    def verified(self, pool: Executor, rows: Sequence[Row]) -> Iterable[Entry]:
        """As all speech; a sound that cannot be read is the fault of `segments` or `wav.scp`, not that of `text`."""
        for row, (_, make) in zip(rows, super().verified(pool, rows), strict=True):
            yield self._lines[row["id"]], make

    @classmethod
    def toy_files(cls, folder: Path, **arguments: Any) -> dict[str, Any]:
        """Tones, each recording one segment."""
        files = write_tones(folder, "wav")
        tables = {
            "wav.scp": [f"{file.stem} {file.name}" for file, _ in files],
            "segments": [f"{file.stem}-0 {file.stem} 0.1 -1" for file, _ in files],
            "text": [f"{file.stem}-0 {text}" for file, text in files],
            "utt2spk": [f"{file.stem}-0 tone" for file, _ in files],
        }
        for name, lines in tables.items():
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"path": str(folder), "audio_root": None}


def _by_id(path: Path) -> dict[str, tuple[str, str]]:
    table: dict[str, tuple[str, str]] = {}
    for where, id, rest in id_lines(path):
        if id in table:
            raise DataError(f"{where}: duplicate id {id!r}, that of {table[id][0]} too")
        table[id] = where, rest
    return table


def _recording(extended: str, root: Path) -> dict[str, Any]:
    if extended.startswith("|") or extended.endswith("|"):
        raise RowError("pipe in wav.scp", f"{extended!r:.60} is a command, which is not run; write its sound to a file")
    return {"audio": file_under(root, extended, "audio", "audio")}


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
    at, extended = recordings[recording]
    try:
        path = _recording(extended, root)["audio"]
    except RowError as error:
        raise RowError(error.reason, f"{at}: {str(error).removeprefix(error.reason + ': ')}") from None
    if end == -1:
        return {"audio": {"path": path, "start": start}}
    return {"audio": {"path": path, "start": start, "end": end}, "duration": end - start}


def _without_audio(id: str) -> dict[str, Any]:
    raise RowError("no audio", f"{id!r} has a transcript, and is neither in segments nor in wav.scp")
