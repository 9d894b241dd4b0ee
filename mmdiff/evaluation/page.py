"""The kit of the reports: pages in one file that needs nothing else, tables, and what is shown inside as data URIs.

A page is a template that extends `page.html`, which has the head, the style that pages share, and macros for tables
and plots.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape

from mmdiff.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

Number = float | int | str
"""A figure of a table; text stands there as it is."""
Table = Mapping[str, Mapping[str, Number]]
"""Row -> column -> figure."""

COLOURS = ("#2f6db3", "#c8553d", "#7a8b3c", "#8a5fa3", "#777777", "#2a9d8f", "#d9a441", "#444444")
NONE = "–"  # stands where a table has no figure


def render(file: Path, package: str, template: str, **values: Any) -> Path:
    """Write the page of a template that lies in `package`; every value is escaped. Returns `file`."""
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("mmdiff.evaluation", ".")])
    write_text(file, Environment(loader=loader, autoescape=select_autoescape()).get_template(template).render(values))
    return file


def columns_of(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the columns of all rows, in the order in which they come first."""
    return list(dict.fromkeys(name for row in table.values() for name in row))


def cells(table: Table, show: Callable[[Number], str]) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the columns, and the text of each row's cells: a figure by `show`, a dash where there is none."""
    columns = columns_of(table)
    return columns, {label: [show(row.get(name, NONE)) for name in columns] for label, row in table.items()}


def marked(table: Table, show: Callable[[Number], str]) -> tuple[list[str], dict[str, list[tuple[str, bool]]]]:
    """Returns what `cells` does, each text with whether it is (one of) the lowest of its column."""
    columns, shown = cells(table, show)
    lowest = []
    for name in columns:
        figures = [row[name] for row in table.values() if not isinstance(row.get(name, NONE), str)]
        lowest.append(show(min(figures)) if figures else None)
    return columns, {
        label: [(text, text == low) for text, low in zip(row, lowest, strict=True)] for label, row in shown.items()
    }


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as text, the first column aligned to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        right = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join(lines)


def evenly(items: Sequence[T], n: int) -> list[T]:
    """Returns at most n items, spread evenly over all."""
    step = max(len(items) / n, 1) if n else 1
    return [items[int(i * step)] for i in range(min(n, len(items)))]


def data_uri(data: bytes, kind: str) -> str:
    """Returns bytes as a data URI. kind: their media type, such as `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_uri(image: Any) -> str:
    """Returns a PIL image as the data URI of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return data_uri(buffer.getvalue(), "image/png")


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, in inches, that no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG of 110 pixels per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def figure_uri(figure: Figure) -> str:
    """Returns a figure as the data URI of a PNG."""
    return data_uri(png(figure), "image/png")
