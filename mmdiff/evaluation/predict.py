"""`mmdiff predict`: predictions of files of rows, a line of JSON per row in their order.

    {"row": 3, "settings": "c01dc0ffee00", "id": "a-17", "prediction": "red", "forwards": 2}
    {"row": 4, "settings": "c01dc0ffee00", "id": "a-18", "error": "image: no such file cat.png"}

The noise of a row is drawn under its number in the files, so a prediction does not depend on batches, on workers
(`mmdiff.evaluation.on_ray`), or on where a command was interrupted.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmdiff.config import task_and_sampler
from mmdiff.config.typed import typed
from mmdiff.data.formats.rows import Rows
from mmdiff.errors import ConfigError, DataError, nearest, shown
from mmdiff.files import SUMS, digest
from mmdiff.model.published.described import read_config
from mmdiff.parts.ranges import AtLeast1
from mmdiff.protocols import Source
from mmdiff.runs.records import JsonlStore, Record
from mmdiff.session import find_model, load

from .batches import predict_batch
from .on_ray import on_ray

ON_ERROR = ("stop", "skip")


@typed
def predict(
    run: str | Path,
    rows: str | Path,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    batch_size: AtLeast1 = 16,
    limit: AtLeast1 | None = None,
    on_error: str = "stop",
    ray: str | None = None,
    workers: AtLeast1 = 2,
) -> dict[str, Any]:
    """Predict rows of files, and write a record per row to `out`, in order; an interrupted call resumes there.

    rows: a path or pattern of `mmdiff.data.formats.rows.Rows`. overrides: of `sampler` and `task`.
    on_error: "stop" ends at a row that cannot be used, by name, when all before it are written; "skip" names it on
        stderr, and its record has `error` in place of `prediction`.
    ray: None: this process predicts. "local": `workers` processes of Ray on this machine; else the address of a
        cluster, whose machines have mmdiff, and see run and rows under the same paths.
    Returns how many rows, which of them were skipped, and the mean of forwards. Raises ConfigError, and DataError that
    names a row.
    """
    if on_error not in ON_ERROR:
        raise ConfigError(f"on_error: {shown(on_error)!r}{nearest(on_error, ON_ERROR)}")
    source = Rows(str(rows), limit=limit)
    lines = JsonlStore(out, _depends(run, rows, source, overrides), ordered=True)
    begun, count = lines.count, len(source)
    if begun > count:
        raise ConfigError(f"{out} holds {begun} records, but there are {count} rows; choose another file")
    with tqdm(total=count, initial=begun, desc="predict", file=sys.stderr, leave=False) as bar:
        if ray is None:
            found = _here(run, overrides, source, begun, batch_size)
        else:
            numbers = range(begun, count)
            found = on_ray(ray, run, rows, overrides, numbers, batch_size=batch_size, workers=workers)
        for records in found:
            _keep(lines, records, on_error)
            bar.update(len(records))
    return {"rows": count, "resumed": begun, **_figures(lines.read()), "out": str(out)}


def _here(
    run: str | Path, overrides: Sequence[str], source: Source, begun: int, batch_size: int
) -> Iterator[list[Record]]:
    if begun < len(source):
        session = load(run, *overrides)
        numbers = iter(range(begun, len(source)))
        while batch := list(islice(numbers, batch_size)):
            yield predict_batch(session, source, batch)


def _keep(lines: JsonlStore, records: Sequence[Record], on_error: str) -> None:
    """Write records, up to the first one that is none if that ends the call."""
    wrong = [i for i, record in enumerate(records) if "error" in record]
    if wrong and on_error == "stop":
        lines.add(records[: wrong[0]])
        raise DataError(records[wrong[0]]["error"])
    for i in wrong:
        tqdm.write(f"skipped: {records[i]['error']}", file=sys.stderr)  # a line of its own, above the bar
    lines.add(records)


def _figures(records: Iterable[Record]) -> dict[str, Any]:
    total, predicted, skipped = 0, 0, 0
    for record in records:
        skipped += "error" in record
        predicted += "prediction" in record
        total += record.get("forwards", 0)
    return {"predicted": predicted, "skipped": skipped, "forwards": total / predicted if predicted else None}


def _depends(run: str | Path, rows: str | Path, source: Rows, overrides: Sequence[str]) -> dict[str, Any]:
    """Returns what the records depend on, as `JsonlStore` compares it."""
    model = find_model(Path(run))
    saved = read_config(model)
    task, sampler = task_and_sampler(saved.get("task"), saved.get("sampler") or {}, overrides)
    sums = model / SUMS
    files = [{"file": file.name, "bytes": file.stat().st_size, "sha256": _ends(file)} for file in source.files]
    name = {"sha256": digest(sums)} if sums.is_file() else {"model": str(model.resolve())}
    return {**name, "task": task, "sampler": asdict(sampler), "rows": files, "limit": source.limit}


def _ends(file: Path, most: int = 1 << 20) -> str:
    """Returns a checksum of the first and last MiB of a file, for all of it would be read twice; of a folder, of the
    names and sizes in it."""
    if file.is_dir():
        names = sorted((p.name, p.stat().st_size) for p in file.rglob("*") if p.is_file())
        return hashlib.sha256(repr(names).encode()).hexdigest()[:16]
    with open(file, "rb") as handle:
        head = handle.read(most)
        handle.seek(max(0, file.stat().st_size - most))
        return hashlib.sha256(head + handle.read(most)).hexdigest()[:16]
