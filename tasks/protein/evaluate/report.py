"""A page about protein sequences: tables, plots, and generated sequences residue by residue.

One file that needs nothing else: plots are inside it. Everything comes as plain data, for a demonstration to use too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdiff.evaluation.page import Number as Figure
from mmdiff.evaluation.page import Table, cells, render, text_table

BLOCK = 10  # residues between two numbers of a sequence


@dataclass(frozen=True)
class GeneratedSequence:
    """A sequence that was generated.

    steps: when each residue was committed; 0: it was given.
    facts: what stands beside it, such as the identity to the nearest training sequence.
    """

    id: str
    sequence: str
    steps: Sequence[int]
    facts: Mapping[str, Figure] = field(default_factory=dict)


def write_protein_report(
    file: Path,
    *,
    title: str,
    figures: Mapping[str, Table],
    plots: Sequence[tuple[str, str]] = (),
    examples: Mapping[str, Sequence[GeneratedSequence]] | None = None,
    notes: Sequence[str] = (),
    curves: str | None = None,
) -> Path:
    """Write the page.

    figures: heading -> row -> column -> figure; text stands there as it is. plots: (heading, data URI), see
    `plots.py`. examples: heading -> sequences. curves: a data URI, see `mmdiff.evaluation.report.curves`."""
    return render(
        file,
        "mmdiff.tasks.protein.evaluate",
        "report.html",
        title=title,
        notes=notes,
        tables={heading: shown(table) for heading, table in figures.items() if table},
        curves=curves,
        plots=plots,
        examples={heading: [card(one) for one in some] for heading, some in (examples or {}).items() if some},
    )


def shown(table: Table) -> tuple[list[str], dict[str, list[str]]]:
    """Columns, and row -> figure as shown of each; a dash where there is none."""
    return cells(table, number)


def tables_text(figures: Mapping[str, Table]) -> str:
    """The tables of a page as plain text, those without rows left out."""
    paragraphs = []
    for heading, table in figures.items():
        if table:
            columns, rows = shown(table)
            lines = [[_short(label), *row] for label, row in rows.items()]
            paragraphs.append(text_table([[heading, *columns], *lines]))
    return "\n\n".join(paragraphs)


def _short(label: str) -> str:
    return label if len(label) <= 60 else f"{label[:60]}..."


def number(figure: Figure) -> str:
    """Text as it is, whole numbers in full, others to four decimals; small ones keep two digits."""
    if isinstance(figure, str):
        return figure
    if isinstance(figure, int):
        return f"{figure:,}"
    return f"{figure:.4f}" if abs(figure) >= 0.001 or figure == 0 else f"{figure:.1e}"


def card(one: GeneratedSequence) -> dict[str, Any]:
    """Returns what the page shows of a sequence: its facts, and its residues by the step that committed them."""
    last = max(one.steps, default=0)
    positions = [position(i, last, *of) for i, of in enumerate(zip(one.sequence, one.steps, strict=True))]
    return {
        "id": one.id,
        "facts": {name: number(value) for name, value in one.facts.items()},
        "last": last,
        "blocks": [positions[i : i + BLOCK] for i in range(0, len(positions), BLOCK)],
    }


def position(at: int, last: int, residue: str, step: int) -> dict[str, Any]:
    """`late`: from 0, committed at the first step, to 1, at the last."""
    tooltip = f"{residue}{at + 1}: " + (f"committed at step {step}" if step else "given")
    late = (step - 1) / max(1, last - 1) if step else 0.0
    return {"residue": residue, "step": step, "late": f"{late:.3f}", "tooltip": tooltip}
