"""A grid of settings: every combination of the values of some keys, trained where training depends on it, and scored.

A sweep of a run scores its model with other settings of the sampler, the task and the rows. A sweep of a configuration
first trains one run per combination of the values that training depends on, `runs/<name>-<values>`; all cells with the
same ones are scored on the same run. What stands in `runs/<run>/sweeps/<sweep>/`, or in `runs/<name>-sweep-<sweep>/`:

cells.jsonl   what was evaluated, one line per cell and set, with all the settings that its figures depend on
table.csv     the grid of the last call: one line per cell and set, one column per axis and figure
seeds.csv     where an axis is a seed: mean and standard deviation over the seeds
sweep.png     one figure over the grid
sweep.html    tables and plot in one file
logs/         what the processes that trained have printed
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdiff.config import flatten
from mmdiff.config.gate import is_trusting
from mmdiff.errors import ConfigError, UserError, nearest
from mmdiff.evaluation.evaluate import alone, warned_of
from mmdiff.files import write_text
from mmdiff.runs.folder import RUNS, Run
from mmdiff.runs.metrics import is_number
from mmdiff.session import find_model

from .cells import read_cells
from .figures import first_score
from .grid import Axes, is_seed
from .plan import Sweep, plan, points_of_cells
from .scoring import score
from .seeds import as_lines, over_seeds
from .sweep_report import write_page, write_plot, write_seeds, write_table
from .trainings import standing_of, train_all

TRAINED = "(training)"  # the set under which figures of training stand


class NoSuchFigure(ConfigError):
    """No set has the figure that is to be plotted."""


def sweep(
    what: str | Path,
    axes: Axes,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    metric: str | None = None,
    fresh: bool = False,
    jobs: int = 1,
) -> dict[str, Any]:
    """Train and evaluate a configuration, or evaluate a run, at every combination of the axes' values.

    Runs that are finished are not trained again, those that were stopped are resumed, and what was evaluated before is
    taken from `cells.jsonl`. A run that fails or diverges does not stop the others.

    what: the folder of a run, or the name or file of a configuration.
    axes: key -> its values, `{"sampler.steps": [1, 2, 4], "train.seed": [0, 1]}`.
    overrides: `key=value`, the same for all cells.
    name: of the sweep; default: the axes' keys, shortened.
    metric: the figure that is plotted; default: the first score, or else the first figure of the task's `score_all`.
    fresh: what was trained or evaluated before is moved aside, or evaluated again.
    jobs: runs that are trained at the same time, each in a process of its own.

    Returns `folder`, `report`, `metric`, `evaluated` (how many lines are new), `cells`: `cell`, `set`, `figures` (under
    the names that table.csv has) of each, `seeds` where an axis is one (`mmdiff.experiments.seeds.over_seeds`), and of
    a configuration `runs` and `failed`: name of a run -> why. Raises ConfigError for keys and values that cannot be,
    before anything is trained or evaluated, for an unknown `metric` after the first cell, and where no run could be
    trained.
    """
    planned = plan(what, axes, overrides, name=name)
    if planned.trainings and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep of a configuration starts processes of its own: call it without torchrun")
    if not fresh:
        for training in planned.trainings:
            if (line := standing_of(training.config).conflict) is not None:
                raise ConfigError(line)
    with alone(planned.target):
        if planned.trainings and not (planned.target / "cells.jsonl").is_file():
            write_text(planned.target / "cells.jsonl", "")  # by which `mmdiff runs` knows that this is no run
        failed = _train(planned, jobs=jobs, fresh=fresh)
        return _fill(planned, metric, fresh, failed)


def _train(planned: Sweep, *, jobs: int, fresh: bool) -> dict[str, str]:
    """Train what is not finished. Returns why runs failed, by name."""
    left = [t for t in planned.trainings if fresh or not standing_of(t.config).done]
    if not left:
        return {}
    logs = planned.target / "logs"
    return train_all(planned.what, left, logs, jobs=jobs, fresh=fresh, trust=is_trusting(), log=_log)


def _fill(planned: Sweep, metric: str | None, fresh: bool, failed: dict[str, str]) -> dict[str, Any]:
    """Evaluate the points that are not there, and write the files of a sweep."""
    target, axes, trains = planned.target, planned.axes, bool(planned.trainings)
    note = None if trains else warned_of(Path(planned.what), find_model(Path(planned.what)))
    known = {} if fresh else read_cells(target / "cells.jsonl")
    whole = [cell for cell in planned.cells if cell[3].name not in failed or not trains]
    if not whole:
        first = next(iter(failed))
        raise ConfigError(f"no run could be trained; {RUNS / first}: {failed[first]}")
    points, missing = points_of_cells(planned, known, failed=failed)
    trained = _of_trainings(planned, failed)
    with tqdm(total=len(missing), desc="sweep", file=sys.stderr, leave=False, disable=not missing) as bar:
        for folder in dict.fromkeys(folder for folder, _ in missing):
            mine = [point for where, point in missing if where == folder]
            try:
                for _ in score(
                    folder, mine, known, target / "cells.jsonl", overrides=planned.overrides, done=lambda: bar.update()
                ):
                    _metric(metric, [*known.values(), *trained])
            except UserError as error:
                if not trains or isinstance(error, NoSuchFigure):
                    raise
                failed[folder.name] = str(error)
                _log(f"{folder}: failed: {error}")
    cells = [point.line(known) for _, point in points if point.key in known] + trained
    metric = _metric(metric, cells)
    averages = over_seeds(axes, cells)
    plotted = {key: values for key, values in axes.items() if not is_seed(key)}
    write_table(target / "table.csv", axes, cells)
    if averages:
        write_seeds(target / "seeds.csv", plotted, averages)
    if averages and plotted:
        write_plot(target / "sweep.png", plotted, as_lines(averages), metric)
    else:
        write_plot(target / "sweep.png", axes, cells, metric)
    title = f"{planned.what}: {target.name}"
    write_page(target, axes, cells, title=title, overrides=planned.overrides, averages=averages, failed=failed)
    out: dict[str, Any] = {"folder": str(target), "report": str(target / "sweep.html"), "metric": metric}
    out |= {"unfinished": note} if note else {}
    out |= {"evaluated": len(missing), "cells": cells}
    out |= {"seeds": averages} if averages else {}
    if trains:
        out |= {"runs": [str(training.folder) for training in planned.trainings], "failed": failed}
    return out


def _of_trainings(planned: Sweep, failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns a line per cell of the figures of its training: the loss of the last stage, and what else metrics.json
    has of it. None where several cells have one run, and of a run that was given."""
    if len(planned.trainings) < len(planned.cells):
        return []
    lines = []
    for training in planned.trainings:
        if training.name not in failed:
            result = Run(training.folder).result or {}
            losses = [value for value in (result.get("loss") or {}).values() if is_number(value)]
            figures = {"loss": losses[-1]} if losses else {}
            kept = {key: value for key, value in result.items() if key not in ("eval", "run")}
            figures |= {key: value for key, value in flatten(kept).items() if is_number(value)}
            lines.append({"cell": training.cell, "set": TRAINED, "figures": figures})
    return lines


def _metric(metric: str | None, lines: Iterable[Mapping[str, Any]]) -> str:
    """Returns the name of the figure that is plotted. Raises ConfigError where no line has it."""
    known = dict.fromkeys(k for line in lines for k, v in line["figures"].items() if isinstance(v, int | float))
    if metric is None:
        return str(first_score(known))
    if metric not in known:
        raise NoSuchFigure(f"--metric: no set has a figure {metric!r}{nearest(metric, known)}")
    return metric


def _log(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
