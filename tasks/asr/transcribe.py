"""Rows of speech to transcripts, batch by batch, timed, into a file that an interrupted command resumes.

Batches hold rows that are about as long, up to so many seconds of sound; the order of the results is that of the rows.
Sound is read when its batch is due, read once and encoded once.

Shape letters: B rows of a batch, L canvas.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmdiff.canvas.batch import to_device
from mmdiff.canvas.vocab import Vocab
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, DataError, located
from mmdiff.model import MMDiff
from mmdiff.protocols import Row, Source
from mmdiff.runs.records import JsonlStore
from mmdiff.samplers.result import Generation
from mmdiff.session import Session, canvas_of

from .ctc import emitted, encoded, greedy, read_clip, word_times
from .data.manifests import by_duration
from .task import ASR

Record = dict[str, Any]
"""`id`, `audio` (a path), `duration`, `text` (the reference, if there is one), `first_pass` (the draft), `pred_text`
(the prediction, named as in NeMo's manifests), `confidence` (the least of its words), `forwards`, `canvas` as (token,
step, probability), `seconds` {read, encoder, decoder}, and `words` with their times where asked for."""

KEPT = ("text", "speaker", "where")  # fields of a row that a record has too


def transcribe(
    session: Session[ASR],
    rows: Source,
    *,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seconds: float = 120.0,
    words: bool = False,
    first: bool = False,
    **named: Any,
) -> list[Record]:
    """Transcribe every row, or correct its `hypothesis`.

    out: a file of JSON lines, one record per row, added to after every batch. What it already has is not done again; it
        must be of the same rows, the same model and the same `settings`, which are kept beside it. Once all is done its
        lines are in the rows' order.
    seconds: the most audio per batch, padding counted; a longer clip is a batch of its own. words: adds the words'
        times, by the encoder's CTC head. first: uses the CTC transcript as draft, whatever hypothesis a row has.
    named: fields of GenerationConfig.
    Raises ConfigError for a file of other settings, DataError that names the row.
    """
    kind = session.task.media
    if (words or first) and kind not in session.model.heads:
        raise ConfigError(f"{session.folder}: word times and a first pass need a CTC head, and it has none for {kind}")
    if not seconds > 0:
        raise ConfigError(f"seconds: {seconds} of sound in a batch, expected more than 0")
    sampler = {**asdict(session.sampler), **named}
    store = open_store(out, session, rows, {**(settings or {}), "words": words, "first": first, "sampler": sampler})
    todo = [i for i in range(len(rows)) if i not in store.records]
    lengths = [{"duration": min(_duration(rows[i], i), seconds)} for i in todo]
    with tqdm(total=len(todo), unit="rows", desc="transcribe", file=sys.stderr, leave=False) as bar:
        for batch in by_duration(lengths, seconds):
            index = [todo[k] for k in batch]
            group = [rows[i] for i in index]
            store.add(dict(zip(index, _records(session, group, index, kind, words, first, named), strict=True)))
            bar.update(len(group))
    return store.finish()


def open_store(out: Path | None, session: Session[ASR], rows: Source, settings: Mapping[str, Any]) -> JsonlStore:
    """The records of `rows` in the file `out`: of the same settings, model (a run that is trained anew keeps its name)
    and rows. Raises ConfigError."""
    if out is None:
        return JsonlStore(None, {})
    made = datetime.fromtimestamp((session.folder / "config.json").stat().st_mtime, UTC)
    store = JsonlStore(out, {**settings, "model": {"folder": str(session.folder), "saved": made.isoformat()}})
    for i, record in store.records.items():
        if i >= len(rows) or record.get("id") != identity(rows[i], i):
            raise ConfigError(
                f"{out} was written for other rows (row {i} is {record.get('id')!r}); choose another file"
            )
    return store


def identity(row: Row, i: int) -> str:
    """What a record calls row i."""
    return str(row.get("id", i))


def rtf(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Real-time factors: seconds of work per second of sound, of reading (with features such as log-mel), encoder (with
    its CTC head), decoder, and all of it; and the mean number of forwards per utterance. Of this machine, batched as it
    was. Raises DataError where there are no records."""
    if not records:
        raise DataError("no utterance to time")
    sound = sum(r["duration"] for r in records)
    parts = {name: sum(r["seconds"][name] for r in records) / sound for name in ("read", "encoder", "decoder")}
    return {**parts, "total": sum(parts.values()), "forwards": sum(r["forwards"] for r in records) / len(records)}


