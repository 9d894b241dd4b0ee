"""A run from its first stage to its last: build the model, go on where the last checkpoint stands, save the result."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from tqdm import tqdm

from mmdiff.config import build
from mmdiff.config.load import checked_config
from mmdiff.config.settings import Config, TrainConfig
from mmdiff.config.typed import typed
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, UserError
from mmdiff.files import part_of, remove
from mmdiff.model import build_model
from mmdiff.model.params import add_adapters, apply_rules, read_rules, rules_table
from mmdiff.model.saving import load_weights, read_config, save_model
from mmdiff.protocols import Task
from mmdiff.runs.changes import with_kept_batch
from mmdiff.runs.checkpoint import Progress, last_whole, load_moments, prune, read_progress, remove_frozen
from mmdiff.runs.folder import RUNS, Run, open_run, run_name

from .held_out import held_out_rows
from .stage import Stage, config_entries, is_due


@typed
def train(config: Config | str | Path, *, fresh: bool = False) -> dict[str, Any]:
    """Train a configuration in `runs/<name>/`, or go on where its run stands. Returns the run's result (metrics.json).

    config: or its name, as `load_config` takes it.
    fresh: move what the folder holds aside and begin again. Raises ConfigError when it holds another configuration.
    """
    config = checked_config(config)
    if not config.train.stages:
        raise ConfigError("train.stages: there is no stage to train")
    run_name(config)  # a name that cannot be is refused before processes wait for each other
    accelerator = make_accelerator(config.train)
    steps = sum(stage.steps for stage in config.train.stages.values())
    with accelerator.main_process_first():  # one process makes the folder, the others find it
        if accelerator.is_main_process:
            run = open_run(config, fresh=fresh, world=accelerator.num_processes)
        else:
            run = Run(RUNS / run_name(config))
    try:
        with one_line_deaths(accelerator):
            if (result := run.result) is not None and result.get("steps") == steps:
                return result
            return fit(config, run, accelerator)
    finally:
        run.close()


def fit(
    config: Config, run: Run, accelerator: Accelerator, *, toy: bool = False, progress_bar: bool = True
) -> dict[str, Any]:
    """Train all stages of a configuration in an opened run. Returns the result.

    toy: at toy width on toy rows (`mmdiff check`). progress_bar: False also leaves the tables of parameters out.
    """
    settings, world, main = config.train, accelerator.num_processes, accelerator.is_main_process
    say = (lambda line: tqdm.write(line, file=sys.stderr)) if main and progress_bar else (lambda line: None)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    task: Task | None = build(config.task, where="task", toy=toy) if config.task else None
    model = build_model(config.model, toy=toy, logit_chunk=settings.logit_chunk)
    with accelerator.main_process_first():
        last = last_whole(run.checkpoints, lambda line: say(f"warning: {line}"))
    progress = read_progress(last) if last else Progress()
    if last:
        for adapter in read_config(last)["adapters"]:
            if adapter not in model.adapters:
                add_adapters(model, adapter)
        load_weights(model, last)
    _longer(settings, progress, run, say)
    stages = {n: with_kept_batch(n, s, progress.samples.get(n), world) for n, s in settings.stages.items()}
    for name, stage in stages.items():
        if stage != settings.stages[name]:
            say(f"stage {name}: accumulate is {stage.accumulate}, to keep the run's {progress.samples[name]} samples")
    progress.samples = {name: s.batch_size * s.accumulate * world for name, s in stages.items()}
    to_evaluate = last is not None and not run.has_bound(progress.step)
    held_out = held_out_rows(model, task, stages, progress, toy=toy) if main and task else {}
    if main:
        run.begin_log(progress.step, tensorboard=settings.tensorboard)
    for name, stage in stages.items():
        pending = to_evaluate and progress.stage == name and is_due(stage, settings, progress)
        if name in progress.stages_done and not pending:
            continue
        rules = read_rules(stage.params, f"train.stages.{name}.params")
        torch.manual_seed(NoiseKey(settings.seed, stream=f"adapters/{name}").integer(1 << 62))
        groups, lines = apply_rules(model, rules, lr=stage.lr, weight_decay=stage.weight_decay)
        say(f"stage {name}: {stage.steps} steps\n{rules_table(lines)}")
        rows = held_out.get(name)
        loop = Stage(
            name, stage, config, model, task, groups, run, accelerator, progress, toy, progress_bar, rows, pending
        )
        if last and progress.stage == name:
            load_moments(loop.optimizer, last / "optimizer.safetensors")
        loop.run_steps()
    result = {
        "steps": progress.step,
        "seconds_training": round(progress.seconds, 3),
        "tokens": progress.tokens,
        "loss": progress.loss,
        "run": str(run.folder),
    }
    if main:
        if run.model.exists():  # of a shorter run, or of one that was killed before it wrote its result
            remove(run.model.rename(part_of(run.model)))
        save_model(model, run.model, extra=config_entries(config, task))
        prune(run.checkpoints, settings.keep)  # a kill may have come before the last stage did so
        remove_frozen(run.checkpoints)
        run.write_result(result)  # figures of an evaluation were of other weights
    accelerator.wait_for_everyone()
    return result


def _longer(settings: TrainConfig, progress: Progress, run: Run, say: Callable[[str], None]) -> None:
    """Open the last stage again where it has more steps than when it was finished."""
    name, stage = list(settings.stages.items())[-1]
    if progress.stage == name and name in progress.stages_done and progress.stage_step < stage.steps:
        progress.stages_done.remove(name)
        say(f"stage {name}: goes on from step {progress.stage_step} by the learning rates of {stage.steps} steps")


@contextmanager
def one_line_deaths(accelerator: Accelerator) -> Iterator[None]:
    """Within it, what breaks here because another process of the run died is one line."""
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, torch.distributed.DistError) or re.search(
            "gloo|Connection (closed|reset)|Broken pipe", str(error)
        )
        if accelerator.num_processes == 1 or not broken:
            raise
        raise UserError("another process of this run ended; the same command resumes") from None


def make_accelerator(settings: TrainConfig) -> Accelerator:
    """Returns an accelerator of the configured precision. Raises ConfigError for fp16 without a GPU."""
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: fp16 needs a GPU, expected fp32 or bf16 here")
    AcceleratorState._reset_state()  # accelerate keeps a process to its first precision; a check or run may have been
    precision = "no" if settings.precision == "fp32" else settings.precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a rank's batch may hold no picture
    on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    return Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=[unused])
