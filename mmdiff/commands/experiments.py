"""The verbs about many runs: list, note, compare and sweep them (`mmdiff.experiments`)."""

from __future__ import annotations

from pathlib import Path

from .arguments import Output, Verb


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


VERBS: dict[str, Verb] = {"runs": runs, "note": note}
