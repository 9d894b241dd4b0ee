"""Evaluation of a run: predictions, their scores as one JSON object, and a page.

A record of a row, one line of `predictions-<set>.jsonl`:

    {"question": "what colour?", "answer": "red", "row": 0, "prediction": "red", "forwards": 2,
     "canvas": [["red", 1, 0.98]], "scores": {"exact_match": 1.0}}
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdiff.config import build, load_config
from mmdiff.config.load import RUN_FILE
from mmdiff.config.typed import typed
from mmdiff.data.stream import check_source, row_name
from mmdiff.errors import ConfigError, located
from mmdiff.files import clear, lock, unlock, without_nan, write_text
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Row, Source
from mmdiff.runs.folder import Run, standing
from mmdiff.session import Session, load

from .page import evenly
from .report import write_report


@typed
def evaluate(
    session: Session | str | Path,
    rows: Source,
    *,
    name: str = "",
    batch_size: AtLeast1 = 64,
    limit: AtLeast1 | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Predict and score every row. Returns (figures, one record per row).

    session: or the folder of a run.
    figures: `n`, the mean of each score over the rows that have it, `by_kind` where rows have a `kind`, the mean of
    `forwards`, the task's `score_all` of the whole set (in place of a mean of the same name), and `rows_per_second`.
    name: of the set, in errors and noise. Raises ConfigError where there are no rows, DataError that names a row.
    """
    session = session if isinstance(session, Session) else load(session)
    count = min(len(rows), limit) if limit else len(rows)
    score_all = getattr(session.task, "score_all", None)
    if score_all is None and callable(getattr(session.task, "summary", None)):
        raise ConfigError(f"task: {type(session.task).__qualname__} has `summary`, which is `score_all` since 0.2")
    if not count:
        raise ConfigError(f"eval.data.{name}: no rows")
    records: list[dict[str, Any]] = []
    start = time.perf_counter()
    for first, group in batched(rows, count, batch_size, name):
        for row, out in zip(group, session.predict_many(group, first=first, name=name), strict=True):
            with located(row_name(name, len(records))):
                scores = session.task.score(out["prediction"], row)
            records.append({**_text(row), "row": len(records), **out, "scores": scores})
    seconds = time.perf_counter() - start
    whole = score_all(records) if score_all is not None else {}
    return {**mean_scores(records), **whole, "rows_per_second": count / seconds}, records


def batched(rows: Source, count: int, size: int, name: str) -> Iterator[tuple[int, list[Row]]]:
    """Yield (index of the first, rows) of each batch, with a progress bar on stderr."""
    with tqdm(total=count, desc=f"eval {name}".rstrip(), file=sys.stderr, leave=False) as bar:
        for first in range(0, count, size):
            group = [rows[i] for i in range(first, min(first + size, count))]
            yield first, group
            bar.update(len(group))


def mean_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns `n`, the mean of each score, these by kind of row, and the mean of `forwards`."""
    out: dict[str, Any] = {"n": len(records), **_mean(records)}
    kinds: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record.get("kind"):
            kinds[str(record["kind"])].append(record)
    if kinds:
        out["by_kind"] = {kind: {"n": len(group), **_mean(group)} for kind, group in sorted(kinds.items())}
    out["forwards"] = sum(r["forwards"] for r in records) / len(records)
    return out


def _mean(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    sums: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for name, value in record["scores"].items():
            sums[name].append(float(value))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def _text(row: Row) -> dict[str, Any]:
    """Returns the fields of a row that can stand in a line of JSON."""
    return {key: value for key, value in row.items() if _plain(value)}


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, list) and all(map(_plain, value)))


def evaluate_run(folder: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Score a run on the sets its configuration names under `eval.data`; writes metrics.json, predictions, report.html.

    folder: of a run, or of a checkpoint in one, whose files go to `evals/<checkpoint>` in the run. Where the run is not
    finished, a line on stderr, the report and the result (`unfinished`) say so.
    overrides: as on the command line; `sampler.` and `task.` ones also change the predictions.
    """
    home, run = home_of(Path(folder))
    config = load_config(str(home), overrides)
    sets = {name: node for name, node in config.eval.data.items() if node}
    if not sets:
        raise ConfigError(f"{folder}: eval.data names no set of rows")
    sources = {name: build(node, where=f"eval.data.{name}") for name, node in sets.items()}
    for name, rows in sources.items():
        check_source(rows, f"eval.data.{name}")
    session = load(folder, *session_overrides(overrides))
    with alone(run.folder):
        note = warned_of(home, session.folder) if home == run.folder else None
        results, shown = {}, {}
        for name, rows in sources.items():
            size, limit = config.eval.batch_size, config.eval.limit
            results[name], records = evaluate(session, rows, name=name, batch_size=size, limit=limit)
            write_predictions(run.folder / f"predictions-{name}.jsonl", records)
            shown[name] = [(rows[r["row"]], r) for r in evenly(records, config.eval.examples)]
        found = {"eval": results, **({"unfinished": note} if note else {})}
        run.finish(found)
        title = str(config.name) if home == run.folder else f"{config.name}, {run.folder.name}"
        write_report(run, title=title, results=results, examples=shown, notes=[note] if note else [])
    return {**found, "report": str(run.folder / "report.html")}


def home_of(folder: Path) -> tuple[Path, Run]:
    """Returns the folder of the run that a run or a checkpoint belongs to, and where its evaluation is written."""
    home = folder.parent.parent
    if folder.parent.name == "checkpoints" and (folder / "trainer.json").is_file() and (home / RUN_FILE).is_file():
        return home, Run(home / "evals" / folder.name)
    return folder, Run(folder)


def warned_of(folder: Path, model: Path) -> str | None:
    """Print in one line where a run is not finished; returns the line."""
    note = standing(folder, model)
    if note:
        print(f"warning: {note}", file=sys.stderr, flush=True)
    return note


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it, no other process writes an evaluation to a folder. Raises ConfigError where one does."""
    real = folder.resolve()  # `.` has no name that the lock's could be made of
    real.parent.mkdir(parents=True, exist_ok=True)
    held = lock(real.with_name(f".{real.name}.eval.lock"), f"{folder}: another process is writing its evaluation")
    try:
        real.mkdir(exist_ok=True)
        clear(real)
        yield
    finally:
        unlock(held)
        for empty in (real, real.parent):  # nothing was written
            with suppress(OSError):
                empty.rmdir()


def session_overrides(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that change predictions: those of `sampler` and `task`."""
    return [word for word in overrides if word.partition("=")[0].partition(".")[0] in ("sampler", "task")]


def write_predictions(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSON lines, whole or not at all; numbers that are not finite are null."""
    write_text(file, "".join(json.dumps(without_nan(record), ensure_ascii=False) + "\n" for record in records))
