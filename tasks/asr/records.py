"""What a record says about an utterance, the file of records that an interrupted command resumes, and their figures.

{"row": 0, "id": "a", "text": "turn left", "duration": 1.5, "audio": "a.wav", "first_pass": "turn lift",
 "pred_text": "turn left", "canvas": [["turn", 0, 1.0], ...], "forwards": 6, "confidence": 0.93,
 "seconds": {"read": 0.01, "encoder": 0.02, "decoder": 0.1}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from typing import Any

from mmdiff.errors import ConfigError, DataError, located, short
from mmdiff.protocols import Row, Source
from mmdiff.runs.records import JsonlStore
from mmdiff.session import Session

from .metrics import bootstrap, corpus, paired_bootstrap, word_errors
from .task import ASR

Record = dict[str, Any]
"""`id`, `audio` (a path), `duration`, `text` (the reference, if there is one), `first_pass` (the draft), `pred_text`
(the prediction, named as in NeMo's manifests), `confidence` (the least of its words), `forwards`, `canvas` as (token,
step, probability), `seconds` of work {read, encoder, decoder}, and `words` with their times where asked for."""

KEPT = ("text", "speaker", "where")  # fields of a row that a record has too


def open_store(out: Path | None, session: Session[ASR], rows: Source, settings: Mapping[str, Any]) -> JsonlStore:
    """Returns the records in the file `out`, which must be of the same settings, rows and model.

    A model that is trained anew keeps its name, so the time at which it was saved counts too. Raises ConfigError.
    """
    if out is None:
        return JsonlStore(None, {})
    made = datetime.fromtimestamp((session.folder / "config.json").stat().st_mtime, UTC)
    store = JsonlStore(out, {**settings, "model": {"folder": str(session.folder), "saved": made.isoformat()}})
    for i, record in store.records.items():
        if i >= len(rows) or record.get("id") != identity(rows[i], i):
            other = f"row {i} is {short(repr(record.get('id')))}"
            raise ConfigError(f"{short(out)} was written for other rows ({other}); choose another file")
    return store


def identity(row: Row, i: int) -> str:
    """Returns the `id` of the record of row i."""
    return str(row.get("id", i))


def described(row: Row, i: int) -> Record:
    """Returns the fields of a record that every command takes over from row i."""
    return {"id": identity(row, i), **{name: row[name] for name in KEPT if row.get(name) is not None}}


def duration_of(row: Row, i: int) -> float:
    """Returns the seconds of row i; where it has no `duration`, by the header of its file. Raises DataError."""
    seconds = row.get("duration")
    if seconds is None and row.get("audio") is not None:
        from mmdiff.encoders.media.audio import duration

        with located(f"row {i}"):
            seconds = duration(row["audio"])
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 < float(seconds) < 1e12:
        raise DataError(f"{row.get('where', f'row {i}')}: duration: {seconds!r}, expected seconds above 0")
    return float(seconds)


def audio_of(row: Row) -> dict[str, Any]:
    """Returns {"audio": its path}, or nothing for sound that is in memory."""
    audio = row.get("audio")
    if isinstance(audio, Mapping):
        return {"audio": {k: v for k, v in audio.items() if k != "array"}} if "path" in audio else {}
    return {"audio": str(audio)} if audio is not None else {}


def rtf(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns real-time factors: seconds of work per second of sound, on this machine and in these batches.

    `read` includes features such as log-mel, `encoder` its CTC head; `decoder`; `total` is their sum. `forwards` is the
    mean number of forwards per utterance. Raises DataError where there are no records.
    """
    if not records:
        raise DataError("no utterance to time")
    sound = sum(r["duration"] for r in records)
    parts = {name: sum(r["seconds"][name] for r in records) / sound for name in ("read", "encoder", "decoder")}
    return {**parts, "total": sum(parts.values()), "forwards": sum(r["forwards"] for r in records) / len(records)}


def figures(task: ASR, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns WER with its 95 % interval, errors by kind, CER, `n` records and their real-time factors.

    Where all records have a first pass, also its figures, the relative reduction (not a number where it made no errors)
    and the paired interval of the difference. Raises DataError for a record without `text`.
    """
    out = {**task.score_all([{**r, "prediction": r["pred_text"]} for r in records]), "n": len(records)}
    if all(r.get("first_pass") is not None for r in records):
        before = [word_errors(*task.pair(r, r["first_pass"])) for r in records]
        first, words = corpus(before), [word_errors(*task.pair(r, r["pred_text"])) for r in records]
        low, high = bootstrap(before)
        out["first_pass"] = {**first, "wer_low": low, "wer_high": high}
        out["reduction"] = 1 - out["wer"] / first["wer"] if first["wer"] else float("nan")
        out["paired"] = paired_bootstrap(before, words)
    return {**out, "rtf": rtf(records)}
