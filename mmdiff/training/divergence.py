"""Training that has diverged: it ends in one line, before anything that is not finite is saved.

Under `train.on_divergence: skip` a step whose loss or gradient is not finite changes nothing and is counted. A bound on
held-out rows that is not finite is then one that is no better. A run that has to skip `IN_A_ROW` steps, one after the
other, or ends with such a bound, has diverged all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor

from mmdiff.errors import ConfigError
from mmdiff.runs.folder import Run
from mmdiff.runs.progress import checkpoints_in

IN_A_ROW = 20


def refuse(
    what: str, stage: str, lr: float, step: int, run: Run, *, main: bool = True, before: int | None = None
) -> NoReturn:
    """Raise ConfigError that says what was not finite, at which step, what is kept, and what to try.

    main: this process writes the run's metrics, whose last line says the same until the run is resumed. before: only
    checkpoints of earlier steps are as they should be.
    """
    if main:
        run.log(step, {"stage": stage, "diverged": what})
    saved = [c for c in checkpoints_in(run.checkpoints) if before is None or int(c.name.removeprefix("step-")) < before]
    kept = f"the last checkpoint, {saved[-1]}, is as it was" if saved else "nothing was saved yet"
    raise ConfigError(
        f"train.stages.{stage}: {what} is not a finite number at step {step} (lr {lr:g}); {kept}. Try a smaller lr, a "
        "longer warmup or a smaller train.clip, with another name="
    )


def not_finite(tensors: Iterable[tuple[str, Tensor]], accelerator: Accelerator) -> str | None:
    """Returns the name of the first tensor that is not finite; None where all are, in every process.

    Of a sharded one each process looks at its own shard. All processes call it, and all have the same answer where one
    of them has found something; its name is known to that one only.
    """
    names: list[str] = []
    flags: list[Tensor] = []
    for name, value in tensors:
        if value.is_floating_point():
            local = value.to_local() if hasattr(value, "to_local") else value
            names.append(name)
            flags.append(local.detach().isfinite().all().to(accelerator.device))
    fine_N = torch.stack(flags).tolist() if flags else []
    wrong = next((name for name, fine in zip(names, fine_N, strict=True) if not fine), None)
    return (wrong or "of another process") if any_process(wrong is not None, accelerator) else None


def any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether a flag is up in any process. All of them call it."""
    if accelerator.num_processes == 1:
        return flag
    found = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device))
    return bool(found > 0)
