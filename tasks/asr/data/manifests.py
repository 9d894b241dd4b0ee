"""Rows of speech from manifests of JSON lines, as NeMo and others write them, and batches of rows by their duration.

    {"audio": "a.wav", "text": "turn left", "id": "a", "speaker": "s1", "duration": 1.5, "hypothesis": "turn lift"}

Arguments that all sources of speech share are described in `mmdiff.tasks.asr.data.utterances`.
"""

from __future__ import annotations

import json
import os.path
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmdiff.data.token_budget import batch_by_tokens
from mmdiff.encoders.media.audio import write_tones
from mmdiff.errors import DataError, RowError, nearest
from mmdiff.files import as_object
from mmdiff.parts import part
from mmdiff.protocols import Source
from mmdiff.tasks.dialogue.rows import Entry, check_fields, file_under, folder_at, read_json

from .hypotheses import hypothesis_of
from .utterances import SpeechRows

LONGEST = 1e9  # seconds


@part
@dataclass(eq=False)
class Manifest(SpeechRows):
    """A JSON object per line (a JSON list will do), as NeMo and others write them.

    `audio` (or `audio_filepath`) and `text` must be there; `id`, else the name of the file, or its path where files of
    several folders have that name; `speaker`; `offset` and `duration` of a part of the file, in seconds (a `duration`
    alone must be that of the whole file); `hypothesis` (or `pred_text`) and `nbest` as in
    `mmdiff.tasks.asr.data.hypotheses`. Other fields are kept.

    audio_root: where relative paths start, and must not lead out of; None: the folder of the manifest.
    """

    path: str
    audio_root: str | None = None

    def origin(self) -> str:
        return self.path

    def utterances(self) -> Iterator[Entry]:
        rows = read_json(Path(self.path))  # first: without the file there is no folder beside it
        beside = Path(self.path).parent
        root = folder_at("audio_root", beside if self.audio_root is None else Path(self.audio_root))
        given = (raw.get(_audio_field(raw)) for _, raw in rows if isinstance(raw, Mapping))
        paths = {os.path.normpath(root / str(path)) for path in given if path}
        shared = {stem for stem, count in Counter(Path(path).stem for path in paths).items() if count > 1}
        for where, raw in rows:
            yield where, partial(_manifest_row, raw, root, self.empty, shared)

    @classmethod
    def toy_files(cls, folder: Path, **arguments: Any) -> dict[str, Any]:
        """A manifest of tones."""
        files = write_tones(folder, "wav")
        lines = [json.dumps({"audio": file.name, "text": text, "speaker": "tone"}) for file, text in files]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"path": str(folder / "rows.jsonl"), "audio_root": None}


def by_duration(rows: Source, seconds: float) -> list[list[int]]:
    """Returns batches of row numbers, each of rows of about one duration, the longest first.

    Every row is in one batch. A batch, padded to its longest row, has at most `seconds` of sound: rows x longest.
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


def _audio_field(raw: Mapping[str, Any]) -> str | None:
    return next((name for name in ("audio", "audio_filepath") if name in raw), None)


def _manifest_row(raw: Any, root: Path, empty: bool, shared: Set[str]) -> dict[str, Any]:
    """Returns the row of an object. shared: names that files of several folders have."""
    given = _audio_field(as_object(raw))
    if given is None:
        raise RowError("no audio", nearest("audio_filepath", raw).strip())
    path = file_under(root, raw[given], "audio", "audio")
    if raw.get("text") is None and not empty:
        raise RowError("missing transcript", "text: null" if "text" in raw else f"no text{nearest('text', raw)}")
    if not isinstance(raw.get("text", ""), str | None):
        raise RowError("text is not text", f"{raw['text']!r:.60}")
    start, length = _seconds(raw, "offset"), _seconds(raw, "duration")
    if length == 0:
        raise RowError("zero length", f"duration: {length:g}")
    renamed = {"audio_filepath": "audio", "pred_text": "hypothesis"}
    check_fields(
        {renamed.get(name, name): value for name, value in raw.items()},
        ("audio", "text", "offset", "duration", "hypothesis", "nbest"),
    )
    audio: str | dict[str, Any] = path
    if start is not None:
        audio = {"path": path, "start": start} | ({} if length is None else {"end": start + length})
    id = raw.get("id")
    if id is None:
        name = Path(path).stem
        id = (raw[given] if name in shared else name) + (f"@{start:g}" if start else "")
    elif isinstance(id, bool) or not isinstance(id, str | int) or id == "":
        raise RowError("id is not a name", f"{id!r:.60}")
    read = {"audio", "audio_filepath", "offset", "duration", "hypothesis", "pred_text", "nbest"}
    row = {name: value for name, value in raw.items() if name not in read and value is not None}
    row |= {"audio": audio, "id": str(id)} | ({} if raw.get("text") is None else {"text": raw["text"].strip()})
    return row | ({} if length is None else {"duration": length}) | hypothesis_of(raw, ("hypothesis", "pred_text"))


def _seconds(raw: Mapping[str, Any], name: str) -> float | None:
    value = raw.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LONGEST:
        raise RowError(f"{name} is not a number of seconds", f"{value!r:.60}")
    return float(value)
