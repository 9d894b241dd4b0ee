"""Proteins with a trained run, or with ESM-2, DSM or DPLM as published: write, fill in, design, score, embed, judge."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import Output, Verb, overrides_of
from ..cli import table
from ..errors import UserError
from ..protocols import Row
from . import protein_arguments as arguments

if TYPE_CHECKING:
    from ..session import Session


def generate(args: argparse.Namespace) -> Output:
    """write sequences of given lengths, from an empirical distribution of lengths, or after templates"""
    from .motifs import Design, allowed, drawn_lengths, record_rng, template

    overrides = _only_overrides(args)
    if bool(args.length) == bool(args.template):
        raise UserError("give a --length (100, 50-400, or a FASTA file with such lengths), or a --template")
    lengths = drawn_lengths(args.length, record_rng(args.seed, 0, "lengths")) if args.length else None

    def rows() -> Iterator[Row]:
        for k in range(args.n):
            if lengths is not None:
                design = Design("_" * next(lengths))
            else:
                design = template(args.template, record_rng(args.seed, k, "template"))
            yield _row(f"{args.prefix}{k + 1}", allowed(design, args.allow, args.forbid))

    return _written(args, rows(), overrides, {"length": args.length, "template": args.template})


def infill(args: argparse.Namespace) -> Output:
    """write parts of given sequences: open places (_), ranges, a random share; or set their motif in a new scaffold"""
    from .motifs import allowed, fixed, masked, opened, record_rng, residue_ranges, scaffold

    file, overrides = _one_file(args)
    ways = [name for name in ("open", "keep", "share", "scaffold") if getattr(args, name) is not None]
    if len(ways) > 1:
        raise UserError(f"--{ways[0]} and --{ways[1]}: give one of them")
    if bool(args.scaffold) != bool(args.length):
        raise UserError("--scaffold takes the motif's ranges, --length the new sequence's, as in 80-120: give both")

    def rows() -> Iterator[Row]:
        number = 0
        for record in _records(file, args):
            for i in range(args.n):
                rng, text, about = record_rng(args.seed, number, "infill"), record.sequence, {}
                if args.open or args.keep:
                    ranges = residue_ranges(args.open or args.keep, len(text))
                    design = (opened if args.open else fixed)(text, ranges)
                elif args.share is not None:
                    design = masked(text, args.share, rng, args.window)
                elif args.scaffold:
                    ranges = residue_ranges(args.scaffold, len(text))
                    design, landed = scaffold(text, ranges, _span(args.length), rng, keep_gaps=args.keep_gaps)
                    about = {"motif": ",".join(f"{low + 1}-{high}" for low, high in landed)}
                else:
                    design = _as_it_is(record)
                name = record.id if args.n == 1 else f"{record.id}/{i + 1}"
                row = _row(name, allowed(design, args.allow, args.forbid), where=record.where)
                described = " ".join([record.description, *(f"{key}={value}" for key, value in about.items())]).strip()
                yield {**row, "description": described}
                number += 1

    kept = {
        name: getattr(args, name) for name in ("open", "keep", "share", "window", "scaffold", "length", "keep_gaps")
    }
    return _written(args, rows(), overrides, {"file": str(file), **kept})


def design(args: argparse.Namespace) -> Output:
    """write binders of a target, and the same for a shuffled target, to see what comes from it"""
    from .designs import bounds, control_rows, design_control, summary
    from .motifs import Design, allowed, drawn_lengths, masked, record_rng, template
    from .protein_files import Designs, first_sequence

    overrides = _only_overrides(args)
    given = [name for name in ("length", "template", "binder") if getattr(args, name) is not None]
    if len(given) != 1:
        raise UserError("give one of --length, --template, or --binder with --share")
    if bool(args.binder) != (args.share is not None):
        raise UserError("--share is how much of the --binder is written again: give both or neither")
    target = first_sequence(args.target)
    known = first_sequence(args.binder) if args.binder else ""
    lengths = drawn_lengths(args.length, record_rng(args.seed, 0, "lengths")) if args.length else None
    rows: list[Row] = []
    for k in range(args.n):
        rng = record_rng(args.seed, k, "design")
        if lengths is not None:
            made = Design("_" * next(lengths))
        else:
            made = template(args.template, rng) if args.template else masked(known, args.share, rng, args.window)
        rows.append({**_row(f"{args.prefix}{k + 1}", allowed(made, args.allow, args.forbid)), "target": target})
    out = Designs(args.out)
    session = _session(args, overrides)
    how = {"guard": arguments.guard(args), "trajectory": args.trajectory, "tokens": args.tokens}
    origin = {"rows": {name: getattr(args, name) for name in ("target", *given, "share", "window", "n")}}
    settings = {**origin, **_limits(args), "overrides": overrides}
    own, wrong = (list(records) for records in design_control(session, rows, out=out.lines, settings=settings, **how))
    shuffled = [row["target"] for row in control_rows(rows)]
    right_target = bounds(session, own, tokens=args.tokens)
    wrong_target = bounds(
        session, [{**record, "target": t} for record, t in zip(own, shuffled, strict=True)], tokens=args.tokens
    )
    same = [
        sum(a == b for a, b in zip(one["sequence"], other["sequence"], strict=True)) / max(one["length"], 1)
        for one, other in zip(own, wrong, strict=True)
    ]
    means = {
        "bound_own_target": _mean(right_target),
        "bound_shuffled_target": _mean(wrong_target),
        "identity_with_control": _mean(same),
    }
    found = {**summary(own), **means, **out.finish(own)}
    if args.out is None:
        return {**found, "records": own}, "\n".join([*map(_fasta, own), table(found)[1]])
    return table(found)


def score(args: argparse.Namespace) -> Output:
    """how likely sequences are (bound, pseudo-perplexity), or the mutants of a scan against measurements"""
    from .protein_scores import METHODS, score_sequences

    if args.scan or args.mutants:
        return _score_mutants(args)
    file, overrides = _one_file(args)
    session, out = _session(args, overrides), arguments.file("--out", args.out)
    methods = args.methods.split(",") if args.methods else list(METHODS)
    origin = {"rows": str(file), "overrides": overrides}
    how = {"methods": methods, "levels": args.levels, "tokens": args.tokens, "per_residue": args.per_residue}
    how |= {"control": args.control, "seed": args.seed}
    names = [name for name in ("bound", "pseudo_perplexity") if name in methods]
    sums, counts, lines = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), []
    total = 0
    for record in score_sequences(session, _pairs_or_records(file, args), out=out, settings=origin, **how):
        total += 1
        for name in names:
            if record.get(name) is not None:
                sums[name], counts[name] = sums[name] + record[name], counts[name] + 1
        if out is None:
            lines.append(record)
    found = {"n": total, **{f"mean_{name}": sums[name] / counts[name] if counts[name] else None for name in names}}
    if out is not None:
        return table({**found, "out": str(out)})
    shown = [f"{r['id']}\t" + "\t".join(f"{name} {_figure(r[name])}" for name in names) for r in lines]
    return {**found, "records": lines}, "\n".join([*shown, table(found)[1]])


def embed(args: argparse.Namespace) -> Output:
    """write embeddings, a vector a sequence or a residue, to a folder of parts or one .safetensors or .npz file"""
    from .embeddings import embed as run

    file, overrides = _one_file(args)
    return table(
        run(
            _session(args, overrides),
            _records(file, args),
            args.out,
            pool=args.pool.split(","),
            layer=args.layer,
            tokens=args.tokens,
            dtype=args.dtype,
            format=args.format,
        )
    )


def probe(args: argparse.Namespace) -> Output:
    """what a linear probe reads off embeddings: labels a sequence or a residue, clusters kept whole in the folds"""
    from .clustering import clusters
    from .embeddings import Embeddings
    from .probes import probe as run
    from .probes import read_labels, residue_probe
    from .probes import table as shown
    from .protein_files import sequences_of

    embeddings, labels = Embeddings(args.embeddings), read_labels(args.labels)
    found, groups = labels.of(embeddings.ids)
    sequences = sequences_of(args.sequences, embeddings.ids) if args.sequences else None
    own: Any = groups if labels.grouped else None
    if own is None and sequences is not None and args.identity:
        own = clusters(sequences, args.identity).tolist()
    how = {"folds": args.folds, "seed": args.seed, "sequences": sequences}
    by_residue = labels.by_residue
    result = residue_probe(embeddings, found, own, **how) if by_residue else run(embeddings, found, own, **how)
    result["grouped"] = own is not None
    return result, shown(result)


def evaluate(args: argparse.Namespace) -> Output:
    """judge a run on held-out sequences: mask filling, bound, what it writes, beside what needs no model"""
    from .protein_eval import evaluate_model
    from .protein_files import aligned_rows, evaluation_rows

    files, overrides = overrides_of(args.words)
    if len(files) > 1:
        raise UserError(f"{files[1]!r}: give one file of held-out sequences")
    report = arguments.file("--report", args.report) or Path(args.run) / "protein" / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    test, train = evaluation_rows(args.run, files[0] if files else None, args.train, args.limit)
    session = _session(args, overrides)
    aligned = args.aligned or aligned_rows(session, test)
    found = evaluate_model(
        session,
        test,
        file=report,
        train_rows=train,
        aligned=aligned,
        samples=args.samples,
        motif=args.motif,
        seed=args.seed,
        tokens=args.tokens,
        title=f"{args.run}: proteins",
    )
    return table({**found, "report": str(report)})


# Pieces ---------------------------------------------------------------------------------------------------------------


def _written(args: argparse.Namespace, rows: Iterator[Row], overrides: list[str], origin: dict[str, Any]) -> Output:
    """Run `designs.generate` on rows, into the file the command names."""
    from .designs import generate as run
    from .designs import summary
    from .protein_files import Designs

    out = Designs(args.out)
    session = _session(args, overrides)
    settings = {"rows": {**origin, "n": args.n, "seed": args.seed}, **_limits(args), "overrides": overrides}
    how = {"guard": arguments.guard(args), "trajectory": args.trajectory, "tokens": args.tokens}
    records = run(session, rows, out=out.lines, settings=settings, **how)
    if args.out is not None:
        return table({**summary(records), **out.finish(out.read())})
    records = list(records)
    return {**summary(records), "records": records}, "\n".join(map(_fasta, records))


def _score_mutants(args: argparse.Namespace) -> Output:
    from .mutant_scores import parse_mutant
    from .mutations import METHODS, read_scan, scan, score_mutants, summary
    from .protein_files import first_sequence, write_rows

    overrides = _only_overrides(args)
    methods = args.methods.split(",") if args.methods else list(METHODS)
    wild_type = first_sequence(args.wild_type) if args.wild_type else None
    out = arguments.new_file("--out", args.out)
    how = {"levels": args.levels, "tokens": args.tokens, "seed": args.seed}
    if args.mutants:
        if wild_type is None:
            raise UserError("--mutants needs the --wild-type, residues or a FASTA file")
        names = args.mutants.split()
        parsed = [parse_mutant(name, wild_type, args.offset or 1) for name in names]
        session = _session(args, overrides)
        scores = {method: score_mutants(session, wild_type, parsed, method, **how) for method in methods}
        rows = [{"mutant": name, **{m: scores[m][i] for m in methods}} for i, name in enumerate(names)]
        text = "\n".join("\t".join([r["mutant"], *(f"{m} {_figure(r[m])}" for m in methods)]) for r in rows)
        result: dict[str, Any] = {"wild_type": wild_type, "mutants": rows}
    else:
        from .alignments import read_alignment

        measured = read_scan(args.scan, wild_type, score_column=args.column, offset=args.offset)
        alignment = read_alignment(args.alignment).sequences if args.alignment else None
        result = scan(_session(args, overrides), measured, methods, alignment=alignment, **how)
        rows, text = result["mutants"], summary(result)
    if out is not None:
        write_rows(out, rows)
        result = {**{name: value for name, value in result.items() if name != "mutants"}, "out": str(out)}
    return result, text


def _session(args: argparse.Namespace, overrides: list[str]) -> Session:
    from .protein_session import opened

    seed = [f"sampler.seed={args.seed}"] if hasattr(args, "n") else []
    return opened(args.run, [*seed, *overrides])


def _records(file: Path, args: argparse.Namespace) -> Any:
    from .fasta import read_sequences

    return read_sequences(file, open="keep", **arguments.policy(args))


def _pairs_or_records(file: Path, args: argparse.Namespace) -> Any:
    from .protein_files import pairs_or_records

    return pairs_or_records(file, arguments.policy(args))


def _row(name: str, made: Any, **more: Any) -> Row:
    return {"id": name, "sequence": made.sequence, **({"allow": made.allow} if made.allow else {}), **more}


def _as_it_is(record: Any) -> Any:
    from .motifs import Design

    if "_" not in record.sequence:
        raise UserError(f"{record.where}: no place is open (`_`); give --open, --keep, --share or --scaffold")
    return Design(record.sequence)


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    return {"allow": args.allow, "forbid": args.forbid}


def _span(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not low.isdigit() or (high and not high.isdigit()):
        raise UserError(f"--length: {text!r}, expected as in 100 or 80-120")
    return int(low), int(high or low)


def _one_file(args: argparse.Namespace) -> tuple[Path, list[str]]:
    files, overrides = overrides_of(args.words)
    if len(files) != 1:
        raise UserError(f"give one file of sequences, not {len(files)}")
    return Path(files[0]), overrides


def _only_overrides(args: argparse.Namespace) -> list[str]:
    words, overrides = overrides_of(args.words)
    if words:
        raise UserError(f"unknown argument {words[0]!r}, expected settings (sampler.steps=20)")
    return overrides


def _fasta(record: dict[str, Any]) -> str:
    return f">{record['id']} {record.get('description', '')}".rstrip() + f"\n{record['sequence']}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


VERBS = {
    "generate": Verb(generate, arguments.generate),
    "infill": Verb(infill, arguments.infill),
    "design": Verb(design, arguments.design),
    "score": Verb(score, arguments.score),
    "embed": Verb(embed, arguments.embed),
    "probe": Verb(probe, arguments.probe),
    "eval": Verb(evaluate, arguments.evaluate),
}
