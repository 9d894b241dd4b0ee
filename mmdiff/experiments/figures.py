"""Which of many figures are looked at first, and how a figure is written."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

NO_SCORES = ("n", "forwards", "rows_per_second")  # figures of every set; `by_kind.` ones are no choice either


def is_end(name: str, figures: Container[str]) -> bool:
    """Whether a figure is an end of the interval around another of the figures."""
    return any(name.endswith(end) and name.removesuffix(end) in figures for end in ("_low", "_high"))


def first_score(names: Iterable[str]) -> str | None:
    """Returns the first name of a score among those of a set's figures, else the first name; None of none."""
    names = list(names)
    scores = [name for name in names if name not in NO_SCORES and not name.startswith("by_kind.")]
    return (scores or names or [None])[0]  # type: ignore[list-item]


def main_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Returns the first score of each evaluated set, by `set.score`; the last stage's loss where nothing is scored.

    figures: of a run, by dotted key, `eval.<set>.<figure>` and `loss.<stage>` among them.
    """
    sets: dict[str, list[str]] = {}
    for key in figures:
        if key.startswith("eval."):
            name, _, figure = key.removeprefix("eval.").partition(".")
            sets.setdefault(name, []).append(figure)
    keys = [f"{name}.{first_score(found)}" for name, found in sets.items()]
    chosen = {key: figures[f"eval.{key}"] for key in keys}
    losses = [key for key in figures if key.startswith("loss.")]
    return chosen or {key: figures[key] for key in losses[-1:]}


def as_text(value: Any) -> str:
    """Returns a figure in four digits, a whole number whole, and nothing for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as text, every column aligned to the left, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
