"""The one training loop: windows of batches -> noised copies -> hidden states -> loss of masked positions -> one sum.

A step plans all its forwards first; their counts, summed over the window and all processes, are the denominators. So
the gradient of a step does not depend on how its samples are split into forwards or processes. Every draw is a
function of (seed, step, sample, copy), so a run that was killed ends as one that was not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmdiff.canvas.batch import Batch, to_device
from mmdiff.config import as_node, build
from mmdiff.config.ranges import Positive
from mmdiff.config.schema import as_annotated
from mmdiff.config.settings import Config, StageConfig, TrainConfig
from mmdiff.data.stream import Batches, Component, Stream, check_source, samples_of
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.errors import ConfigError, DataError, UserError, nearest
from mmdiff.model import MMDiff
from mmdiff.model.features import FeatureCache, fingerprint
from mmdiff.protocols import Objective, Source, Task
from mmdiff.runs.checkpoint import (
    Progress,
    frozen_is_whole,
    remove_frozen,
    save_checkpoint,
    save_frozen,
)
from mmdiff.runs.folder import Run

from .annealing import annealed, check_annealing
from .divergence import not_finite, refuse
from .held_out import UNUSED, evaluate_bound
from .meters import Meters
from .optim import lr_factor


@dataclass
class Stage:
    """One stage while it runs.

    groups: what AdamW trains, see `mmdiff.model.params`. held_out: the rows of `eval`; None: there are none, or another
    process evaluates. pending: whether the bound is due where training stands, before the next step.
    """

    name: str
    stage: StageConfig
    config: Config
    model: MMDiff
    task: Task | None
    groups: list[dict[str, Any]]
    run: Run
    accelerator: Accelerator
    progress: Progress
    toy: bool
    progress_bar: bool
    held_out: Source | None
    pending: bool

    def __post_init__(self) -> None:
        stage, config, where = self.stage, self.config, f"train.stages.{self.name}"
        self.settings = config.train
        check_annealing(stage.anneal, self.model, where)
        self.objective: Objective = build(stage.objective, where=f"{where}.objective", toy=self.toy)
        if (for_model := getattr(self.objective, "for_model", None)) is not None:
            self.objective = for_model(self.model)
        self.stream = make_stream(
            stage,
            self.task,
            where,
            seed=config.train.seed,
            cache_bytes=config.train.sample_cache_mb << 20,
            toy=self.toy,
        )
        on_cpu = not torch.cuda.is_available()  # one fused kernel, where torch's default is a loop over tensors
        self.optimizer = torch.optim.AdamW(
            self.groups, lr=stage.lr, betas=config.train.betas, fused=True if on_cpu else None
        )
        self.frozen = self.run.checkpoints / f"frozen-{self.name}.safetensors"
        self.cache = FeatureCache(self.run.folder / "features.sqlite") if stage.cache_features else None

    def run_steps(self) -> None:
        """Run the steps of the stage that are left, from the progress of the run on."""
        progress, stage = self.progress, self.stage
        if progress.stage != self.name:
            progress.stage, progress.stage_step = self.name, 0
        fresh = progress.stage_step == 0 or not frozen_is_whole(self.frozen)
        if self.accelerator.is_main_process and fresh and progress.stage_step < stage.steps:
            save_frozen(self.model, self.frozen)
        self._checkpointing()
        wrapped, optimizer = self.accelerator.prepare(self.model, self.optimizer)
        wrapped.train()
        if self.accelerator.scaler is not None and progress.scaler:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        prints = self._prints()
        batches = one_line_errors(self._loader(progress.stage_step))
        meters, mark = Meters(), time.perf_counter()
        hidden = not (self.progress_bar and self.accelerator.is_main_process)
        bar = tqdm(total=stage.steps, initial=progress.stage_step, desc=self.name, disable=hidden, mininterval=0.5)
        with bar:  # closed before an error is told of
            if self.pending:
                self._evaluate()
            while progress.stage_step < stage.steps:
                window = [next(batches) for _ in range(stage.accumulate)]
                if self.cache is not None:
                    window = [self.cache.fill(self.model, batch, prints) for batch in window]
                self._step(wrapped, optimizer, window, meters)
                progress.step, progress.stage_step = progress.step + 1, progress.stage_step + 1
                progress.tokens += sum(int(b.attend_BL.sum()) for b in window) * self.accelerator.num_processes
                last = progress.stage_step == stage.steps
                save = last or progress.step % self.settings.save_every == 0
                if save or progress.step % self.settings.log_every == 0:
                    now = time.perf_counter()
                    self._check_finite(meters.diverged(self.accelerator))
                    progress.seconds, mark, passed = progress.seconds + now - mark, now, now - mark
                    figures = meters.read(self.accelerator, passed)
                    progress.loss[self.name] = figures["loss"]
                    shown = {"loss": f"{figures['loss']:.4f}", "tokens_s": f"{figures['tokens_per_second']:.0f}"}
                    bar.set_postfix(shown, refresh=False)
                    if self.accelerator.is_main_process:
                        lr = stage.lr * lr_factor(progress.stage_step - 1, stage)
                        self.run.log(progress.step, {"stage": self.name, "lr": lr, **figures})
                bar.update()
                if save:
                    self._save(last)
                if is_due(stage, self.settings, progress):  # behind the checkpoint: an error here costs no step
                    self._evaluate()
        self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()  # the next stage's gradients are not this optimizer's to unscale
        if self.cache is not None:
            self.cache.close()

    def _step(self, wrapped: Any, optimizer: Any, window: list[Batch], meters: Meters) -> None:
        stage, progress, accelerator = self.stage, self.progress, self.accelerator
        world = accelerator.num_processes
        key = NoiseKey(self.settings.seed, progress.step, self.name, batch=stage.batch_size * stage.accumulate * world)
        torch.manual_seed(key.fold(f"dropout/{accelerator.process_index}").integer(1 << 62))
        window = [annealed(batch, key, progress.stage_step, stage.anneal) for batch in window]
        plans = [self.objective.plan(batch, key, self.model.vocab) for batch in window]
        names = sorted(plans[0].counts)
        counts_N = torch.tensor([[plan.counts[n] for n in names] for plan in plans], dtype=torch.float64).sum(0)
        if world > 1:
            counts_N = accelerator.reduce(counts_N.float().to(accelerator.device)).cpu().double()
        count = {name: max(c, 1.0) for name, c in zip(names, counts_N.tolist(), strict=True)}
        factor = lr_factor(progress.stage_step, stage)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        for i, plan in enumerate(plans):
            ready = to_device(plan, accelerator.device)
            with accelerator.no_sync(wrapped) if i < len(plans) - 1 else nullcontext():
                terms = wrapped(self.objective.terms, ready)
                total = sum((t.coefficient * t.value / count[n] for n, t in terms.items()), start=torch.zeros(()))
                accelerator.backward(total * world)  # data parallelism takes the mean over processes
            meters.add(terms, count, int(plan.batch.attend_BL.sum()) * getattr(self.objective, "copies", 1))
        if self.settings.clip:
            scaled = accelerator.scaler is not None
            meters.norm(accelerator.clip_grad_norm_(wrapped.parameters(), self.settings.clip), scaled=scaled)
        optimizer.step()
        optimizer.zero_grad()
        meters.step()

    def _loader(self, first: int) -> DataLoader[Batch]:
        """Returns a loader of this process's batches, from the stage's step `first` on."""
        stage, accelerator = self.stage, self.accelerator
        dataset = Batches(self.stream, self.model.vocab, self.model.readers, stage.padding)
        shape = {"batch": stage.batch_size, "accumulate": stage.accumulate, "world": accelerator.num_processes}
        positions = (
            samples_of(step, micro, accelerator.process_index, **shape)
            for step in range(first, stage.steps)
            for micro in range(stage.accumulate)
        )
        workers = self.settings.workers
        return DataLoader(dataset, sampler=positions, batch_size=None, num_workers=workers)  # type: ignore[arg-type]

    def _checkpointing(self) -> None:
        on = self.settings.gradient_checkpointing
        self.model.backbone.gradient_checkpointing(on)
        for kind, encoder in self.model.encoders.items():
            encoder.gradient_checkpointing(on and not self.model.frozen(kind))  # type: ignore[operator]

    def _prints(self) -> dict[str, bytes]:
        """Returns the fingerprints of the encoders by kind, if features are cached; ConfigError if one is trained."""
        if self.cache is None:
            return {}
        for kind in self.model.encoders:
            if not self.model.frozen(kind):
                raise ConfigError(
                    f"train.stages.{self.name}.cache_features: the {kind} encoder is trained; freeze it in `params`"
                )
        return {kind: fingerprint(encoder) for kind, encoder in self.model.encoders.items()}

    def _check_finite(self, ago: int | None) -> None:
        """Raise ConfigError where a loss or gradient was not finite. ago: so many steps ago, None: it was."""
        if ago is not None:
            refuse("the loss or its gradient", self.name, self.stage.lr, self.progress.step - ago, self.run)

    def _evaluate(self) -> None:
        if not self.accelerator.is_main_process or self.task is None or self.held_out is None:
            return
        figures = evaluate_bound(self.model, self.stage, self.task, self.held_out)
        self.run.log(self.progress.step, {"stage": self.name, **figures})
        own, other = figures["bound_per_token"], figures.get("bound_per_token_swapped")
        if other is not None and other < own * (1 + UNUSED) and not self.toy:
            tqdm.write(
                f"warning: {self.name}, step {self.progress.step}: {own:.4f} nats per token with a row's own media, "
                f"{other:.4f} with another row's: they are hardly used. A connector whose slots are far from the scale "
                "of the token embeddings learns slowly: see its `norm` and `out_norm`",
                file=sys.stderr,
            )

    def _save(self, last: bool) -> None:
        progress = self.progress
        if (wrong := not_finite(self.optimizer)) is not None:
            refuse(f"the weight {wrong}", self.name, self.stage.lr, progress.step, self.run)
        if last:
            progress.stages_done.append(self.name)
        if self.accelerator.scaler is not None:
            progress.scaler = dict(self.accelerator.scaler.state_dict())
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.run.checkpoints,
                self.model,
                None if last and self.name != list(self.settings.stages)[-1] else self.optimizer,
                progress,
                extra=config_entries(self.config, self.task),
                frozen=self.frozen,
                keep=self.settings.keep,
            )
            if last:
                remove_frozen(self.run.checkpoints)
        self.accelerator.wait_for_everyone()


def is_due(stage: StageConfig, settings: TrainConfig, progress: Progress) -> bool:
    """Whether the bound on a stage's held-out rows belongs to the step where training stands."""
    every = settings.eval_every
    due = progress.stage_step == stage.steps or bool(every and progress.step and progress.step % every == 0)
    return stage.eval is not None and due


def config_entries(config: Config, task: Task | None) -> dict[str, Any]:
    """Returns the `task` and `sampler` entries of a saved model's config.json, with the task's constants from data."""
    node, constants = config.task, getattr(task, "constants", None)
    if constants is not None:
        node = {**({"target": node} if isinstance(node, str) else node), **constants()}
    return {"task": node, "sampler": vars(config.sampler)}


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
