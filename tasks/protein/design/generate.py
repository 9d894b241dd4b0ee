"""Sequences written for many rows of many lengths in one call, in the order of the rows, by any sampler setting.

A window of rows at a time is sorted by length, cut into batches of so many places, and written; so memory does not grow
with the input. Noise is a function of a row's number or of its own `seed`, so neither batch nor window changes what is
written. With a file, every window is on the disk before the next begins.

`Guard` throws sequences away that repeat themselves; `design_control` writes binders once more for a wrong target.

Shape letters: B rows of a batch, L canvas.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from mmdiff.canvas.batch import to_device
from mmdiff.canvas.sample import Sample as Canvas
from mmdiff.canvas.sample import canvas_length
from mmdiff.data.collate import collate
from mmdiff.data.stream import read_media
from mmdiff.data.token_budget import batch_by_tokens, token_budget
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError, located
from mmdiff.protocols import Row, Source
from mmdiff.runs.records import JsonlStore
from mmdiff.samplers.options import generation_config
from mmdiff.session import Session
from mmdiff.tasks.protein.residues import GAP, OPEN, permuted
from mmdiff.tasks.protein.score.log_probs import bounds as residue_bounds
from mmdiff.tasks.protein.score.log_probs import canvas
from mmdiff.tasks.protein.session import digest
from mmdiff.tasks.protein.task import Protein

Record = dict[str, Any]
"""`id`, `description`, `sequence`, `target` (of a binder), `length`, `designed` (places that were written), `forwards`
(that wrote them), `confidence` (mean log-probability of what was written there, when it was; None where nothing was),
`steps` (the step of each place, 0 if it was given), `trajectory` where asked for, `attempts` and `guard` ("ok", what
the sequence tripped on, or "off")."""

ROWS = 512  # of a batch at most: short sequences would otherwise be thousands


@dataclass(frozen=True)
class Guard:
    """Whether a sequence repeats itself. It looks at residues that were written, not at those that were given.

    share: one kind of residue has more than this share of what was written, and `least` places or more: of few places
        natural stretches have such a share too. DPLM writes kinds of residues above 25 % again.
    run: more than `run` equal residues stand in a row; or as many as `run` repeat the 2 to 4 that stand before them,
        over and over. Gaps of an alignment are passed over.
    tries: how often a sequence is written at most. The last one is kept, and says what it tripped on.

    Of 515 natural proteins (`QUERY.fasta` of MMseqs2, and 15 of UniRef50) share trips 0.6 %, run 2.3 %; of 4,914
    Kunitz domains neither any. Of stretches of 30 natural residues 1.9 % trip on share, with least=1 it is 6.4 %.
    """

    share: float = 0.25
    run: int = 8
    tries: int = 4
    least: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"guard.share: {self.share}, expected above 0 and up to 1")
        for name in ("run", "tries", "least"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"guard.{name}: {value!r}, expected a whole number of at least 1")

    def __call__(self, sequence: str, designed: Sequence[bool]) -> str:
        """ "ok", or what it trips on: `L 31 %`, `run of 12 G`, `11 residues repeat GS`. designed: of each place."""
        places = [(letter, new) for letter, new in zip(sequence, designed, strict=True) if letter != GAP]
        letters = [letter for letter, _ in places]
        written = Counter(letter for letter, new in places if new)
        for letter, n in written.most_common(1):
            if n >= self.least and n > self.share * written.total():
                return f"{letter} {100 * n / written.total():.0f} %"
        for unit in range(1, 5):
            same = 0
            for i in range(unit, len(places)):
                same = same + 1 if places[i][1] and letters[i] == letters[i - unit] else 0
                if same >= max(self.run, unit):
                    return self._named(letters, i, unit, same)
        return "ok"

    def _named(self, letters: Sequence[str], last: int, unit: int, same: int) -> str:
        start = last - same - unit + 1
        while last + 1 < len(letters) and letters[last + 1] == letters[last + 1 - unit]:
            last += 1
        n = last - start + 1
        repeat = "".join(letters[start : start + unit])
        return f"run of {n} {repeat}" if unit == 1 else f"{n} residues repeat {repeat}"


GUARD = Guard()


def generate(
    session: Session[Protein],
    rows: Iterable[Row] | Source,
    *,
    tokens: int | None = None,
    window: int = 1024,
    guard: Guard | None = GUARD,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    trajectory: bool = False,
    **named: Any,
) -> Iterable[Record]:
    """Write the open places of every row: a list of records, or, with `out`, an iterator over those of the file.

    rows: rows of the protein task, as they come; a record keeps `id` (else its number), `description` and `target`. A
        row that has a `seed` of its own is written the same wherever it stands, under the same `sampler.seed`.
    tokens: places of a batch, padding counted; a longer row is a batch of its own. window: rows that are sorted by
        length at a time. Neither changes what is written, beyond rounding.
    guard: None: nothing is written twice, so samples follow the model's own law.
    out: a file of JSON lines. What it already has is not done again; it must be of the same rows, model and settings.
    settings: what else the records depend on, kept beside the file: where the rows come from.
    trajectory: with every record, the sequence after each of its forwards, `_` where a place is open. A place that a
        sampler rule opens again counts as open until it is written for the last time.
    named: fields of GenerationConfig, over those of the session.
    Raises ConfigError, and DataError that names the row.
    """
    tokens = token_budget(session.model.device, tokens)
    for name, value in (("tokens", tokens), ("window", window)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}: {value!r}, expected a whole number of at least 1")
    sampler = generation_config(session.sampler, **named)
    if sampler.draft is not None:
        raise ConfigError("sampler.draft: opens residues that are given, which here stay as they are; open them (`_`)")
    log = None
    if out is not None:
        depends = {"sampler": asdict(sampler), "guard": guard and asdict(guard), "trajectory": trajectory}
        log = JsonlStore(out, {**(settings or {}), **depends, "model": digest(session.model)}, ordered=True)
    numbered = enumerate(_each(rows))
    done = 0 if log is None else _skip(log, numbered)
    found: list[Record] = []
    with tqdm(unit="rows", desc="generate", initial=done, file=sys.stderr, leave=False) as bar:
        while group := list(islice(numbered, window)):
            records = _written(session, group, tokens, guard, trajectory, named)
            if log is None:
                found += records
            else:
                log.add(records)
            bar.update(len(group))
    return found if log is None else log.read()


def summary(records: Iterable[Record]) -> dict[str, Any]:
    """How many there are, how many the guard made to be written again, and what is left of them, by kind."""
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for record in records:
        counts["records"] += 1
        counts["places"] += record["designed"]
        counts["forwards"] += record["forwards"]
        counts["rewritten"] += record["attempts"] > 1
        if record["guard"] not in ("ok", "off"):
            counts["flagged"] += 1
            kinds["share" if record["guard"].endswith("%") else "repeat"] += 1
    names = ("records", "places", "forwards", "rewritten", "flagged")
    return {**{name: counts[name] for name in names}, "flagged_by": dict(kinds)}


def design_control(
    session: Session[Protein],
    rows: Iterable[Row] | Source,
    *,
    control: Literal["shuffled", "other"] = "shuffled",
    seed: int = 0,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **named: Any,
) -> tuple[Iterable[Record], Iterable[Record]]:
    """Binders of the rows' targets, and binders written under the same noise for wrong ones (`control_rows`).

    Where the two sets are alike, the design does not depend on the target: compare `bounds` of the first under its own
    and under the wrong targets. out: the second goes beside it, to `<name>.control<suffix>`. named: as for `generate`.
    Raises ConfigError, DataError.
    """
    own = list(_each(rows))
    wrong = control_rows(own, control, seed)
    beside = None if out is None else control_file(out)
    also = {**(settings or {}), "control": {"targets": control, "seed": seed}}
    return (
        generate(session, own, out=out, settings=settings, **named),
        generate(session, wrong, out=beside, settings=also, **named),
    )


def control_file(out: Path) -> Path:
    """Where `design_control` leaves the second set."""
    return out.with_name(f"{out.stem}.control{out.suffix}")


def control_rows(rows: Sequence[Row], control: Literal["shuffled", "other"] = "shuffled", seed: int = 0) -> list[Row]:
    """The rows with wrong targets. "shuffled": the row's own residues in random order, by (seed, number of the row), so
    that length and composition are the same. "other": the next row's target that is not the same, round the end.

    Raises ConfigError for another word, DataError for a row without a target and where all have the same.
    """
    if control not in ("shuffled", "other"):
        raise ConfigError(f"control: {control!r}, expected shuffled or other")
    targets = [row.get("target") for row in rows]
    for k, (row, target) in enumerate(zip(rows, targets, strict=True)):
        if not isinstance(target, str) or not target:
            raise DataError(f"{row.get('where', f'row {k}')}: target: {target!r}, expected residues for a control")
    wrong = []
    for k, target in enumerate(map(str, targets)):
        if control == "shuffled":
            if len(set(target)) == 1:
                where = rows[k].get("where", f"row {k}")
                raise DataError(f"{where}: target: one kind of residue, whose order cannot be shuffled; use other")
            wrong.append(permuted(target, k, seed))
        else:
            others = (str(targets[(k + i) % len(targets)]) for i in range(1, len(targets)))
            wrong.append(next((other for other in others if other != target), ""))
            if not wrong[-1]:
                raise DataError("control: all rows have the same target, so there is no other one; use shuffled")
    return [{**row, "target": target} for row, target in zip(rows, wrong, strict=True)]


def bounds(
    session: Session[Protein], rows: Iterable[Row], *, tokens: int | None = None, levels: int = 16, seed: int = 0
) -> list[float]:
    """The bound on -log p(sequence | target) of each row, in nats a residue (`mmdiff.model.likelihood.bound`).

    rows: whole sequences, records of `generate` too. Rows of one number are priced under the same noise, so those of
    two calls, with right and with wrong targets, can be compared one by one.
    """
    canvases = [canvas(session, row, session.task.letters, record=k) for k, row in enumerate(rows)]
    nats = residue_bounds(session.model, canvases, range(len(canvases)), levels=levels, tokens=tokens, seed=seed)
    return [nll / max(int(one.scored_N.sum()), 1) for nll, one in zip(nats, canvases, strict=True)]


# One window ----------------------------------------------------------------------------------------------------------


def _written(
    session: Session[Protein],
    group: Sequence[tuple[int, Row]],
    tokens: int,
    guard: Guard | None,
    trajectory: bool,
    named: Mapping[str, Any],
) -> list[Record]:
    samples = [_canvas(session.task.prompt, session, row, k) for k, row in group]
    lengths = [canvas_length(sample) for sample in samples]
    records: list[Record | None] = [None] * len(group)
    todo = list(range(len(group)))
    attempt = 0
    while todo:
        again = []
        for batch in batch_by_tokens([lengths[i] for i in todo], tokens, ROWS):
            at = [todo[i] for i in batch]
            index = [noise_number(group[i][0], group[i][1], attempt) for i in at]
            new = _batch(session, [group[i] for i in at], [samples[i] for i in at], index, trajectory, named)
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


def _batch(
    session: Session[Protein],
    rows: Sequence[tuple[int, Row]],
    samples: Sequence[Canvas],
    index: Sequence[int],
    trajectory: bool,
    named: Mapping[str, Any],
) -> list[Record]:
    model = session.model
    laid = collate(samples, model.vocab, model.readers, index=index, side="left")
    out = model.generate(to_device(laid, model.device), generation_config=session.sampler, **named)
    # one transfer each, not one a row
    ids_BL, target_BL, step_BL, sure_BL, forwards_B = (
        x.cpu() for x in (out.ids_BL, out.target_BL, out.step_BL, out.confidence_BL, out.forwards_B)
    )
    records = []
    for b, (k, row) in enumerate(rows):
        position_L = target_BL[b]
        sequence = session.task.parse(ids_BL[b, position_L].tolist(), model.vocab)
        steps = step_BL[b, position_L].tolist()
        logs = sure_BL[b, position_L & (step_BL[b] > 0)].double().clamp(min=1e-45).log()
        record: Record = {
            "id": str(row.get("id", k)),
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
                "".join(letter if step <= now else OPEN for letter, step in zip(sequence, steps, strict=True))
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


def _canvas(layout: Any, session: Session[Protein], row: Row, k: int) -> Canvas:
    try:
        return read_media(layout(row, session.model.vocab), session.model.readers)
    except DataError as error:
        if row.get("where") and str(row["where"]) in str(error):
            raise
        with located(f"row {k}"):
            raise


def _each(rows: Iterable[Row] | Source) -> Iterable[Row]:
    return rows if isinstance(rows, Iterable) else (rows[i] for i in range(len(rows)))


def _skip(log: JsonlStore, numbered: Iterator[tuple[int, Row]]) -> int:
    """Pass over the rows that the file has. Raises ConfigError where they are others."""
    for record in log.read():
        k, row = next(numbered, (-1, {}))
        if k < 0 or record.get("id") != str(row.get("id", k)) or not _is_of(record, row):
            what = f"record {record.get('id')!r} is not among the first {log.count} rows as it was"
            raise ConfigError(f"{log.file} was written for other rows ({what}); choose another file")
    return log.count


def _is_of(record: Record, row: Row) -> bool:
    """Whether the record has what the row gives: its target, its length, and every residue that is not open."""
    given = str(row.get("sequence", ""))
    same = record.get("target") == row.get("target") and len(record["sequence"]) == len(given)
    return same and all(b in (OPEN, a) for a, b in zip(record["sequence"], given, strict=True))
