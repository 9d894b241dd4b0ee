"""The n-best lists of a recogniser, ranked by its scores and the likelihood that the model gives each hypothesis.

{"audio": "a.wav", "nbest": [{"text": "turn lift", "score": -1.0}, {"text": "turn left", "score": -1.5}]}
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdiff.errors import ConfigError, DataError, located
from mmdiff.protocols import Row, Source
from mmdiff.session import Session
from mmdiff.tasks.dialogue.choice import rescore

from .records import Record, described, open_store
from .task import ASR


def rescored(
    session: Session[ASR],
    rows: Source,
    *,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    weight: float = 1.0,
) -> list[Record]:
    """Returns a record of each row, whose prediction is the best of its `nbest` by `score - weight * nll`.

    Records: `id`, `text` (the reference, if there is one), `first_pass` (the recogniser's best), `pred_text`, and
    `nbest`, the best first: {index in the row's list, text, nll in nats, score, total}. Hypotheses without scores are
    ranked by the model alone.
    out, settings: as in `mmdiff.tasks.asr.transcribe`.
    Raises ConfigError for a file of other settings, DataError that names the row.
    """
    if not math.isfinite(weight):
        raise ConfigError(f"weight: {weight}, expected a finite number")
    store = open_store(out, session, rows, {**(settings or {}), "weight": weight})
    given = {i: _nbest(rows[i], i) for i in range(len(rows)) if i not in store.records}
    for i, (texts, scores) in tqdm(given.items(), "rescore", file=sys.stderr, leave=False):
        row = rows[i]
        with located(f"row {i}"):
            ranked = rescore(session, row, texts, scores, weight=weight)
        record = described(row, i)
        record |= {"first_pass": texts[0], "pred_text": ranked[0].text, "nbest": [asdict(one) for one in ranked]}
        store.add({i: record})
    return store.finish()


def _nbest(row: Row, i: int) -> tuple[list[str], list[float] | None]:
    """Returns the hypotheses and their scores; None in place of scores where no hypothesis has one."""
    nbest, where = row.get("nbest"), row.get("where", f"row {i}")
    if not nbest:
        raise DataError(f"{where}: no nbest, a list of hypotheses")
    scores = [one["score"] for one in nbest if "score" in one]
    if len(scores) not in (0, len(nbest)):
        raise DataError(f"{where}: nbest: {len(scores)} of {len(nbest)} hypotheses have a score, expected all or none")
    return [one["text"] for one in nbest], scores or None
