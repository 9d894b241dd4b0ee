"""From records of `mmdiff.tasks.transcribe` to figures and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .asr import ASR
from .asr_metrics import bootstrap, char_errors, corpus, paired_bootstrap, word_errors
from .transcribe import rtf


def figures(task: ASR, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """WER with its 95 % interval, errors by kind, CER, real-time factors; of the first pass too where there is one,
    with the relative reduction and the paired interval of the difference. Raises DataError for a row without `text`.
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
        out["reduction"] = 1 - out["wer"] / first["wer"] if first["wer"] else 0.0
        out["paired"] = paired_bootstrap(before, words)
    return {**out, "rtf": rtf(records)}
