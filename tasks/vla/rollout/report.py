"""The report on a policy in closed loop: success by task and ablation with intervals, and films of episodes.

One file that needs nothing else: plots and GIFs are inside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.evaluation.page import (
    COLOURS,
    NONE,
    Number,
    Table,
    cells,
    data_uri,
    figure_uri,
    new_figure,
    render,
    text_table,
)

LABELS = {
    "full": "policy",
    "no_image": "grey picture",
    "no_language": "empty instruction",
    "swapped": "another task's instruction",
    "random": "random actions",
    "expert": "scripted expert",
}

Rates = Mapping[str, Any]
"""`success`, `success_low`, `success_high`, `successes`, `n`, `steps` where some succeeded (`success.rate`)."""


@dataclass(frozen=True)
class Film:
    """A film of an episode. files: relative to the page. gif: the bytes of the GIF, which go into the page."""

    task: str
    instruction: str
    seed: int
    success: bool
    steps: int
    files: tuple[str, ...]
    gif: bytes


def write_vla_report(
    file: Path,
    *,
    title: str,
    figures: Mapping[str, Any],
    films: Sequence[Film] = (),
    notes: Sequence[str] = (),
    curves: str | None = None,
    plots: Sequence[tuple[str, str]] = (),
    tables: Mapping[str, Table] | None = None,
) -> Path:
    """Write the page.

    figures: what `evaluate_policy` returns: the policy's rates with `by_task`, `ablations` with the rates of each, and
        costs. curves: a data URI, see `mmdiff.evaluation.report.curves`. plots: (heading, data URI).
    tables: heading -> row -> column -> figure, further comparisons.
    """
    columns, rows = rates_table(figures)
    return render(
        file,
        "mmdiff.tasks.vla.rollout",
        "report.html",
        title=title,
        notes=[*notes, *figures.get("notes", ())],
        columns=columns,
        rows=rows,
        costs=costs(figures),
        bars=bars(figures),
        curves=curves,
        plots=plots,
        tables={heading: cells(of, _number) for heading, of in (tables or {}).items() if of},
        films=[(film, data_uri(film.gif, "image/gif")) for film in films],
    )


def rates_table(figures: Mapping[str, Any]) -> tuple[list[str], dict[str, list[Rates | None]]]:
    """Returns the columns, `all` and the tasks (a single task alone), and label -> rates, None where there are none."""
    tasks = list(figures["by_task"])
    all_of = ["all"] if len(tasks) > 1 else []
    rows: dict[str, list[Rates | None]] = {}
    for name, of in {"full": figures, **figures.get("ablations", {})}.items():
        rows[LABELS.get(name, name)] = [of for _ in all_of] + [of["by_task"].get(task) for task in tasks]
    return [*all_of, *tasks], rows


def summary(figures: Mapping[str, Any]) -> str:
    """Returns the table as text, then costs and notes."""
    columns, rows = rates_table(figures)
    shown = [[label, *(NONE if rates is None else with_interval(rates) for rates in of)] for label, of in rows.items()]
    lines = [text_table([["", *columns], *shown])]
    lines += [f"{name}: {value}" for name, value in costs(figures).items()]
    return "\n".join([*lines, *figures.get("notes", ())])


def with_interval(rates: Rates) -> str:
    """Returns a success rate and its interval as text: `0.95 [0.76, 0.99]`."""
    return f"{rates['success']:.2f} [{rates['success_low']:.2f}, {rates['success_high']:.2f}]"


def costs(figures: Mapping[str, Any]) -> dict[str, str]:
    """Returns what the page says of times: per chunk, per action, in batches."""
    out = {}
    if "latency_ms" in figures:
        latency = figures["latency_ms"]
        out["latency per chunk"] = f"{latency['p50']:.1f} ms (p50), {latency['p95']:.1f} ms (p95), one robot"
    if "control_hz" in figures:
        out["control frequency"] = f"{figures['control_hz']:.1f} actions per second, one robot"
    if "actions_per_second" in figures:
        out["throughput"] = f"{figures['actions_per_second']:.1f} actions per second of the policy's time, in batches"
    if "forwards_per_chunk" in figures:
        out["forwards per chunk"] = f"{figures['forwards_per_chunk']:.1f}"
    return out


def bars(figures: Mapping[str, Any]) -> str:
    """Plot success by task with intervals, one colour per condition. Returns the data URI of a PNG."""
    columns, rows = rates_table(figures)
    figure = new_figure(min(16, max(6, 1.5 + 0.24 * len(columns) * (len(rows) + 1))), 3.6)
    axes = figure.subplots()
    width = 0.84 / len(rows)
    for i, (label, of) in enumerate(rows.items()):
        found = [(column, rates) for column, rates in enumerate(of) if rates is not None]
        at = [column + (i - (len(rows) - 1) / 2) * width for column, _ in found]
        height = [rates["success"] for _, rates in found]
        ends = [[abs(rates["success"] - rates[f"success_{end}"]) for _, rates in found] for end in ("low", "high")]
        style: dict[str, Any] = {"capsize": 1.5, "error_kw": {"elinewidth": 0.8, "alpha": 0.7}, "label": label}
        axes.bar(at, height, width, yerr=ends, color=COLOURS[i % len(COLOURS)], **style)
        axes.plot(
            at, height, "o", color=COLOURS[i % len(COLOURS)], markersize=3, clip_on=False
        )  # of a bar without height
    long = max(map(len, columns)) > 12 and len(columns) > 3
    axes.set_xticks(range(len(columns)), columns, rotation=20 if long else 0, ha="right" if long else "center")
    axes.set(ylabel="success", ylim=(0, 1.02))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, ncols=min(3, len(rows)), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure_uri(figure)


def _number(figure: Number) -> str:
    if isinstance(figure, str):
        return figure
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.3g}" if abs(figure) < 1 else f"{figure:,.2f}"
