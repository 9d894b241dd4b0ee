"""One stage of a run, from the step where it stands to its last: steps, the log, checkpoints, the bound, early ends."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from mmdiff.backbones.compiled import compiled
from mmdiff.config import build
from mmdiff.config.settings import Config, StageConfig
from mmdiff.data.stream import Stream
from mmdiff.errors import ConfigError
from mmdiff.model import MMDiff
from mmdiff.model.features import FeatureCache, fingerprints
from mmdiff.model.tensors import weights
from mmdiff.protocols import Objective, Source, Task
from mmdiff.runs.checkpoint import config_entries, frozen_is_whole, prune, remove_frozen, save_checkpoint, save_frozen
from mmdiff.runs.folder import Run
from mmdiff.runs.moments import load_moments, moments
from mmdiff.runs.progress import Progress

from .annealing import check_annealing
from .divergence import IN_A_ROW, any_process, not_finite, refuse
from .engines.ema import Average
from .engines.zero import Zero, read_zero
from .held_out import check_search, evaluate_bound, is_due, searched, since_lowest, unused
from .loading import Collecting, batches_of
from .optim import lr_factor, make_optimizer
from .parallel import divides, renewed, shard
from .step import Stepper, recompute


@dataclass
class Stage:
    """One stage while it runs.

    stream: the rows, see `mmdiff.training.loading.streams_of`. groups: what is trained, see `mmdiff.model.params`.
    held_out: the rows of `eval`; None: there are none, or another process evaluates. pending: whether the bound is due
    where training stands, before the next step. resumed: the checkpoint that this stage resumes from; None: it begins.
    """

    name: str
    stage: StageConfig
    config: Config
    model: MMDiff
    task: Task | None
    stream: Stream
    groups: list[dict[str, Any]]
    run: Run
    accelerator: Accelerator
    progress: Progress
    toy: bool
    progress_bar: bool
    held_out: Source | None
    pending: bool
    resumed: Path | None = None

    def __post_init__(self) -> None:
        stage, config, where = self.stage, self.config, f"train.stages.{self.name}"
        self.settings = config.train
        check_annealing(stage.anneal, self.model, where)
        self.main = self.accelerator.is_main_process
        if stage.pack and getattr(self.model.backbone.model.config, "mmdiff", {}).get("token_dropout"):
            raise ConfigError(f"{where}.pack: token dropout counts the masks of a whole row; expected 0")
        self.objective: Objective = build(stage.objective, where=f"{where}.objective", toy=self.toy)
        if (for_model := getattr(self.objective, "for_model", None)) is not None:
            self.objective = for_model(self.model)
        if not self.toy:
            check_search(self.objective, stage, self.settings, where)
        if found := self.progress.found.get(self.name):
            self.objective = self.objective.found(found)  # type: ignore[attr-defined]
        self.collecting = Collecting.of(self.objective, self, where)
        self.stream.prompts = self.collecting is not None
        self.frozen = self.run.checkpoints / f"frozen-{self.name}.safetensors"
        self.cache = FeatureCache(self.run.folder / "features.sqlite") if stage.cache_features else None
        self.skipped = 0  # steps, the last ones

    def run_steps(self) -> None:
        """Run the steps of the stage that are left, from the progress of the run on."""
        progress, stage = self.progress, self.stage
        if progress.stage != self.name:
            progress.stage, progress.stage_step = self.name, 0
        fresh = progress.stage_step == 0 or not frozen_is_whole(self.frozen)
        if self.main and fresh and progress.stage_step < stage.steps:
            save_frozen(self.model, self.frozen)
        recompute(self.model, on=self.settings.gradient_checkpointing)
        self.stepper = stepper = self._stepper()
        stepper.wrapped.train()
        prints = {} if self.cache is None else fingerprints(self.model, f"train.stages.{self.name}.cache_features")
        batches = batches_of(
            stage, self.stream, self.model, first=progress.stage_step, workers=self.settings.workers,
            rank=self.accelerator.process_index, world=self.accelerator.num_processes,
            inner=self.collecting.inner if self.collecting else 1,
        )  # fmt: skip
        mark = time.perf_counter()
        bar = tqdm(
            total=stage.steps, initial=progress.stage_step, desc=self.name, mininterval=0.5,
            disable=not (self.progress_bar and self.main),
        )  # fmt: skip
        with bar, compiled(self.model.backbone, self.settings.compile):  # the bar is closed before an error is told of
            ended = self._judged() if self.pending else self._ended()
            if not self.pending and self.resumed is not None and is_due(stage, self.settings, progress):
                self._search()  # the checkpoint is older than what was found behind it
            while progress.stage_step < stage.steps and not ended:
                window = [next(batches) for _ in range(stage.accumulate)]
                if self.cache is not None:
                    window = [self.cache.fill(self.model, batch, prints) for batch in window]
                if self.collecting is not None:
                    key = stepper.key(progress)
                    window = self.collecting.window(self.model, window, self.stream, key, progress.stage_step)
                self._step(window)
                bar.update()
                last, due = progress.stage_step == stage.steps, is_due(stage, self.settings, progress)
                judged = due and (stage.patience or self.settings.keep_best)
                save = last or judged or progress.step % self.settings.save_every == 0
                if save or progress.step % self.settings.log_every == 0:
                    now = time.perf_counter()
                    bar.set_postfix(self._log(now - mark), refresh=False)
                    mark = now
                if save:
                    self._save(last, due)
                if due:  # behind the checkpoint: an error here costs no step
                    ended = self._judged()
        if self.name not in progress.stages_done:
            progress.stages_done.append(self.name)
            if self.main:
                remove_frozen(self.run.checkpoints)
                tqdm.write(f"stage {self.name}: ended at step {progress.stage_step} by patience", file=sys.stderr)
        if stepper.average is not None:
            stepper.average.adopt()
        if stepper.engine is not None:
            stepper.engine.close()
        else:
            self.accelerator.unwrap_model(stepper.wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()  # the next stage's gradients are not this optimizer's to unscale
        if self.cache is not None:
            self.cache.close()

    def _stepper(self) -> Stepper:
        """Place the model, and make what trains it."""
        settings, accelerator, divided = self.settings, self.accelerator, divides(self.settings, self.accelerator)
        where = f"train.stages.{self.name}.optimizer"
        if divided:
            shard(self.model, settings, accelerator)
            self.groups = renewed(self.groups, self.model)
        zero, engine, wrapped = read_zero(settings), None, self.model  # type: Any, Any, Any
        if not divided and zero is None:
            wrapped = accelerator.prepare(self.model)
        optimizer: Any = make_optimizer(self.stage, self.groups, betas=settings.betas, where=where)
        average = Average(self.groups, settings.ema) if settings.ema else None
        if self.resumed is not None:
            done = self.name in self.progress.stages_done and not any(self.resumed.glob("ema*.safetensors"))
            if average is not None and not done:  # of a stage that is done, the model has the averages
                average.load(self.resumed)
        if zero is not None:  # the weights are in place: the engine takes copies
            engine = Zero(self.model, optimizer, zero, self.stage, settings)
            wrapped = engine.engine
        if self.resumed is not None:
            saved = self.resumed / "optimizer.safetensors"
            load_moments(optimizer, saved) if engine is None else engine.load(saved)
        if accelerator.scaler is not None:
            optimizer = accelerator.prepare(optimizer)
        if accelerator.scaler is not None and self.progress.scaler:
            accelerator.scaler.load_state_dict(self.progress.scaler)
        return Stepper(
            self.name, self.stage, settings, self.objective, self.model, wrapped, optimizer, average, accelerator,
            divided, engine,
        )  # fmt: skip

    def _step(self, window: list[Any]) -> None:
        progress = self.progress
        taken = self.stepper.take(window, progress)
        self.skipped = 0 if taken else self.skipped + 1
        progress.step, progress.stage_step = progress.step + 1, progress.stage_step + 1
        tokens = sum(int(getattr(b, "batch", b).attend_BL.sum()) for b in window)
        progress.tokens += tokens * self.accelerator.num_processes
        if self.skipped == IN_A_ROW:
            what = f"the loss or its gradient, {IN_A_ROW} times in a row,"
            refuse(what, self.name, self.stage.lr, progress.step, self.run, main=self.main)

    def _log(self, seconds: float) -> dict[str, str]:
        """Write a line of figures. Returns what the progress bar shows. Raises ConfigError where one is not finite."""
        progress, meters = self.progress, self.stepper.meters
        ago = meters.diverged(self.accelerator)
        if ago is not None:
            step = progress.step - ago
            refuse("the loss or its gradient", self.name, self.stage.lr, step, self.run, main=self.main)
        progress.seconds += seconds
        figures = meters.read(self.accelerator, seconds)
        if not math.isfinite(figures["loss"]):  # of finite ones, which are too large to be added up
            refuse("the loss", self.name, self.stage.lr, progress.step, self.run, main=self.main)
        progress.loss[self.name] = figures["loss"]
        if progress.skipped:
            figures["skipped"] = progress.skipped
        if self.main:
            lr = self.stage.lr * lr_factor(progress.stage_step - 1, self.stage)
            self.run.log(progress.step, {"stage": self.name, "lr": lr, **figures})
        return {"loss": f"{figures['loss']:.4f}", "tokens_s": f"{figures['tokens_per_second']:.0f}"}

    def _judged(self) -> bool:
        """Log the bound on held-out rows, of the averages where weights are averaged, and remove the checkpoints that
        are no longer kept. Returns whether the stage ends here.

        Raises ConfigError for a bound that is not finite, unless such steps are skipped and others are to come.
        """
        if self.task is None or self.stage.eval is None:
            return False
        progress, figures = self.progress, {}  # type: Progress, dict[str, float]
        with self._to_judge():
            if self.held_out is not None:
                divided = self.stepper.divided
                figures = evaluate_bound(self.model, self.stage, self.task, self.held_out, divided=divided)
        wrong = any_process(not all(map(math.isfinite, figures.values())), self.accelerator)
        found = {} if wrong else self._search()
        if self.main:
            self.run.log(progress.step, {"stage": self.name, **figures, **found})
        ended = self._ended() or progress.stage_step == self.stage.steps
        if wrong and (ended or self.settings.on_divergence == "stop"):
            what, step = "the bound on held-out rows", progress.step
            refuse(what, self.name, self.stage.lr, step, self.run, main=self.main, before=step)
        if self.main:
            if not self.toy and (line := unused(figures, f"{self.name}, step {progress.step}")):
                tqdm.write(f"warning: {line}", file=sys.stderr)
            self._prune()
        return ended

    @contextmanager
    def _to_judge(self) -> Iterator[None]:
        """Within it the model has the averages; weights in shards are put together in their low precision."""
        average, low = self.stepper.average, self.accelerator.autocast() if self.stepper.divided else nullcontext()
        with low, average.in_place() if average is not None else nullcontext():
            yield

    def _search(self) -> dict[str, float]:
        """Let an objective that depends on held-out rows look at them, if steps are to come. Returns what it logs."""
        objective: Any = self.objective
        if self.progress.stage_step == self.stage.steps or not hasattr(objective, "search") or self.task is None:
            return {}
        rows, seed = self.held_out, self.settings.seed
        with self._to_judge():
            found = searched(objective, self.model, self.stage, self.task, rows, self.accelerator, seed)
        self.progress.found[self.name] = found
        self.objective = self.stepper.objective = objective.found(found)
        return found

    def _ended(self) -> bool:
        """Whether the last bounds were no better than one before, `patience` times: as the metrics have them, so that
        a run that resumes here ends here too."""
        if not self.stage.patience:
            return False
        ended = self.main and since_lowest(self.run.bounds(self.name)) >= self.stage.patience
        return any_process(ended, self.accelerator)

    def _prune(self) -> None:
        best = self.run.best(self.name, self.settings.keep_best)
        prune(self.run.checkpoints, self.settings.keep, best, self.run.not_finite())

    def _save(self, last: bool, due: bool) -> None:
        progress, stepper, accelerator = self.progress, self.stepper, self.accelerator
        state = moments(stepper.optimizer) if stepper.engine is None else stepper.engine.moments()
        if last:
            progress.stages_done.append(self.name)
        if accelerator.scaler is not None:
            progress.scaler = dict(accelerator.scaler.state_dict())
        done = last and self.name != list(self.settings.stages)[-1]  # nothing resumes the stage itself
        average = stepper.average
        with average.in_place() if average is not None else nullcontext() as averaged:
            kept = {"optimizer": {} if done else state}
            if averaged is not None and not done:
                kept["ema"] = averaged
            frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
            saved = [(n, t) for n, t in weights(self.model).items() if n not in frozen]
            if wrong := not_finite([*saved, *(pair for one in kept.values() for pair in one.items())], accelerator):
                refuse(f"the weight {wrong}", self.name, self.stage.lr, progress.step, self.run, main=self.main)
            if self.main or stepper.divided:
                save_checkpoint(
                    self.run.checkpoints, self.model, progress, state=kept, frozen=self.frozen, main=self.main,
                    extra=config_entries(self.config, self.task),
                )  # fmt: skip
        if self.main and not due:  # of a bound that is yet to come, earlier checkpoints may be the last that are sound
            self._prune()
        if last and self.main:
            remove_frozen(self.run.checkpoints)
        accelerator.wait_for_everyone()
