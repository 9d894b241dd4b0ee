"""Training that has diverged: it ends in one line, before anything that is not finite is saved.

Under `train.on_divergence: skip` a step whose loss or gradient is not finite changes nothing and is counted; a run that
has to skip `IN_A_ROW` steps, one after the other, has diverged all the same.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch.optim import Optimizer

from mmdiff.errors import ConfigError
from mmdiff.runs.folder import Run
from mmdiff.runs.progress import checkpoints_in

IN_A_ROW = 20


def refuse(what: str, stage: str, lr: float, step: int, run: Run, *, main: bool = True) -> NoReturn:
    """Raise ConfigError that says what was not finite, at which step, what is kept, and what to try.

    main: this process writes the run's metrics, whose last line says the same until the run is resumed.
    """
    if main:
        run.log(step, {"stage": stage, "diverged": what})
    saved = checkpoints_in(run.checkpoints)
    kept = f"the last checkpoint, {saved[-1]}, is as it was" if saved else "nothing was saved yet"
    raise ConfigError(
        f"train.stages.{stage}: {what} is not a finite number at step {step} (lr {lr:g}); {kept}. Try a smaller lr, a "
        "longer warmup or a smaller train.clip, with another name="
    )


def not_finite(optimizer: Optimizer) -> str | None:
    """Returns the name of a trained weight that is not finite, or whose moments are not; None where all are.

    Of a sharded weight this process looks at its own shard.
    """
    names: list[str] = []
    flags: list[torch.Tensor] = []
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for value in (parameter, *optimizer.state.get(parameter, {}).values()):
                if isinstance(value, torch.Tensor):
                    local = value.to_local() if hasattr(value, "to_local") else value
                    names.append(name)
                    flags.append(local.detach().isfinite().all().to(parameter.device))
    wrong = [name for name, fine in zip(names, torch.stack(flags).tolist(), strict=True) if not fine]
    return wrong[0] if wrong else None
