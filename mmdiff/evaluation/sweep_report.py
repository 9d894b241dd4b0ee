"""The results of a sweep: table.csv, sweep.png, and sweep.html that holds both.

A cell is a mapping from axis (a dotted key) to value; a line is {"cell", "set", "figures"}:

    {"cell": {"sampler.steps": 4}, "set": "overall", "figures": {"n": 500, "exact_match": 0.83, "forwards": 4.0}}
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdiff.files import write_text

from .page import data_uri, new_figure, png, render

Axes = Mapping[str, Sequence[Any]]
Lines = Sequence[Mapping[str, Any]]
DASHES = ("-", "--", ":", "-.")
COLUMNS = 3  # panels beside each other


def names(keys: Iterable[str]) -> dict[str, str]:
    """Returns a short name per key: its last word (`sampler.draft.target`: `draft`), the key where two are alike."""
    keys = list(keys)
    last = [key.removesuffix(".target").rpartition(".")[2] for key in keys]
    return {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}


def shown(value: Any) -> str:
    """Returns a value in few letters; of a dotted path or node its last name, `Random(ratio=0.3)`."""
    if isinstance(value, Mapping) and "target" in value:
        given = ", ".join(f"{name}={shown(inner)}" for name, inner in value.items() if name != "target")
        return shown(value["target"]) + (f"({given})" if given else "")
    if isinstance(value, str):
        parts = value.split(".")
        return parts[-1] if all(part.isidentifier() for part in parts) else value
    return json.dumps(value, ensure_ascii=False)


def label(cell: Mapping[str, Any], axes: Axes) -> str:
    """Returns a label of a cell, or of some of its axes, in few letters; no two cells have the same."""
    key_names = names(axes)
    return " ".join(f"{key_names[key]}={_among(value, axes[key])}" for key, value in cell.items())


def _among(value: Any, values: Sequence[Any]) -> str:
    """Returns a value as `shown`, or whole where another of the axis would look the same."""
    text = shown(value)
    return text if sum(shown(other) == text for other in values) == 1 else json.dumps(value, ensure_ascii=False)


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
    across = next((key for key, values in axes.items() if all(map(_number, values))), next(iter(axes)))
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
    return line["set"] == name and _number(line["figures"].get(metric))


def _draw(panel: Any, lines: Lines, across: str, values: Sequence[Any], metric: str, **style: Any) -> Any:
    numeric = all(map(_number, values))
    points = [
        (line["cell"][across] if numeric else values.index(line["cell"][across]), line["figures"]) for line in lines
    ]
    points.sort(key=lambda point: point[0])
    x = [x for x, _ in points]
    (curve,) = panel.plot(x, [found[metric] for _, found in points], marker="o", markersize=4, **style)
    low, high = ([found.get(f"{metric}_{end}") for _, found in points] for end in ("low", "high"))
    if all(map(_number, [*low, *high])):
        panel.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    return curve


def _ticks(panel: Any, values: Sequence[Any]) -> None:
    """Set a tick at each value; the axis is logarithmic for values such as 1, 2, 4, 8, 16."""
    if not all(map(_number, values)):
        panel.set_xticks(range(len(values)), [_among(value, values) for value in values])
        return
    if min(values) > 0 and max(values) >= 16 * min(values):
        panel.set_xscale("log")
    panel.set_xticks(values, [_among(value, values) for value in values])
    panel.minorticks_off()


def write_page(folder: Path, axes: Axes, lines: Lines, *, title: str, overrides: Sequence[str] = ()) -> Path:
    """Write `sweep.html` with `sweep.png` of the same folder inside it; figures by kind are left to table.csv."""
    figures = [name for name in dict.fromkeys(n for line in lines for n in line["figures"]) if "." not in name]
    return render(
        folder / "sweep.html",
        "mmdiff.evaluation",
        "sweep.html",
        title=title,
        overrides=overrides,
        figure=data_uri((folder / "sweep.png").read_bytes(), "image/png"),
        header=[*names(axes).values(), "set", *figures],
        rows=[
            [
                *(_among(v, axes[k]) for k, v in line["cell"].items()),
                line["set"],
                *(_figure(line["figures"].get(name)) for name in figures),
            ]
            for line in lines
        ],
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
