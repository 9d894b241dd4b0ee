"""Cells of one run, scored: the model is loaded once; task, sampler and rows are built from a cell's settings.

What is evaluated stands in `cells.jsonl`, one line per cell and set, with all the settings that its figures depend on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmdiff.config import build, flatten, task_and_sampler
from mmdiff.config.settings import Config, GenerationConfig
from mmdiff.evaluation.evaluate import evaluate, session_overrides
from mmdiff.files import SUMS, digest, without_nan, write_text
from mmdiff.model.published.described import read_config
from mmdiff.protocols import Source
from mmdiff.samplers.options import generation_config
from mmdiff.samplers.rules.rules import build_rule, rules_of
from mmdiff.session import Session, find_model, load

from .cells import Known, key_of
from .grid import Cell


@dataclass(frozen=True)
class Point:
    """One cell on one set.

    settings: all that its figures depend on, as JSON has it: model, set, rows, limit, batch_size, task, sampler.
    """

    cell: Cell
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """Under which `Known` has its line."""
        return key_of(self.settings)

    def line(self, known: Known) -> dict[str, Any]:
        """Returns its line of the results: cell, set and figures."""
        return {"cell": self.cell, "set": self.settings["set"], "figures": known[self.key]["figures"]}


def points_of(folder: Path, cell: Cell, config: Config, words: Sequence[str], run: str | None = None) -> list[Point]:
    """Returns the points of a cell, one per set, settings checked. Only `load` may build what a saved model names.

    folder: of the run. config: of the cell, resolved. words: the overrides that it was resolved with. run: the name of
    the run, where the sweep has several. Raises ConfigError.
    """
    model = find_model(folder)
    saved = read_config(model)
    task, sampler = task_and_sampler(saved.get("task"), saved.get("sampler") or {}, session_overrides(words))
    generation_config(sampler)
    common = {"model": str(model.relative_to(folder)), "task": task, "sampler": asdict(sampler)}
    common |= {} if run is None else {"run": run}
    if (sums := model / SUMS).is_file():  # another model may come under the name: a longer training of the run
        common["sha256"] = digest(sums)
    common |= {"limit": config.eval.limit, "batch_size": config.eval.batch_size}
    return [Point(cell, {"set": name, "rows": node, **common}) for name, node in config.eval.data.items() if node]


def score(
    folder: Path,
    points: Sequence[Point],
    known: Known,
    file: Path,
    *,
    overrides: Sequence[str],
    done: Callable[[], None],
) -> Iterator[None]:
    """Evaluate points of one run, add their lines to `known` and to cells.jsonl, and yield after each cell.

    overrides: of all cells, with which the model is loaded. done: is called after each point.
    """
    jobs = _prepare(load(folder, *session_overrides(overrides)), points)
    for _, cell in itertools.groupby(jobs, key=lambda job: job[0].cell):
        for point, session, rows in cell:
            size, limit = point.settings["batch_size"], point.settings["limit"]
            found, _ = evaluate(session, rows, name=point.settings["set"], batch_size=size, limit=limit)
            known[point.key] = {"cell": point.cell, "settings": point.settings, "figures": flatten(found)}
            write_text(file, "".join(json.dumps(without_nan(line)) + "\n" for line in known.values()))
            done()
        yield


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
