"""Rows of speech to transcripts, batch by batch, timed, into a file that an interrupted command resumes.

Batches hold rows of about one duration, up to so many seconds of sound; the order of the results is that of the rows.
The sound of a batch is read when the batch begins, and is read and encoded once.

Shape letters: T features of a clip, V vocabulary.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmdiff.canvas.batch import MediaBatch, to_device
from mmdiff.canvas.generation import Generation
from mmdiff.canvas.sample import Item
from mmdiff.data.collate import collate
from mmdiff.errors import ConfigError, located
from mmdiff.protocols import Row, Source
from mmdiff.session import Session, canvas_of

from .ctc import emitted, encoded, greedy, read_clip
from .data.manifests import by_duration
from .records import Record, audio_of, described, duration_of, open_store
from .task import ASR
from .words import word_confidences, word_times


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
    """Transcribe every row, or correct its `hypothesis`. Returns the records, see `mmdiff.tasks.asr.records`.

    out: a file of JSON lines, one record per row, to which every batch adds. Records that are there are not made again;
        the file must be of the same rows, the same model and the same `settings`, which are kept beside it. At the end
        its lines are in the order of the rows.
    seconds: the most audio per batch, padding counted; a longer clip is a batch of its own.
    words: whether records have the times of words, by the encoder's CTC head.
    first: whether the draft is the transcript of the CTC head, whatever hypothesis a row has.
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
    lengths = [{"duration": min(duration_of(rows[i], i), seconds)} for i in todo]
    with tqdm(total=len(todo), unit="rows", desc="transcribe", file=sys.stderr, leave=False) as bar:
        for batch in by_duration(lengths, seconds):
            index = [todo[k] for k in batch]
            group = [rows[i] for i in index]
            store.add(dict(zip(index, _records(session, group, index, kind, words, first, named), strict=True)))
            bar.update(len(group))
    return store.finish()


def _records(
    session: Session[ASR],
    group: list[Row],
    index: list[int],
    kind: str,
    words: bool,
    first: bool,
    named: Mapping[str, Any],
) -> list[Record]:
    """Returns the records of one batch: its sound is read, encoded and decoded, each of it timed."""
    model = session.model
    clock = Clock(model.device)
    rows = _read(session, group, index, kind, needed=words or first)
    items = [row["audio"] for row in rows if isinstance(row.get("audio"), Item)]
    clock.stop("read")
    media = encoded(model, items, kind) if items else None
    log_p = emitted(model, media, kind) if media is not None and (words or first) else []
    clock.stop("encoder")
    if first:
        rows = [{**row, "hypothesis": greedy(log_p_TV, model.vocab)} for row, log_p_TV in zip(rows, log_p, strict=True)]
    out = _generated(session, rows, index, kind, media, named)
    clock.stop("decoder")
    durations = [duration_of(row, i) for i, row in zip(index, group, strict=True)]
    records = []
    for b, (i, row, ids) in enumerate(zip(index, group, out.targets(), strict=True)):
        text, sure = session.task.parse(ids, model.vocab), word_confidences(out, b, model.vocab)
        record: Record = {**described(row, i), "duration": durations[b], **audio_of(row)}
        if (draft := rows[b].get("hypothesis")) is not None:
            record["first_pass"] = draft
        record |= {"pred_text": text, "canvas": canvas_of(out, b, model), "forwards": int(out.forwards_B[b])}
        record["confidence"] = round(min(sure, default=1.0), 4)
        share = {name: spent * durations[b] / sum(durations) for name, spent in clock.spent.items()}
        record["seconds"] = {name: round(spent, 6) for name, spent in share.items()}
        if words:
            timed = word_times(log_p[b], text, model.vocab, durations[b])
            record["words"] = [asdict(replace(w, confidence=round(p, 4))) for w, p in zip(timed, sure, strict=False)]
        records.append(record)
    return records


def _read(session: Session[ASR], group: Sequence[Row], index: Sequence[int], kind: str, *, needed: bool) -> list[Row]:
    """Returns the rows with their sound read. needed: a row without sound raises DataError."""
    rows = []
    for i, row in zip(index, group, strict=True):
        if needed or (row.get("audio") is not None and kind in session.model.readers):
            with located(f"row {i}"):
                row = {**row, "audio": read_clip(session.model, row, kind)}
        rows.append(row)
    return rows


def _generated(
    session: Session[ASR],
    rows: Sequence[Row],
    index: Sequence[int],
    kind: str,
    media: MediaBatch | None,
    named: Mapping[str, Any],
) -> Generation:
    """Returns the filled canvases of rows whose sound is encoded already."""
    model, samples = session.model, []
    for i, row in zip(index, rows, strict=True):
        with located(f"row {i}"):
            samples.append(session.task.prompt(row, model.vocab))
    batch = to_device(collate(samples, model.vocab, model.readers, index=index, side="left"), model.device)
    if media is not None and kind in batch.media:
        batch.media[kind] = media
    return model.generate(batch, generation_config=session.sampler, **named)


class Clock:
    """The seconds that each station of a batch took, in `spent`, by its name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, name: str) -> None:
        """Add the seconds since the last call under `name`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # else the clock is read before the work is done
        now = time.perf_counter()
        self.spent[name] = now - self._last
        self._last = now
