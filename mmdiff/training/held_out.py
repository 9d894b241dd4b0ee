"""The bound on a stage's held-out rows: with their own media and, to measure whether these are used, with others'."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mmdiff.canvas.sample import Media, Sample
from mmdiff.config import build
from mmdiff.config.settings import StageConfig, TrainConfig
from mmdiff.data.collate import collate
from mmdiff.data.stream import Component, Stream, check_source, row_name
from mmdiff.errors import ConfigError, DataError, located
from mmdiff.model import MMDiff
from mmdiff.model.evaluating import evaluating
from mmdiff.model.likelihood import bound
from mmdiff.model.likelihood.score import Diverged
from mmdiff.model.model import BEYOND
from mmdiff.protocols import Source, Task
from mmdiff.runs.progress import Progress

UNUSED = 0.01  # media whose exchange costs less than this share of the bound are reported as hardly used


def evaluate_bound(
    model: MMDiff, stage: StageConfig, task: Task, rows: Source, *, divided: bool = False
) -> dict[str, float]:
    """Returns the bound on the stage's held-out rows, in nats per sample and per target position.

    The same rows always give the same figures. `bound_per_token_swapped` is the bound with each row's media exchanged
    for its neighbour's: a model that does not use its media has the same in both. divided: the model lies in shards;
    all processes evaluate the same rows at once. Figures of a model that has diverged are not finite.
    """
    if divided:
        with torch.no_grad():
            figures: dict[str, float] = model(evaluate_bound, stage, task, rows)  # as a forward, which puts it together
        model.reshard()  # type: ignore[operator]
        return figures
    nats, positions = {"own": 0.0, "swapped": 0.0}, {"own": 0, "swapped": 0}
    with evaluating(model):
        for index, own in read(model, stage, task, rows):
            for name, samples in (("own", own), ("swapped", swapped(own))):
                if samples:
                    batch = collate(samples, model.vocab, model.readers, index=index, padding=stage.padding)
                    try:
                        estimate = bound(model, batch)
                    except Diverged:
                        nats[name], positions[name] = math.nan, 1
                        continue
                    nats[name] += float(estimate.nll_B.sum())
                    # unequal where media of another length move the padding
                    positions[name] += int(estimate.positions_B.sum())
    figures = {"bound_per_sample": nats["own"] / len(rows), "bound_per_token": nats["own"] / max(positions["own"], 1)}
    if nats["swapped"]:
        figures["bound_per_token_swapped"] = nats["swapped"] / max(positions["swapped"], 1)
    return figures


def read(model: MMDiff, stage: StageConfig, task: Task, rows: Source) -> Iterator[tuple[range, list[Sample]]]:
    """Yields the samples of held-out rows, a batch of the stage at a time, and which rows they are."""
    stream = Stream([Component("eval", rows, task)], seed=0)
    for first in range(0, len(rows), stage.batch_size):
        index = range(first, min(first + stage.batch_size, len(rows)))
        yield index, [stream.sample(n, model.vocab, model.readers) for n in index]


def searched(
    objective: Any, model: MMDiff, stage: StageConfig, task: Task, rows: Source | None, world: Accelerator, seed: int
) -> dict[str, float]:
    """Returns what an objective finds in held-out rows (`search` of `mmdiff.protocols.Objective`).

    rows: None, another process has them. All processes of `world` call it, and have the same figures.
    """
    found: list[Any] = [None]
    if rows is not None:
        some = islice(read(model, stage, task, rows), objective.batches)
        batches = [collate(own, model.vocab, model.readers, index=at, padding=stage.padding) for at, own in some]
        with evaluating(model):
            found = [objective.search(model, batches, seed)]
    if world.num_processes > 1:
        broadcast_object_list(found)
    figures: dict[str, float] = found[0]
    return figures


def check_search(objective: Any, stage: StageConfig, settings: TrainConfig, where: str) -> None:
    """Raises ConfigError for an objective that depends on held-out rows where it is never shown any."""
    if not hasattr(objective, "search"):
        return
    if settings.sharding != "none" or settings.deepspeed is not None:
        raise ConfigError(f"{where}.objective: searches with the whole model; expected train.sharding: none")
    if stage.eval is None:
        raise ConfigError(f"{where}.eval: none; {type(objective).__name__} searches on held-out rows, expected some")
    if not settings.eval_every:
        raise ConfigError("train.eval_every: 0, expected the number of steps after which the objective searches")


def held_out_rows(
    model: MMDiff, task: Task, stages: Mapping[str, StageConfig], progress: Progress, *, toy: bool
) -> dict[str, Source]:
    """Returns the held-out rows of the stages that are left, by stage. Each row has been read once.

    Raises ConfigError for rows that cannot be built, DataError for one that cannot be read or is too long: at the
    beginning of a run, not hours later, behind a stage's last step.
    """
    found, most = {}, BEYOND * model.backbone.facts.max_length
    for name, stage in stages.items():
        if stage.eval is None or (name in progress.stages_done and name != progress.stage):
            continue
        where = f"train.stages.{name}.eval"
        rows: Source = build(stage.eval, where=where, toy=toy)
        check_source(rows, where)
        with located(where):
            stream = Stream([Component("", rows, task)], seed=0)
            for n in range(len(rows)):
                sample = stream.sample(n, model.vocab, model.readers)
                with located(row_name("", stream.locate(n)[1])):
                    batch = collate([sample], model.vocab, model.readers, padding=stage.padding)
                    if batch.ids_BL.shape[1] > most:
                        raise DataError(f"a canvas of {batch.ids_BL.shape[1]} positions, expected at most {most}")
        found[name] = rows
    return found


def unused(figures: Mapping[str, float], where: str) -> str | None:
    """Returns in a line that a model hardly uses its media, by the figures of `evaluate_bound`; None where it does."""
    own, other = figures["bound_per_token"], figures.get("bound_per_token_swapped")
    if other is None or not other < own * (1 + UNUSED):
        return None
    return (
        f"{where}: {own:.4f} nats per token with a row's own media, {other:.4f} with another row's: they are hardly "
        "used. A connector whose slots are far from the scale of the token embeddings learns slowly: see its `norm` "
        "and `out_norm`"
    )


def since_lowest(bounds: dict[int, float]) -> int:
    """Returns how many bounds, by step, came after the lowest; 0 of none."""
    values = list(bounds.values())
    return len(values) - 1 - values.index(min(values)) if values else 0


def is_due(stage: StageConfig, settings: TrainConfig, progress: Progress) -> bool:
    """Whether the bound on a stage's held-out rows belongs to the step where training stands."""
    every = settings.eval_every
    due = progress.stage_step == stage.steps or bool(every and progress.step and progress.step % every == 0)
    return stage.eval is not None and due


def swapped(samples: Sequence[Sample]) -> list[Sample]:
    """Returns each sample with the media of the next one; nothing where there are no media, or of unequal kinds."""
    media = [[p for p in sample if isinstance(p, Media)] for sample in samples]
    if len(samples) < 2 or not media[0] or any([m.kind for m in own] != [m.kind for m in media[0]] for own in media):
        return []
    others = [iter(own) for own in (*media[1:], media[0])]
    return [
        [next(other) if isinstance(p, Media) else p for p in sample]
        for sample, other in zip(samples, others, strict=True)
    ]
