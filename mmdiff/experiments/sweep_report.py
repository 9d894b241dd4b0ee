"""The results of a sweep: table.csv, seeds.csv, sweep.png, and sweep.html that holds all of them.

A cell is a mapping from axis (a dotted key) to value; a line is {"cell", "set", "figures"}:

    {"cell": {"sampler.steps": 4}, "set": "overall", "figures": {"n": 500, "exact_match": 0.83, "forwards": 4.0}}
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.evaluation.page import data_uri, new_figure, png, render
from mmdiff.files import write_text
from mmdiff.runs.metrics import is_number

from .figures import as_text
from .grid import Axes, is_seed, label, names, shown_among
from .seeds import mean_and_spread

Lines = Sequence[Mapping[str, Any]]
DASHES = ("-", "--", ":", "-.")
COLUMNS = 3  # panels beside each other


def write_table(file: Path, axes: Axes, lines: Lines) -> None:
    """Write one line per cell and set. Values of axes that are not text stand as JSON; a missing figure is empty."""
    figures = list(dict.fromkeys(name for line in lines for name in line["figures"]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*axes, "set", *figures])
    for line in lines:
        values = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in line["cell"].values()]
        table.writerow([*values, line["set"], *(line["figures"].get(name, "") for name in figures)])
    write_text(file, text.getvalue())


def write_plot(file: Path, axes: Axes, lines: Lines, metric: str) -> None:
    """Plot `metric` over the first axis whose values are numbers (or the first), one panel per set and one curve per
    combination of the other axes' values. Where there are both, `<metric>_low` and `<metric>_high` are an interval.
    """
    across = next((key for key, values in axes.items() if all(map(is_number, values))), next(iter(axes)))
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        others = {key: value for key, value in line["cell"].items() if key != across}
        curves.setdefault(label(others, axes), []).append(line)
    sets = list(dict.fromkeys(line["set"] for line in lines))
    sets = [name for name in sets if any(_has(line, name, metric) for line in lines)]
    columns = min(len(sets), COLUMNS)
    rows = -(-len(sets) // columns)
    figure = new_figure(1 + 4 * columns, 0.8 + 3.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    handles: dict[str, Any] = {}
    for name, panel in zip(sets, panels, strict=False):
        for i, (curve, found) in enumerate(curves.items()):
            if points := [line for line in found if _has(line, name, metric)]:
                look = {"color": f"C{i % 10}", "linestyle": DASHES[i // 10 % len(DASHES)]}
                handles[curve] = _draw(panel, points, across, axes[across], metric, **look)
        _ticks(panel, axes[across])
        panel.set(title=name, xlabel=across, ylabel=metric)
        panel.grid(alpha=0.3)
    for panel in panels[len(sets) :]:
        panel.remove()
    if len(axes) > 1:
        drawn = [curve for curve in curves if curve in handles]
        style = {"ncols": min(len(drawn), 1 + columns), "fontsize": "small"}
        figure.legend([handles[curve] for curve in drawn], drawn, loc="outside lower center", **style)
    file.write_bytes(png(figure))


def _has(line: Mapping[str, Any], name: str, metric: str) -> bool:
    return line["set"] == name and is_number(line["figures"].get(metric))


def _draw(panel: Any, lines: Lines, across: str, values: Sequence[Any], metric: str, **style: Any) -> Any:
    numeric = all(map(is_number, values))
    points = [
        (line["cell"][across] if numeric else values.index(line["cell"][across]), line["figures"]) for line in lines
    ]
    points.sort(key=lambda point: point[0])
    x = [x for x, _ in points]
    (curve,) = panel.plot(x, [found[metric] for _, found in points], marker="o", markersize=4, **style)
    low, high = ([found.get(f"{metric}_{end}") for _, found in points] for end in ("low", "high"))
    if all(map(is_number, [*low, *high])):
        panel.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    return curve


def _ticks(panel: Any, values: Sequence[Any]) -> None:
    """Set a tick at each value; the axis is logarithmic for values such as 1, 2, 4, 8, 16."""
    if not all(map(is_number, values)):
        panel.set_xticks(range(len(values)), [shown_among(value, values) for value in values])
        return
    if min(values) > 0 and max(values) >= 16 * min(values):
        panel.set_xscale("log")
    panel.set_xticks(values, [shown_among(value, values) for value in values])
    panel.minorticks_off()


def write_seeds(file: Path, axes: Axes, averages: Lines) -> None:
    """Write one line per cell without its seeds, and set: of each figure the mean, then the standard deviation.

    axes: those that are no seeds. averages: of `mmdiff.experiments.seeds.over_seeds`.
    """
    lines = []
    for line in averages:
        figures = {"seeds": max((found["n"] for found in line["figures"].values()), default=0)}
        for name, found in line["figures"].items():
            figures |= {name: found["mean"], f"{name}_std": "" if found["std"] is None else found["std"]}
        lines.append({**line, "figures": figures})
    write_table(file, axes, lines)


def write_page(
    folder: Path,
    axes: Axes,
    lines: Lines,
    *,
    title: str,
    overrides: Sequence[str] = (),
    averages: Lines = (),
    failed: Mapping[str, str] | None = None,
) -> Path:
    """Write `sweep.html` with `sweep.png` of the same folder inside it; figures by kind are left to table.csv.

    averages: over seeds. failed: name of a run -> why.
    """
    figures = [name for name in dict.fromkeys(n for line in lines for n in line["figures"]) if "." not in name]
    others = {key: values for key, values in axes.items() if not is_seed(key)}
    tables = [_table("All cells", axes, lines, figures, as_text)]
    if averages:
        title_of_seeds = "Over seeds: mean ± standard deviation (number)"
        tables.insert(0, _table(title_of_seeds, others, averages, figures, mean_and_spread))
    return render(
        folder / "sweep.html",
        "mmdiff.experiments",
        "sweep.html",
        title=title,
        overrides=overrides,
        failed=failed or {},
        figure=data_uri((folder / "sweep.png").read_bytes(), "image/png"),
        tables=tables,
    )


def _table(title: str, axes: Axes, lines: Lines, figures: Sequence[str], show: Any) -> dict[str, Any]:
    """Returns a table of the page. show: what writes a figure, or None where there is none."""
    rows = []
    for line in lines:
        values = [shown_among(line["cell"][key], values) if key in line["cell"] else "" for key, values in axes.items()]
        rows.append([*values, line["set"], *(show(line["figures"].get(name)) for name in figures)])
    return {"title": title, "header": [*names(axes).values(), "set", *figures], "rows": rows}
