"""Proteins with a trained run, or with ESM-2, DSM or DPLM as published: write, fill in, design, score, embed, judge."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mmdiff.commands.arguments import Output, Verb
from mmdiff.commands.cli import table
from mmdiff.errors import UserError
from mmdiff.protocols import Row

from . import arguments as arguments

if TYPE_CHECKING:
    from mmdiff.session import Session

    from .results import Results

WINDOW = 256  # sequences that are written before they are on the disk: what an interrupted command does again


def generate(args: argparse.Namespace) -> Output:
    """write sequences of given lengths, from an empirical distribution of lengths, or after templates"""
    from .results import Results
    from .rows import new_rows, peeked

    overrides, out = arguments.only_overrides(args), Results("--out", args.out)
    asked = {name: getattr(args, name) for name in ("length", "template", "prefix")}
    return _written(args, peeked(new_rows(args)), overrides, asked, out)


def infill(args: argparse.Namespace) -> Output:
    """write parts of given sequences: open places (_), ranges, a random share; or set their motif in a new scaffold"""
    from .inputs import content
    from .results import Results
    from .rows import WAYS, infilled_rows, peeked

    (file, overrides), out = arguments.one_file(args), Results("--out", args.out)
    names = (*WAYS, "window", "length", "keep_gaps", "lower", "gaps", "unknown")
    asked = {**content(file), **{name: getattr(args, name) for name in names}}
    rows = peeked(infilled_rows(file, args, one_word=out.is_fasta))
    return _written(args, rows, overrides, asked, out)


def design(args: argparse.Namespace) -> Output:
    """write binders of a target, and the same for a shuffled target, to see what comes from it"""
    from mmdiff.tasks.protein.design.generate import bounds, control_file, control_rows, design_control

    from .results import Results, design_row, fasta
    from .rows import binder_rows

    overrides, out = arguments.only_overrides(args), Results("--out", args.out)
    rows = binder_rows(args)
    session = _session(args, overrides, seeded=True)
    names = ("target", "length", "template", "binder", "share", "window", "prefix", "n")
    how = _how(args, {name: getattr(args, name) for name in names}, overrides)
    own, wrong = (list(records) for records in design_control(session, rows, seed=args.seed, out=out.lines, **how))
    priced = []
    for targets in (rows, control_rows(rows, seed=args.seed)):
        pairs = [{**record, "target": row["target"]} for record, row in zip(own, targets, strict=True)]
        priced.append(bounds(session, pairs, tokens=args.tokens))
    gap = [shuffled - right for right, shuffled in zip(*priced, strict=True)]
    both = [letters for one, other in zip(own, wrong, strict=True) for letters in _designed(one, other)]
    figures = {
        "bound_own_target": mean(priced[0]),
        "bound_shuffled_target": mean(priced[1]),
        "bound_difference": mean(gap),
        "bound_difference_se": stdev(gap) / len(gap) ** 0.5 if len(gap) > 1 else None,
        "identity_with_control": mean(float(a == b) for a, b in both) if both else None,
    }
    found = {**_counts(own), **figures, **out.finish(design_row)}
    if out.lines is not None:
        found["control"] = str(control_file(out.lines))
    if figures["bound_difference"] < 2 * (figures["bound_difference_se"] or 0.0):
        _say("the designs are no likelier given their target than given its residues shuffled: the model ignores it")
    if args.out is not None:
        return table(found)
    _say(table(found)[1])
    return {**found, "records": own}, fasta(own)


def score(args: argparse.Namespace) -> Output:
    """how likely sequences are (bound, pseudo-perplexity), or the mutants of a scan against measurements"""
    from mmdiff.tasks.protein.score.sequences import METHODS, score_sequences

    from .inputs import content, pairs_or_records
    from .results import TABLES, Results, score_row, tabbed
    from .rows import peeked

    if args.scan is not None or args.mutants is not None:
        return _score_mutants(args)
    arguments.needs(args, ["wild_type", "offset", "column", "alignment"], "--scan or --mutants", False)
    (file, overrides), out = arguments.one_file(args), Results("--out", args.out, TABLES)
    methods = args.methods.split(",") if args.methods is not None else list(METHODS)
    records = peeked(pairs_or_records(file, arguments.policy(args)))
    how = {name: getattr(args, name) for name in ("levels", "tokens", "per_residue", "control", "seed")}
    settings = {"rows": {**content(file), **arguments.policy(args)}, "overrides": overrides}
    session = _session(args, overrides)
    sums = {name: [0.0, 0] for name in METHODS if name in methods}
    total, kept = 0, []
    for record in score_sequences(session, records, methods=methods, out=out.lines, settings=settings, **how):
        total += 1
        for name, sum_and_count in sums.items():
            if record[name] is not None:
                sum_and_count[0] += record[name]
                sum_and_count[1] += 1
        if out.lines is None:
            kept.append(record)
    found = {"n": total, **{f"mean_{name}": s / n if n else None for name, (s, n) in sums.items()}}
    if out.lines is not None:
        return table({**found, **out.finish(score_row)})
    _say(table(found)[1])
    return {**found, "records": kept}, tabbed(map(score_row, kept))


def embed(args: argparse.Namespace) -> Output:
    """write embeddings, a vector a sequence or a residue, to a folder of parts or one .safetensors or .npz file"""
    from mmdiff.tasks.protein.data.fasta import read_sequences
    from mmdiff.tasks.protein.embed.embeddings import embed as run

    from .rows import peeked

    file, overrides = arguments.one_file(args)
    if not args.out:
        raise UserError("--out: '' is no name")
    records = peeked(read_sequences(file, open="keep", **arguments.policy(args)))
    how = {name: getattr(args, name) for name in ("layer", "tokens", "dtype", "format")}
    return table(run(_session(args, overrides), records, args.out, pool=args.pool.split(","), **how))


def probe(args: argparse.Namespace) -> Output:
    """what a linear probe reads off embeddings: labels a sequence or a residue, clusters kept whole in the folds"""
    from mmdiff.tasks.protein.data.clustering import clusters
    from mmdiff.tasks.protein.embed.embeddings import Embeddings
    from mmdiff.tasks.protein.embed.probes import probe as run
    from mmdiff.tasks.protein.embed.probes import read_labels, residue_probe
    from mmdiff.tasks.protein.embed.probes import table as shown

    from .inputs import sequences_of

    embeddings, labels = Embeddings(args.embeddings), read_labels(args.labels)
    found, groups = labels.of(embeddings.ids)
    sequences = sequences_of(args.sequences, embeddings.ids) if args.sequences is not None else None
    own: Any = groups if labels.group else None
    kept = "the groups of the labels"
    if own is None and sequences is not None and args.identity:
        own, kept = clusters(sequences, args.identity).tolist(), f"clusters of {100 * args.identity:g} % identity"
    if own is None:
        own, kept = groups, "single sequences: relatives may be in two folds (give --sequences, or groups)"
    how = {"folds": args.folds, "seed": args.seed, "sequences": sequences}
    result = (residue_probe if labels.by_residue else run)(embeddings, found, own, **how)
    result["kept_whole"] = kept
    told = f"{result['kind']}, {result['rows']} rows in {result['folds']} folds, "
    told += f"which keep {result['groups']} groups whole: {kept}"
    return result, f"{told}\n{shown(result)}"


def evaluate(args: argparse.Namespace) -> Output:
    """judge a run on held-out sequences: mask filling, bound, what it writes, beside what needs no model"""
    from mmdiff.tasks.protein.evaluate.evaluate import evaluate_model
    from mmdiff.tasks.protein.evaluate.summary import summary

    from .inputs import aligned_rows, evaluation_rows
    from .results import make_room, page_file

    file, overrides = arguments.file_or_none(args)
    session = _session(args, overrides)
    page = page_file("--report", args.report, Path(args.run), file)
    test, train = evaluation_rows(args.run, file, args.train, args.limit)
    if args.motif is not None:
        session.task.prompt({"id": "--motif", "sequence": args.motif}, session.model.vocab)  # what is wrong, now
    make_room("--report", page)
    aligned = args.aligned or aligned_rows(session, test)
    how = {name: getattr(args, name) for name in ("samples", "motif", "seed", "tokens")}
    title = f"{args.run} on {file or 'its held-out rows'}{f', the first {args.limit}' if args.limit else ''}"
    found = evaluate_model(session, test, file=page, train_rows=train, aligned=aligned, title=title, **how)
    return {**found, "report": None if page is None else str(page)}, summary(found, page)


# Pieces ---------------------------------------------------------------------------------------------------------------


def _written(
    args: argparse.Namespace, rows: Iterator[Row], overrides: list[str], asked: dict[str, Any], out: Results
) -> Output:
    """Run `designs.generate` on rows, into the file the command names, or print FASTA."""
    from mmdiff.tasks.protein.design.generate import generate as run

    from .results import design_row, fasta

    session = _session(args, overrides, seeded=True)
    records = run(session, rows, out=out.lines, **_how(args, {**asked, "n": args.n}, overrides))
    if args.out is not None:
        return table({**_counts(records), **out.finish(design_row)})
    records = list(records)
    found = _counts(records)
    if found["flagged"]:
        _say(f"{found['flagged']} of {found['n']} repeat themselves, see guard= in their headers")
    return {**found, "records": records}, fasta(records)


def _how(args: argparse.Namespace, asked: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Arguments of `designs.generate`. asked: what the rows are made of."""
    rows = {**asked, **{name: getattr(args, name) for name in ("seed", "allow", "forbid")}}
    return {
        "guard": arguments.guard(args),
        "trajectory": args.trajectory,
        "tokens": args.tokens,
        "window": WINDOW,
        "settings": {"rows": rows, "overrides": overrides},
    }


