"""The verb for files of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .arguments import AtLeast1, Output, table


def predict(
    run: str,
    rows: str,
    /,
    *words: str,
    out: Path,
    batch_size: AtLeast1 = 16,
    limit: AtLeast1 | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    ray: str | None = None,
    workers: AtLeast1 = 2,
) -> Output:
    """Predict files of rows: a line of JSON per row, in their order. An interrupted command resumes.

    Args:
        run: a run, a checkpoint in it or a saved model.
        rows: JSON lines, Parquet or tar shards: a file, a pattern in quotes, or a folder of `datasets`.
        words: settings of `sampler` and `task` as dotted.key=value.
        out: the file of predictions.
        batch_size: rows of a forward.
        limit: only the first rows.
        on_error: stop at a row that cannot be used, or skip it and say so.
        ray: address of a cluster of Ray, or "local" for workers on this machine (default: this process alone).
        workers: processes of Ray, each with the model.
    """
    from mmdiff.evaluation.predict import predict as run_all

    found = run_all(
        run,
        rows,
        out,
        overrides=words,
        batch_size=batch_size,
        limit=limit,
        on_error=on_error,
        ray=ray,
        workers=workers,
    )
    return table(found)
