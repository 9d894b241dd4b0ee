"""How likely a model finds whole sequences: the bound on -log p, and pseudo-perplexity, one record per sequence.

Both are of the residues that the task generates (`letters`), and their softmax is over these; other letters (X, B, ...)
are context. In a row with a `target` they are those of its binder, given the target.

Records are read and written a window at a time, so memory does not grow with the input.

Shape letters: N residues of a sequence.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mmdiff.config.typed import typed
from mmdiff.data.token_budget import token_budget
from mmdiff.errors import ConfigError, DataError, nearest, short
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row
from mmdiff.runs.records import JsonlStore
from mmdiff.session import Session
from mmdiff.tasks.protein.data.records import Record as SequenceRecord
from mmdiff.tasks.protein.data.records import as_row, name_of, pass_over, where_of
from mmdiff.tasks.protein.residues import permuted
from mmdiff.tasks.protein.session import digest
from mmdiff.tasks.protein.task import Protein

from .log_probs import Canvas, bounds, canvas, pseudo_log_p

Record = dict[str, Any]
"""`id`, `length` and `scored` (residues, and those that count); `bound` (nats per residue) and `bound_nats`;
`pseudo_perplexity`; `log_p` (nats of each residue given all others, None for context) and `control` where asked for.
Figures of a sequence without a residue that counts are None."""

METHODS = ("bound", "pseudo_perplexity")
CONTROLS = ("shuffled_target",)
BATCHES = 64  # of `tokens` each: the most work between two writes, whatever the window


@typed
def score_sequences(
    session: Session[Protein],
    records: Iterable[SequenceRecord | Row],
    *,
    methods: Sequence[str] = METHODS,
    levels: AtLeast1 = 16,
    tokens: AtLeast1 | None = None,
    window: AtLeast1 = 1024,
    per_residue: bool = False,
    control: str | None = None,
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Iterator[Record]:
    """The records (see `Record`) of sequences, in their order. records: of a file, or rows.

    methods: `bound`: upper bound of -log p, `mmdiff.model.likelihood.bound` at `levels` numbers of masked residues, its
        noise drawn under the record's number. `pseudo_perplexity`: exp of the mean of -log p(x_i | all others) over
        every residue, one forward of the canvas per residue (Salazar et al., arXiv 1910.14659).
    tokens: token budget of a forward, padding counted; a longer canvas is a forward of its own.
    window: records that are sorted by length and written together, fewer where they are much work.
    control: "shuffled_target": the same figures with the target's residues permuted, as the record's `control`.
    out: None: records are computed as they are read from the iterator. A file: all records are computed before this
        returns and are written window by window; records that the file already has are not computed again, and the
        iterator reads the file.
    Raises ConfigError, and DataError that names the record; what stands before that record is written.
    """
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"methods: {short(repr(name), 60)}{nearest(name, METHODS)}")
    if not methods:
        raise ConfigError(f"methods: none{nearest('', METHODS)}")
    if control is not None and control not in CONTROLS:
        raise ConfigError(f"control: {short(repr(control), 60)}{nearest(str(control), CONTROLS)}")
    if per_residue and "pseudo_perplexity" not in methods:
        raise ConfigError("per_residue: needs the method pseudo_perplexity")
    tokens = token_budget(session.model.device, tokens)
    scoring = _Scoring(session, tuple(methods), levels, tokens, window, per_residue, control, seed)
    rows = enumerate(map(as_row, records))
    if out is None:
        return chain.from_iterable(scoring.windows(rows))
    own = {"methods": sorted(methods), "levels": levels, "per_residue": per_residue, "control": control, "seed": seed}
    depends = {**(settings or {}), **own, "letters": scoring.letters, "model": digest(session.model)}
    lines = JsonlStore(out, depends, ordered=True)
    pass_over(
        lines.read(),
        rows,
        lambda line, row, i: (line.get("id"), line.get("length")) == (name_of(row, i), len(row.get("sequence") or "")),
        out,
    )
    with tqdm(initial=lines.count, unit=" sequences", desc="score", file=sys.stderr, leave=False) as bar:
        for scored in scoring.windows(rows):
            lines.add(scored)
            bar.update(len(scored))
    return lines.read()


@dataclass(frozen=True)
class _Scoring:
    """The arguments of `score_sequences`."""

    session: Session[Protein]
    methods: tuple[str, ...]
    levels: int
    tokens: int
    window: int
    per_residue: bool
    control: str | None
    seed: int

    @property
    def letters(self) -> str:
        return self.session.task.letters

    def windows(self, rows: Iterator[tuple[int, Row]]) -> Iterator[list[Record]]:
        """Records of one window after the other."""
        failed: DataError | None = None
        while failed is None:
            group: list[tuple[int, Row, list[Canvas]]] = []
            work = 0
            while len(group) < self.window and work < BATCHES * self.tokens:
                try:
                    if (found := next(rows, None)) is None:
                        break
                    group.append((*found, self.canvases(*found)))
                except DataError as error:  # those before it are done all the same
                    failed = error
                    break
                for one in group[-1][2]:
                    copies = {"bound": self.levels, "pseudo_perplexity": len(one.position_N)}
                    work += len(one.ids_L) * sum(copies[name] for name in self.methods)
            if not group and failed is None:
                return
            if group:
                try:
                    yield self.records(group)
                except DataError as error:  # too long a canvas for the positions of a backbone
                    i, row, _ = max(group, key=lambda one: len(one[2][0].ids_L))
                    raise DataError(f"{where_of(row, i)}: {error}") from None
        raise failed

    def canvases(self, i: int, row: Row) -> list[Canvas]:
        """The canvas, and that of the control."""
        made = [canvas(self.session, row, self.letters, record=i)]
        if self.control is not None:
            target = row.get("target")
            if not target:
                raise DataError(f"{where_of(row, i)}: no target, which the control {self.control} shuffles")
            shuffled = permuted(str(target), i, self.seed)
            made.append(canvas(self.session, {**row, "target": shuffled}, self.letters, record=i))
        return made

    def records(self, group: Sequence[tuple[int, Row, list[Canvas]]]) -> list[Record]:
        flat = [(i, one) for i, _, made in group for one in made]
        index, canvases = [i for i, _ in flat], [one for _, one in flat]
        found: list[Record] = [{} for _ in flat]
        counts = [int(one.scored_N.sum()) for one in canvases]
        if "bound" in self.methods:
            named = {"levels": self.levels, "tokens": self.tokens, "seed": self.seed}
            nats = bounds(self.session.model, canvases, index, **named)
            for record, n, nll in zip(found, counts, nats, strict=True):
                record |= {"bound": nll / n if n else None, "bound_nats": nll if n else None}
        if "pseudo_perplexity" in self.methods:
            every = pseudo_log_p(self.session.model, canvases, self.letters, tokens=self.tokens)
            for record, n, log_p_N in zip(found, counts, every, strict=True):
                record["pseudo_perplexity"] = math.exp(-np.nanmean(log_p_N)) if n else None
                if self.per_residue:
                    record["log_p"] = [None if math.isnan(p) else p for p in log_p_N.tolist()]
        each = iter(zip(canvases, counts, found, strict=True))
        out = []
        for i, row, made in group:
            (one, n, figures), *rest = islice(each, len(made))
            out.append({"id": name_of(row, i), "length": len(one.position_N), "scored": n, **figures})
            if rest:
                out[-1]["control"] = rest[0][2]
        return out
