"""What `evaluate_model` found, for people: which figures stand in which table and plot of the page, and as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.tasks.protein.residues import MASKED

from .intervals import of_mean
from .metrics import ungapped
from .plots import composition_plot, conserved_plot, identity_plot, kmer_plot, length_plot, mask_filling_plot
from .report import Figure, GeneratedSequence, Table, number, tables_text, write_protein_report

PAGE_ONLY = ("f1", "mcc", "column_accuracy", "column_nll")  # tables that the text leaves out
SHOWN = 24  # generated sequences of a page
GUESSES = {
    "accuracy": "Hidden residues: accuracy",
    "nll": "Hidden residues: nats per residue",
    "f1": "Hidden residues: F1, weighted",
    "mcc": "Hidden residues: Matthews' correlation",
    "column_accuracy": "Hidden columns, gaps among them: accuracy",
    "column_nll": "Hidden columns, gaps among them: nats per column",
}
KMERS = {
    "floor": "natural",
    "heldout": "natural, held-out clusters",
    "samples": "generated",
    "columns": "columns shuffled",
    "shuffled": "residues shuffled",
}


def page(
    file: Path,
    found: Mapping[str, Any],
    made: Sequence[Mapping[str, Any]],
    around: Sequence[Mapping[str, Any]],
    natural: Sequence[str],
    known: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    curve: str | None = None,
) -> Path:
    """Write the page of what `evaluate_model` found.

    made, around: records of `generate`, from nothing and around the motif.
    """
    of = found["generation"]
    plots = [("Mask filling", mask_filling_plot(predictors(found)))]
    plots.append(("Composition", composition_plot({"natural": of["natural_residues"], "generated": of["residues"]})))
    plots.append(("k-mers", kmer_plot(of["jsd"], KMERS)))
    if of.get("conserved", {}).get("columns"):
        plots.append(("Conserved columns", conserved_plot(of["conserved"])))
    sizes = {"natural": natural, "generated": [one["sequence"] for one in made]}
    plots.append(("Lengths", length_plot({name: [len(ungapped(s)) for s in some] for name, some in sizes.items()})))
    if known:
        names = {"natural_novelty": "held out", "novelty": "generated"}
        plots.append(("Novelty", identity_plot({label: known[name]["identity"] for name, label in names.items()})))
    facts = _facts(known)
    spread = sorted({int(i) for i in np.linspace(0, len(made) - 1, SHOWN)})
    examples = {
        "Generated": [_generated(made[i], facts(i)) for i in spread],
        "Around the motif": [_generated(one) for one in around[:SHOWN]],
    }
    unit = "column" if found["aligned"] else "residue"
    notes = [
        f"{found['n']} held-out sequences, {of['n']} generated. In brackets: 95 % intervals.",
        f"Bound on -log p: {found['bound']['nats']:.4f} nats per {unit} (standard error "
        f"{found['bound']['nats_se']:.4f}). Two unrelated sequences of one composition have an alignment score of "
        f"{found['alignment_floor']:.3f}.",
    ]
    tables = tables_of(found)
    return write_protein_report(
        file, title=title, figures=tables, plots=plots, examples=examples, notes=notes, curves=curve
    )


def _generated(record: Mapping[str, Any], facts: Mapping[str, Figure] | None = None) -> GeneratedSequence:
    return GeneratedSequence(record["id"], record["sequence"], record["steps"], facts=facts or {})


def _facts(known: Mapping[str, Mapping[str, Any]]) -> Callable[[int], dict[str, Figure]]:
    if "novelty" not in known:
        return lambda i: {}
    near = known["novelty"]
    return lambda i: {
        "identity to the nearest training sequence": float(near["identity"][i]),
        "which is number": int(near["nearest"][i]) + 1,
    }


def predictors(found: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Who guesses hidden residues -> rate -> figures: the model, and all baselines there are."""
    model = found["mask_filling"]
    below = found.get("baselines") or {
        "unigram": {
            rate: {
                "accuracy": one["unigram_accuracy"],
                "nll": one["unigram_nll"],
                "intervals": one.get("unigram_intervals", {}),
            }
            for rate, one in model.items()
        }
    }
    return {"model": dict(model)} | {
        name: {rate: one for rate, one in of.items() if rate in model} for name, of in below.items()
    }


def within(figure: float, interval: Sequence[float] | None) -> Figure:
    """A figure with its 95 % interval, as "0.3512 (0.33 to 0.37)"; without one the figure."""
    if interval is None or not np.isfinite(interval).all():
        return figure
    return f"{number(figure)} ({interval[0]:.3g} to {interval[1]:.3g})"


