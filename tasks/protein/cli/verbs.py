"""Sample, infill, design, score, embed and evaluate proteins, with a run, or with ESM-2, DSM or DPLM as published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mmdiff.commands.arguments import AtLeast0, AtLeast1, Output, Share, Verb
from mmdiff.commands.cli import log, table
from mmdiff.errors import UserError
from mmdiff.protocols import Row

from .arguments import (
    AtLeast2,
    Binders,
    Infilling,
    Mutants,
    NewSequences,
    Policies,
    Sampling,
    file_or_none,
    one_file,
    only_overrides,
    refuse_without,
)

if TYPE_CHECKING:
    from mmdiff.session import Session
    from mmdiff.tasks.protein.task import Protein

    from .results import Results

WINDOW = 256  # sequences that are sampled before they are on the disk: what an interrupted command does again
NO_POLICIES, SAMPLING, NO_MUTANTS, OPEN_POSITIONS = Policies(), Sampling(), Mutants(), Infilling()


def generate(run: str, /, *words: str, new: NewSequences | None = None, sampling: Sampling = SAMPLING) -> Output:
    """Sample sequences of given lengths, from an empirical distribution of lengths, or after templates.

    Args:
        run: a run, a saved model, or a backbone: a folder or hub id.
        words: settings as dotted.key=value: sampler.steps=20, task.letters=...
    """
    from .results import Results
    from .rows import new_rows, peeked

    new = new or NewSequences()  # with none of its options, it says which to give
    overrides, out = only_overrides(words), Results("--out", sampling.out)
    return _sampled(run, peeked(new_rows(new, sampling)), sampling, asdict(new), overrides, out)


def infill(
    run: str,
    /,
    *words: str,
    infilling: Infilling = OPEN_POSITIONS,
    policies: Policies = NO_POLICIES,
    sampling: Sampling = SAMPLING,
) -> Output:
    """Sample parts of sequences: open positions (_), ranges, a random share; or put their motif in a new scaffold.

    Args:
        run: a run, a saved model, or a backbone: a folder or hub id.
        words: a file of sequences; settings as dotted.key=value: sampler.steps=20, task.letters=...
    """
    from .inputs import content
    from .results import Results
    from .rows import infilled_rows, peeked

    (file, overrides), out = one_file(words), Results("--out", sampling.out)
    asked = {**content(file), **asdict(infilling), **asdict(policies)}
    rows = peeked(infilled_rows(file, infilling, policies, sampling, one_word=out.is_fasta))
    return _sampled(run, rows, sampling, asked, overrides, out)


def design(run: str, /, *words: str, binders: Binders, sampling: Sampling = SAMPLING) -> Output:
    """Sample binders of a target, and the same for a shuffled target, to see what comes from it.

    Args:
        run: a run, a saved model, or a backbone: a folder or hub id.
        words: settings as dotted.key=value: sampler.steps=20, task.letters=...
    """
    from mmdiff.tasks.protein.design.generate import bounds, control_file, control_rows, design_control

    from .results import Results, design_row, fasta
    from .rows import binder_rows

    overrides, out = only_overrides(words), Results("--out", sampling.out)
    rows = binder_rows(binders, sampling)
    session = _session(run, overrides, seed=sampling.seed)
    named = {"window": WINDOW, **sampling.arguments(asdict(binders), overrides)}
    both_sets = design_control(session, rows, seed=sampling.seed, out=out.lines, **named)
    own, wrong = map(list, both_sets)
    priced = []
    for targets in (rows, control_rows(rows, seed=sampling.seed)):
        pairs = [{**record, "target": row["target"]} for record, row in zip(own, targets, strict=True)]
        priced.append(bounds(session, pairs, tokens=sampling.tokens))
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
        log("the designs are no likelier given their target than given its residues shuffled: the model ignores it")
    if sampling.out is not None:
        return table(found)
    log(table(found)[1])
    return {**found, "records": own}, fasta(own)


def score(
    run: str,
    /,
    *words: str,
    methods: str | None = None,
    levels: AtLeast1 = 16,
    per_residue: bool = False,
    control: str | None = None,
    of_mutants: Mutants = NO_MUTANTS,
    seed: AtLeast0 = 0,
    out: str | None = None,
    tokens: AtLeast1 | None = None,
    policies: Policies = NO_POLICIES,
) -> Output:
    """Score how likely sequences are (bound, pseudo-perplexity), or the mutants of a scan against measurements.

    Args:
        run: a run, a saved model, or a backbone: a folder or hub id.
        words: a file of sequences; settings as dotted.key=value: task.letters=...
        methods: bound,pseudo_perplexity; of mutants wt_marginal,masked_marginal,... (all).
        levels: numbers of masked residues the bound is taken at.
        per_residue: log p of each residue given all others, too.
        control: shuffled_target: the same for shuffled targets, of pairs.
        seed: seed of the masks.
        out: a file ending in .csv, .tsv or .jsonl, also .gz; an interrupted command is resumed, except for mutants.
        tokens: token budget of a batch, padding counted (1024 on a CPU); changes no result.
    """
    from mmdiff.tasks.protein.score.sequences import METHODS, score_sequences

    from .inputs import content, pairs_or_records
    from .results import TABLES, Results, score_row, tabbed
    from .rows import peeked

    asked = None if methods is None else methods.split(",")
    if of_mutants.given:
        refuse_without(None, "a file of sequences", per_residue=per_residue or None, control=control)
        named = {"levels": levels, "tokens": tokens, "seed": seed}
        return _score_mutants(run, only_overrides(words), of_mutants, asked, out, **named)
    (file, overrides), results = one_file(words), Results("--out", out, TABLES)
    records = peeked(pairs_or_records(file, policies.given()))
    scored = score_sequences(
        _session(run, overrides),
        records,
        methods=list(METHODS) if asked is None else asked,
        levels=levels,
        tokens=tokens,
        per_residue=per_residue,
        control=control,
        seed=seed,
        out=results.lines,
        settings={"rows": {**content(file), **policies.given()}, "overrides": overrides},
    )
    sums = {name: [0.0, 0] for name in METHODS if asked is None or name in asked}
    total, kept = 0, []
    for record in scored:
        total += 1
        for name, sum_and_count in sums.items():
            if record[name] is not None:
                sum_and_count[0] += record[name]
                sum_and_count[1] += 1
        if results.lines is None:
            kept.append(record)
    found = {"n": total, **{f"mean_{name}": s / n if n else None for name, (s, n) in sums.items()}}
    if results.lines is not None:
        return table({**found, **results.finish(score_row)})
    log(table(found)[1])
    return {**found, "records": kept}, tabbed(map(score_row, kept))


def embed(
    run: str,
    /,
    *words: str,
    out: str,
    pool: str = "mean",
    layer: int = -1,
    dtype: str = "float32",
    format: str | None = None,
    tokens: AtLeast1 | None = None,
    policies: Policies = NO_POLICIES,
) -> Output:
    """Write embeddings, a vector per sequence or residue, to a folder of shards or one .safetensors or .npz file.

    Args:
        run: a run, a saved model, or a backbone: a folder or hub id.
        words: a file of sequences; settings as dotted.key=value.
        out: a folder, or a file ending in .safetensors or .npz.
        pool: mean, max, std, cls, several by commas; or residue.
        layer: 0 is the embedding table, then one per layer; negative numbers count from the last.
        dtype: float32, float16 or bfloat16.
        format: of a folder's shards: safetensors or npz (safetensors).
        tokens: token budget of a batch, padding counted (1024 on a CPU); changes no result.
    """
    from mmdiff.tasks.protein.data.fasta import read_sequences
    from mmdiff.tasks.protein.embed.embeddings import embed as embed_all

    from .rows import peeked

    file, overrides = one_file(words)
    if not out:
        raise UserError("--out: '' is no name")
    records = peeked(read_sequences(file, open="keep", **policies.given()))
    session, pools = _session(run, overrides), pool.split(",")
    found = embed_all(session, records, out, pool=pools, layer=layer, tokens=tokens, dtype=dtype, format=format)
    return table(found)


def probe(
    embeddings: str,
    labels: str,
    /,
    *,
    sequences: str | None = None,
    identity: Share = 0.5,
    folds: AtLeast2 = 5,
    seed: AtLeast0 = 0,
) -> Output:
    """Fit a linear probe to embeddings: labels per sequence or residue, clusters kept whole in the folds.

    Args:
        embeddings: what `mmdiff protein embed` wrote.
        labels: CSV of id,label[,group], or FASTA of one letter per residue.
        sequences: a file of the sequences, for baselines and clusters.
        identity: sequences this alike are in one fold; 0: no clusters.
        folds: folds of the cross-validation.
        seed: seed of the folds and of the shuffled labels.
    """
    from mmdiff.tasks.protein.data.clustering import clusters
    from mmdiff.tasks.protein.embed.embeddings import Embeddings
    from mmdiff.tasks.protein.embed.probes import probe as sequence_probe
    from mmdiff.tasks.protein.embed.probes import read_labels, residue_probe
    from mmdiff.tasks.protein.embed.probes import table as text_table

    from .inputs import sequences_of

    stored, labelled = Embeddings(embeddings), read_labels(labels)
    found, groups = labelled.of(stored.ids)
    letters = sequences_of(sequences, stored.ids) if sequences is not None else None
    kept_whole: Any = groups
    if labelled.group:
        what = "the groups of the labels"
    elif letters is not None and identity:
        kept_whole, what = clusters(letters, identity).tolist(), f"clusters of {100 * identity:g} % identity"
    else:
        what = "single sequences: relatives may be in two folds (give --sequences, or groups)"
    run = residue_probe if labelled.by_residue else sequence_probe
    result = run(stored, found, kept_whole, folds=folds, seed=seed, sequences=letters)
    result["kept_whole"] = what
    head = f"{result['kind']}, {result['rows']} rows in {result['folds']} folds, "
    head += f"which keep {result['groups']} groups whole: {what}"
    return result, f"{head}\n{text_table(result)}"


def evaluate(
    run: str,
    /,
    *words: str,
    train: str | None = None,
    limit: AtLeast1 | None = None,
    aligned: bool = False,
    samples: AtLeast1 = 300,
    motif: str | None = None,
    seed: AtLeast0 = 0,
    report: str | None = None,
    tokens: AtLeast1 | None = None,
) -> Output:
    """Evaluate a run on held-out sequences: mask filling, bound, samples, beside what needs no model.

    Args:
        run: a run, a saved model, or a backbone: a folder or hub id.
        words: a file of sequences; settings as dotted.key=value: sampler.steps=20, task.letters=...
        train: a file of the sequences the model was trained on: for novelty and baselines.
        limit: number of held-out sequences (all).
        aligned: the sequences are rows of an alignment; without it, the task decides.
        samples: number of sequences that are sampled.
        motif: residues and open positions (_); its residues must stay.
        seed: seed of the masks and samples.
        report: the page (RUN/protein/, or protein-FILE/; without a run: none).
        tokens: token budget of a batch, padding counted (1024 on a CPU); changes no result.
    """
    from mmdiff.tasks.protein.evaluate.evaluate import evaluate_model
    from mmdiff.tasks.protein.evaluate.summary import summary

    from .inputs import aligned_rows, evaluation_rows
    from .results import make_folder, page_file

    file, overrides = file_or_none(words)
    session = _session(run, overrides)
    page = page_file("--report", report, Path(run), file)
    test, known = evaluation_rows(run, file, train, limit)
    if motif is not None:
        session.task.prompt({"id": "--motif", "sequence": motif}, session.model.vocab)  # what is wrong, now
    make_folder("--report", page)
    found = evaluate_model(
        session,
        test,
        file=page,
        train_rows=known,
        aligned=aligned or aligned_rows(session, test),
        title=f"{run} on {file or 'its held-out rows'}{f', the first {limit}' if limit else ''}",
        samples=samples,
        motif=motif,
        seed=seed,
        tokens=tokens,
    )
    return {**found, "report": None if page is None else str(page)}, summary(found, page)


VERBS: dict[str, Verb] = {
    "generate": generate,
    "infill": infill,
    "design": design,
    "score": score,
    "embed": embed,
    "probe": probe,
    "eval": evaluate,
}


# Pieces ---------------------------------------------------------------------------------------------------------------


def _sampled(
    run: str, rows: Iterator[Row], sampling: Sampling, asked: dict[str, Any], overrides: list[str], out: Results
) -> Output:
    """Run `design.generate` on rows, into the file the command names, or print FASTA."""
    from mmdiff.tasks.protein.design.generate import generate as sample

    from .results import design_row, fasta

    session = _session(run, overrides, seed=sampling.seed)
    records = sample(session, rows, out=out.lines, window=WINDOW, **sampling.arguments(asked, overrides))
    if sampling.out is not None:
        return table({**_counts(records), **out.finish(design_row)})
    records = list(records)
    found = _counts(records)
    if found["flagged"]:
        log(f"{found['flagged']} of {found['n']} repeat themselves, see guard= in their headers")
    return {**found, "records": records}, fasta(records)


def _score_mutants(
    run: str, overrides: list[str], asked: Mutants, methods: list[str] | None, out: str | None, **named: Any
) -> Output:
    from mmdiff.tasks.protein.data.alignments import read_alignment
    from mmdiff.tasks.protein.score.dms import METHODS, read_scan, scan, score_mutants, summary
    from mmdiff.tasks.protein.score.mutants import parse_mutant

    from .inputs import first_sequence
    from .results import make_folder, new_table, tabbed, write_table

    methods = list(METHODS) if methods is None else methods
    wild_type = first_sequence("--wild-type", asked.wild_type) if asked.wild_type is not None else None
    file = new_table("--out", out)
    if asked.mutants is not None:
        assert wild_type is not None
        names = asked.mutants.split()
        parsed = [parse_mutant(name, wild_type, 1 if asked.offset is None else asked.offset) for name in names]
        session = _session(run, overrides)
        make_folder("--out", file)
        scores = {method: score_mutants(session, wild_type, parsed, method, **named) for method in methods}
        rows = [{"mutant": name, **{m: scores[m][i] for m in methods}} for i, name in enumerate(names)]
        result: dict[str, Any] = {"wild_type": wild_type, "mutants": rows}
        text = tabbed(rows)
    else:
        measured = read_scan(str(asked.scan), wild_type, score_column=asked.column, offset=asked.offset)
        alignment = read_alignment(asked.alignment).sequences if asked.alignment is not None else None
        session = _session(run, overrides)
        make_folder("--out", file)
        result = scan(session, measured, methods, alignment=alignment, **named)
        rows, text = result["mutants"], summary(result)
    if file is not None:
        write_table(file, rows)
        result = {**{name: value for name, value in result.items() if name != "mutants"}, "out": str(file)}
        text += f"\nout: {file}"
    return result, text


def _session(run: str, overrides: list[str], *, seed: int | None = None) -> Session[Protein]:
    """seed: the sampler's, where overrides name no other."""
    from mmdiff.tasks.protein.session import load_protein_session

    return load_protein_session(run, [*([f"sampler.seed={seed}"] if seed is not None else []), *overrides])


def _counts(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """`design.generate.summary`, where `records` are to be the records themselves."""
    from mmdiff.tasks.protein.design.generate import summary

    counts = summary(records)
    return {"n": counts.pop("records"), **counts}


def _designed(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Both residues of every position that was sampled."""
    positions = zip(one["steps"], one["sequence"], other["sequence"], strict=True)
    return ((a, b) for step, a, b in positions if step)
