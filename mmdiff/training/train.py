"""A run from its first stage to its last: build the model, go on where the last checkpoint stands, save the result."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from tqdm import tqdm

from mmdiff.config import build
from mmdiff.config.settings import Config, TrainConfig
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError
from mmdiff.model import build_model
from mmdiff.model.params import add_adapters, apply_rules, read_rules, rules_table
from mmdiff.model.saving import load_weights, read_config, save_model
from mmdiff.protocols import Task
from mmdiff.runs.checkpoint import Progress, last_whole, load_moments, prune, read_progress, remove_frozen
from mmdiff.runs.folder import Run, open_run

from .stage import Stage, config_entries


def train(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Train a configuration in `runs/<name>/`, or go on where its run stands. Returns the run's result (metrics.json).

    fresh: move what the folder holds aside and begin again. Raises ConfigError when it holds another configuration.
    """
    if not config.train.stages:
        raise ConfigError("train.stages: there is no stage to train")
    accelerator = make_accelerator(config.train)
    with accelerator.main_process_first():  # one process makes the folder, the others find it
        run = open_run(config, fresh=fresh and accelerator.is_main_process)
    if (result := run.result) is not None:
        return result
    if accelerator.is_main_process:
        run.lock()
    try:
        return fit(config, run, accelerator)
    finally:
        run.close()


def fit(
    config: Config, run: Run, accelerator: Accelerator, *, toy: bool = False, progress_bar: bool = True
) -> dict[str, Any]:
    """Train all stages of a configuration in an opened run. Returns the result.

    toy: at toy width on toy rows (`mmdiff check`). progress_bar: False also leaves the tables of parameters out.
    """
    settings = config.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    task: Task | None = build(config.task, where="task", toy=toy) if config.task else None
    model = build_model(config.model, toy=toy, logit_chunk=settings.logit_chunk)
    with accelerator.main_process_first():
        last = last_whole(run.checkpoints, lambda line: tqdm.write(f"warning: {line}", file=sys.stderr))
    progress = read_progress(last) if last else Progress()
    if last:
        for adapter in read_config(last)["adapters"]:
            if adapter not in model.adapters:
                add_adapters(model, adapter)
        load_weights(model, last)
    if accelerator.is_main_process:
        run.begin_log(progress.step, tensorboard=settings.tensorboard)
    for name, stage in settings.stages.items():
        if name in progress.stages_done:
            continue
        rules = read_rules(stage.params, f"train.stages.{name}.params")
        torch.manual_seed(NoiseKey(settings.seed, stream=f"adapters/{name}").integer(1 << 62))
        groups, lines = apply_rules(model, rules, lr=stage.lr, weight_decay=stage.weight_decay)
        if accelerator.is_main_process and progress_bar:
            tqdm.write(f"stage {name}: {stage.steps} steps\n{rules_table(lines)}", file=sys.stderr)
        loop = Stage(name, stage, config, model, task, groups, run, accelerator, progress, toy, progress_bar)
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
    if accelerator.is_main_process:
        if not run.model.exists():
            save_model(model, run.model, extra=config_entries(config, task))
        prune(run.checkpoints, settings.keep)  # a kill may have come before the last stage did so
        remove_frozen(run.checkpoints)
        run.finish(result)
    accelerator.wait_for_everyone()
    return result


def make_accelerator(settings: TrainConfig) -> Accelerator:
    """Returns an accelerator of the configured precision. Raises ConfigError for fp16 without a GPU."""
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision: fp16 needs a GPU, expected fp32 or bf16 here")
    AcceleratorState._reset_state()  # accelerate keeps a process to its first precision; a check or run may have been
    precision = "no" if settings.precision == "fp32" else settings.precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a rank's batch may hold no picture
    return Accelerator(mixed_precision=precision, kwargs_handlers=[unused])