def by_rate(figures: Mapping[str, Mapping[str, Mapping[str, Any]]], key: str) -> dict[str, dict[str, Figure]]:
    """Who guesses -> share of hidden residues -> one figure; those who lack it are left out."""
    picked: dict[str, dict[str, Figure]] = {
        name: {
            f"{100 * float(rate):g} %": within(one[key], one.get("intervals", {}).get(key, one.get(f"{key}_interval")))
            for rate, one in rates.items()
            if key in one
        }
        for name, rates in figures.items()
    }
    return {name: cells for name, cells in picked.items() if cells}


def tables_of(found: Mapping[str, Any]) -> dict[str, Table]:
    """Returns the tables of the page, by heading, row and column, of the figures of an evaluation."""
    of, bound_of = found["generation"], found["bound"]
    tables: dict[str, Table] = {label: by_rate(predictors(found), key) for key, label in GUESSES.items()}
    scores = {"model": found["mask_filling"]}
    tables["Alignment score of the sequence with its hidden residues filled in"] = {
        **by_rate(scores, "alignment_score"),
        "at random": by_rate(scores, "alignment_floor").get("model", {}),
    }
    sets = {"generated": "", "natural": "natural_"}
    both: dict[str, dict[str, Figure]] = {}
    for name, prefix in sets.items():
        ranges = of.get("intervals", {})
        of_shares = ranges.get(f"{prefix}validity", {})
        figures = {f"{key}, share": within(x, of_shares.get(key)) for key, x in of[f"{prefix}validity"].items()}
        for key, label in (("unique", "all different"), ("identity", "identity with each other")):
            of_both = ranges.get(f"{prefix}diversity", {})
            figures[label] = within(of[f"{prefix}diversity"][key], of_both.get(key))
        if near := of.get(f"{prefix}novelty"):
            of_near = ranges.get(f"{prefix}novelty", {})
            median = within(near["median"], of_near.get("median"))
            figures |= {"identity with nearest in training, median": median, "most": near["max"]}
            figures |= {"copies of training": within(near["exact"], of_near.get("exact"))}
        if (columns := of.get("conserved")) and columns["columns"]:
            of_columns = ranges.get("conserved", {})
            figures["conserved columns kept"] = within(columns[f"{prefix}mean"], of_columns.get(f"{prefix}mean"))
        for key, value in figures.items():
            both.setdefault(key, {})[name] = value
    nats = of_mean(bound_of["nats"], bound_of["nats_se"])
    perplexity = within(bound_of["perplexity"], [float(np.exp(x)) for x in nats])
    by_model: dict[str, dict[str, Figure]] = {
        "model": {"nats": within(bound_of["nats"], nats), "perplexity": perplexity}
    }
    for name in ("unigram", "profile"):
        if name in bound_of:
            around = bound_of.get(f"{name}_interval")
            powers = None if around is None else [float(np.exp(x)) for x in around]
            perplexity = within(float(np.exp(bound_of[name])), powers)
            by_model[name] = {"nats": within(bound_of[name], around), "perplexity": perplexity}
    unit = "column" if found["aligned"] else "residue"
    tables |= {
        f"-log p per {unit}": by_model,
        "Jensen-Shannon divergence from natural sequences, bits": {
            f"{k}-mers": {
                label: within(one[key], of.get("intervals", {}).get("jsd", {}).get(k, {}).get(key))
                for key, label in KMERS.items()
                if key in one
            }
            for k, one in of["jsd"].items()
        },
        "Sequences": both,
    }
    if motif := found.get("motif"):
        some, every = (within(motif[key], motif["intervals"][key]) for key in ("kept", "whole"))
        cells = {"given residues": motif["positions"], "kept": some, "designs with all": every}
        tables["Motif"] = {motif["template"].replace(MASKED, "·"): cells}
    return tables


def evaluation_text(found: Mapping[str, Any], page: Path | None = None) -> str:
    """Plain text of what `evaluate_model` found. page: where the report is."""
    known = f", {found['train']} of training" if found.get("train") else ""
    head = f"{found['n']} held-out sequences{known}, {found['generation']['n']} generated; in brackets 95 % intervals"
    left_out = [GUESSES[key] for key in PAGE_ONLY]
    tables = {heading: table for heading, table in tables_of(found).items() if heading not in left_out}
    return "\n\n".join([head, tables_text(tables), *([] if page is None else [f"report: {page}"])])
