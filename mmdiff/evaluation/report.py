"""`report.html` of a run: figures, loss curves, and examples with the step at which each token was committed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdiff.config import flatten
from mmdiff.runs.folder import Run
from mmdiff.runs.metrics import is_number, read_metrics

from .page import figure_uri, image_uri, new_figure, render


def write_report(
    run: Run,
    *,
    title: str,
    results: Mapping[str, Any],
    examples: Mapping[str, Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]],
    notes: Sequence[str] = (),
) -> Path:
    """Write the page of a run to its `report.html`.

    results: set -> means (see `mmdiff.evaluation.evaluate`), or name -> number. examples: set -> (row, record) pairs.
    """
    figures = {k: v for k, v in flatten(results).items() if isinstance(v, (int, float))}
    return render(
        run.folder / "report.html",
        "mmdiff.evaluation",
        "report.html",
        title=title,
        notes=notes,
        figures={k: (f"{v:.3f}" if isinstance(v, float) else f"{v:,}") for k, v in figures.items()},
        curves=curves(run.metrics),
        examples={name: [example(row, record) for row, record in pairs] for name, pairs in examples.items()},
    )


def example(row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the page shows of a row and its record."""
    canvas = record["canvas"]
    return {
        "picture": picture(row.get("image")),
        "question": row.get("question", ""),
        "answer": row.get("answer", row.get("text", "")),
        "prediction": record["prediction"],
        "right": is_right(record["scores"]),
        "canvas": canvas,
        "steps": max((step for _, step, _ in canvas), default=0),
    }


def is_right(scores: Mapping[str, float]) -> bool:
    """Returns whether `exact_match` is 1 or, in a task without it, every score is at least 1."""
    return all(value >= 1 for name, value in scores.items() if name == "exact_match" or "exact_match" not in scores)


def picture(image: Any, *, side: int = 96) -> str | None:
    """Returns the picture of a row as a data URI; None where it is no path, PIL image or (H, W, 3) uint8 array.

    side: the longer side in pixels. Of several pictures the first is taken.
    """
    if image is None:
        return None
    from PIL import Image

    if isinstance(image, (list, tuple)):
        image = image[0]
    if isinstance(image, (str, Path)):
        image = Image.open(image)
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = Image.fromarray(image)
    elif not isinstance(image, Image.Image):
        return None
    image = image.convert("RGB")
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
    return image_uri(image)


def losses(metrics: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a metrics.jsonl with a loss."""
    for line in read_metrics(metrics):
        rates = line.get("nll_by_rate") or []
        whole = isinstance(rates, list) and all(value is None or is_number(value) for value in rates)
        if is_number(line.get("loss")) and "stage" in line and whole:
            yield {**line, "stage": str(line["stage"]), "nll_by_rate": rates}


def curves(metrics: Path) -> str | None:
    """Plot the loss by step, and cross-entropy by mask rate at the end of each stage, one colour per stage.

    metrics: the metrics.jsonl of a run. Returns the data URI of a PNG; None where no loss was logged.
    """
    lines = list(losses(metrics))
    if not lines:
        return None
    figure = new_figure(10, 3.2)
    left, right = figure.subplots(1, 2)
    for i, stage in enumerate(dict.fromkeys(line["stage"] for line in lines)):
        style: dict[str, Any] = {"label": stage, "color": f"C{i}"}  # one colour per stage on both sides
        of_stage = [line for line in lines if line["stage"] == stage]
        left.plot([line["step"] for line in of_stage], [line["loss"] for line in of_stage], linewidth=1, **style)
        by_rate = of_stage[-1].get("nll_by_rate")
        if by_rate:
            bins = [(b + 0.5) / len(by_rate) for b, value in enumerate(by_rate) if value is not None]
            right.plot(bins, [value for value in by_rate if value is not None], "o-", markersize=3, **style)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.set(xlabel="mask rate", ylabel="nats per masked token", title="last logged steps of a stage")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend() if axes.get_legend_handles_labels()[0] else None
    return figure_uri(figure)
