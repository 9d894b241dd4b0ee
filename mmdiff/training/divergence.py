"""Training that has diverged: it ends in one line, before anything that is not finite is saved."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch.optim import Optimizer

from mmdiff.errors import ConfigError
from mmdiff.runs.checkpoint import checkpoints_in
from mmdiff.runs.folder import Run


def refuse(what: str, stage: str, lr: float, step: int, run: Run) -> NoReturn:
    """Raise ConfigError that says what was not finite, at which step, what is kept, and what to try."""
    saved = checkpoints_in(run.checkpoints)
    kept = f"the last checkpoint, {saved[-1]}, is as it was" if saved else "nothing was saved yet"
    raise ConfigError(
        f"train.stages.{stage}: {what} is not a finite number at step {step} (lr {lr:g}); {kept}. Try a smaller lr, a "
        "longer warmup or a smaller train.clip, with another name="
    )


def not_finite(optimizer: Optimizer) -> str | None:
    """Returns the name of a trained weight that is not finite, or whose moments are not; None where all are."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for value in (parameter, *optimizer.state.get(parameter, {}).values()):
                if not bool(torch.as_tensor(value).isfinite().all()):
                    return str(name)
    return None
