"""The rows of a stage: its sources as one stream, and batches of it in the order of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from mmdiff.canvas.batch import Batch
from mmdiff.config import as_node, build
from mmdiff.config.ranges import Positive
from mmdiff.config.schema import as_annotated
from mmdiff.config.settings import StageConfig
from mmdiff.data.stream import Batches, Component, Stream, check_source, samples_of
from mmdiff.errors import ConfigError, DataError, UserError, nearest
from mmdiff.model import MMDiff
from mmdiff.protocols import Task


def make_stream(stage: StageConfig, task: Task | None, where: str, *, seed: int, cache_bytes: int, toy: bool) -> Stream:
    """Returns the stream of a stage's data: one node of rows, or a mixture {name: {rows, task, weight}}.

    Raises ConfigError that names the key below `where`.
    """
    if not isinstance(stage.data, dict):
        raise ConfigError(f"{where}.data: {stage.data!r} is not a node of rows nor a mixture")
    mixture: dict[str, Any] = {"": {"rows": stage.data}} if "target" in stage.data else stage.data
    components = []
    for name, entry in mixture.items():
        at = f"{where}.data.{name}".rstrip(".")
        if entry is None:
            continue
        for key in entry if isinstance(entry, dict) else ():
            if key not in ("rows", "task", "weight"):
                raise ConfigError(f"{at}.{key}: no such field{nearest(key, ('rows', 'task', 'weight'))}")
        if not (isinstance(entry, dict) and "rows" in entry):
            raise ConfigError(f"{at}: expected {{rows: node, task: node, weight: number}}")
        rows = build(as_node(entry["rows"]), where=f"{at}.rows", toy=toy)
        check_source(rows, f"{at}.rows")
        own = build(as_node(entry["task"]), where=f"{at}.task", toy=toy) if entry.get("task") else task
        if own is None:
            raise ConfigError(f"{at}: no task, neither here nor at the top of the configuration")
        weight = as_annotated(Positive, entry.get("weight", 1.0), f"{at}.weight")
        components.append(Component(name, rows, own, weight))
    return Stream(components, seed=seed, cache_bytes=cache_bytes, batch=stage.batch_size, bucket=stage.bucket)


def batches_of(
    stage: StageConfig, stream: Stream, model: MMDiff, *, first: int, rank: int, world: int, workers: int
) -> Iterator[Batch]:
    """Yields a process's batches, from the stage's step `first` on. workers: data processes."""
    dataset = Batches(stream, model.vocab, model.readers, stage.padding)
    shape = {"batch": stage.batch_size, "accumulate": stage.accumulate, "world": world}
    positions = (
        samples_of(step, micro, rank, **shape)
        for step in range(first, stage.steps)
        for micro in range(stage.accumulate)
    )
    loader: Any = DataLoader(dataset, sampler=positions, batch_size=None, num_workers=workers)  # type: ignore[arg-type]
    return one_line_errors(loader)


def one_line_errors(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Yields the batches. A UserError of a data process is raised without the traceback that it carries as text."""
    try:
        yield from loader
    except UserError as error:
        kind = f"{type(error).__module__}.{type(error).__qualname__}: "
        raise type(error)(str(error).strip().rpartition(kind)[2]) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        cause = " ".join(str(error).split())[:200]
        raise DataError(f"a data process ended ({cause}); memory may be short, fewer train.workers take less") from None
