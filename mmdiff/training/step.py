"""One step: windows of batches -> noised copies -> hidden states -> loss of masked positions -> one sum -> new weights.

A step plans all its forwards first; their counts, summed over the window and all processes, are the denominators. So
the gradient of a step does not depend on how its samples are split into forwards or processes. Every draw is a
function of (seed, step, sample, copy), so a run that was killed ends as one that was not.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmdiff.canvas.batch import to_device
from mmdiff.canvas.packing import PackedModel, Packing
from mmdiff.config.settings import StageConfig, TrainConfig
from mmdiff.diffusion.keys import NoiseKey
from mmdiff.model import MMDiff
from mmdiff.model.prefix import Layout
from mmdiff.protocols import Objective
from mmdiff.runs.progress import Progress

from .annealing import annealed
from .engines.ema import Average
from .engines.zero import Zero
from .meters import Meters
from .optim import lr_factor
from .parallel import clipped, touched, unsynced, unused_parts


@dataclass
class Stepper:
    """What the steps of a stage are taken with. wrapped: the model as it is called, replicated, in shards or as it is.

    divided: whether the model lies in shards. average: of the weights; None: there is none. engine: of others, which
        takes the steps; None: they are taken here.
    """

    name: str
    stage: StageConfig
    settings: TrainConfig
    objective: Objective
    model: MMDiff
    wrapped: Any
    optimizer: Any
    average: Average | None
    accelerator: Accelerator
    divided: bool
    engine: Zero | None = None
    meters: Meters = field(default_factory=Meters)

    def __post_init__(self) -> None:
        self.parameters: list[nn.Parameter] = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.together = self.divided or self.engine is not None  # gradients are added up as they come, by all processes
        self.optional = unused_parts(self.model) if self.together else {}
        self.copies: int = getattr(self.objective, "copies", 1)

    def key(self, progress: Progress) -> NoiseKey:
        """Returns the key of the step that `progress` stands before."""
        size = self.stage.batch_size * self.stage.accumulate * self.accelerator.num_processes
        return NoiseKey(self.settings.seed, progress.step, self.name, batch=size)

    def take(self, window: list[Any], progress: Progress) -> bool:
        """Take the step that `progress` stands before. Returns False where it was skipped: nothing has changed then.

        window: batches, or what the objective has collected of them.
        """
        stage, accelerator, world = self.stage, self.accelerator, self.accelerator.num_processes
        key = self.key(progress)
        seed(key.fold(f"dropout/{accelerator.process_index}").integer(1 << 62))
        if stage.anneal:
            window = [annealed(batch, key, progress.stage_step, stage.anneal) for batch in window]
        self.meters.unusable.update(row for b in window for row in getattr(b, "batch", b).unusable)
        plans = [self.objective.plan(batch, key, self.model.vocab) for batch in window]
        count, absent = self._counted(plans)
        factor = lr_factor(progress.stage_step, stage)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        for i, plan in enumerate(plans):
            self._lay_out(plan)
            ready, packing = (to_device(part, accelerator.device) for part in (plan, self._packing(plan)))
            last = i == len(plans) - 1
            with nullcontext() if last else unsynced(self.wrapped, accelerator, self.together):
                with self._precision():
                    total, terms = self.wrapped(self._terms, ready, count, packing)
                total = total * world if world > 1 else total  # processes take the mean
                if self.engine is None:
                    accelerator.backward(total)
                else:
                    self.engine.backward(total, last=last)
            self.meters.add(terms, count, int(plan.batch.attend_BL.sum()) * self.copies)
        for parameter in absent if self.engine is None else ():
            parameter.grad = None
        if not self._finish():
            progress.skipped += 1
            return False
        if self.average is not None:
            self.average.update(progress.stage_step + 1)
        return True

    def _precision(self) -> AbstractContextManager[Any]:
        if self.engine is not None:
            return self.engine.low_precision(self.accelerator.device)
        return self.accelerator.autocast() if self.divided else nullcontext()

    def _lay_out(self, plan: Any) -> None:
        """Find what the copies of a sample share, while it is the host that knows."""
        shared = getattr(self.objective, "blockwise", False) or self.model.shares_context(self.copies)
        if shared and hasattr(plan, "layout"):
            plan.layout = Layout.of(self.model.attention, plan.batch)

    def _packing(self, plan: Any) -> Packing | None:
        row_R = getattr(plan, "row_R", None)
        return Packing.of(plan.batch, row_R, self.stage.pack) if self.stage.pack and row_R is not None else None

    def _terms(self, model: MMDiff, plan: Any, count: dict[str, float], packing: Packing | None) -> tuple[Tensor, Any]:
        if packing is not None:  # its rows are those of the plan, by name
            packing = replace(packing, row_R=plan.row_R)
        terms = self.objective.terms(PackedModel(model, packing) if packing else model, plan)
        total = sum((t.value * (t.coefficient / count[n]) for n, t in terms.items()), start=torch.zeros(()))
        return (touched(total, unused_parts(model)) if self.together else total), terms

    def _counted(self, plans: list[Any]) -> tuple[dict[str, float], list[nn.Parameter]]:
        """Returns the denominators over all forwards and processes, and the parameters that none of these uses."""
        names, kinds = sorted(plans[0].counts), sorted(self.optional)
        counts = [sum(plan.counts[name] for plan in plans) for name in names]
        counts += [float(any(not kind or kind in plan.batch.media for plan in plans)) for kind in kinds]
        if self.accelerator.num_processes > 1:
            counts_N = torch.tensor(counts, device=self.accelerator.device)
            counts = self.accelerator.reduce(counts_N).tolist()
        seen = dict(zip(kinds, counts[len(names) :], strict=True))
        absent = [p for kind in kinds if not seen[kind] for p in self.optional[kind]]
        return {name: max(c, 1.0) for name, c in zip(names, counts[: len(names)], strict=True)}, absent

    def _finish(self) -> bool:
        """Clip the gradient and move the weights, unless the step is one to skip."""
        if self.engine is not None:
            self.meters.norm(self.engine.norm())
            self.meters.step()
            return True
        accelerator, scaled = self.accelerator, self.accelerator.scaler is not None
        skips = self.settings.on_divergence == "skip" and not scaled
        if self.settings.clip or skips:
            if scaled:
                accelerator.unscale_gradients(self.optimizer)
            self.meters.norm(clipped(self.parameters, self.settings.clip), scaled=scaled)
        taken = not (skips and self._wrong())
        if taken:
            self.optimizer.step()
            self.meters.step()
        else:
            self.meters.skip()
        self.optimizer.zero_grad()
        return taken

    def _wrong(self) -> bool:
        """Whether a loss or gradient of any process is not finite: the one wait of a step that may be skipped."""
        wrong = self.meters.wrong()
        if self.accelerator.num_processes > 1:
            wrong = self.accelerator.reduce(wrong.to(self.accelerator.device))
        return bool(wrong > 0)


def recompute(model: MMDiff, *, on: bool) -> None:
    """Let backbone and trained encoders compute activations again in the backward pass (gradient checkpointing)."""
    model.backbone.gradient_checkpointing(on)
    for kind, encoder in model.encoders.items():
        encoder.gradient_checkpointing(on and not model.frozen(kind))  # type: ignore[operator]


def seed(number: int) -> None:
    """As `torch.manual_seed`, which without a GPU keeps a traceback of each call for the GPU that may come, and takes
    a millisecond to do so."""
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
