"""Sequences sampled for many rows of many lengths in one call, in the order of the rows, by any sampler setting.

A row has masked positions, `_`: `{"id": "a", "sequence": "MK__G", "allow": [None, None, "AC", None, None]}`.

A window of rows at a time is sorted by length and cut into batches of a token budget, so memory does not grow with the
input. Noise is a function of a row's number or of its own `seed`, so neither batch nor window changes what is sampled.
With a file, every window is on the disk before the next begins.

Shape letters: B rows of a batch, L canvas.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mmdiff.canvas.batch import to_device
from mmdiff.canvas.sample import Sample, canvas_length
from mmdiff.config.typed import typed
from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.data.token_budget import batch_by_tokens, token_budget
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError, located
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row, Source
from mmdiff.runs.records import JsonlStore
from mmdiff.samplers.options import generation_config
from mmdiff.session import Session
from mmdiff.tasks.protein.data.records import name_of, pass_over
from mmdiff.tasks.protein.residues import MASKED
from mmdiff.tasks.protein.session import digest
from mmdiff.tasks.protein.task import Protein

from .guard import GUARD, Guard

Record = dict[str, Any]
"""`id`, `description`, `sequence`, `target` (of a binder), `length`, `designed` (number of sampled positions),
`forwards`, `confidence` (mean log-probability of the sampled residues when they were committed; None where there are
none), `steps` (when each position was committed, 0 if it was given), `trajectory` where asked for, `attempts`, and
`guard` ("ok", what the sequence tripped on, or "off")."""

ROWS = 512  # of a batch at most: short sequences would otherwise be thousands


@typed
def generate(
    session: Session[Protein],
    rows: Iterable[Row] | Source,
    *,
    tokens: AtLeast1 | None = None,
    window: AtLeast1 = 1024,
    guard: Guard | None = GUARD,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    trajectory: bool = False,
    **named: Any,
) -> Iterable[Record]:
    """Sample the masked positions of every row: a list of records, or, with `out`, an iterator over those of the file.

    rows: rows of the protein task, as they come; a record keeps `id` (else its number), `description` and `target`. A
        row that has a `seed` of its own is sampled the same wherever it stands, under the same `sampler.seed`.
    tokens: token budget of a batch, padding counted; a longer row is a batch of its own. window: rows that are sorted
        by length at a time. Neither changes what is sampled, beyond rounding.
    guard: None: nothing is sampled twice, so samples follow the model's own law.
    out: a file of JSON lines. What it already has is not done again; it must be of the same rows, model and settings.
    settings: what else the records depend on, kept beside the file: where the rows come from.
    trajectory: with every record, the sequence after each of its forwards, `_` where a position is masked. A position
        that a sampler rule remasks counts as masked until it is committed for the last time.
    named: fields of GenerationConfig, over those of the session.
    Raises ConfigError, and DataError that names the row.
    """
    tokens = token_budget(session.model.device, tokens)
    sampler = generation_config(session.sampler, **named)
    if sampler.draft is not None:
        raise ConfigError("sampler.draft: masks residues that are given, which here stay as they are; mask them (`_`)")
    log = None
    if out is not None:
        depends = {"sampler": asdict(sampler), "guard": guard and asdict(guard), "trajectory": trajectory}
        log = JsonlStore(out, {**(settings or {}), **depends, "model": digest(session.model)}, ordered=True)
    numbered = enumerate(each_row(rows))
    done = 0
    if log is not None:
        pass_over(log.read(), numbered, _is_of, out)
        done = log.count
    found: list[Record] = []
    with tqdm(unit="rows", desc="generate", initial=done, file=sys.stderr, leave=False) as bar:
        while group := list(islice(numbered, window)):
            records = _sample_window(session, group, tokens, guard, trajectory, named)
            if log is None:
                found += records
            else:
                log.add(records)
            bar.update(len(group))
    return found if log is None else log.read()


def count_records(records: Iterable[Record]) -> dict[str, Any]:
    """Count records, those that were sampled more than once, and by kind those that `Guard` still objects to."""
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for record in records:
        counts["records"] += 1
        counts["positions"] += record["designed"]
        counts["forwards"] += record["forwards"]
        counts["resampled"] += record["attempts"] > 1
        if record["guard"] not in ("ok", "off"):
            counts["flagged"] += 1
            kinds["share" if record["guard"].endswith("%") else "repeat"] += 1
    names = ("records", "positions", "forwards", "resampled", "flagged")
    return {**{name: counts[name] for name in names}, "flagged_by": dict(kinds)}


# One window ----------------------------------------------------------------------------------------------------------


def _sample_window(
    session: Session[Protein],
    group: Sequence[tuple[int, Row]],
    tokens: int,
    guard: Guard | None,
    trajectory: bool,
    named: Mapping[str, Any],
) -> list[Record]:
    samples = [_prompt(session, row, k) for k, row in group]
    lengths = [canvas_length(sample) for sample in samples]
    records: list[Record | None] = [None] * len(group)
    todo = list(range(len(group)))
    attempt = 0
    while todo:
        again = []
        for batch in batch_by_tokens([lengths[i] for i in todo], tokens, ROWS):
            at = [todo[i] for i in batch]
            index = [noise_number(group[i][0], group[i][1], attempt) for i in at]
            new = _sample_batch(session, [group[i] for i in at], [samples[i] for i in at], index, trajectory, named)
            for i, record in zip(at, new, strict=True):
                last, records[i] = records[i], record
                record["attempts"] = attempt + 1
                designed = [step > 0 for step in record["steps"]]
                record["guard"] = guard(record["sequence"], designed) if guard else "off"
                # fresh noise that changes nothing (temperature 0 in a fixed order) never will
                stuck = last is not None and last["sequence"] == record["sequence"]
                if guard and record["guard"] != "ok" and attempt + 1 < guard.tries and not stuck:
                    again.append(i)
        todo = sorted(again)
        attempt += 1
    return [record for record in records if record is not None]


def _sample_batch(
    session: Session[Protein],
    rows: Sequence[tuple[int, Row]],
    samples: Sequence[Sample],
    index: Sequence[int],
    trajectory: bool,
    named: Mapping[str, Any],
) -> list[Record]:
    model = session.model
    laid = collate(samples, model.vocab, model.readers, index=index, side="left")
    out = model.generate(to_device(laid, model.device), generation_config=session.sampler, **named)
    # one transfer each, not one per row
    ids_BL, target_BL, step_BL, confidence_BL, forwards_B = (
        x.cpu() for x in (out.ids_BL, out.target_BL, out.step_BL, out.confidence_BL, out.forwards_B)
    )
    records = []
    for b, (k, row) in enumerate(rows):
        position_L = target_BL[b]
        sequence = session.task.parse(ids_BL[b, position_L].tolist(), model.vocab)
        steps = step_BL[b, position_L].tolist()
        logs = confidence_BL[b, position_L & (step_BL[b] > 0)].double().clamp(min=1e-45).log()
        record: Record = {
            "id": name_of(row, k),
            "description": str(row.get("description", "")),
            "sequence": sequence,
            **({"target": row["target"]} if row.get("target") is not None else {}),
            "length": len(sequence),
            "designed": len(logs),
            "forwards": int(forwards_B[b]),
            "confidence": round(float(logs.mean()), 6) if len(logs) else None,
            "steps": steps,
        }
        if trajectory:
            record["trajectory"] = [
                "".join(letter if step <= now else MASKED for letter, step in zip(sequence, steps, strict=True))
                for now in range(1, record["forwards"] + 1)
            ]
        records.append(record)
    return records


def noise_number(number: int, row: Row, attempt: int = 0) -> int:
    """The identity under which a row's noise is drawn: its number; of a row with a `seed`, and of every attempt but the
    first, a number above 2^62 that is drawn by (seed or number, attempt), so that no row's number is among them.

    Raises DataError for a seed that is no whole number.
    """
    seed = row.get("seed")
    if seed is None:
        if attempt == 0:
            return number
        key = NoiseKey(number, attempt, "designs/number")
    elif isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise DataError(f"{row.get('where', f'row {number}')}: seed: {seed!r}, expected a whole number")
    else:
        key = NoiseKey(int(seed), attempt, "designs/seed")
    high, low = (int(u * 2.0**31) for u in key.uniform(0, 2))
    return 1 << 62 | high << 31 | low


def _prompt(session: Session[Protein], row: Row, k: int) -> Sample:
    try:
        return read_media(session.task.prompt(row, session.model.vocab), session.model.readers)
    except DataError as error:
        if row.get("where") and str(row["where"]) in str(error):
            raise
        with located(f"row {k}"):
            raise


def each_row(rows: Iterable[Row] | Source) -> Iterable[Row]:
    """Yields rows in order, of a source as well as of an iterable."""
    return rows if isinstance(rows, Iterable) else (rows[i] for i in range(len(rows)))


def _is_of(record: Mapping[str, Any], row: Row, number: int) -> bool:
    """Whether the record has what the row gives: id, target, length, and every residue that is not masked."""
    given = str(row.get("sequence", ""))
    same = record.get("id") == name_of(row, number) and record.get("target") == row.get("target")
    return (
        same
        and len(record["sequence"]) == len(given)
        and all(b in (MASKED, a) for a, b in zip(record["sequence"], given, strict=True))
    )
