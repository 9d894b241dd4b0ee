"""Checkpoints of a run: written aside and renamed, so a kill at any moment leaves the last whole one.

    runs/<name>/checkpoints/step-00000500/   a saved model (loadable as it is), and
        trainer.json             where training stands, see mmdiff.runs.progress
        optimizer.safetensors    the optimizer's moments, by parameter name, see mmdiff.runs.moments
        ema.safetensors          where weights are averaged: both, see mmdiff.training.engines.ema

Nothing else is needed to go on bitwise: noise, data order, dropout and learning rates are functions of the step.
Files hold whole tensors, so any number of processes resumes; one of more than 4 GiB is several, as those of a model.
Weights that the stage does not train are written once a stage and linked into each checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from mmdiff.config.settings import Config
from mmdiff.errors import ConfigError
from mmdiff.files import aside, damaged, digest, part_of, remove, without_nan, write_sums, write_text
from mmdiff.model import MMDiff
from mmdiff.model.saving import write_model
from mmdiff.model.tensors import gathered, give_shards, weights, write_tensors

from .progress import Progress, checkpoints_in


def save_frozen(model: MMDiff, file: Path) -> None:
    """Write the parameters that no rule trains. Buffers are not among them: a trained part may move its own."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as part:
        held = {name: gathered(tensor) for name, tensor in weights(model).items() if name in frozen}
        save_file(held, part, metadata={"format": "pt"})
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
    progress: Progress,
    *,
    state: Mapping[str, Mapping[str, Tensor]],
    extra: Mapping[str, Any],
    frozen: Path,
    main: bool = True,
) -> None:
    """Write `folder`/step-N.

    state: what training needs besides, tensors by the stem of their file. main: False writes nothing, and gives this
    process's shards to the one that does.
    """
    target = folder / f"step-{progress.step:08d}"
    if not main:
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        give_shards([tensor for name, tensor in weights(model).items() if name in trained])
        for tensors in state.values():
            give_shards(list(tensors.values()))
        return
    if target.exists():
        return
    with aside(target) as part:
        write_model(model, part, extra=extra, frozen=frozen)
        for stem, tensors in state.items():
            write_tensors(tensors, part, stem)
        (part / "trainer.json").write_text(json.dumps(without_nan(asdict(progress)), indent=2) + "\n")
        write_sums(part, known={"frozen.safetensors": _digest_of(frozen).read_text()})


def config_entries(config: Config, task: Any) -> dict[str, Any]:
    """Returns the `task` and `sampler` entries of a saved model's config.json, with the task's constants from data."""
    node, constants = config.task, getattr(task, "constants", None)
    if constants is not None:
        node = {**({"target": node} if isinstance(node, str) else node), **constants()}
    return {"task": node, "sampler": vars(config.sampler)}


def prune(folder: Path, keep: int, best: Collection[int] = (), diverged: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` and those of the steps `best`, out of sight first: a kill must not leave half a
    checkpoint under its name. Those of the steps `diverged` count among the `keep` only where they are the newest."""
    found = {int(path.name.removeprefix("step-")): path for path in checkpoints_in(folder)}
    sound = [step for step in found if step not in diverged]
    kept = {*sound[-keep:], *list(found)[-1:], *best}
    for step, old in found.items():
        if step not in kept:
            remove(old.rename(part_of(old)))


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
