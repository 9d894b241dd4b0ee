"""From records of `mmdiff.tasks.asr.transcribe` to figures, and to a page to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.canvas.sample import Target
from mmdiff.canvas.vocab import Vocab
from mmdiff.evaluation.page import evenly
from mmdiff.protocols import Row, Source

from .metrics import bootstrap, char_errors, corpus, paired_bootstrap, word_errors
from .records import rtf
from .report import Example, write_asr_report
from .task import ASR
from .words import Word

SHOWN = 24  # utterances of a page


def figures(task: ASR, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """WER with its 95 % interval, errors by kind, CER, real-time factors; of the first pass too where there is one,
    with the relative reduction (not a number where it made no errors) and the paired interval of the difference.
    Raises DataError for a row without `text`.
    """
    words = [word_errors(*task.pair(r, r["pred_text"])) for r in records]
    low, high = bootstrap(words)
    chars = corpus([char_errors(*task.pair(r, r["pred_text"])) for r in records])
    out: dict[str, Any] = {**corpus(words), "wer_low": low, "wer_high": high, "cer": chars["wer"], "n": len(records)}
    if all(r.get("first_pass") is not None for r in records):
        before = [word_errors(*task.pair(r, r["first_pass"])) for r in records]
        first = corpus(before)
        low, high = bootstrap(before)
        out["first_pass"] = {**first, "wer_low": low, "wer_high": high}
        out["reduction"] = 1 - out["wer"] / first["wer"] if first["wer"] else float("nan")
        out["paired"] = paired_bootstrap(before, words)
    return {**out, "rtf": rtf(records)}


def example(task: ASR, row: Row, record: Mapping[str, Any], vocab: Vocab) -> Example:
    """What the page shows of one utterance. The row's hypothesis is the record's first pass, if there was one."""
    row = {**row, "hypothesis": record.get("first_pass")}
    first = record.get("first_pass")
    return Example(
        audio=row.get("audio"),
        text=task.pair(row, "")[0],
        first_pass=None if first is None else task.pair(row, first)[1],
        prediction=task.pair(row, record["pred_text"])[1],
        canvas=record["canvas"],
        draft=drafted(task, row, vocab),
        words=[Word(**word) for word in record.get("words", ())],
    )


def drafted(task: ASR, row: Row, vocab: Vocab) -> list[str | None]:
    """The token that stands at each target position before generation; None: a masked position."""
    (target,) = [p for p in task.prompt(row, vocab) if isinstance(p, Target)]
    if target.ids is None:
        return [None] * target.length
    return [None if i == vocab.mask_id else vocab.piece(i) for i in target.ids]


def page(
    file: Path, task: ASR, rows: Source, records: Sequence[Mapping[str, Any]], vocab: Vocab, found: Mapping[str, Any]
) -> Path:
    """The page of one set of rows and its `figures`; those of writing from nothing beside them, as `standalone`."""
    table = {"first pass": {"WER %": 100 * found["first_pass"]["wer"]}} if "first_pass" in found else {}
    ways = {"standalone": found.get("standalone"), "result": found}
    table |= {way: {"WER %": 100 * of["wer"], "CER %": 100 * of["cer"]} for way, of in ways.items() if of}
    numbered = [{"index": i, **record} for i, record in enumerate(records)]
    shown = [example(task, rows[r["index"]], r, vocab) for r in evenly(numbered, SHOWN)]
    speed = ", ".join(f"{name} {value:.4f}" for name, value in found["rtf"].items())
    notes = [f"{len(records)} utterances, {found['words']} words. Seconds of work per second of sound: {speed}."]
    return write_asr_report(file, title="Transcripts", table=table, examples={"utterances": shown}, notes=notes)
