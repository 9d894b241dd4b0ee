"""Mutational scans: measured fitness of many mutants against the scores of a model, and of what needs no model.

Files of scans: `dms_files.py`. How mutants are spelled and scored: `mutants.py`. All of it can be imported from here.

Shape letters: N residues of the wild type, K = 20, n mutants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmdiff.errors import ConfigError, nearest, require, short
from mmdiff.session import Session
from mmdiff.tasks.protein.data.alignments import LETTERS, Profile, background
from mmdiff.tasks.protein.residues import CANONICAL, GAP

from .dms_files import Scan, read_scan
from .mutants import METHODS, Mutation, mutated, parse_mutant, score_mutants

__all__ = ["METHODS", "Mutation", "Scan", "mutated", "parse_mutant", "read_scan", "scan", "scan_text", "score_mutants"]

BASELINES = ("blosum62", "unigram", "profile")
SHUFFLES = 1000
DRAWS = 500  # of the mutants, for intervals

Array = NDArray[np.float64]

# of UniProtKB/Swiss-Prot, per cent: what a residue is worth where no alignment is given
SWISS_PROT = dict(
    zip(
        "AQLSREKTNGMWDHFYCIPV",
        "8.25 3.93 9.65 6.64 5.53 6.72 5.80 5.35 4.06 7.07 2.41 1.10 5.46 2.27 3.86 2.92 1.38 5.91 4.74 6.86".split(),
        strict=True,
    )
)


def scan(
    session: Session,
    measured: Scan,
    methods: Sequence[str] = METHODS,
    *,
    alignment: Sequence[str] | None = None,
    target: str | None = None,
    orders: int = 8,
    levels: int = 16,
    tokens: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Spearman's rank correlation (ties: mean ranks) of every method, and of every baseline, with every column.

    {"wild_type", "offset", "note", "rows", "synonymous", "composition": where that of the unigram comes from,
     "columns": {column: {"n", "missing", "spearman": {method or baseline: rho or None},
                          "intervals": {method or baseline: [low, high]}, "random": [low, high]}},
     "mutants": [{"mutant", column: figure or None, ..., method: score, ...}]}

    intervals: where 95 % of the correlations lie when the mutants are drawn again. random: the same of shuffled
    figures. None stands for what has no figure (a method that gives all mutants one score, fewer than 3 mutants).
    baselines: `blosum62`; `unigram`, log f(new) - log f(old) of the composition; and with an alignment `profile`, the
    same of the composition of the site's column.
    alignment: rows of equal length, one of which is the wild type or has a column for each of its residues.
    The rest: see `score_mutants`. Raises ConfigError, and MissingExtra without scipy and Biopython.
    """
    require("scipy", "protein")
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"methods: {short(repr(name), 60)}{nearest(name, METHODS)}")
    for name in measured.scores:
        if name in ("mutant", *METHODS, *BASELINES):
            raise ConfigError(f"score column {name!r} has the name of a method; rename it")
    predicted = _baselines(measured, alignment)
    for method in methods:
        predicted[method] = score_mutants(
            session,
            measured.wild_type,
            measured.mutants,
            method,
            target=target,
            orders=orders,
            levels=levels,
            tokens=tokens,
            seed=seed,
        )
    predicted = {name: predicted[name] for name in (*methods, *(b for b in BASELINES if b in predicted))}
    return {
        "wild_type": measured.wild_type,
        "offset": measured.offset,
        "note": measured.note,
        "rows": measured.rows,
        "synonymous": measured.synonymous,
        "composition": "alignment" if alignment else "Swiss-Prot",
        "columns": {name: _column(figures, predicted, seed) for name, figures in measured.scores.items()},
        "mutants": [
            {
                "mutant": name,
                **{column: _plain(figures[i]) for column, figures in measured.scores.items()},
                **{method: scores[i] for method, scores in predicted.items()},
            }
            for i, name in enumerate(measured.names)
        ],
    }


def scan_text(result: Mapping[str, Any]) -> str:
    """Plain text of what `scan` found."""
    last = result["offset"] + len(result["wild_type"]) - 1
    lines = [
        f"wild type: {len(result['wild_type'])} residues, {result['offset']}-{last}, {result['note']}",
        f"{result['rows']} rows, {result['synonymous']} of them mutate nothing; unigram: {result['composition']}",
    ]
    for column, found in result["columns"].items():
        lines.append(f"{column}: Spearman, n = {found['n']} ({found['missing']} without a figure)")
        for name, rho in found["spearman"].items():
            kind = "  (baseline)" if name in BASELINES else ""
            low, high = found["intervals"][name]
            within = "" if low is None else f"  ({low:+.3f} to {high:+.3f})"
            lines.append(f"  {name:<18}{'-' if rho is None else f'{rho:+.3f}':>7}{within}{kind}")
        low, high = found["random"]
        lines.append(f"  {'random':<18}" + ("      -" if low is None else f"{low:+.3f} to {high:+.3f}"))
    return "\n".join(lines)


