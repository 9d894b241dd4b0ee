"""Plots of a protein page, each a PNG data URI. They take plain numbers: any figures of the kind can be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdiff.evaluation.page import COLOURS, figure_uri, new_figure
from mmdiff.tasks.protein.residues import CANONICAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = "os^Dvx"  # so that lines differ by more than their colour

Series = Mapping[str, Mapping[str, float]]
"""Name of a line -> {"0.15": value, ...}: a mask rate, or another number as text, and what stands there."""


def lines(panels: Mapping[str, Series], *, x: str, log: bool = False) -> str:
    """One panel per figure, side by side. panels: label of the y axis -> lines. log: of the x axis."""
    figure, axes = _figure(len(panels))
    for (label, series), axis in zip(panels.items(), axes, strict=True):
        for i, (name, values) in enumerate(series.items()):
            points = sorted((float(at), value) for at, value in values.items())
            (line,) = axis.plot([at for at, _ in points], [value for _, value in points], markersize=4, linewidth=1.2)
            line.set(color=COLOURS[i % len(COLOURS)], marker=MARKS[i % len(MARKS)], label=name)
        axis.set(xlabel=x, ylabel=label, **({"xscale": "log"} if log else {}))
        _finish(axis)
    return figure_uri(figure)


def mask_filling_plot(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Accuracy and cross-entropy by mask rate. figures: who guesses (the model, a baseline, Bayes) -> rate -> figures
    with `accuracy` and, where it has probabilities, `nll`."""
    panels = {"accuracy": "accuracy of hidden residues", "nll": "nats per hidden residue"}
    found: dict[str, Series] = {}
    for key, label in panels.items():
        picked = {
            name: {rate: of[key] for rate, of in by_rate.items() if key in of} for name, by_rate in figures.items()
        }
        if any(picked.values()):
            found[label] = {name: values for name, values in picked.items() if values}
    return lines(found, x="share of residues hidden")


def composition_plot(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Bars by residue, the most frequent of the first set first. shares: name of a set -> residue -> share."""
    first = next(iter(shares.values()))
    order = sorted(CANONICAL, key=lambda letter: -first.get(letter, 0.0))
    values = {name: [of.get(letter, 0.0) for letter in order] for name, of in shares.items()}
    return _bars(order, values, "share of residues")


def kmer_plot(report: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> str:
    """Jensen-Shannon divergences by k of `composition_report`, on a logarithmic axis, for floors grow with k.

    names: key of the report -> label, in the order of the bars; keys that it lacks are left out.
    """
    shown = {key: label for key, label in names.items() if all(key in of for of in report.values())}
    values = {label: [of[key] for of in report.values()] for key, label in shown.items()}
    return _bars([f"{k}-mers" for k in report], values, "Jensen-Shannon divergence, bits", log=True)


def length_plot(lengths: Mapping[str, Sequence[int]]) -> str:
    """Histograms over the same bins, as shares of their set."""
    every = [n for of in lengths.values() for n in of]
    low, high = min(every), max(every)
    bins = np.linspace(low - 0.5, high + 0.5, min(40, high - low + 1) + 1)
    return _histograms(lengths, bins.tolist(), xlabel="residues")


def conserved_plot(found: Mapping[str, Any]) -> str:
    """Share of sequences with the consensus residue, by conserved column; of `metrics.conserved`."""
    labels = [f"{letter}\n{column}" for letter, column in zip(found["consensus"], found["columns"], strict=True)]
    values = {"natural": list(found["natural"]), "generated": list(found["samples"])}
    return _bars(labels, values, "share with the consensus")


def identity_plot(identities: Mapping[str, Sequence[float]]) -> str:
    """How near each sequence is to the training sequence that is nearest: shares of each set."""
    label = "identity to the nearest training sequence"
    return _histograms(identities, np.linspace(0, 1, 41).tolist(), xlabel=label, xlim=(0, 1.02))


def _histograms(sets: Mapping[str, Sequence[float]], bins: list[float], **axes: Any) -> str:
    figure, (axis,) = _figure(1)
    for i, (name, of) in enumerate(sets.items()):
        share = np.full(len(of), 1 / max(1, len(of)))
        axis.hist(of, bins=bins, weights=share, histtype="step", linewidth=1.5, color=COLOURS[i], label=name)
    axis.set(ylabel="share of sequences", **axes)
    _finish(axis)
    return figure_uri(figure)


def _bars(labels: Sequence[str], values: Mapping[str, Sequence[float]], label: str, *, log: bool = False) -> str:
    figure, (axis,) = _figure(1, wide=True)
    at = np.arange(len(labels))
    width = 0.8 / max(1, len(values))
    for i, (name, heights) in enumerate(values.items()):
        where = at + (i - (len(values) - 1) / 2) * width
        axis.bar(where, heights, width, label=name, color=COLOURS[i % len(COLOURS)], edgecolor="white", linewidth=0.4)
    axis.set_xticks(at.tolist(), list(labels))
    axis.set(ylabel=label, **({"yscale": "log"} if log else {}))
    _finish(axis, legend=False)
    figure.legend(loc="outside upper right", ncols=len(values), fontsize=8, frameon=False)  # bars fill the axes
    return figure_uri(figure)


def _figure(panels: int, *, wide: bool = False) -> tuple[Figure, list[Axes]]:
    figure = new_figure(8.5 if wide else 5.2 * panels, 3.3)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _finish(axis: Axes, *, legend: bool = True) -> None:
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    if legend and axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
