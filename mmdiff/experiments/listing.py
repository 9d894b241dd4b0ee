"""`mmdiff runs`: the runs below a folder, sorted and filtered by anything that is known of them.

A key is a column (`COLUMNS`), a figure of metrics.json (`eval.heldout.exact`) or a setting (`train.seed`); of figures
and settings the last words do, where they say which is meant.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.config import parsed
from mmdiff.config.load import RUN_FILE
from mmdiff.errors import ConfigError, nearest, shown
from mmdiff.runs.folder import RUNS
from mmdiff.runs.metrics import is_number
from mmdiff.runs.summary import Summary, summary_of

from .figures import as_text, main_figures

COLUMNS: dict[str, Callable[[Summary], Any]] = {
    "name": lambda run: run.name,
    "state": lambda run: run.state,
    "step": lambda run: run.step,
    "total": lambda run: run.total,
    "task": lambda run: run.task,
    "when": lambda run: time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(run.when)),
    "seconds": lambda run: run.seconds,
    "note": lambda run: run.note,
}
CONDITION = re.compile(r"([^<>=!~]+)(<=|>=|!=|==|=|<|>|~)(.*)", re.DOTALL)
LONGEST_NOTE = 40  # characters of a note in the table


@dataclass(frozen=True)
class Condition:
    """One `KEY<op>VALUE`. value: as YAML reads the text."""

    key: str
    operator: str
    text: str
    value: Any

    def holds(self, found: Any) -> bool:
        """Whether it holds of what a run has under the key; None is what a run lacks, and is written `null`."""
        if self.operator == "~":
            return self.text.casefold() in _text(found).casefold()
        if is_number(found) and is_number(self.value):
            a, b = found, self.value
        else:
            a, b = _text(found), self.text if isinstance(found, str) else _text(self.value)
            if self.operator not in ("=", "==", "!=") and (found is None or is_number(found) or is_number(self.value)):
                return False
        return {"=": a == b, "==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[
            self.operator
        ]


def read_condition(word: str) -> Condition:
    """Returns the condition that `KEY<op>VALUE` says; <op> is = != < <= > >= or ~ (contains). Raises ConfigError."""
    match = CONDITION.fullmatch(word)
    if match is None or not match[1].strip():
        raise ConfigError(f"--filter: {shown(word)!r} is not KEY<op>VALUE, where <op> is one of = != < <= > >= ~")
    key, operator, text = match[1].strip(), match[2], match[3].strip()
    if operator == "~":
        return Condition(key, operator, text, text)
    return Condition(key, operator, text, parsed(f"value={text}")[1])


def list_runs(
    root: str | Path = RUNS, *, sort: str | None = None, reverse: bool = False, filters: Sequence[str] = ()
) -> tuple[list[Summary], list[str]]:
    """Returns the runs in a folder, the newest first, and the whole keys that `sort` and `filters` name.

    sort: a key, by which they come in rising order, numbers before text; runs that lack it are the last. reverse: the
    other way about, those that lack it still last. filters: conditions that all hold, see `read_condition`.
    Raises ConfigError for a folder that is not there, and for a key that no run has or that may be one of several.
    """
    root = Path(root)
    conditions = [read_condition(word) for word in filters]
    if not root.is_dir():
        if root == RUNS and not root.exists():
            return [], []
        raise ConfigError(f"--root: {root} is no folder")
    found = [summary_of(folder) for folder in sorted(root.iterdir()) if _is_run(folder)]
    keys = {key for run in found for key in (*run.figures, *run.settings)}
    named = []
    for condition in conditions:
        key = resolved(condition.key, keys, "--filter") if keys else condition.key
        named.append(key)
        values = [value_of(run, key) for run in found]
        ordered = condition.operator[0] in "<>"
        if ordered and any(map(is_number, values)) and not is_number(condition.value):
            raise ConfigError(f"--filter: {condition.key}: {shown(condition.text)!r} is not a number")
        found = [run for run, value in zip(found, values, strict=True) if condition.holds(value)]
    if sort is None:
        return sorted(found, key=lambda run: (run.when, run.name), reverse=not reverse), named
    key = resolved(sort, keys, "--sort") if keys else sort
    has = [run for run in found if value_of(run, key) is not None]
    has.sort(key=lambda run: _order(value_of(run, key)), reverse=reverse)
    return has + [run for run in found if value_of(run, key) is None], [key, *named]


def resolved(key: str, keys: Iterable[str], option: str) -> str:
    """Returns the whole key that a word stands for: itself, or the only one that ends with it. Raises ConfigError."""
    known = {*keys, *COLUMNS}
    if key in known:
        return key
    ending = sorted(name for name in known if name.endswith(f".{key}"))
    if len(ending) == 1:
        return ending[0]
    if ending:
        some = ", ".join(ending[:4]) + (", ..." if len(ending) > 4 else "")
        raise ConfigError(f"{option}: {shown(key)} may be {some}: give the whole key")
    last = {name.rpartition(".")[2]: name for name in sorted(known)}
    raise ConfigError(f"{option}: no run has {shown(key)!r}{nearest(key, {*known, *last})}")


def value_of(run: Summary, key: str) -> Any:
    """Returns what a run has under a whole key, None where it has nothing."""
    if key in COLUMNS:
        return COLUMNS[key](run)
    return run.figures.get(key, run.settings.get(key))


def as_json(run: Summary) -> dict[str, Any]:
    """Returns all that is known of a run but its settings, which `mmdiff config RUN` prints."""
    found = {name: column(run) for name, column in COLUMNS.items()}
    return {**found, "folder": str(run.folder), "figures": run.figures, "problem": run.problem}


def as_table(runs: Sequence[Summary], keys: Sequence[str] = ()) -> list[list[str]]:
    """Returns the cells of a table, its head first. keys: whole ones of further columns, by which runs are sorted."""
    further = [key for key in dict.fromkeys(keys) if key not in COLUMNS]
    rows = [["run", "state", "step", *further, "task", "figures", "when", "seconds", "note"]]
    for run in runs:
        figures = " ".join(f"{key}={as_text(value)}" for key, value in main_figures(run.figures).items())
        done = "" if run.step is None else f"{run.step}/{run.total}" if run.total else str(run.step)
        rows.append(
            [
                shown(run.name),
                run.state,
                done,
                *(shown(as_text(value_of(run, key)), 40) for key in further),
                run.task or "",
                run.problem or figures,
                time.strftime("%Y-%m-%d %H:%M", time.localtime(run.when)),
                "" if run.seconds is None else f"{run.seconds:.0f}",
                shown(run.note.partition("\n")[0], LONGEST_NOTE),
            ]
        )
    return rows


def _is_run(folder: Path) -> bool:
    """Whether a folder is listed: hidden ones are not, nor the results of a sweep, which lie beside its runs."""
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    return not (folder / "cells.jsonl").is_file() or (folder / RUN_FILE).exists()


def _order(value: Any) -> tuple[int, Any]:
    return (0, value) if is_number(value) else (1, _text(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
