"""A run from its first stage to its last: build the model, go on where the last checkpoint stands, save the result."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from mmdiff.config import build, check_nodes, flatten
from mmdiff.config.load import checked_config
from mmdiff.config.settings import Config, StageConfig, TrainConfig
from mmdiff.config.typed import typed
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, within_memory
from mmdiff.files import part_of, remove
from mmdiff.model import MMDiff, build_model
from mmdiff.model.params import add_adapters, apply_rules, read_rules, rules_table
from mmdiff.model.published.described import read_config
from mmdiff.model.saving import load_weights, save_model
from mmdiff.model.tensors import give_shards, weights
from mmdiff.protocols import Task
from mmdiff.runs.changes import with_kept_batch
from mmdiff.runs.checkpoint import config_entries, last_whole, prune, remove_frozen
from mmdiff.runs.folder import RUNS, Run, open_run, run_name
from mmdiff.runs.notes import check_note, write_note
from mmdiff.runs.progress import Progress, read_progress

from .annealing import check_annealing
from .held_out import check_search, held_out_rows, is_due
from .loading import mixture_of, streams_of
from .parallel import divides, make_accelerator, one_line_deaths
from .stage import Stage

__all__ = ["fit", "make_accelerator", "train"]

LESS = "; less takes a smaller batch_size with more accumulate, train.gradient_checkpointing or train.sharding"
LONGEST_STAGE = 80  # bytes of a stage's name, which names of files are made of


@typed
def train(config: Config | str | Path, *, fresh: bool = False, note: str | None = None) -> dict[str, Any]:
    """Train a configuration in `runs/<name>/`, or go on where its run stands. Returns the run's result (metrics.json).

    config: or its name, as `load_config` takes it.
    fresh: move what the folder holds aside and begin again. Raises ConfigError when it holds another configuration.
    note: what a person notes about the run, in place of what was noted before (`mmdiff.runs.notes`).
    """
    config = checked_config(config)
    _check_stages(config)
    check_note(note or "")
    if not config.train.stages:
        raise ConfigError("train.stages: there is no stage to train")
    run_name(config)  # a name that cannot be is refused before processes wait for each other
    accelerator = make_accelerator(config.train)
    steps = sum(stage.steps for stage in config.train.stages.values())
    with one_line_deaths(accelerator), accelerator.main_process_first():  # one makes the folder, the others find it
        if accelerator.is_main_process:
            run = open_run(config, fresh=fresh, world=accelerator.num_processes)
            if note is not None:
                write_note(run.folder, note)
        else:
            run = Run(RUNS / run_name(config))
    try:
        with one_line_deaths(accelerator):
            if (result := run.result) is not None and result.get("planned_steps", result.get("steps")) == steps:
                return result
            return fit(config, run, accelerator)
    finally:
        run.close()


def _check_stages(config: Config) -> None:
    """Raise ConfigError for what is wrong in any stage: hours may pass before a later one is built."""
    check_nodes(config)
    for name, stage in config.train.stages.items():
        if not name or "/" in name or not name.isprintable() or len(name.encode()) > LONGEST_STAGE:
            raise ConfigError(
                f"train.stages: {name[:80]!r}, expected a name of at most {LONGEST_STAGE} bytes without '/'"
            )
        where = f"train.stages.{name}"
        mixture_of(stage, where, task=config.task is not None)
        read_rules(stage.params, f"{where}.params")


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
    task: Task | None = build(config.task, where="task", toy=toy) if config.task else None
    with accelerator.main_process_first():
        last = last_whole(run.checkpoints, lambda line: say(f"warning: {line}"))
    model = model_of(config, last, toy=toy)
    progress = read_progress(last) if last else Progress()
    _longer(settings, progress, run, say)
    stages = {n: with_kept_batch(n, s, progress.samples.get(n), world) for n, s in settings.stages.items()}
    for name, stage in stages.items():
        if stage != settings.stages[name]:
            say(f"stage {name}: accumulate is {stage.accumulate}, to keep the run's {progress.samples[name]} samples")
    progress.samples = {name: s.batch_size * s.accumulate * world for name, s in stages.items()}
    to_evaluate = last is not None and not run.has_bound(progress.step)
    divided = divides(settings, accelerator)
    held_out = held_out_rows(model, task, stages, progress, toy=toy) if (main or divided) and task else {}
    left = {n: s for n, s in stages.items() if n not in progress.stages_done or to_evaluate}
    streams = streams_of(left, settings, model, task, toy=toy)
    _check_later(left, settings, model, toy)
    if main:
        entries = flatten(asdict(config)) if settings.trackers else {}
        run.begin_log(progress.step, tensorboard=settings.tensorboard, trackers=settings.trackers, settings=entries)
    for name, stage in stages.items():
        pending = to_evaluate and progress.stage == name and is_due(stage, settings, progress)
        if name in progress.stages_done and not pending:
            continue
        if divided and progress.stage not in ("", name):  # rules are of a model that is whole
            model = model_of(config, last_whole(run.checkpoints, say), toy=toy)
        rules = read_rules(stage.params, f"train.stages.{name}.params")
        torch.manual_seed(NoiseKey(settings.seed, stream=f"adapters/{name}").integer(1 << 62))
        with within_memory(f"train.stages.{name}.params"):
            groups, lines = apply_rules(model, rules, lr=stage.lr, weight_decay=stage.weight_decay)
        say(f"stage {name}: {stage.steps} steps\n{rules_table(lines)}")
        with within_memory(f"train.stages.{name}", LESS):
            Stage(
                name, stage, config, model, task, streams.pop(name), groups, run, accelerator, progress, toy,
                progress_bar, held_out.get(name), pending, last if progress.stage == name else None,
            ).run_steps()  # fmt: skip
    result = {
        "steps": progress.step,
        "seconds_training": round(progress.seconds, 3),
        "tokens": progress.tokens,
        "loss": progress.loss,
        "run": str(run.folder),
    }
    planned = sum(stage.steps for stage in stages.values())
    result |= {"planned_steps": planned} if planned != progress.step else {}  # a stage ended early
    result |= {"skipped": progress.skipped} if progress.skipped else {}
    best = run.best(progress.stage, settings.keep_best)
    result |= {"best": {"step": best[0], "bound_per_token": run.bounds(progress.stage)[best[0]]}} if best else {}
    if divided and not main:
        give_shards(list(weights(model).values()))
    if main:
        if run.model.exists():  # of a shorter run, or of one that was killed before it wrote its result
            remove(run.model.rename(part_of(run.model)))
        save_model(model, run.model, extra=config_entries(config, task))
        prune(
            run.checkpoints, settings.keep, best, run.not_finite()
        )  # a kill may have come before the last stage did so
        remove_frozen(run.checkpoints)
        run.write_result(result)  # figures of an evaluation were of other weights
    accelerator.wait_for_everyone()
    return result


def _check_later(stages: Mapping[str, StageConfig], settings: TrainConfig, model: MMDiff, toy: bool) -> None:
    """Raise ConfigError, before the first stage that is left, for what the others ask of the model and cannot have.

    Adapters, which an earlier stage may add, do not change the names that rules match.
    """
    names = {re.sub(r"\.base_layer\.|\.lora_[AB]\.default\.", ".", name) for name, _ in model.named_parameters()}
    for name, stage in list(stages.items())[1:]:
        where = f"train.stages.{name}"
        rules = read_rules(stage.params, f"{where}.params")
        for rule in rules:
            if "lora" not in rule.match and not any(map(rule.covers, names)):
                raise ConfigError(f"{where}.params: the rule {rule.match!r} matches no parameter")
        if rules and (free := next((n for n in sorted(names) if not any(r.covers(n) for r in rules)), None)):
            raise ConfigError(f"{where}.params: no rule matches {free}")
        check_annealing(stage.anneal, model, where)
        objective = build(stage.objective, where=f"{where}.objective", toy=toy)
        if not toy:
            check_search(objective, stage, settings, where)
        if hasattr(objective, "for_model") and not hasattr(objective, "reference"):  # that one is a model
            objective.for_model(model)


def model_of(config: Config, checkpoint: Path | None, *, toy: bool) -> MMDiff:
    """Returns the model of a configuration, new, or with the adapters and weights of a checkpoint."""
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, toy=toy, logit_chunk=config.train.logit_chunk)
    if checkpoint is not None:
        for adapter in read_config(checkpoint)["adapters"]:
            if adapter not in model.adapters:
                add_adapters(model, adapter)
        load_weights(model, checkpoint)
    return model


def _longer(settings: TrainConfig, progress: Progress, run: Run, say: Callable[[str], None]) -> None:
    """Open the last stage again where it has more steps than when it was finished."""
    name, stage = list(settings.stages.items())[-1]
    if progress.stage == name and name in progress.stages_done and progress.stage_step < stage.steps:
        progress.stages_done.remove(name)
        say(f"stage {name}: goes on from step {progress.stage_step} by the learning rates of {stage.steps} steps")
