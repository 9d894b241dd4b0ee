"""`mmdiff compare`: runs beside each other. The first is what the others are compared with.

What is compared: settings that differ (of the resolved configurations), figures with 95 % intervals, the differences of
figures over the rows that both predicted, and predictions that changed. An interval is that of the task where it gives
one (`x_low`, `x_high`), else a bootstrap over the records of `predictions-<set>.jsonl`, where the figure is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmdiff.config import flatten, load_config, trusting
from mmdiff.errors import ConfigError, UserError, shown
from mmdiff.files import json_lines, regular
from mmdiff.runs.metrics import is_number
from mmdiff.runs.summary import Summary, summary_of

from ..figures import is_end
from .intervals import bootstrap

NAMES = ("name", "base", "demo")  # settings in which any two runs differ
OF_A_RECORD = ("row", "prediction", "forwards", "canvas", "scores")  # the rest of a record is its row
CLOCKS = ("seconds_training", "rows_per_second")  # figures of the machine

MOST = 1 << 26  # bytes of a record

Record = Mapping[str, Any]


@dataclass
class Compared:
    """One of the runs. settings: resolved, by dotted key. records: set -> row -> record. notes: what is odd of it."""

    summary: Summary
    label: str
    settings: dict[str, Any]
    records: dict[str, dict[int, Record]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare(folders: Sequence[str | Path]) -> dict[str, Any]:
    """Returns what differs between two or more runs.

    `runs`: label, folder, state, step, total, note. `settings`: key -> its value in each run. `figures`: key -> of each
    run {"value", "low", "high"}, or None; low and high only where an interval is known. `differences`: key -> of each
    run but the first {"mean", "low", "high", "rows", "higher", "lower"} over the rows that it shares with the first, or
    None. `changed`: set, row, run, `fields` of the row, predictions `before` and `after`, their scores. `rows`: of each
    run but the first, set -> how many rows are the same. `notes`: what could not be compared.

    Raises ConfigError for fewer than two runs, one given twice, and a folder without a run.
    """
    runs = [_read(Path(folder), label) for folder, label in zip(folders, _labels(folders), strict=True)]
    first, *others = runs
    notes = [f"{run.label}: {note}" for run in runs for note in run.notes]
    keys = dict.fromkeys(key for run in runs for key in run.summary.figures)
    out: dict[str, Any] = {
        "runs": [
            {
                "run": run.label,
                "folder": str(run.summary.folder),
                "state": run.summary.state,
                "step": run.summary.step,
                "total": run.summary.total,
                "note": run.summary.note,
            }
            for run in runs
        ],
        "settings": _settings(runs),
        "figures": {key: [_figure(run, key) for run in runs] for key in keys if not is_end(key, keys)},
    }
    differences: dict[str, list[Any]] = {}
    changed: list[dict[str, Any]] = []
    rows: list[dict[str, int]] = []
    for i, run in enumerate(others):
        rows.append({})
        for name in first.records.keys() & run.records.keys():
            pairs, strangers = _pairs(first.records[name], run.records[name])
            if strangers:
                notes.append(f"{run.label}: {strangers} rows of {name} are others than those of {first.label}")
            rows[-1][name] = len(pairs)
            for key, found in _differences(name, pairs, first, run):
                differences.setdefault(key, [None] * len(others))[i] = found
            changed += _changed(name, pairs, run.label)
    order = {key: i for i, key in enumerate(keys)}
    out["differences"] = dict(sorted(differences.items(), key=lambda item: order.get(item[0], len(order))))
    return {**out, "changed": changed, "rows": rows, "notes": notes}


def _labels(folders: Sequence[str | Path]) -> list[str]:
    """Returns what the runs are called: by the names of their folders, or by their paths where names are alike."""
    if len(folders) < 2:
        raise ConfigError("compare: expected two runs or more")
    real = [Path(folder).resolve() for folder in folders]
    for folder, path in zip(folders, real, strict=True):
        if real.count(path) > 1:
            raise ConfigError(f"{folder}: given twice")
    names = [path.name for path in real]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]


def _read(folder: Path, label: str) -> Compared:
    summary = summary_of(folder)
    if summary.problem is not None:
        raise ConfigError(f"{folder}: {summary.problem}" if folder.is_dir() else f"{folder}: no such folder")
    out = Compared(summary, label, {})
    try:
        with trusting():  # it is compared, and nothing of it is called
            out.settings = flatten(asdict(load_config(str(folder))))
    except UserError as error:
        out.settings = dict(summary.settings)
        out.notes.append(f"its configuration is compared as it stands, this version refuses it ({shown(error, 200)})")
    for file in sorted(folder.glob("predictions-*.jsonl")):
        found, wrong = _records(file)
        out.records[file.stem.removeprefix("predictions-")] = found
        if wrong:
            out.notes.append(f"{file.name}: {wrong} lines are no records")
    return out


def _records(file: Path) -> tuple[dict[int, Record], int]:
    """Returns the records of a file by their row, and how many lines are none. Raises ConfigError."""
    regular(file)
    found: dict[int, Record] = {}
    wrong = 0
    with open(file, "rb") as handle:
        for _, line in json_lines(handle, file, MOST):
            fields = line if isinstance(line, dict) else {}
            if isinstance(fields.get("row"), int) and isinstance(fields.get("scores"), dict) and "prediction" in fields:
                fields.pop("canvas", None)  # much of the file, and nothing is made of it
                found[fields["row"]] = fields
            else:
                wrong += 1
    return found, wrong


def _settings(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """Returns the settings that differ, in the order of the configuration."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key.partition(".")[0] not in NAMES)
    found = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _figure(run: Compared, key: str) -> dict[str, float] | None:
    figures = run.summary.figures
    if key not in figures:
        return None
    out = {"value": figures[key]}
    if f"{key}_low" in figures and f"{key}_high" in figures:
        return {**out, "low": figures[f"{key}_low"], "high": figures[f"{key}_high"]}
    scores = _scores_of(run, key)
    if scores:
        low, high = bootstrap(list(scores.values()))
        out |= {"low": low, "high": high}
    return out


