"""What `mmdiff compare` found, as tables for a terminal and as a page in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdiff.errors import shown
from mmdiff.evaluation.page import figure_uri, new_figure, render
from mmdiff.evaluation.report import losses
from mmdiff.runs.metrics import is_number, read_metrics

from ..figures import aligned, as_text
from .compare import CLOCKS

WIDEST = 60  # characters of a value in a terminal
Rows = list[list[str]]


def as_tables(found: Mapping[str, Any], *, most: int, width: int | None = WIDEST) -> dict[str, Rows]:
    """Returns heading -> cells of a table, its head first, of what `compare` returns.

    most: rows of changed predictions. width: characters of a value, the middle of longer ones left out; None: any.
    """
    labels = [run["run"] for run in found["runs"]]
    settings = [[key, *(_value(v, width) for v in values)] for key, values in found["settings"].items()]
    keys = [key for key in found["figures"] if key.rpartition(".")[2] not in CLOCKS and ".by_kind." not in key]
    no_differences = [None] * len(labels[1:])
    figures = [
        [key, *map(_figure, found["figures"][key]), *map(_difference, found["differences"].get(key, no_differences))]
        for key in keys
    ]
    heads = ["figure", *labels, *(f"{label} - {labels[0]}" for label in labels[1:])]
    changed = [
        [
            line["set"],
            str(line["row"]),
            _value(next((v for v in line["fields"].values() if isinstance(v, str)), ""), width),
            line["run"],
            _value(line["before"], width),
            _value(line["after"], width),
            _scores(line),
        ]
        for line in found["changed"][:most]
    ]
    total, rows = len(found["changed"]), sum(count for counts in found["rows"] for count in counts.values())
    some = f", {most} of them shown" if total > most else ""
    tables = {
        "Runs": [["run", "state", "step", "note"], *(_run(run, width) for run in found["runs"])],
        "Settings that differ": [["setting", *labels], *settings],
        "Figures, with 95 % intervals over rows": [heads, *figures],
        f"Predictions that changed: {total} of {rows}{some}": [
            ["set", "row", "asked", "run", f"before ({labels[0]})", "after", "scores"],
            *changed,
        ],
    }
    return {title: table for title, table in tables.items() if len(table) > 1}


def as_lines(found: Mapping[str, Any], *, most: int) -> str:
    """Returns the tables as text."""
    parts = [f"{title}\n\n{aligned(table)}" for title, table in as_tables(found, most=most).items()]
    notes = "\n".join(found["notes"])
    return "\n\n".join([*parts, *([notes] if notes else [])])


def write_page(file: Path, found: Mapping[str, Any], *, most: int) -> Path:
    """Write the page: tables, and the curves of all runs over each other."""
    labels = [run["run"] for run in found["runs"]]
    tables = as_tables(found, most=most, width=None)
    return render(
        file,
        "mmdiff.experiments.comparison",
        "compare.html",
        title=" and ".join(labels) if len(labels) < 4 else f"{labels[0]} and {len(labels) - 1} others",
        notes=found["notes"],
        tables=tables,
        curves=curves({run["run"]: Path(run["folder"]) for run in found["runs"]}),
    )


def curves(folders: Mapping[str, Path]) -> str | None:
    """Plot loss by step, and the bound on held-out rows where there is one, a colour per run and a style per stage.

    Returns the data URI of a PNG; None where no loss was logged.
    """
    files = {label: folder / "metrics.jsonl" for label, folder in folders.items()}
    logged = {label: list(losses(file)) for label, file in files.items()}
    bounds = {label: _bounds(file) for label, file in files.items()}
    if not any(logged.values()):
        return None
    panels = 2 if any(bounds.values()) else 1
    figure = new_figure(10, 3.6)
    axes = list(figure.subplots(1, panels, squeeze=False).flat)
    for i, label in enumerate(folders):
        lines = logged[label]
        style: dict[str, Any] = {"color": f"C{i % 10}", "linewidth": 1}
        style |= {"marker": "."} if len(lines) < 9 else {}  # one point is no line
        for j, stage in enumerate(dict.fromkeys(line["stage"] for line in lines)):
            of_stage = [line for line in lines if line["stage"] == stage]
            named = {"label": label} if j == 0 else {}
            axes[0].plot([x["step"] for x in of_stage], [x["loss"] for x in of_stage], **named, **style)
        if panels == 2 and bounds[label]:
            axes[1].plot(*zip(*bounds[label], strict=True), label=label, **{**style, "marker": "o", "markersize": 3})
    axes[0].set(xlabel="step", ylabel="loss", yscale="log")
    if panels == 2:
        axes[1].set(xlabel="step", ylabel="nats per token", title="bound on held-out rows")
    for panel in axes:
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return figure_uri(figure)


def _bounds(metrics: Path) -> list[tuple[float, float]]:
    return [(x["step"], x["bound_per_token"]) for x in read_metrics(metrics) if is_number(x.get("bound_per_token"))]


def _run(run: Mapping[str, Any], width: int | None) -> list[str]:
    step = "" if run["step"] is None else f"{run['step']}/{run['total']}"
    return [run["run"], run["state"], step, _value(run["note"].partition("\n")[0], width)]


def _figure(found: Mapping[str, float] | None) -> str:
    """Returns `0.83 [0.78, 0.88]`, without an interval where none is known."""
    if found is None:
        return ""
    text = as_text(found["value"])
    return f"{text} [{as_text(float(found['low']))}, {as_text(float(found['high']))}]" if "low" in found else text


def _difference(found: Mapping[str, Any] | None) -> str:
    """Returns `+0.05 [0.01, 0.09] (12 up, 4 down of 200)`."""
    if found is None:
        return ""
    ends = f"[{as_text(found['low'])}, {as_text(found['high'])}]"
    return f"{found['mean']:+.4g} {ends} ({found['higher']} up, {found['lower']} down of {found['rows']})"


def _scores(line: Mapping[str, Any]) -> str:
    """Returns the scores that changed, `exact 1 -> 0`, or those of both where none did."""
    before, after = line["scores_before"], line["scores_after"]
    different = [name for name in before if before[name] != after.get(name)]
    return ", ".join(f"{name} {_number(before[name])} -> {_number(after.get(name))}" for name in different)


def _number(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else str(value)


def _value(value: Any, width: int | None) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if width is None else shown(text, width)
