"""Checkpoints of a run: written aside and renamed, so a kill at any moment leaves the last whole one.

    runs/<name>/checkpoints/step-00000500/   a saved model (loadable as it is), and
        trainer.json             where training stands
        optimizer.safetensors    AdamW's moments, by parameter name

Nothing else is needed to go on bitwise: noise, data order, dropout and learning rates are functions of the step.
Weights that the stage does not train are written once a stage and linked into each checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from mmdiff.backbones.weights import check_finite, check_header
from mmdiff.errors import ConfigError
from mmdiff.files import aside, damaged, digest, part_of, read_json, remove, write_sums, write_text
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
    samples: dict[str, int] = field(default_factory=dict)  # of a step of each stage, over all processes


def save_frozen(model: MMDiff, file: Path) -> None:
    """Write the parameters that no rule trains. Buffers are not among them: a trained part may move its own."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as part:
        save_file({n: t for n, t in weights(model).items() if n in frozen}, part, metadata={"format": "pt"})
    write_text(_digest_of(file), digest(file))


def frozen_is_whole(file: Path) -> bool:
    """Whether the file of frozen weights is there, as it was written."""
    beside = _digest_of(file)
    return file.is_file() and beside.is_file() and beside.read_bytes() == digest(file).encode()


def remove_frozen(folder: Path) -> None:
    """Remove the frozen weights that checkpoints were linked to; the checkpoints keep theirs."""
    for file in [*folder.glob("frozen-*.safetensors"), *folder.glob("frozen-*.sha256")]:
        file.unlink(missing_ok=True)


def _digest_of(file: Path) -> Path:
    return file.with_suffix(".sha256")


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
        write_sums(part, known={"frozen.safetensors": _digest_of(frozen).read_text()})
    prune(folder, keep)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep`, out of sight first: a kill must not leave half a checkpoint under its name."""
    for old in checkpoints_in(folder)[:-keep]:
        remove(old.rename(part_of(old)))


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / "trainer.json").is_file())


def last_whole(folder: Path, log: Callable[[str], None]) -> Path | None:
    """Returns the newest checkpoint whose files are as they were written, None where there is no checkpoint.

    Damaged ones that are newer are moved aside, and named by `log`. Raises ConfigError where all are damaged.
    """
    wrong: dict[Path, str] = {}
    for newest in reversed(checkpoints_in(folder)):
        if (found := damaged(newest)) is None:
            break
        wrong[newest] = found
    else:
        if wrong:
            first = next(iter(wrong.values()))
            raise ConfigError(f"{first}; no checkpoint before it is whole either: start again with --fresh")
        return None
    for checkpoint, found in wrong.items():
        hidden = checkpoint.with_name(f"damaged-{checkpoint.name}")
        remove(hidden)
        checkpoint.rename(hidden)
        log(f"{found}; moved to {hidden.name}, resuming from {newest.name}")
    return newest


def read_progress(folder: Path) -> Progress:
    """The progress that a checkpoint has. Raises ConfigError."""
    try:
        return Progress(**read_json(folder / "trainer.json"))
    except (OSError, TypeError) as error:
        raise ConfigError(f"{folder / 'trainer.json'}: not a checkpoint of this version ({error})") from None


def samples_of_steps(folder: Path) -> dict[str, int]:
    """Returns how many samples a step of each stage has, by the newest checkpoint in a folder that says so."""
    for checkpoint in reversed(checkpoints_in(folder)):
        with suppress(ConfigError):
            return read_progress(checkpoint).samples
    return {}


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of AdamW by parameter name; groups carry `names` beside `params`."""
    out = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                out[f"{key}:{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return out


def load_moments(optimizer: Optimizer, file: Path) -> None:
    """Put saved moments in place.

    Raises ConfigError for a file that cannot be read, and for moments of other parameters, of another shape or kind of
    number, of a part of a parameter's only, or not finite: AdamW's fused kernel would read beyond them.
    """
    wanted: dict[str, tuple[Tensor, str, Tensor]] = {}  # key in the file -> parameter, key in the state, its like
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            likes = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            wanted |= {f"{key}:{name}": (parameter, key, like) for key, like in likes.items()}
    states: dict[Tensor, dict[str, Tensor]] = {}
    try:
        with safe_open(file, "pt") as saved:
            for stored in saved.keys():
                if stored not in wanted:
                    _, _, name = stored.partition(":")
                    raise ConfigError(f"{file}: moments of {name or stored}, which this stage does not train")
                parameter, key, like = wanted[stored]
                check_header(saved.get_slice(stored), like, f"{file}: {stored}")
                value = saved.get_tensor(stored)
                check_finite(value, f"{file}: {stored}")
                if value.dtype != like.dtype:
                    raise ConfigError(f"{file}: {stored} holds {value.dtype}, expected {like.dtype}")
                if key != "exp_avg" and bool((value < 0).any()):
                    raise ConfigError(f"{file}: {stored} is negative")
                states.setdefault(parameter, {})[key] = value if key == "step" else value.to(parameter.device)
    except (SafetensorError, FileNotFoundError) as error:
        raise ConfigError(f"{file}: not a readable safetensors file ({error})") from None
    for stored, (parameter, key, _) in wanted.items():
        if parameter in states and key not in states[parameter]:  # one that never had a gradient has none of the three
            raise ConfigError(f"{file}: {stored} is missing")
    optimizer.state.update(states)
