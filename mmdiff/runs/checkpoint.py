"""Checkpoints of a run: written aside and renamed, so a kill at any moment leaves the last whole one.

    runs/<name>/checkpoints/step-00000500/   a saved model (loadable as it is), and
        trainer.json             where training stands
        optimizer.safetensors    AdamW's moments, by parameter name

Nothing else is needed to go on bitwise: noise, data order, dropout and learning rates are functions of the step.
Weights that the stage does not train are written once a stage and linked into each checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from mmdiff.errors import ConfigError
from mmdiff.files import aside, part_of, remove
from mmdiff.model import MMDiff
from mmdiff.model.saving import weights, write_model


@dataclass
class Progress:
    """How far training has come: `step` counts over all stages, `stage_step` within the stage."""

    stage: str = ""
    step: int = 0
    stage_step: int = 0
    seconds: float = 0.0  # of training, over all interruptions
    tokens: int = 0  # attended positions seen
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16's loss scale
    stages_done: list[str] = field(default_factory=list)
    loss: dict[str, float] = field(default_factory=dict)  # of the last logged steps of each stage


def save_frozen(model: MMDiff, file: Path) -> None:
    """Write the parameters that no rule trains. Buffers are not among them: a trained part may move its own."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as part:
        save_file({n: t for n, t in weights(model).items() if n in frozen}, part, metadata={"format": "pt"})


def save_checkpoint(
    folder: Path,
    model: MMDiff,
    optimizer: Optimizer | None,
    progress: Progress,
    *,
    extra: Mapping[str, Any],
    frozen: Path,
    keep: int,
) -> None:
    """Write `folder`/step-N, then remove all but the newest `keep`."""
    target = folder / f"step-{progress.step:08d}"
    if target.exists():
        return
    with aside(target) as part:
        write_model(model, part, extra=extra, frozen=frozen)
        save_file(moments(optimizer) if optimizer is not None else {}, part / "optimizer.safetensors")
        (part / "trainer.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")
    prune(folder, keep)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep`, out of sight first: a kill must not leave half a checkpoint under its name."""
    for old in checkpoints_in(folder)[:-keep]:
        remove(old.rename(part_of(old)))


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / "trainer.json").is_file())


def read_progress(folder: Path) -> Progress:
    """The progress that a checkpoint has. Raises ConfigError."""
    try:
        return Progress(**json.loads((folder / "trainer.json").read_text()))
    except (OSError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{folder / 'trainer.json'}: not a checkpoint of this version ({error})") from None


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of AdamW by parameter name; groups carry `names` beside `params`."""
    out = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                out[f"{key}:{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return out


def load_moments(optimizer: Optimizer, file: Path) -> None:
    """Put saved moments in place. Raises ConfigError when they are of other parameters."""
    with safe_open(file, "pt") as saved:
        keys = set(saved.keys())
        for group in optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                state = {}
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    if f"{key}:{name}" in keys:
                        value = saved.get_tensor(f"{key}:{name}")
                        state[key] = value if key == "step" else value.to(parameter.device)
                        keys.discard(f"{key}:{name}")
                if state:
                    optimizer.state[parameter] = state
    if keys:
        raise ConfigError(f"{file}: moments of {sorted(keys)[0].partition(':')[2]}, which this stage does not train")
