"""The verbs of `mmdiff protein`: those of `sampling.py`, and `score`, `embed`, `probe` and `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdiff.commands.arguments import AtLeast0, AtLeast1, Output, Share, Verb
from mmdiff.commands.cli import table
from mmdiff.errors import UserError
from mmdiff.files import make_folder, output_file

from .arguments import (
    AtLeast2,
    Levels,
    Mutants,
    Policies,
    Run,
    Samples,
    Tokens,
    file_or_none,
    one_file,
    only_overrides,
    refuse_without,
)
from .sampling import design, generate, infill

NO_POLICIES, NO_MUTANTS = Policies(), Mutants()


def score(
    run: Run,
    /,
    *words: str,
    methods: str | None = None,
    levels: Levels = 16,
    per_residue: bool = False,
    control: str | None = None,
    of_mutants: Mutants = NO_MUTANTS,
    seed: AtLeast0 = 0,
    out: str | None = None,
    tokens: Tokens = None,
    policies: Policies = NO_POLICIES,
) -> Output:
    """Score how likely sequences are (bound, pseudo-perplexity), or the mutants of a scan against measurements.

    Args:
        words: a file of sequences; settings as dotted.key=value: task.letters=...
        methods: bound,pseudo_perplexity; of mutants wt_marginal,masked_marginal,... (all).
        levels: numbers of masked residues the bound is taken at.
        per_residue: log p of each residue given all others, too.
        control: shuffled_target: the same for shuffled targets, of pairs.
        seed: seed of the masks.
        out: a file ending in .csv, .tsv or .jsonl, also .gz; an interrupted command is resumed, except for mutants.
    """
    from mmdiff.tasks.protein.score.sequences import METHODS, score_sequences

    from .inputs import content, open_session, pairs_or_records
    from .results import TABLES, Results, score_row, tabbed
    from .rows import peeked

    asked = None if methods is None else methods.split(",")
    if of_mutants.given:
        refuse_without(None, "a file of sequences", per_residue=per_residue or None, control=control)
        named: dict[str, Any] = {"levels": levels, "tokens": tokens, "seed": seed}
        return _score_mutants(run, only_overrides(words), of_mutants, asked, out, **named)
    (file, overrides), results = one_file(words), Results("--out", out, TABLES)
    records = peeked(pairs_or_records(file, policies.given()))
    scored = score_sequences(
        open_session(run, overrides),
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
    return results.output(found, kept, score_row, lambda records: tabbed(map(score_row, records)))


def embed(
    run: Run,
    /,
    *words: str,
    out: str,
    pool: str = "mean",
    layer: int = -1,
    dtype: str = "float32",
    format: str | None = None,
    tokens: Tokens = None,
    policies: Policies = NO_POLICIES,
) -> Output:
    """Write embeddings, a vector per sequence or residue, to a folder of shards or one .safetensors or .npz file.

    Args:
        words: a file of sequences; settings as dotted.key=value.
        out: a folder, or a file ending in .safetensors or .npz.
        pool: mean, max, std, cls, several by commas; or residue.
        layer: 0 is the embedding table, then one per layer; negative numbers count from the last.
        dtype: float32, float16 or bfloat16.
        format: of a folder's shards: safetensors or npz (safetensors).
    """
    from mmdiff.tasks.protein.data.fasta import read_sequences
    from mmdiff.tasks.protein.embed.embeddings import embed as embed_all

    from .inputs import open_session
    from .rows import peeked

    file, overrides = one_file(words)
    if not out:
        raise UserError("--out: '' is no name")
    records = peeked(read_sequences(file, masked="keep", **policies.given()))
    session, pools = open_session(run, overrides), pool.split(",")
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
    from mmdiff.tasks.protein.embed.probes import probe_text, read_labels, residue_probe

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
    return result, f"{head}\n{probe_text(result)}"


def evaluate(
    run: Run,
    /,
    *words: str,
    train: str | None = None,
    limit: AtLeast1 | None = None,
    aligned: bool = False,
    samples: Samples = 300,
    motif: str | None = None,
    seed: AtLeast0 = 0,
    report: str | None = None,
    tokens: Tokens = None,
) -> Output:
    """Evaluate a run on held-out sequences: mask filling, bound, samples, beside what needs no model.

    Args:
        words: a file of sequences; settings as dotted.key=value: sampler.steps=20, task.letters=...
        train: a file of the sequences the model was trained on: for novelty and baselines.
        limit: number of held-out sequences (all).
        aligned: the sequences are rows of an alignment; without it, the task decides.
        samples: number of sequences that are sampled.
        motif: residues and masked positions (_); its residues must stay.
        seed: seed of the masks and samples.
        report: the page (RUN/protein/, or protein-FILE/; without a run: none).
    """
    from mmdiff.tasks.protein.evaluate.evaluate import evaluate_model
    from mmdiff.tasks.protein.evaluate.page import evaluation_text

    from .inputs import aligned_rows, evaluation_rows, open_session
    from .results import page_file

    output_file("--report", report)
    file, overrides = file_or_none(words)
    session = open_session(run, overrides)
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
    return {**found, "report": None if page is None else str(page)}, evaluation_text(found, page)


def _score_mutants(
    run: str, overrides: list[str], asked: Mutants, methods: list[str] | None, out: str | None, **named: Any
) -> Output:
    from mmdiff.tasks.protein.data.alignments import read_alignment
    from mmdiff.tasks.protein.data.tables import write_table
    from mmdiff.tasks.protein.score.dms import METHODS, read_scan, scan, scan_text, score_mutants
    from mmdiff.tasks.protein.score.mutants import parse_mutant

    from .inputs import first_sequence, open_session
    from .results import new_table, tabbed

    methods = list(METHODS) if methods is None else methods
    wild_type = first_sequence("--wild-type", asked.wild_type) if asked.wild_type is not None else None
    file = new_table("--out", out)
    if asked.mutants is not None:
        assert wild_type is not None
        names = asked.mutants.split()
        parsed = [parse_mutant(name, wild_type, 1 if asked.offset is None else asked.offset) for name in names]
        session = open_session(run, overrides)
        make_folder("--out", file)
        scores = {method: score_mutants(session, wild_type, parsed, method, **named) for method in methods}
        rows = [{"mutant": name, **{m: scores[m][i] for m in methods}} for i, name in enumerate(names)]
        result: dict[str, Any] = {"wild_type": wild_type, "mutants": rows}
        text = tabbed(rows)
    else:
        measured = read_scan(str(asked.scan), wild_type, score_column=asked.column, offset=asked.offset)
        alignment = read_alignment(asked.alignment).sequences if asked.alignment is not None else None
        session = open_session(run, overrides)
        make_folder("--out", file)
        result = scan(session, measured, methods, alignment=alignment, **named)
        rows, text = result["mutants"], scan_text(result)
    if file is not None:
        write_table(file, rows)
        result = {**{name: value for name, value in result.items() if name != "mutants"}, "out": str(file)}
        text += f"\nout: {file}"
    return result, text


VERBS: dict[str, Verb] = {
    "generate": generate,
    "infill": infill,
    "design": design,
    "score": score,
    "embed": embed,
    "probe": probe,
    "eval": evaluate,
}