def _within(drawn: Sequence[float | None]) -> list[float] | list[None]:
    known = [rho for rho in drawn if rho is not None]
    return np.quantile(known, [0.025, 0.975]).tolist() if known else [None, None]


def _column(figures: Sequence[float], predicted: Mapping[str, Sequence[float]], seed: int) -> dict[str, Any]:
    from scipy.stats import rankdata

    figure_n = np.array(figures)
    there_n = np.isfinite(figure_n)
    rank_n = rankdata(figure_n[there_n])
    rng = np.random.default_rng(seed)
    drawn = [_correlation(rank_n, rng.permutation(len(rank_n)).astype(np.float64)) for _ in range(SHUFFLES)]
    ranks = {name: rankdata(np.array(scores)[there_n]) for name, scores in predicted.items()}
    again = np.random.default_rng([seed, 1]).integers(0, max(1, len(rank_n)), (DRAWS, len(rank_n)))
    of_figures = [rankdata(rank_n[drawn_n]) for drawn_n in again]
    return {
        "n": int(there_n.sum()),
        "missing": int((~there_n).sum()),
        "spearman": {name: _correlation(rank_n, other_n) for name, other_n in ranks.items()},
        "intervals": {
            name: _within([_correlation(a, rankdata(other_n[i])) for a, i in zip(of_figures, again, strict=True)])
            for name, other_n in ranks.items()
        },
        "random": _within(drawn),
    }


def _correlation(a_n: Array, b_n: Array) -> float | None:
    """Of ranks, so Spearman's."""
    if len(a_n) < 3 or np.ptp(a_n) == 0 or np.ptp(b_n) == 0:
        return None
    return float(np.corrcoef(a_n, b_n)[0, 1])


# Baselines


def _baselines(measured: Scan, alignment: Sequence[str] | None) -> dict[str, list[float]]:
    require("Bio", "protein")
    from Bio.Align import substitution_matrices

    blosum = substitution_matrices.load("BLOSUM62")
    at = {letter: k for k, letter in enumerate(CANONICAL)}
    single_K = np.array([float(SWISS_PROT[letter]) for letter in CANONICAL])
    if alignment:
        single_K = background(alignment)
    log_K = np.log(single_K)
    out = {
        "blosum62": [sum(float(blosum[m.old, m.new]) for m in mutant) for mutant in measured.mutants],
        "unigram": [sum(float(log_K[at[m.new]] - log_K[at[m.old]]) for m in mutant) for mutant in measured.mutants],
    }
    if alignment:
        log_NK = np.log(site_profile(alignment, measured.wild_type))
        out["profile"] = [
            sum(float(log_NK[m.at, at[m.new]] - log_NK[m.at, at[m.old]]) for m in mutant) for mutant in measured.mutants
        ]
    return out


def site_profile(alignment: Sequence[str], wild_type: str) -> Array:
    """(N, 20) shares of residues at each residue of the wild type; sites that the alignment has not: its composition.

    The first row that, without its gaps, is the wild type or a stretch of it assigns residues to columns; with
    no such row the columns have to be as many as the residues. Raises ConfigError.
    """
    share_CK = Profile(alignment).probabilities[:, [LETTERS.index(letter) for letter in CANONICAL]]
    profile_CK: Array = share_CK / share_CK.sum(1, keepdims=True)
    for row in alignment:
        letters = row.replace(GAP, "")
        start = wild_type.find(letters) if letters else -1
        if start >= 0:
            out_NK = np.tile(background(alignment), (len(wild_type), 1))
            columns = [c for c, letter in enumerate(row) if letter != GAP]
            out_NK[start : start + len(columns)] = profile_CK[columns]
            return out_NK
    if len(profile_CK) != len(wild_type):
        sizes = f"{len(profile_CK)} columns, the wild type {len(wild_type)} residues"
        raise ConfigError(f"alignment: {sizes}, and no row is the wild type; expected one")
    return profile_CK


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
