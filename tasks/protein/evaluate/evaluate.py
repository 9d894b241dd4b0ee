"""Every figure of a model of proteins in one call, with its baselines, and a page to look at.

Shape letters: B sequences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.errors import ConfigError, DataError, require
from mmdiff.evaluation.report import curves
from mmdiff.files import without_nan, write_text
from mmdiff.model.evaluating import evaluating
from mmdiff.model.likelihood import bound
from mmdiff.protocols import Row
from mmdiff.samplers.options import generation_config
from mmdiff.session import Session
from mmdiff.tasks.protein.data.alignments import LETTERS, background
from mmdiff.tasks.protein.design.generate import Record, generate
from mmdiff.tasks.protein.residues import CANONICAL, MASKED

from .alignment_score import floor
from .intervals import of_mean, of_sequences, of_share, of_shares
from .mask_filling import RATES, baselines, batches, mask_filling, sequences
from .metrics import Array, composition, composition_report, conserved, validity
from .novelty import diversity, novelty
from .page import page

SAMPLES = 300
DESIGNS = 100  # sequences that are generated around a motif, at most
LEVELS = 16
NATURAL = 20_000  # natural sequences that compositions are taken of, at most

__all__ = ["baselines", "bound_per_residue", "evaluate_model", "mask_filling"]


def bound_per_residue(
    session: Session, rows: Sequence[Row], *, levels: int = LEVELS, seed: int = 0, tokens: int | None = None
) -> dict[str, float]:
    """Compute the bound on -log p per position (of aligned rows: per column), see `mmdiff.model.likelihood.bound`.

    Returns `nats`, its standard error `nats_se` over rows, `positions` (their number), and `perplexity`, e to the
    power of `nats`. Raises DataError without rows, or without a residue that the model generates.
    """
    if not len(rows):
        raise DataError("bound: no rows")
    nll_B, positions_B = np.zeros(len(rows)), np.zeros(len(rows))
    with evaluating(session.model):
        for numbers, batch in batches(session, rows, tokens, session.task.sample):
            found = bound(session.model, batch, levels=levels, seed=seed)
            nll_B[numbers], positions_B[numbers] = found.nll_B.numpy(), found.positions_B.numpy()
    if not positions_B.sum():
        raise DataError("bound: no residue of these rows is one that the model generates")
    nats = float(nll_B.sum() / positions_B.sum())
    return {
        "nats": nats,
        "nats_se": _error_of_ratio(nll_B, positions_B),
        "positions": int(positions_B.sum()),
        "perplexity": float(np.exp(nats)),
    }


def _error_of_ratio(sum_B: Array, n_B: Array) -> float:
    """The standard error, over sequences, of the mean of all that is summed in `sum_B`, `n_B` numbers each."""
    left_B = sum_B - sum_B.sum() / n_B.sum() * n_B
    spread = np.sqrt((left_B**2).sum() * len(n_B) / (len(n_B) - 1)) if len(n_B) > 1 else np.nan
    return float(spread / n_B.sum())


def evaluate_model(
    session: Session,
    test_rows: Sequence[Row],
    *,
    file: Path | None = None,
    train_rows: Sequence[Row] | None = None,
    aligned: bool = False,
    samples: int = SAMPLES,
    motif: str | None = None,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    tokens: int | None = None,
    title: str = "Protein model",
    **generation: Any,
) -> dict[str, Any]:
    """All figures as one nested dictionary of plain numbers, also in `metrics.json` beside `file`, the page.

    `mask_filling`, `baselines` (aligned, with `train_rows`), `bound` with what the unigram and the profile give the
    same rows, `generation` (composition against its floor, conserved columns, novelty, diversity, validity, and the
    same of natural sequences), and `motif` (the share of its given positions that are as given, and of whole motifs).

    aligned: rows are of one length, with gaps; positions are columns then. samples: number of generated sequences, in
    lengths drawn from the rows' own. motif: a template, `_` where it is masked; None: of aligned rows, the consensus at
    conserved columns, else none. generation: fields of `GenerationConfig` (steps, temperature, remasking, ...).
    Raises ConfigError and DataError.
    """
    require("Bio", "protein")
    if samples < 1:
        raise ConfigError(f"samples: {samples}, expected at least 1")
    test = sequences(test_rows)
    train = None if train_rows is None else sequences(train_rows)
    natural = _some([*(train or []), *test], NATURAL, seed)
    generation = {"seed": seed, **generation}
    settings = generation_config(session.sampler, **generation)
    out: dict[str, Any] = {"n": len(test), "train": 0 if train is None else len(train), "aligned": aligned}
    out["mask_filling"] = mask_filling(
        session, test_rows, rates, seed=seed, tokens=tokens, aligned=aligned, train=train
    )
    out["alignment_floor"] = floor(_some(test, 1000, seed), seed=seed)
    if aligned and train:
        out["baselines"] = baselines(train, test, rates, seed=seed)
    out["bound"] = bound_per_residue(session, test_rows, seed=seed, tokens=tokens) | _bound_baselines(out, train, test)

    lengths = _lengths(test if train is None else train, samples, seed)
    plain: dict[str, Any] = {"tokens": tokens, "guard": None, **generation}  # the model's own law
    made = list(generate(session, [_row("sample", i, MASKED * n) for i, n in enumerate(lengths)], **plain))
    generated = [one["sequence"] for one in made]
    known = _known(generated, test, train, aligned)
    out["generation"] = {
        "n": samples,
        "settings": {name: getattr(settings, name) for name in ("steps", "temperature", "remasking", "seed")},
        "residues": composition(generated),
        "natural_residues": composition(natural),
        "jsd": composition_report(generated, natural, heldout=(test, train) if train else None, seed=seed),
        "validity": validity(generated, lengths),
        "natural_validity": validity(natural),
        "diversity": diversity(generated, aligned=aligned, seed=seed),
        "natural_diversity": diversity(natural, aligned=aligned, seed=seed),
        **{name: {key: of[key] for key in ("mean", "median", "max", "exact", "method")} for name, of in known.items()},
    }
    if aligned:
        out["generation"]["conserved"] = conserved(generated, natural)
    out["generation"]["intervals"] = _intervals(out["generation"], known, len(natural))
    if aligned:
        motif = _consensus(out["generation"]["conserved"], len(test[0])) if motif is None else motif
    around: list[Record] = []
    if motif is not None:
        around = list(generate(session, [_row("design", i, motif) for i in range(min(samples, DESIGNS))], **plain))
        out["motif"] = kept(motif, [one["sequence"] for one in around])
    if file is not None:
        write_text(file.with_name("metrics.json"), json.dumps(without_nan(out), indent=2) + "\n")
        page(file, out, made, around, natural, known, title=title, curve=_curve(session))
    return out


def _intervals(of: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], natural: int) -> dict[str, Any]:
    """95 % intervals of shares, identities and divergences, by what they are of."""
    out: dict[str, Any] = {
        "validity": of_shares(of["validity"], of["n"]),
        "natural_validity": of_shares(of["natural_validity"], natural),
        "jsd": {k: {key: of_mean(one[key], se, 0, 1) for key, se in one["se"].items()} for k, one in of["jsd"].items()},
    }
    for name, n in (("diversity", of["n"]), ("natural_diversity", natural)):
        found = of[name]
        identity = of_mean(found["identity"], found["identity_se"], 0, 1)
        out[name] = {"unique": of_share(found["unique"], n), "identity": identity}
    if columns := of.get("conserved"):
        means = ("mean", "natural_mean")
        out["conserved"] = {name: of_mean(columns[name], columns[f"{name}_se"], 0, 1) for name in means}
    for name, found in known.items():
        values = found["identity"]
        figures = {"mean": of_sequences(values), "median": of_sequences(values, lambda drawn: float(np.median(drawn)))}
        out[name] = {**figures, "exact": of_share(found["exact"], len(values))}
    return out


def kept(template: str, designs: Sequence[str]) -> dict[str, Any]:
    """Returns how well designs keep what a template gives: `template`, `n`, number of given `positions`, `kept`, the
    share of these that are as given, `whole`, the share of designs that keep all, and the 95 % `intervals` of both."""
    at = [i for i, letter in enumerate(template) if letter != MASKED]
    right = [sum(len(d) == len(template) and d[i] == template[i] for i in at) for d in designs]
    shares = [n / len(at) if at else 1.0 for n in right]
    whole = float(np.mean([share == 1 for share in shares]))
    return {
        "template": template,
        "n": len(designs),
        "positions": len(at),
        "kept": float(np.mean(shares)),
        "whole": whole,
        "intervals": {"kept": of_sequences(shares), "whole": of_share(whole, len(designs))},
    }


def _bound_baselines(found: Mapping[str, Any], train: Sequence[str] | None, test: Sequence[str]) -> dict[str, Any]:
    """In nats per position: what composition, and what the profile of the training rows, give the same rows."""
    letters = LETTERS if found["aligned"] else CANONICAL
    shares_K = background(test if train is None else train, letters)
    counts_BK = np.array([[s.count(letter) for letter in letters] for s in test])
    nll_B, n_B = -(counts_BK * np.log(shares_K)).sum(1), counts_BK.sum(1)
    out: dict[str, Any] = {"unigram": float(nll_B.sum() / max(1, n_B.sum()))}
    out["unigram_interval"] = of_mean(out["unigram"], _error_of_ratio(nll_B, n_B)) if n_B.any() else None
    if "baselines" in found:
        profile = found["baselines"]["profile"]["1"]
        out |= {"profile": profile["column_nll"], "profile_interval": profile["intervals"]["column_nll"]}
    return out


def _known(
    generated: Sequence[str], test: Sequence[str], train: Sequence[str] | None, aligned: bool
) -> dict[str, dict[str, Any]]:
    if not train:
        return {}
    held_out = _some(test, len(generated), 0)
    return {
        "novelty": novelty(generated, train, aligned=aligned),
        "natural_novelty": novelty(held_out, train, aligned=aligned),
    }


def _lengths(natural: Sequence[str], n: int, seed: int) -> list[int]:
    """Drawn from the lengths of `natural`."""
    return [int(length) for length in np.random.default_rng(seed).choice([len(s) for s in natural], n)]


def _row(name: str, i: int, template: str) -> Row:
    return {"id": f"{name} {i + 1}", "sequence": template}


def _some(items: Sequence[str], n: int, seed: int) -> list[str]:
    """All of them, or `n` at random, in their order."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in sorted(np.random.default_rng(seed).choice(len(items), n, replace=False))]


def _consensus(found: Mapping[str, Any], columns: int) -> str | None:
    letters = [MASKED] * columns
    for column, letter in zip(found["columns"], found["consensus"], strict=True):
        letters[column - 1] = letter
    return "".join(letters) if found["columns"] else None


def _curve(session: Session) -> str | None:
    """The training curves of the run that the session's model lies in."""
    runs = (session.folder / "metrics.jsonl", session.folder.parent / "metrics.jsonl")
    return next((found for file in runs if (found := curves(file)) is not None), None)
