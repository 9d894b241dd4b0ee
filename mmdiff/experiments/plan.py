"""What a sweep would do: its runs, its cells, and what is there of both, found out before anything is done.

Torch is imported only where a model that is there has to be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.config import check_nodes, load_config, packaged, parsed
from mmdiff.config.gate import is_trusting
from mmdiff.config.settings import Config
from mmdiff.errors import ConfigError, nearest
from mmdiff.runs.folder import RUNS, run_name

from .cells import Known, read_cells
from .grid import Axes, Cell, cells_of, check_axes, folder_name, label, words_of
from .trainings import Training, dry_run_of, name_of, standing_of

if TYPE_CHECKING:
    from .scoring import Point

SCORED = ("sampler", "eval")  # settings that training does not depend on
OF_A_RUN = ("sampler", "task", "eval")  # what a sweep of a run may change: the model is loaded once
OF_A_CONFIGURATION = ("model", "task", "train", "sampler", "eval")


@dataclass(frozen=True)
class Sweep:
    """What is to be done, before anything is. trainings: none of a run. cells: each with its configuration, the
    overrides of that, and the folder of the run that is scored."""

    what: str
    axes: Axes
    overrides: Sequence[str]
    target: Path
    trainings: list[Training]
    cells: list[tuple[Cell, Config, list[str], Path]]


def plan(
    what: str | Path, axes: Axes, overrides: Sequence[str] = (), *, name: str | None = None, importing: bool = True
) -> Sweep:
    """Returns all that a sweep would do, its settings checked; nothing is written.

    importing: False leaves what only the code of the parts can tell to `sweep`. Raises ConfigError.
    """
    what = str(what)
    check_axes(axes, overrides)
    trains = what.endswith(".yaml") or what in packaged()
    if not trains and not Path(what).is_dir():
        load_config(what)  # which says what there is instead
    _check_keys(axes, overrides, trains)
    configs = [(cell, words_of(cell, overrides)) for cell in cells_of(axes)]
    loaded = [(cell, load_config(what, words), words) for cell, words in configs]
    for _, config, _ in loaded:
        check_nodes(config, importing=importing)
        if importing:
            from mmdiff.samplers.options import generation_config

            generation_config(config.sampler)
    if not trains:
        target = Path(what) / "sweeps" / folder_name(name, axes)
        if any(not _sets(config) for _, config, _ in loaded):
            raise ConfigError(f"{what}: eval.data names no set of rows")
        return Sweep(what, axes, overrides, target, [], [(*cell, Path(what)) for cell in loaded])
    base = run_name(loaded[0][1])
    target = RUNS / f"{base}-sweep-{folder_name(name, axes)}"
    own = {key: values for key, values in axes.items() if key.partition(".")[0] not in SCORED}
    if not own:
        first = next(iter(axes))
        raise ConfigError(f"{first}: no axis changes training; train {what}, and sweep its run")
    if len(own) < len(axes) and any(not _sets(config) for _, config, _ in loaded):
        raise ConfigError(f"{what}: eval.data names no set of rows")
    trainings: dict[str, Training] = {}
    cells = []
    for cell, config, words in loaded:
        mine = {key: value for key, value in cell.items() if key in own}
        run = name_of(base, label(mine, axes, "-"))
        if run not in trainings:
            plain = [word for word in overrides if parsed(word)[0] != "name"]
            training_words = words_of(mine, [f"name={run}", *plain])
            trainings[run] = Training(mine, run, training_words, load_config(what, training_words))
            if not trainings[run].config.train.stages:
                raise ConfigError("train.stages: there is no stage to train")
        cells.append((cell, config, words, RUNS / run))
    return Sweep(what, axes, overrides, target, list(trainings.values()), cells)


def dry_run(planned: Sweep, *, fresh: bool = False) -> dict[str, Any]:
    """Returns what a sweep would do: `folder`, the `runs` it would train with what is there of each and their resolved
    settings, the number of `cells`, and how many of their sets are `scored` already. Nothing is written."""
    known = {} if fresh else read_cells(planned.target / "cells.jsonl")
    points, missing = points_of_cells(planned, known, only_there=True)
    runs = [
        {
            "cell": training.cell,
            "command": ["mmdiff", *training.command(planned.what, fresh=fresh, trust=is_trusting())],
            **dry_run_of(training.config, fresh=fresh),
            "settings": asdict(training.config),
        }
        for training in planned.trainings
    ]
    sets = sum(len(_sets(config)) for _, config, _, _ in planned.cells)
    scored = 0 if fresh else len(points) - len(missing)
    return {"folder": str(planned.target), "runs": runs, "cells": len(planned.cells), "sets": sets, "scored": scored}


def _check_keys(axes: Axes, overrides: Sequence[str], trains: bool) -> None:
    """Raise ConfigError for keys that a sweep cannot change."""
    parts = OF_A_CONFIGURATION if trains else OF_A_RUN
    for key in [*axes, *(parsed(override)[0] for override in overrides)]:
        if (top := key.partition(".")[0]) in parts or (trains and key == "name" and key not in axes):
            continue
        if trains:
            raise ConfigError(f"{key}: a sweep of a configuration changes {', '.join(parts)}{nearest(top, parts)}")
        raise ConfigError(
            f"{key}: a sweep of a run loads one model and changes `sampler`, `task` and `eval`{nearest(top, parts)}; "
            "to train, sweep a configuration"
        )


def points_of_cells(
    planned: Sweep, known: Known, *, failed: Mapping[str, str] | None = None, only_there: bool = False
) -> tuple[list[tuple[Path, Point]], list[tuple[Path, Point]]]:
    """Returns (folder of the run, point) of all cells, and of those that are not known.

    failed: runs that are left out. only_there: leave out, too, runs that are not finished.
    """
    trains = bool(planned.trainings)
    skipped = {RUNS / name for name in failed or ()} if trains else set()
    if only_there:
        skipped |= {t.folder for t in planned.trainings if not standing_of(t.config).done}
    points: list[tuple[Path, Point]] = []
    for cell, config, words, folder in planned.cells:
        if folder not in skipped:
            from .scoring import points_of

            found = points_of(folder, cell, config, words, folder.name if trains else None)
            points += [(folder, point) for point in found]
    return points, [(folder, point) for folder, point in points if point.key not in known]


def _sets(config: Config) -> list[str]:
    """Returns the names of the sets that a configuration is evaluated on."""
    return [name for name, node in config.eval.data.items() if node]