def _records(
    session: Session[ASR],
    group: list[Row],
    index: list[int],
    kind: str,
    words: bool,
    first: bool,
    named: Mapping[str, Any],
) -> list[Record]:
    model, vocab = session.model, session.model.vocab
    clock = Clock(model)
    prompted, items = [], []
    for i, row in zip(index, group, strict=True):
        if words or first or (row.get("audio") is not None and kind in model.readers):
            with located(f"row {i}"):
                items.append(read_clip(model, row, kind))
            row = {**row, "audio": items[-1]}
        prompted.append(row)
    clock.stop("read")
    media = encoded(model, items, kind) if items else None
    heard = emitted(model, media, kind) if media is not None and (words or first) else []
    clock.stop("encoder")
    if first:
        prompted = [{**row, "hypothesis": greedy(h_TV, vocab)} for row, h_TV in zip(prompted, heard, strict=True)]
    samples = []
    for i, row in zip(index, prompted, strict=True):
        with located(f"row {i}"):
            samples.append(session.task.prompt(row, vocab))
    batch = to_device(collate(samples, vocab, model.readers, index=index, side="left"), model.device)
    if media is not None and kind in batch.media:
        batch.media[kind] = media
    out = model.generate(batch, generation_config=session.sampler, **named)
    clock.stop("decoder")
    sound = sum(_duration(row, i) for i, row in zip(index, group, strict=True))
    records = []
    for b, (i, row, ids) in enumerate(zip(index, group, out.targets(), strict=True)):
        length, text, sure = _duration(row, i), session.task.parse(ids, vocab), word_confidences(out, b, vocab)
        record: Record = {"id": identity(row, i), **{k: row[k] for k in KEPT if row.get(k) is not None}}
        record |= {"duration": length, **_path(row)}
        if (draft := prompted[b].get("hypothesis")) is not None:
            record["first_pass"] = draft
        record |= {"pred_text": text, "canvas": canvas_of(out, b, model), "forwards": int(out.forwards_B[b])}
        record["confidence"] = round(min(sure, default=1.0), 4)
        record["seconds"] = {name: round(spent * length / sound, 6) for name, spent in clock.spent.items()}
        if words:
            timed = word_times(heard[b], text, model, length)
            record["words"] = [asdict(replace(w, confidence=round(p, 4))) for w, p in zip(timed, sure, strict=False)]
        records.append(record)
    return records


class Clock:
    """Seconds that were spent on what was stopped last, under its name."""

    def __init__(self, model: MMDiff) -> None:
        self.device = model.device
        self.spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # else the clock is read before the work is done
        now = time.perf_counter()
        self.spent[name] = now - self._last
        self._last = now


def word_confidences(out: Generation, b: int, vocab: Vocab) -> list[float]:
    """The probability of each word of row b: that of its least sure token."""
    position_P = out.target_BL[b].nonzero().squeeze(1)
    sure: list[float] = []
    ids: list[int] = []
    ends = {vocab.eos_id, *vocab.end_ids}
    for i, p in zip(out.ids_BL[b, position_P].tolist(), out.confidence_BL[b, position_P].tolist(), strict=True):
        if i in ends:
            continue
        ids.append(i)
        more = len(vocab.decode(ids).split()) - len(sure)
        if more > 0:
            sure += [p] * more
        elif sure:
            sure[-1] = min(sure[-1], p)
    return sure


def _duration(row: Row, i: int) -> float:
    """Seconds; of rows without `duration`, by the header of the file. Raises DataError."""
    length = row.get("duration")
    if length is None and row.get("audio") is not None:
        from mmdiff.encoders.media.audio import duration

        with located(f"row {i}"):
            length = duration(row["audio"])
    if isinstance(length, bool) or not isinstance(length, Real) or not 0 < float(length) < math.inf:
        raise DataError(f"{row.get('where', f'row {i}')}: duration: {length!r}, expected seconds above 0")
    return float(length)


def _path(row: Row) -> dict[str, Any]:
    audio = row.get("audio")
    if isinstance(audio, Mapping):
        return {"audio": {k: v for k, v in audio.items() if k != "array"}} if "path" in audio else {}
    return {"audio": str(audio)} if audio is not None else {}
