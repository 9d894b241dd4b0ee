"""The verbs about many runs: list, note, compare and sweep them (`mmdiff.experiments`)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mmdiff.parts import ranges

from .arguments import FAILED, AtLeast0, Output, Verb, table, within

if TYPE_CHECKING:
    from mmdiff.experiments.grid import Axes

Jobs = Annotated[int, within(ranges.Threads)]


def runs(
    *, sort: str | None = None, reverse: bool = False, filter: list[str] | None = None, root: Path | None = None
) -> Output:
    """List the runs, the newest first, with state, steps, figures and notes.

    Args:
        sort: a column, figure or setting to sort by, such as exact_match or train.seed.
        reverse: the other way about.
        filter: a condition, KEY<op>VALUE with = != < <= > >= or ~ (contains); may be given again.
        root: the folder that they lie in (default: runs).
    """
    from mmdiff.experiments.figures import aligned
    from mmdiff.experiments.listing import as_json, as_table, list_runs
    from mmdiff.runs.folder import RUNS

    found, keys = list_runs(root or RUNS, sort=sort, reverse=reverse, filters=filter or [])
    text = aligned(as_table(found, keys)) if found else f"no runs in {root or RUNS}"
    return {"runs": [as_json(run) for run in found]}, text


def note(run: Path, text: str | None = None, /, *, add: bool = False) -> Output:
    """Note a line about a run, or print what is noted.

    Args:
        run: a run folder.
        text: the note, in place of the one that is there ("" takes it away); left out, the note is printed.
        add: put it below the note that is there.
    """
    from mmdiff.runs.notes import write_note

    found = write_note(run, text or "", add=add or text is None)
    return {"run": str(run), "note": found}, found


def train(name: str, /, *words: str, fresh: bool = False, note: str | None = None, dry_run: bool = False) -> Output:
    """Train a configuration, or resume its run.

    Args:
        name: a packaged name, a .yaml file or a run folder.
        words: settings as dotted.key=value, the value in YAML.
        fresh: start again instead of resuming; the run that is there is moved aside.
        note: a line about the run, which `mmdiff runs` shows.
        dry_run: say what would be done, with the resolved settings, and do nothing.
    """
    from mmdiff.config import check_nodes, load_config, to_yaml

    resolved = load_config(name, words)
    if dry_run:
        from dataclasses import asdict

        from mmdiff.experiments.trainings import dry_run_of

        check_nodes(resolved, importing=False)
        found = dry_run_of(resolved, fresh=fresh)
        text = f"{table(found)[1]}\n\n{to_yaml(resolved).rstrip()}"
        return {**found, "settings": asdict(resolved)}, text
    from mmdiff.training.train import train as run

    from .own_files.missing import naming_settings

    with naming_settings(name):
        return table(run(resolved, fresh=fresh, note=note))


def sweep(
    what: str,
    /,
    *words: str,
    axis: list[str],
    metric: str | None = None,
    name: str | None = None,
    fresh: bool = False,
    jobs: Jobs = 1,
    dry_run: bool = False,
) -> Output:
    """Train and score a configuration, or score a run, for every combination of some settings.

    Args:
        what: a packaged name or a .yaml file, which is trained, or a run folder.
        words: settings of all combinations, as dotted.key=value.
        axis: a key and its values, key=[a,b]; may be given again.
        metric: the figure that is plotted (default: the first).
        name: the results are RUN/sweeps/NAME, or runs/CONFIGURATION-sweep-NAME (default: from the keys).
        fresh: start again instead of resuming.
        jobs: runs that are trained at the same time, each in a process of its own.
        dry_run: say what would be done, and do nothing.
    """
    from mmdiff.experiments.grid import read_axes

    axes = read_axes(axis)
    if dry_run:
        from mmdiff.config import to_yaml
        from mmdiff.experiments.plan import dry_run as look
        from mmdiff.experiments.plan import plan

        planned = plan(what, axes, words, name=name, importing=False)
        found = look(planned, fresh=fresh)
        return found, _planned(found) + "".join(
            f"\n\nsettings of {training.folder}:\n\n{to_yaml(training.config).rstrip()}"
            for training in planned.trainings[:1]
        )
    from mmdiff.experiments.sweep import sweep as run

    result = run(what, axes, words, name=name, metric=metric, fresh=fresh, jobs=jobs)
    return result, _swept(result, axes)


def compare(*runs: Path, html: Path | None = None, rows: AtLeast0 = 20) -> Output:
    """Compare runs with the first: settings that differ, figures with intervals, predictions that changed.

    Args:
        runs: two run folders or more.
        html: also write a page in one file, with the curves of all runs.
        rows: changed predictions that the table, and the page, show at most (--json has all).
    """
    from mmdiff.experiments.comparison.compare import compare as look
    from mmdiff.experiments.comparison.report import as_lines, write_page
    from mmdiff.files import make_folder, output_file

    output_file("--html", html)
    found = look(runs)
    if html is not None:
        make_folder("--html", html)
        found["html"] = str(write_page(html, found, most=rows))
    return found, as_lines(found, most=rows)


def _planned(found: Mapping[str, Any]) -> str:
    """Returns what a sweep would do, for people."""
    from mmdiff.experiments.figures import aligned

    head = f"{found['folder']}: {found['cells']} cells, {found['scored']} of {found['sets']} sets are scored already"
    lines = [[run["run"], run["would"], shlex.join(run["command"])] for run in found["runs"]]
    return head + (f"\n\n{aligned([['run', 'what is there', 'command'], *lines])}" if lines else "")


def _swept(result: Mapping[str, Any], axes: Axes) -> str:
    """Returns the results of a sweep, for people: the plotted figure, over seeds where an axis is one."""
    from mmdiff.experiments.grid import label
    from mmdiff.experiments.seeds import mean_and_spread

    metric = result["metric"]
    shown: dict[str, Any] = {"metric": metric}
    for line in result.get("seeds", ()):
        if metric in line["figures"]:
            shown[f"{label(line['cell'], axes)} {line['set']}".strip()] = mean_and_spread(line["figures"][metric])
    for line in () if result.get("seeds") else result["cells"]:
        if metric in line["figures"] or not result.get("runs"):
            shown[f"{label(line['cell'], axes)} {line['set']}"] = line["figures"].get(metric)
    shown |= {f"failed.{name}": why for name, why in (result.get(FAILED) or {}).items()}
    return table({**shown, "report": result["report"]})[1]


def new(kind: str, name: str, /, *, out: Path = Path()) -> Output:
    """Write a package with a task or an encoder of one's own: code, configuration, test, README.

    Args:
        kind: task or encoder.
        name: of the package, such as bird_songs; the folder NAME is made.
        out: where (default: here).
    """
    from .start.new import new as write

    folder = write(kind, name, out)
    following = f"cd {shlex.quote(str(folder))} && pytest && mmdiff check {name}.yaml && mmdiff train {name}.yaml"
    return {"folder": str(folder), "configuration": str(folder / f"{name}.yaml")}, f"{folder}\n{following}"


VERBS: dict[str, Verb] = {"train": train, "sweep": sweep, "runs": runs, "compare": compare, "note": note, "new": new}
