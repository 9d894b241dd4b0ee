"""Predictions on Ray Data: workers that each hold the model, and rows by number.

A worker reads rows itself, so only numbers and records travel. Ray replaces a worker that dies and gives its rows
to another; a record is made of its row alone, so no row is lost, and none comes twice.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdiff.config import trusted
from mmdiff.data.formats.rows import Rows
from mmdiff.errors import ConfigError, UserError, require, shown
from mmdiff.files import without_nan
from mmdiff.model.published.described import config_file
from mmdiff.runs.records import Record
from mmdiff.session import find_model, load

from .batches import predict_batch

SECONDS = 10.0  # until an address that does not answer is given up


def on_ray(
    address: str,
    run: str | Path,
    rows: str | Path,
    overrides: Sequence[str],
    numbers: range,
    *,
    batch_size: int,
    workers: int,
) -> Iterator[list[Record]]:
    """Yields the records of rows in order, a batch at a time. Arguments are those of `mmdiff.evaluation.predict`.

    Raises MissingExtra without Ray, ConfigError for a cluster that cannot be reached.
    """
    require("ray", "ray")
    if not numbers:
        return
    trust = trusted(config_file(find_model(Path(run))))  # a worker may be another user's
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    import ray

    _connect(ray, address, workers)
    try:
        from ray.data import ActorPoolStrategy, DataContext
        from ray.data import range as by_number

        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        blocks = -(-len(numbers) // batch_size)
        accelerator: dict[str, Any] = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}
        found = by_number(len(numbers), override_num_blocks=blocks).map_batches(
            Worker,
            fn_constructor_args=(str(Path(run).absolute()), _absolute(rows), list(overrides), trust, numbers.start),
            compute=ActorPoolStrategy(size=min(workers, blocks)),
            batch_size=batch_size,
            num_cpus=1,
            **accelerator,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it sets its own level when a data set is made
        waiting: dict[int, Record] = {}
        following = numbers.start
        for batch in found.iter_batches(batch_size=None, batch_format="numpy"):
            texts = zip(batch["row"].tolist(), batch["record"].tolist(), strict=True)
            waiting |= {row: _renamed(json.loads(text), rows) for row, text in texts}
            ready = []
            while following in waiting:
                ready.append(waiting.pop(following))
                following += 1
            if ready:
                yield ready
        if following != numbers.stop:
            raise RuntimeError(f"Ray returned {following - numbers.start} of {len(numbers)} rows")
    except ray.exceptions.RayError as error:
        if (cause := _of_a_person(error)) is None:
            raise
        raise ConfigError(str(cause)) from None
    finally:
        ray.shutdown()


class Worker:
    """A process of Ray that holds a model and opens the rows."""

    def __init__(self, run: str, rows: str, overrides: list[str], trust: bool, start: int) -> None:
        self.session = load(run, *overrides, trust=trust)
        self.source = Rows(rows)
        self.start = start

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Returns the records of some rows, as JSON. batch: `id`, their numbers from the first that is asked for."""
        numbers = [self.start + int(i) for i in batch["id"]]
        records = predict_batch(self.session, self.source, numbers)
        texts = [json.dumps(without_nan(record), default=str) for record in records]
        return {"row": numbers, "record": texts}


def _of_a_person(error: BaseException | None) -> UserError | None:
    """Returns the error that a person can put right and that a worker raised; None where there is none."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _renamed(record: Record, rows: str | Path) -> Record:
    """Returns a record whose error names the file as it was given, as one process would."""
    if "error" in record:
        given = str(Path(rows).parent)
        prefix = "" if given == "." else f"{given}/"
        record["error"] = record["error"].replace(f"{os.path.dirname(_absolute(rows))}/", prefix)
    return record


def _absolute(rows: str | Path) -> str:
    return os.path.abspath(rows)


def _check_address(address: str) -> None:
    """Raise ConfigError where nothing answers at an address: Ray would look for it for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"ray: {shown(address)!r} is no address, expected local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except OSError as error:
        raise ConfigError(f"ray: {address} cannot be reached: {error.strerror or error}") from None


def _connect(ray: Any, address: str, workers: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address not in ("local", "auto"):
        _check_address(address)
    try:
        if address == "local":
            ray.init(address="local", num_cpus=workers + 1, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ConfigError(f"ray: {address} cannot be reached: {' '.join(str(error).split())[:200]}") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
