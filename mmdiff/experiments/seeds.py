"""Figures over seeds: mean and spread of the cells that differ in a seed only."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mmdiff.runs.metrics import is_number

from .figures import as_text, is_end
from .grid import Axes, is_seed

Lines = Sequence[Mapping[str, Any]]


def over_seeds(axes: Axes, lines: Lines) -> list[dict[str, Any]]:
    """Returns one line per cell without its seeds, and set; none where no axis is a seed.

    lines: {"cell", "set", "figures"}. A line that is returned has, per figure, {"mean", "std", "min", "max", "n"}: std
    is that of a sample (n - 1), None of one value.
    """
    groups: dict[str, dict[str, Any]] = {}
    if not any(map(is_seed, axes)):
        return []
    for line in lines:
        cell = {key: value for key, value in line["cell"].items() if not is_seed(key)}
        group = groups.setdefault(
            json.dumps([cell, line["set"]], sort_keys=True), {"cell": cell, "set": line["set"], "values": {}}
        )
        for name, value in line["figures"].items():
            if is_number(value):
                group["values"].setdefault(name, []).append(value)
    return [
        {
            "cell": group["cell"],
            "set": group["set"],
            "figures": {name: spread(values) for name, values in group["values"].items()},
        }
        for group in groups.values()
    ]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns mean, standard deviation of a sample (None of one value), the lowest, the highest and the number."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def as_lines(averages: Lines) -> list[dict[str, Any]]:
    """Returns averages as lines to plot: `x` is the mean, `x_low` and `x_high` are a standard deviation away."""
    out = []
    for line in averages:
        figures = {}
        for name, found in line["figures"].items():
            if not is_end(name, line["figures"]):
                figures[name] = found["mean"]
                if (std := found["std"]) is not None:
                    figures |= {f"{name}_low": found["mean"] - std, f"{name}_high": found["mean"] + std}
        out.append({"cell": line["cell"], "set": line["set"], "figures": figures})
    return out


def mean_and_spread(found: Mapping[str, Any] | None) -> str:
    """Returns `0.8312 ± 0.0104 (3)`: mean, standard deviation, and how many there are."""
    if found is None:
        return ""
    ends = f" ± {as_text(float(found['std']))}" if found["std"] is not None else ""
    return f"{as_text(float(found['mean']))}{ends} ({found['n']})"
