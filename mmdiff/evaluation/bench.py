"""`mmdiff bench`: the harnesses of a suite over one run, in one table with standard errors.

A suite is a file of entries, each a node of what is called with the run (`Entry`):

    language: {target: mmdiff.evals.harnesses.LmEval, tasks: [arc_easy], settings: {levels: 32}}
    own: {target: mmdiff.evaluation.bench.Own}

Packaged ones are in `configs/suites/`; a path to a .yaml file names one's own. The table is `bench/SUITE/bench.md` and
`bench.json` in the run's folder, and holds what is done after every entry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from mmdiff.config import build, flatten, load_config, parsed
from mmdiff.errors import ConfigError, MissingExtra, located, nearest
from mmdiff.evals.harnesses import Figure
from mmdiff.files import read_text, write_text, yaml_of
from mmdiff.files.plain import without_nan
from mmdiff.session import find_model, load

from .evaluate import evaluate, home_of, warned_of

SUITE_BYTES = 1 << 20


class Entry(Protocol):
    """An entry of a suite."""

    def __call__(self, run: Path, *, limit: int | None, out: Path) -> Iterable[Figure]:
        """Returns the figures of a run. limit: of rows per task; None: all. out: a folder for files of its own.

        Raises MissingExtra where something is not installed.
        """
        ...


@dataclass
class Own:
    """The sets that the run's own configuration names under `eval.data`. names: of some of them; None: all."""

    names: Sequence[str] | None = None

    def __call__(self, run: Path, *, limit: int | None, out: Path) -> list[Figure]:
        """Returns the mean of every score with its standard error, and the task's figures of whole sets without."""
        home, _ = home_of(run)
        config = load_config(str(home))
        sets = {name: node for name, node in config.eval.data.items() if node}
        for name in self.names or ():
            if name not in sets:
                raise ConfigError(f"names: {name!r}: eval.data has no such set{nearest(name, sets)}")
        if not sets:
            raise ConfigError(f"{run}: eval.data names no set of rows")
        session = load(run)
        found = []
        for name in self.names or sets:
            rows = build(sets[name], where=f"eval.data.{name}")
            size = config.eval.batch_size
            figures, records = evaluate(session, rows, name=name, batch_size=size, limit=limit or config.eval.limit)
            found += _with_errors(name, figures, records)
        return found


def _with_errors(name: str, figures: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Returns figures of a set: of a mean of scores with the error of the mean."""
    scores: dict[str, list[float]] = {}
    for record in records:
        for metric, value in record["scores"].items():
            scores.setdefault(metric, []).append(float(value))
    out = []
    left_out = ("n", "forwards", "rows_per_second", *(key for key in figures if key == "by_kind"))
    for metric, value in flatten({k: v for k, v in figures.items() if k not in left_out}).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        values = scores.get(metric, [])
        mean = sum(values) / len(values) if values else math.nan
        known = len(values) > 1 and math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12)
        variance = sum((x - mean) ** 2 for x in values) / (len(values) - 1) if known else 0.0
        error = math.sqrt(variance / len(values)) if known else None
        out.append(Figure(name, metric, float(value), error, len(values) or figures["n"]))
    return out


def suites() -> dict[str, str]:
    """Returns the packaged suites by name, with what their first line says."""
    folder = files("mmdiff.configs") / "suites"
    texts = {
        f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name[-5:] == ".yaml"
    }
    return {name: texts[name].partition("\n")[0].lstrip("# ") for name in sorted(texts)}


def read_suite(suite: str, overrides: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Returns the name of a suite, and its entries as nodes. overrides: `own.names=[test]`.

    Raises ConfigError for a suite or an entry that there is not, and for a file that is none.
    """
    if suite in suites():
        name, text = suite, (files("mmdiff.configs") / "suites" / f"{suite}.yaml").read_text(encoding="utf-8")
    elif suite.endswith((".yaml", ".yml")):
        try:
            name, text = Path(suite).stem, read_text(Path(suite), SUITE_BYTES)
        except FileNotFoundError:
            raise ConfigError(f"suite: {suite}: no such file") from None
    else:
        raise ConfigError(f"suite: {suite!r}: no suite of that name{nearest(suite, suites())}")
    entries = yaml_of(text, f"suite {suite}")
    if not isinstance(entries, dict) or not all(
        isinstance(node, dict) and "target" in node for node in entries.values()
    ):
        raise ConfigError(f"suite {suite}: expected entries {{name: {{target: dotted.path, ...}}}}")
    for key, value in map(parsed, overrides):
        entry, _, rest = key.partition(".")
        if entry not in entries or not rest:
            raise ConfigError(f"{key}: the suite {name} has no such entry{nearest(entry, entries)}")
        node = entries[entry]
        *above, last = rest.split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return name, entries


def bench(run: str | Path, suite: str, *, limit: int | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Call every entry of a suite with a run, and write the table. Returns it: `figures` and `skipped` by entry.

    Raises ConfigError and DataError of an entry, by its name; the table then holds those before it.
    """
    folder = Path(run)
    find_model(folder)
    name, nodes = read_suite(suite, overrides)
    entries = {key: build(node, where=f"{name}.{key}") for key, node in nodes.items()}
    home, out = home_of(folder)
    note = warned_of(home, find_model(folder)) if home == out.folder else None
    target = out.folder / "bench" / name
    target.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"run": str(run), "suite": name, "limit": limit, "figures": [], "skipped": {}}
    found |= {"unfinished": note} if note else {}
    for key, entry in entries.items():
        try:
            with located(f"{name}.{key}", ConfigError):
                figures = entry(folder, limit=limit, out=target)
                found["figures"] += [{"entry": key, **figure._asdict()} for figure in figures]
        except MissingExtra as error:
            found["skipped"][key] = str(error)
        write_text(target / "bench.json", json.dumps(without_nan(found), indent=2) + "\n")
        write_text(target / "bench.md", f"# {folder.name}: {name}\n\n{table_of(found)}\n")
    return {**found, "table": str(target / "bench.md")}


def table_of(found: Mapping[str, Any]) -> str:
    """Returns the figures as a table in Markdown, and what was skipped."""
    rows = [("entry", "task", "metric", "value", "standard error", "n")]
    for line in found["figures"]:
        error = "" if line["error"] is None else f"{line['error']:.4f}"
        count = "" if line["n"] is None else f"{line['n']:,}"
        rows.append((line["entry"], line["task"], line["metric"], f"{line['value']:.4f}", error, count))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = [
        "| " + " | ".join(c.replace("|", "/").ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    left = [f"* {key} was skipped: {reason}" for key, reason in found["skipped"].items()]
    if found.get("limit"):
        left.append(f"* at most {found['limit']} rows per task: no figure to publish")
    if found.get("unfinished"):
        left.append(f"* {found['unfinished']}")
    return "\n".join([*lines, *([""] if left else []), *left])
