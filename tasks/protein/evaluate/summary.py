"""What `evaluate_model` found, as plain text: the figures that matter, beside what needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.tasks.protein.residues import OPEN

from .page import KMERS, by_rate, predictors

Cell = float | int | str | None
SETS = ("", "natural_")  # how the figures of generated and of natural sequences begin


def evaluation_text(found: Mapping[str, Any], page: Path | None = None) -> str:
    """Plain text of what `evaluate_model` found. page: where the report is."""
    of, bound = found["generation"], found["bound"]
    known = f", {found['train']} of training" if found.get("train") else ""
    lines = [f"{found['n']} held-out sequences{known}, {of['n']} generated", ""]
    for key, label in (("accuracy", "accuracy of residues, masked:"), ("nll", "nats per residue, masked:")):
        lines += [*_columns_text(label, by_rate(predictors(found), key)), ""]
    priced: dict[str, dict[str, Cell]] = {"model": {"nats": bound["nats"], "perplexity": bound["perplexity"]}}
    priced |= {name: {"nats": bound[name]} for name in ("unigram", "profile") if name in bound}
    lines += [*_columns_text(f"-log p per {'column, gaps too' if found['aligned'] else 'residue'}:", priced), ""]
    divergence = {
        f"{k}-mers": {KMERS[name]: one[name] for name in KMERS if name in one} for k, one in of["jsd"].items()
    }
    lines += [*_columns_text("divergence from natural, bits:", divergence), ""]
    lines += _columns_text("sequences:", _sequences(of))
    if motif := found.get("motif"):
        text = motif["template"].replace(OPEN, ".")
        lines += ["", f"motif {text:.60}{'...' if len(text) > 60 else ''}: {motif['kept']:.4f} of its residues kept"]
    return "\n".join([*lines, *([] if page is None else ["", f"report: {page}"])])


def _sequences(of: Mapping[str, Any]) -> dict[str, dict[str, Cell]]:
    conserved = of.get("conserved") or {}
    rows = {
        "conserved columns kept": [conserved.get(f"{name}mean") if conserved.get("columns") else None for name in SETS],
        "all different": [of[f"{name}diversity"]["unique"] for name in SETS],
        "identity with each other": [of[f"{name}diversity"]["identity"] for name in SETS],
        "identity with nearest in training": [(of.get(f"{name}novelty") or {}).get("median") for name in SETS],
        "copies of training": [(of.get(f"{name}novelty") or {}).get("exact") for name in SETS],
    }
    known = {label: cells for label, cells in rows.items() if cells != [None, None]}
    return {label: dict(zip(("generated", "natural"), cells, strict=True)) for label, cells in known.items()}


def _columns_text(title: str, rows: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    columns: Sequence[str] = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    first = max(map(len, [title, *rows])) + 2
    widths = [max(10, len(name) + 2) for name in columns]
    lines = [f"{title:{first}}" + "".join(f"{name:>{w}}" for name, w in zip(columns, widths, strict=True))]
    for label, cells in rows.items():
        figures = (f"{_figure(cells.get(name)):>{w}}" for name, w in zip(columns, widths, strict=True))
        lines.append(f"{label:{first}}" + "".join(figures))
    return lines


def _figure(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)
