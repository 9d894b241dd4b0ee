"""Rows to be written, from what is asked for on the command line: lazily, a function of (arguments, seed, number)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from mmdiff.errors import DataError, UserError
from mmdiff.protocols import Row
from mmdiff.tasks.protein.data.fasta import read_sequences
from mmdiff.tasks.protein.data.policies import Record
from mmdiff.tasks.protein.design.motifs import (
    Design,
    allowed,
    drawn_lengths,
    fixed,
    masked,
    opened,
    record_rng,
    residue_ranges,
    scaffold,
    template,
)
from mmdiff.tasks.protein.residues import OPEN

from . import arguments as arguments
from .inputs import first_sequence

T = TypeVar("T")
WAYS = ("open", "keep", "share", "scaffold")


def peeked(items: Iterable[T]) -> Iterator[T]:
    """The same items, the first of which is read now: what is wrong with all of them is said before the work."""
    rest = iter(items)
    return chain(list(islice(rest, 1)), rest)


def new_rows(args: argparse.Namespace) -> Iterator[Row]:
    """`generate`: of given lengths, or after a template."""
    if bool(args.length) == bool(args.template):
        raise UserError("give a --length (100, 50-400, or a FASTA file with such lengths), or a --template")
    lengths = drawn_lengths(args.length, record_rng(args.seed, 0, "lengths")) if args.length else None
    for k in range(args.n):
        if lengths is not None:
            made = Design(OPEN * next(lengths))
        else:
            made = template(args.template, record_rng(args.seed, k, "template"))
        yield _row(f"{args.prefix}{k + 1}", allowed(made, args.allow, args.forbid))


def infilled_rows(file: Path, args: argparse.Namespace, *, one_word: bool) -> Iterator[Row]:
    """`infill`: every record of a file `n` times. one_word: ids must be such, for FASTA."""
    ways = [name for name in WAYS if getattr(args, name) is not None]
    if len(ways) > 1:
        raise UserError(f"--{ways[0]} and --{ways[1]}: give one of them")
    arguments.needs(args, ["window"], "--share", args.share is not None)
    arguments.needs(args, ["keep_gaps"], "--scaffold", args.scaffold is not None)
    if (args.scaffold is None) != (args.length is None):
        raise UserError("--scaffold takes the motif's ranges, --length the new sequence's, as in 80-120: give both")
    span = None if args.length is None else _span(args.length)
    number = 0
    for record in read_sequences(file, open="keep", **arguments.policy(args)):
        if one_word and len(record.id.split()) != 1:
            raise DataError(f"{record.where}: {record.id!r} cannot be the id of a FASTA record; write .csv or .jsonl")
        for i in range(args.n):
            with _at(record.where):
                made, about = _opened(record, args, span, number)
                name = record.id if args.n == 1 else f"{record.id}/{i + 1}"
                row = _row(name, allowed(made, args.allow, args.forbid))
            yield {**row, "description": f"{record.description} {about}".strip(), "where": record.where}
            number += 1


def binder_rows(args: argparse.Namespace) -> list[Row]:
    """`design`: binders of one target."""
    given = [name for name in ("length", "template", "binder") if getattr(args, name) is not None]
    if len(given) != 1:
        raise UserError("give one of --length, --template, or --binder with --share")
    if (args.binder is None) != (args.share is None):
        raise UserError("--share is how much of the --binder is written again: give both or neither")
    arguments.needs(args, ["window"], "--share", args.share is not None)
    target = first_sequence("--target", args.target)
    known = "" if args.binder is None else first_sequence("--binder", args.binder)
    lengths = drawn_lengths(args.length, record_rng(args.seed, 0, "lengths")) if args.length is not None else None
    rows: list[Row] = []
    for k in range(args.n):
        rng = record_rng(args.seed, k, "design")
        if lengths is not None:
            made = Design(OPEN * next(lengths))
        elif args.template is not None:
            made = template(args.template, rng)
        else:
            made = masked(known, args.share, rng, args.window)
        rows.append({**_row(f"{args.prefix}{k + 1}", allowed(made, args.allow, args.forbid)), "target": target})
    return rows


def _opened(record: Record, args: argparse.Namespace, span: tuple[int, int] | None, number: int) -> tuple[Design, str]:
    """(the design of a record, what its description says more)."""
    rng, text = record_rng(args.seed, number, "infill"), record.sequence
    if args.open is not None:
        return opened(text, residue_ranges(args.open, len(text))), ""
    if args.keep is not None:
        return fixed(text, residue_ranges(args.keep, len(text))), ""
    if args.share is not None:
        return masked(text, args.share, rng, args.window), ""
    if span is not None:
        ranges = residue_ranges(args.scaffold, len(text))
        made, landed = scaffold(text, ranges, span, rng, keep_gaps=args.keep_gaps)
        return made, "motif=" + ",".join(f"{low + 1}-{high}" for low, high in landed)
    if OPEN not in text:
        raise DataError("no place is open (`_`); give --open, --keep, --share or --scaffold")
    return Design(text), ""


def _row(name: str, made: Design) -> Row:
    return {"id": name, "sequence": made.sequence, **({"allow": made.allow} if made.allow else {})}


def _span(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise UserError(f"--length: {text!r}, expected as in 100 or 80-120")
    return int(low), int(high or low)


@contextmanager
def _at(where: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise DataError(f"{where}: {error}") from None
