"""Rows to be sampled, from the options of the command line: lazily, each a function of (options, seed, number).

`mmdiff protein generate RUN --length 5 --allow 1:MK` makes rows such as
`{"id": "sample-1", "sequence": "_____", "allow": ["KM", None, None, None, None]}`; `infill` adds `description` and
`where`, `design` the `target`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmdiff.errors import DataError, UserError, located
from mmdiff.protocols import Row
from mmdiff.tasks.protein.data.fasta import read_sequences
from mmdiff.tasks.protein.design.lengths import drawn_lengths
from mmdiff.tasks.protein.design.motifs import (
    LONGEST,
    Design,
    allowed,
    kept_ranges,
    masked_ranges,
    masked_share,
    number_range,
    record_rng,
    residue_ranges,
    scaffold,
    template,
)
from mmdiff.tasks.protein.residues import MASKED

from .arguments import Binders, Infilling, NewSequences, Policies, Sampling
from .inputs import first_sequence

T = TypeVar("T")


def peeked(items: Iterable[T]) -> Iterator[T]:
    """The same items, the first of which is read now: what is wrong with all of them is found before the work."""
    rest = iter(items)
    return chain(list(islice(rest, 1)), rest)


def new_rows(new: NewSequences, sampling: Sampling) -> Iterator[Row]:
    """`generate`: of given lengths, or after a template."""
    return _rows(new, new.length or None, sampling, "template", lambda rng: template(str(new.template), rng))


def infilled_rows(
    file: Path, infilling: Infilling, policies: Policies, sampling: Sampling, *, one_word: bool
) -> Iterator[Row]:
    """`infill`: every record of a file `n` times. one_word: ids must be such, for FASTA."""
    expected = "a number or a range, as in 100 or 80-120"
    span = None if infilling.length is None else number_range(infilling.length, "--length", LONGEST, expected)
    number = 0
    for record in read_sequences(file, masked="keep", **policies.given()):
        if one_word and len(record.id.split()) != 1:
            raise DataError(f"{record.where}: {record.id!r} cannot be the id of a FASTA record; write .csv or .jsonl")
        for i in range(infilling.n):
            with located(record.where, UserError):
                made, about = _masked(record.sequence, infilling, span, record_rng(sampling.seed, number, "infill"))
                row = _row(record.id if infilling.n == 1 else f"{record.id}/{i + 1}", made, sampling)
            yield {**row, "description": f"{record.description} {about}".strip(), "where": record.where}
            number += 1


def binder_rows(binders: Binders, sampling: Sampling) -> list[Row]:
    """`design`: binders of one target."""
    target = first_sequence("--target", binders.target)
    known = "" if binders.binder is None else first_sequence("--binder", binders.binder)

    def draw(rng: np.random.Generator) -> Design:
        if binders.template is not None:
            return template(binders.template, rng)
        assert binders.share is not None
        return masked_share(known, binders.share, rng, binders.window)

    return [{**row, "target": target} for row in _rows(binders, binders.length, sampling, "design", draw)]


def _rows(
    new: NewSequences | Binders,
    length: str | None,
    sampling: Sampling,
    stream: str,
    draw: Callable[[np.random.Generator], Design],
) -> Iterator[Row]:
    """Rows of given lengths, else as `draw` makes them, each from random numbers of its own."""
    lengths = None if length is None else drawn_lengths(length, record_rng(sampling.seed, 0, "lengths"))
    for k in range(new.n):
        made = draw(record_rng(sampling.seed, k, stream)) if lengths is None else Design(MASKED * next(lengths))
        yield _row(f"{new.prefix}{k + 1}", made, sampling)


def _masked(
    sequence: str, infilling: Infilling, span: tuple[int, int] | None, rng: np.random.Generator
) -> tuple[Design, str]:
    """The design of a sequence, and what is added to its description."""
    if infilling.masked is not None:
        return masked_ranges(sequence, residue_ranges(infilling.masked, len(sequence))), ""
    if infilling.keep is not None:
        return kept_ranges(sequence, residue_ranges(infilling.keep, len(sequence))), ""
    if infilling.share is not None:
        return masked_share(sequence, infilling.share, rng, infilling.window), ""
    if infilling.scaffold is not None and span is not None:
        ranges = residue_ranges(infilling.scaffold, len(sequence))
        made, landed = scaffold(sequence, ranges, span, rng, keep_gaps=infilling.keep_gaps)
        return made, "motif=" + ",".join(f"{low + 1}-{high}" for low, high in landed)
    if MASKED not in sequence:
        raise DataError("no position is masked (`_`); give --masked, --keep, --share or --scaffold")
    return Design(sequence), ""


def _row(name: str, made: Design, sampling: Sampling) -> Row:
    made = allowed(made, sampling.allow, sampling.forbid)
    return {"id": name, "sequence": made.sequence, **({"allow": made.allow} if made.allow else {})}
