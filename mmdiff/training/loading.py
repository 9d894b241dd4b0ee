"""The rows of a stage: its sources as one stream, batches of it in the order of its steps, and what is made of prompts.

An objective that trains on generations has them made before a step is planned. The rows of `inner` steps in a row are
the same then, and so are the generations. No checkpoint stands between two of these steps, so a run that resumes makes
them with the weights that made them before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from mmdiff.canvas.batch import Batch
from mmdiff.config import as_node, build, locate
from mmdiff.config.schema import as_annotated
from mmdiff.config.settings import GenerationConfig, StageConfig, TrainConfig
from mmdiff.data.collate import collate
from mmdiff.data.processes import begin_loading
from mmdiff.data.stream import Batches, Component, Stream, check_source, samples_of
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError, UserError, line_of, located, nearest
from mmdiff.model import MMDiff
from mmdiff.model.model import BEYOND
from mmdiff.parts.ranges import Positive
from mmdiff.protocols import Task

from .parallel import divides, together


def mixture_of(stage: StageConfig, where: str, *, task: bool) -> dict[str, Any]:
    """Returns {name: {rows, task, weight}} of a stage's data; one node of rows is a mixture of one, without a name.

    where: of the stage. task: whether the configuration has one for all. Raises ConfigError; nothing is built.
    """
    if not isinstance(stage.data, dict):
        raise ConfigError(f"{where}.data: {stage.data!r} is not a node of rows nor a mixture")
    mixture: dict[str, Any] = {"": {"rows": stage.data}} if "target" in stage.data else stage.data
    found = {name: entry for name, entry in mixture.items() if entry is not None}
    for name, entry in found.items():
        at = f"{where}.data.{name}".rstrip(".")
        for key in entry if isinstance(entry, dict) else ():
            if key not in ("rows", "task", "weight"):
                raise ConfigError(f"{at}.{key}: no such field{nearest(key, ('rows', 'task', 'weight'))}")
        if not (isinstance(entry, dict) and "rows" in entry):
            raise ConfigError(f"{at}: expected {{rows: node, task: node, weight: number}}")
        if not (task or entry.get("task")):
            raise ConfigError(f"{at}: no task, neither here nor at the top of the configuration")
        as_annotated(Positive, entry.get("weight", 1.0), f"{at}.weight")
    return found


def streams_of(
    stages: Mapping[str, StageConfig], settings: TrainConfig, model: MMDiff, task: Task | None, *, toy: bool
) -> dict[str, Stream]:
    """Returns the streams of the stages that are left, by name. Of each source one row has been laid out.

    Raises ConfigError that names the key, and what sources and tasks raise: at the beginning of a run, not hours later,
    behind the last step of the stage before.
    """
    found: dict[str, Stream] = {}
    longest = BEYOND * model.backbone.facts.max_length
    for name, stage in stages.items():
        where = f"train.stages.{name}"
        cached = settings.sample_cache_mb << 20
        named = where if found else None  # a row of the stage that begins now is named as its first step would
        found[name] = make_stream(stage, task, where, seed=settings.seed, cache_bytes=cached, toy=toy, longest=longest)
        if isinstance(stage.objective, Mapping) and getattr(locate(stage.objective["target"]), "generates", False):
            continue  # its rows are prompts
        for component in found[name].components:
            if getattr(component.rows, "on_error", "stop") == "stop":
                with located(named):
                    one = Stream([replace(component, weight=1.0)], seed=settings.seed, longest=longest)
                    collate([one.sample(0, model.vocab, model.readers)], model.vocab, model.readers)
    return found


def make_stream(
    stage: StageConfig,
    task: Task | None,
    where: str,
    *,
    seed: int,
    cache_bytes: int,
    toy: bool,
    longest: int | None = None,
) -> Stream:
    """Returns the stream of a stage's data: one node of rows, or a mixture {name: {rows, task, weight}}.

    longest: positions that a document may have. Raises ConfigError that names the key below `where`.
    """
    components = []
    for name, entry in mixture_of(stage, where, task=task is not None).items():
        at = f"{where}.data.{name}".rstrip(".")
        rows = build(as_node(entry["rows"]), where=f"{at}.rows", toy=toy)
        check_source(rows, f"{at}.rows")
        own: Any = build(as_node(entry["task"]), where=f"{at}.task", toy=toy) if entry.get("task") else task
        components.append(Component(name, rows, own, entry.get("weight", 1.0)))
    return Stream(
        components, seed=seed, cache_bytes=cache_bytes, longest=longest, batch=stage.batch_size, bucket=stage.bucket
    )


def batches_of(
    stage: StageConfig,
    stream: Stream,
    model: MMDiff,
    *,
    first: int,
    rank: int,
    world: int,
    workers: int,
    inner: int = 1,
) -> Iterator[Batch]:
    """Yields a process's batches, from the stage's step `first` on. workers: data processes.

    inner: so many steps in a row have the same batches.
    """
    dataset = Batches(stream, model.vocab, model.readers, stage.padding)
    shape = {"batch": stage.batch_size, "accumulate": stage.accumulate, "world": world}
    positions = (
        samples_of(step // inner, micro, rank, **shape)
        for step in range(first, stage.steps)
        for micro in range(stage.accumulate)
    )
    if not workers:  # a loader without processes does nothing else, and takes a quarter of a millisecond per batch
        return (dataset[at] for at in positions)
    more: Any = {"sampler": positions, "batch_size": None, "num_workers": workers, "worker_init_fn": begin_loading}
    loader: Any = DataLoader(dataset, **more)  # type: ignore[arg-type]
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
        cause = line_of(error)
        raise DataError(f"a data process ended ({cause}); memory may be short, fewer train.workers take less") from None


@dataclass
class Collecting:
    """What is collected for the steps of a stage. inner: steps that share it. window: of one step, its forwards.

    divided: whether the model lies in shards; they are put together while it generates. again: see `together`.
    """

    objective: Any
    sampler: GenerationConfig
    inner: int
    accelerator: Accelerator
    divided: bool = False
    again: bool = True
    made: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, objective: Any, stage: Any, where: str) -> Collecting | None:
        """Returns what collects for a `mmdiff.training.stage.Stage`; None for an objective that trains on rows.

        Raises ConfigError for DeepSpeed, for annealing, and for checkpoints between steps of one collection.
        """
        if not getattr(objective, "generates", False):
            return None
        settings, inner = stage.settings, int(getattr(objective, "inner", 1))
        if settings.deepspeed is not None:
            raise ConfigError(
                f"{where}.objective: generates between steps of DeepSpeed; expected train.sharding instead"
            )
        if stage.stage.anneal:
            raise ConfigError(f"{where}.anneal: {stage.stage.anneal}: generations attend as the model does; expected 0")
        before = sum(s.steps for s in list(settings.stages.values())[: list(settings.stages).index(stage.name)])
        judged = settings.eval_every if stage.stage.patience or settings.keep_best else 0
        if settings.save_every % inner or before % inner or judged % inner:
            what = f"{settings.save_every}, expected a multiple of objective.inner, {inner}"
            raise ConfigError(f"train.save_every: {what}, as are train.eval_every and the steps of earlier stages")
        divided, again = divides(settings, stage.accelerator), settings.sharding != "gradients"
        return cls(objective, stage.config.sampler, inner, stage.accelerator, divided, again)

    def window(self, model: MMDiff, window: list[Batch], stream: Stream, key: NoiseKey, step: int) -> list[Any]:
        """Returns what the forwards of a step train on. step: of the stage, from 0. key: of the step."""
        if not self.made or step % self.inner == 0:
            if self.divided:
                with torch.no_grad(), self.accelerator.autocast():
                    model(self._together, window, stream, key)  # as a forward: before the first one there are no shards
                model.reshard()  # type: ignore[operator]
            else:
                self._collect(model, window, stream, key)
        return self.made

    def _together(self, model: MMDiff, window: list[Batch], stream: Stream, key: NoiseKey) -> None:
        with together(model, again=self.again):
            self._collect(model, window, stream, key)

    def _collect(self, model: MMDiff, window: list[Batch], stream: Stream, key: NoiseKey) -> None:
        rows = partial(stream.row, vocab=model.vocab, readers=model.readers)
        self.made = [self.objective.collect(model, batch, key, rows, self.sampler) for batch in window]
