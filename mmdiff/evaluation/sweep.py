"""A run over a grid of settings: every combination of the values of some keys, scored on the run's evaluation sets.

The model is loaded once; the task, the sampler and the rows of a cell are built from its settings. What stands in
`runs/<name>/sweeps/<sweep>/`:

cells.jsonl   what was evaluated, one line per cell and set, with all the settings that its figures depend on
table.csv     the grid of the last call: one line per cell and set, one column per axis and figure
sweep.png     one figure over the grid
sweep.html    table and plot in one file
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdiff.config import build, check_nodes, flatten, load_config, parsed, task_and_sampler
from mmdiff.config.settings import GenerationConfig
from mmdiff.errors import ConfigError, nearest
from mmdiff.files import SUMS, digest, without_nan, write_text
from mmdiff.model.saving import read_config
from mmdiff.protocols import Source
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.rules import build_rule, rules_of
from mmdiff.session import Session, find_model, load

from .evaluate import alone, evaluate, session_overrides, warned_of
from .sweep_report import names, write_page, write_plot, write_table

PARTS = ("sampler", "task", "eval")  # what cells may differ in: the model is loaded once
NO_SCORES = ("n", "forwards", "rows_per_second")  # figures of every set; `by_kind.` ones are no choice either

Axes = Mapping[str, Sequence[Any]]
Cell = dict[str, Any]
"""The value of each axis, as it was given."""


@dataclass(frozen=True)
class Point:
    """One cell on one set.

    settings: all that its figures depend on, as JSON has it: model, set, rows, limit, batch_size, task, sampler.
    """

    cell: Cell
    settings: dict[str, Any]


def sweep(
    folder: str | Path,
    axes: Axes,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    metric: str | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Evaluate a run at every combination of the axes' values; what was evaluated before is taken from `cells.jsonl`.

    axes: key -> its values, `{"sampler.steps": [1, 2, 4], "sampler.remasking": ["low_confidence", "random"]}`.
    overrides: `key=value`, the same for all cells.
    name: of the sweep; default: the axes' keys, shortened.
    metric: the figure that is plotted; default: the first score, or else the first figure of the task's `score_all`.
    fresh: what was evaluated before is evaluated again.

    Returns `folder`, `report`, `metric`, `evaluated` (how many lines are new), and `cells`: `cell`, `set`, `figures`
    (under the names that table.csv has) of each. Raises ConfigError for keys and values that cannot be, before anything
    is evaluated, and for an unknown `metric` after the first cell.
    """
    _check(axes, overrides)
    target = Path(folder) / "sweeps" / _name(name, axes)
    points = [point for cell in _grid(axes) for point in _points(Path(folder), cell, overrides)]
    with alone(target):
        return _fill(folder, target, points, axes, overrides, metric, fresh)


def _fill(
    folder: str | Path,
    target: Path,
    points: Sequence[Point],
    axes: Axes,
    overrides: Sequence[str],
    metric: str | None,
    fresh: bool,
) -> dict[str, Any]:
    """Evaluate the points that are not there, and write the files of a sweep."""
    note = warned_of(Path(folder), find_model(Path(folder)))
    file = target / "cells.jsonl"
    known = {} if fresh else read_cells(file)
    missing = [point for point in points if _key(point.settings) not in known]
    if missing:
        jobs = _prepare(load(folder, *session_overrides(overrides)), missing)
        with tqdm(total=len(jobs), desc="sweep", file=sys.stderr, leave=False) as bar:
            for _, cell in itertools.groupby(jobs, key=lambda job: job[0].cell):
                for point, session, rows in cell:
                    size, limit = point.settings["batch_size"], point.settings["limit"]
                    found, _ = evaluate(session, rows, name=point.settings["set"], batch_size=size, limit=limit)
                    line = {"cell": point.cell, "settings": point.settings, "figures": flatten(found)}
                    known[_key(point.settings)] = line
                    write_text(file, "".join(json.dumps(without_nan(line)) + "\n" for line in known.values()))
                    bar.update()
                _metric(metric, known.values())
    cells = [{"cell": p.cell, "set": p.settings["set"], "figures": known[_key(p.settings)]["figures"]} for p in points]
    metric = _metric(metric, cells)
    write_table(target / "table.csv", axes, cells)
    write_plot(target / "sweep.png", axes, cells, metric)
    write_page(target, axes, cells, title=f"{folder}: {target.name}", overrides=overrides)
    out: dict[str, Any] = {"folder": str(target), "report": str(target / "sweep.html"), "metric": metric}
    out |= {"unfinished": note} if note else {}
    return {**out, "evaluated": len(missing), "cells": cells}


