"""Which settings may change between the parts of one run: those that change nothing in its training, and its length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace

from mmdiff.config import flatten
from mmdiff.config.settings import Config, StageConfig
from mmdiff.errors import ConfigError

FREE = re.compile(
    r"base|demo|eval(\..*)?|train\.stages\.[^.]+\.(eval(\..*)?|pack)"
    r"|train\.(log_every|save_every|keep|keep_best|eval_every|tensorboard|trackers(\..*)?|workers|sample_cache_mb)"
    r"|train\.(threads|gradient_checkpointing|logit_chunk|sharding|deepspeed|compile|on_divergence)"
)
"""Keys that change no training, besides rounding."""


def changed(old: Config, new: Config, batches: Mapping[str, int], world: int) -> list[str]:
    """Returns what bars `new` from resuming a run of `old`, as `key was X, is Y`, the first first.

    batches: samples of a step by stage, as the run has them; none where it has no checkpoint. world: processes now.
    Another division of a step's samples is no change, nor are more steps of the last stage.
    """
    before, after = flatten(asdict(old)), flatten(asdict(new))
    last = list(new.train.stages)[-1] if new.train.stages else ""
    out = []
    for key in [*before, *(k for k in after if k not in before)]:
        was, now = before.get(key), after.get(key)
        if was == now or FREE.fullmatch(key):
            continue
        stage, _, field = key.removeprefix("train.stages.").rpartition(".")
        if stage in batches and stage in new.train.stages and field in ("batch_size", "accumulate"):
            with_new = new.train.stages[stage]
            size = with_new.batch_size * with_new.accumulate * world
            if size == batches[stage] and not (field == "batch_size" and with_new.bucket):
                continue
        elif key == f"train.stages.{last}.steps" and isinstance(was, int) and isinstance(now, int) and now > was:
            continue
        out.append(f"{key} was {was!r}, is {now!r}")
    return out


def with_kept_batch(name: str, stage: StageConfig, samples: int | None, world: int) -> StageConfig:
    """Returns a stage whose steps have as many samples as before, by another `accumulate` where the processes are more
    or fewer. samples: of a step before; None: not known. Raises ConfigError where they cannot be divided so.
    """
    now = stage.batch_size * stage.accumulate * world
    if samples is None or now == samples:
        return stage
    accumulate, left = divmod(samples, stage.batch_size * world)
    if left or not accumulate:
        raise ConfigError(
            f"train.stages.{name}: the run's steps have {samples} samples, which {world} processes with batch_size "
            f"{stage.batch_size} cannot divide; set batch_size and accumulate so that their product with {world} is "
            f"{samples}, or take another number of processes"
        )
    return replace(stage, accumulate=accumulate)
