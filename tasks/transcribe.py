"""Rows of speech to transcripts, batch by batch, timed, into a file that an interrupted run goes on with.

Batches hold rows that are about as long, up to so many seconds of sound; the order of the results is that of the rows.

Shape letters: B rows of a batch, L canvas.
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

from ..batch import Batch, collate, to_device
from ..data import at_row, read
from ..errors import ConfigError
from ..model import MMDiff
from ..protocols import Row, Source
from ..records import Records
from ..samplers.result import Generation
from ..session import Session, written
from ..vocab import Vocab
from .ctc import emitted, first_pass, word_times
from .manifests import by_duration

Record = dict[str, Any]
"""`id`, `audio` (a path), `duration`, `text` (the reference, if there is one), `first_pass` (the draft), `pred_text`,
`confidence` (the least of its words), `forwards`, `canvas` as (token, step, probability), `seconds` {read, encoder,
decoder}, and `words` with their times where asked for."""


def transcribe(
    session: Session,
    rows: Source,
    *,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seconds: float = 120.0,
    words: bool = False,
    first: bool = False,
    **named: Any,
) -> list[Record]:
    """Write every row down, or mend its `hypothesis`.

    out: a file of JSON lines, a record a row, added to after every batch. What it already has is not done again; it
        must come from the same `settings`, which are kept beside it. Once all is done its lines are in the rows' order.
    seconds: of sound in a batch, padding counted. words: with the words' times, by the encoder's CTC head.
    first: the draft is what that head hears, whatever hypothesis a row has.
    named: fields of GenerationConfig.
    Raises ConfigError for a file of other settings, DataError that names the row.
    """
    kind = getattr(session.task, "media", "audio")
    if (words or first) and kind not in session.model.heads:
        raise ConfigError(f"{session.folder}: word times and a first pass need a CTC head that reads {kind}")
    sampler = {**asdict(session.sampler), **named}
    log = Records(out, {**(settings or {}), "words": words, "first": first, "sampler": sampler})
    todo = [i for i in range(len(rows)) if i not in log.done]
    left = _Some(rows, todo)
    total = sum(_duration(rows[i]) for i in todo)
    with tqdm(total=round(total, 1), unit="s", desc="transcribe", file=sys.stderr, leave=False) as bar:
        for batch in by_duration(left, max([seconds, *(_duration(rows[i]) for i in todo)])):
            index = [todo[k] for k in batch]
            group = [rows[i] for i in index]
            log.add(dict(zip(index, _batch(session, group, index, kind, words, first, named), strict=True)))
            bar.update(round(sum(_duration(row) for row in group), 1))
    return log.finish()


def rtf(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Real-time factors: seconds of work a second of sound, of reading (with features such as log-mel), encoder,
    decoder, and all of it; and the mean number of forwards an utterance. Of this machine, batched as it was."""
    sound = sum(r["duration"] for r in records)
    parts = {name: sum(r["seconds"][name] for r in records) / sound for name in ("read", "encoder", "decoder")}
    return {**parts, "total": sum(parts.values()), "forwards": sum(r["forwards"] for r in records) / len(records)}


def _batch(
    session: Session, group: list[Row], index: list[int], kind: str, words: bool, first: bool, named: Mapping[str, Any]
) -> list[Record]:
    model, vocab = session.model, session.model.vocab
    start = time.perf_counter()
    if first:
        heard = first_pass(model, group, kind=kind, batch_size=len(group))
        group = [{**row, "hypothesis": text} for row, text in zip(group, heard, strict=True)]
    after_first = time.perf_counter()
    samples = []
    for i, row in zip(index, group, strict=True):
        with at_row("", i):
            samples.append(read(session.task.prompt(row, vocab), model.readers))
    batch = to_device(collate(samples, vocab, model.readers, index=index, side="left"), model.device)
    after_read = time.perf_counter()
    batch = encoded(model, batch)
    after_encoder = time.perf_counter()
    out = model.generate(batch, generation_config=session.sampler, **named)
    _wait(model)
    spent = {"read": after_read - after_first, "encoder": after_encoder - after_read}
    spent = {**spent, "decoder": time.perf_counter() - after_encoder}
    spent["encoder"] += after_first - start
    sound = sum(_duration(row) for row in group)
    emissions = emitted(model, group, kind) if words else []
    records = []
    for b, (row, ids) in enumerate(zip(group, out.targets(), strict=True)):
        share = _duration(row) / sound
        text = session.task.parse(ids, vocab)
        record: Record = {k: row[k] for k in ("id", "text", "duration", "speaker", "where") if row.get(k) is not None}
        record = {"id": str(index[b]), **record, "duration": _duration(row), **_path(row)}
        if row.get("hypothesis") is not None:
            record["first_pass"] = row["hypothesis"]
        record |= {"pred_text": text, "canvas": written(out, b, model), "forwards": int(out.forwards_B[b])}
        sure = word_confidences(out, batch, b, vocab)
        record["confidence"] = round(min(sure, default=1.0), 4)
        record["seconds"] = {name: round(value * share, 6) for name, value in spent.items()}
        if words:
            timed = word_times(emissions[b], text, model, _duration(row))
            both = zip(timed, sure, strict=False)
            record["words"] = [{**asdict(word), "confidence": round(c, 4)} for word, c in both]
        records.append(record)
    return records


def encoded(model: MMDiff, batch: Batch) -> Batch:
    """`batch`, on the model's device, with the features of its media in place of what is read by encoders."""
    model.eval()
    with torch.inference_mode():
        media = {k: replace(group, features_NTE=model.features(k, group)) for k, group in batch.media.items()}
    _wait(model)
    return replace(batch, media=media)


def word_confidences(out: Generation, batch: Batch, b: int, vocab: Vocab) -> list[float]:
    """The probability of each word of a row: that of its least sure token."""
    place_P = out.target_BL[b].nonzero().squeeze(1)
    sure: list[float] = []
    ids: list[int] = []
    ends = {vocab.eos_id, *vocab.end_ids}
    for i, p in zip(out.ids_BL[b, place_P].tolist(), out.confidence_BL[b, place_P].tolist(), strict=True):
        if i in ends:
            continue
        ids.append(i)
        count = len(vocab.decode(ids).split())
        if count > len(sure):
            sure.append(p)
        elif sure:
            sure[-1] = min(sure[-1], p)
    return sure


def _wait(model: MMDiff) -> None:
    """Until the device has done what it was told: otherwise the clock is read too early."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def _duration(row: Row) -> float:
    if row.get("duration") is not None:
        return float(row["duration"])
    from ..encoders.audio import duration

    return duration(row["audio"])


def _path(row: Row) -> dict[str, Any]:
    audio = row.get("audio")
    if isinstance(audio, Mapping):
        return {"audio": {k: v for k, v in audio.items() if k != "array"}} if "path" in audio else {}
    return {"audio": str(audio)} if audio is not None else {}


class _Some:
    """Some of the rows, with their durations."""

    def __init__(self, rows: Source, index: Sequence[int]) -> None:
        self.rows, self.index = rows, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Row:
        row = self.rows[self.index[i]]
        return {"where": row.get("where", f"row {self.index[i]}"), "duration": _duration(row)}