def read_axes(words: Sequence[str]) -> dict[str, list[Any]]:
    """Read the axes of the command line, `key=[a,b]` in YAML. Raises ConfigError."""
    axes: dict[str, list[Any]] = {}
    for word in words:
        key, values = parsed(word)
        if not isinstance(values, list):
            raise ConfigError(f"{key}: {values!r} is not a list of values, expected --axis {key}=[a,b]")
        if key in axes:
            raise ConfigError(f"{key}: two axes of one key")
        axes[key] = values
    return axes


def read_cells(file: Path) -> dict[str, dict[str, Any]]:
    """Returns the lines of cells.jsonl by their settings. A line that is not whole is left out, and run again."""
    known = {}
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
            known[_key(line["settings"])] = {key: line[key] for key in ("cell", "settings", "figures")}
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return known


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _check(axes: Axes, overrides: Sequence[str]) -> None:
    if not axes:
        raise ConfigError("a sweep needs an axis")
    given = [parsed(override)[0] for override in overrides]
    for key in [*axes, *given]:
        if key.partition(".")[0] not in PARTS:
            near = nearest(key.partition(".")[0], PARTS)
            raise ConfigError(f"{key}: a sweep loads one model and changes `sampler`, `task` and `eval`{near}")
    for key, values in axes.items():
        if key in given:
            raise ConfigError(f"{key}: an axis, and a setting of all cells")
        if not values:
            raise ConfigError(f"{key}: an axis without values")
        if len({json.dumps(value) for value in values}) < len(values):
            raise ConfigError(f"{key}: a value stands twice in {list(values)}")


def _name(name: str | None, axes: Axes) -> str:
    name = "-".join(names(axes).values()) if name is None else name
    if name in ("", ".", "..") or Path(name).name != name:
        raise ConfigError(f"{name!r} is not a name of a folder")
    return name


def _grid(axes: Axes) -> Iterator[Cell]:
    """Yield every cell; the last axis changes fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _points(folder: Path, cell: Cell, overrides: Sequence[str]) -> list[Point]:
    """Returns the points of a cell, one per set, settings checked. Only `load` may build what a saved model names."""
    values = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in cell.items()]
    # `sampler.draft=...` before `sampler.draft.ratio=...`, which changes a field of it
    words = sorted([*overrides, *values], key=lambda word: word.partition("=")[0].count("."))
    config = load_config(str(folder), words)
    check_nodes(config)
    model = find_model(folder)
    saved = read_config(model)
    task, sampler = task_and_sampler(saved.get("task"), saved.get("sampler") or {}, session_overrides(words))
    generation_config(sampler)
    sets = {name: node for name, node in config.eval.data.items() if node}
    if not sets:
        raise ConfigError(f"{folder}: eval.data names no set of rows")
    common = {"model": str(model.relative_to(folder)), "task": task, "sampler": asdict(sampler)}
    if (sums := model / SUMS).is_file():  # another model may come under the name: a longer training of the run
        common["sha256"] = digest(sums)
    common |= {"limit": config.eval.limit, "batch_size": config.eval.batch_size}
    return [Point(cell, {"set": name, "rows": node, **common}) for name, node in sets.items()]


def _prepare(session: Session, points: Sequence[Point]) -> list[tuple[Point, Session, Source]]:
    """Build all that the points need before the first is evaluated; what several share is built once."""
    made: dict[str, Any] = {}

    def once(node: Any, where: str) -> Any:
        key = json.dumps([where, node], sort_keys=True)
        if key not in made:
            made[key] = build(node, where=where)
        return made[key]

    jobs = []
    for point in points:
        sampler = GenerationConfig(**point.settings["sampler"])
        rules_of(sampler)
        if sampler.draft is not None:
            build_rule(sampler.draft, "sampler.draft")
        task = once(point.settings["task"], "task")
        rows = once(point.settings["rows"], f"eval.data.{point.settings['set']}")
        jobs.append((point, replace(session, task=task, sampler=sampler), rows))
    return jobs


def _metric(metric: str | None, lines: Iterable[Mapping[str, Any]]) -> str:
    """Returns the name of the figure that is plotted. Raises ConfigError where no line has it."""
    known = dict.fromkeys(k for line in lines for k, v in line["figures"].items() if isinstance(v, int | float))
    if metric is None:
        scores = [name for name in known if name not in NO_SCORES and not name.startswith("by_kind.")]
        return (scores or list(known))[0]
    if metric not in known:
        raise ConfigError(f"--metric: no set has a figure {metric!r}{nearest(metric, known)}")
    return metric