def _score_mutants(args: argparse.Namespace) -> Output:
    from mmdiff.tasks.protein.data.alignments import read_alignment
    from mmdiff.tasks.protein.score.dms import METHODS, read_scan, scan, score_mutants, summary
    from mmdiff.tasks.protein.score.mutants import parse_mutant

    from .inputs import first_sequence
    from .results import make_room, new_table, tabbed, write_table

    overrides = arguments.only_overrides(args)
    if args.scan is not None and args.mutants is not None:
        raise UserError("--scan and --mutants: give one of them")
    arguments.needs(args, ["per_residue", "control"], "a file of sequences", False)
    arguments.needs(args, ["column", "alignment"], "--scan", args.scan is not None)
    methods = args.methods.split(",") if args.methods is not None else list(METHODS)
    wild_type = first_sequence("--wild-type", args.wild_type) if args.wild_type is not None else None
    out = new_table("--out", args.out)
    how = {"levels": args.levels, "tokens": args.tokens, "seed": args.seed}
    if args.mutants is not None:
        if wild_type is None:
            raise UserError("--mutants goes with the --wild-type, residues or a FASTA file")
        names = args.mutants.split()
        if not names:
            raise UserError("--mutants: none, expected as in 'A1P A1P:D2N'")
        parsed = [parse_mutant(name, wild_type, 1 if args.offset is None else args.offset) for name in names]
        session = _session(args, overrides)
        make_room("--out", out)
        scores = {method: score_mutants(session, wild_type, parsed, method, **how) for method in methods}
        rows = [{"mutant": name, **{m: scores[m][i] for m in methods}} for i, name in enumerate(names)]
        result: dict[str, Any] = {"wild_type": wild_type, "mutants": rows}
        text = tabbed(rows)
    else:
        measured = read_scan(args.scan, wild_type, score_column=args.column, offset=args.offset)
        alignment = read_alignment(args.alignment).sequences if args.alignment is not None else None
        session = _session(args, overrides)
        make_room("--out", out)
        result = scan(session, measured, methods, alignment=alignment, **how)
        rows, text = result["mutants"], summary(result)
    if out is not None:
        write_table(out, rows)
        result = {**{name: value for name, value in result.items() if name != "mutants"}, "out": str(out)}
        text += f"\nout: {out}"
    return result, text


def _session(args: argparse.Namespace, overrides: list[str], *, seeded: bool = False) -> Session:
    """seeded: --seed is the sampler's too."""
    from mmdiff.tasks.protein.session import opened

    return opened(args.run, [*([f"sampler.seed={args.seed}"] if seeded else []), *overrides])


def _counts(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`designs.summary`, where `records` are to be the records themselves."""
    from mmdiff.tasks.protein.design.generate import summary

    counts = summary(records)
    return {"n": counts.pop("records"), **counts}


def _designed(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Both residues of every place that was written."""
    places = zip(one["steps"], one["sequence"], other["sequence"], strict=True)
    return ((a, b) for step, a, b in places if step)


def _say(text: str) -> None:
    """On stderr, so that stdout is a file of its own."""
    print(text, file=sys.stderr, flush=True)


VERBS = {
    "generate": Verb(generate, arguments.generate),
    "infill": Verb(infill, arguments.infill),
    "design": Verb(design, arguments.design),
    "score": Verb(score, arguments.score),
    "embed": Verb(embed, arguments.embed),
    "probe": Verb(probe, arguments.probe),
    "eval": Verb(evaluate, arguments.evaluate),
}