def _scores_of(run: Compared, key: str) -> dict[int, float]:
    """Returns a figure's scores by row, none where it is not the mean of such scores."""
    parts = key.split(".")
    for cut in range(2, len(parts)):  # a set, and a score, may have dots in their names
        name, score = ".".join(parts[1:cut]), ".".join(parts[cut:])
        if parts[0] == "eval" and name in run.records:
            found = _scores(run.records[name], score)
            mean = math.fsum(found.values()) / max(len(found), 1)
            value = run.summary.figures.get(key)
            if found and value is not None and math.isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9):
                return found
    return {}


def _scores(records: Mapping[int, Record], score: str) -> dict[int, float]:
    found = {row: record["scores"].get(score) for row, record in records.items()}
    return {row: float(value) for row, value in found.items() if is_number(value) or isinstance(value, bool)}


def _pairs(before: Mapping[int, Record], after: Mapping[int, Record]) -> tuple[list[tuple[Record, Record]], int]:
    """Returns the records of rows that both have, and how many rows of one number are not the same row."""
    both = [(before[row], after[row]) for row in before if row in after]
    same = [(a, b) for a, b in both if _fields(a) == _fields(b)]
    return same, len(both) - len(same)


def _fields(record: Record) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in OF_A_RECORD}


def _differences(
    name: str, pairs: Sequence[tuple[Record, Record]], first: Compared, run: Compared
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, difference) of every score that is a figure of both."""
    for score in dict.fromkeys(score for before, _ in pairs for score in before["scores"]):
        key = f"eval.{name}.{score}"
        old, new = _scores_of(first, key), _scores_of(run, key)
        rows = [before["row"] for before, _ in pairs if before["row"] in old and before["row"] in new]
        gains = [new[row] - old[row] for row in rows]
        if gains:
            low, high = bootstrap(gains)
            yield (
                key,
                {
                    "mean": math.fsum(gains) / len(gains),
                    "low": low,
                    "high": high,
                    "rows": len(gains),
                    "higher": sum(gain > 0 for gain in gains),
                    "lower": sum(gain < 0 for gain in gains),
                },
            )


def _changed(name: str, pairs: Sequence[tuple[Record, Record]], label: str) -> Iterator[dict[str, Any]]:
    """Yield the rows whose prediction changed; those whose scores changed come first."""
    found = [(a, b) for a, b in pairs if a["prediction"] != b["prediction"]]
    for before, after in sorted(found, key=lambda pair: pair[0]["scores"] == pair[1]["scores"]):
        yield {
            "set": name,
            "row": before["row"],
            "run": label,
            "fields": _fields(before),
            "before": before["prediction"],
            "after": after["prediction"],
            "scores_before": before["scores"],
            "scores_after": after["scores"],
        }
